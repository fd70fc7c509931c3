"""Speed and memory of training steps: transformers' LLaMA, our dense, Loop and ITT models.

    python -m benchmarks.train_step                           # CPU: about an hour
    python -m benchmarks.train_step --seq-lens 1024 --rounds 3
    python -m benchmarks.train_step --microbatch 8 --compile  # GPU

A step is forward, backward, clipping and AdamW. Models take turns in random order, round after
round, and each is compared with transformers' loop and our dense model of its round. All share the
LLaMA weights and the optimizer. The ratio to expect is that of the FLOPs of the matrix products.
"Recomputed" are models with activation checkpointing. The trainer's share: Composer's trainer with
a recipe's whole equipment takes turns with a bare loop over the same model, optimizer and batches.

On a CPU: float32, and seconds of the process, so that other processes hardly count. On a GPU:
bfloat16 autocast, wall time, and MFU as llm-foundry counts it: matrix products and attention over
all pairs of tokens, three times the forward pass, without what is recomputed, over the peak.

Peak memory of activations is what a step needs above weights, gradients and optimizer: on a GPU as
allocated, on a CPU as PyTorch's memory tracker adds it up, without computing anything.
"""

import contextlib
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest import mock

import torch
import typer
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.loader import make_shards
from benchmarks.machine import REPOSITORY, command_line, machine
from itt_composer.basics.files import write_json
from itt_composer.models import IttConfig, IttForCausalLM, estimates
from itt_composer.models import modeling as itt_modeling
from itt_composer.models.flops import executed_flops
from itt_composer.models.wrapping import checkpoint_activations, compile_layers

RAW, DENSE = "transformers LLaMA", "dense"
PEAK_FLOPS = {**estimates.PEAK_FLOPS, "H200": estimates.PEAK_FLOPS["H100"]}
IS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if IS_GPU else "cpu"


class Kind(NamedTuple):
    """What a model is: its thinking settings, and what it recomputes."""

    thinking: dict[str, Any]
    recomputed: str = "none"


def itt(ratio: float) -> dict[str, Any]:
    """Return the settings of an ITT×4 of equal ratios."""
    return {"thinking": "itt", "thinking_steps": 4, "select_ratios": [ratio] * 3}


KINDS = {
    DENSE: Kind({"thinking": "dense"}),
    "Loop×4": Kind({"thinking": "loop", "thinking_steps": 4}),
    "ITT×4 50/50/50": Kind(itt(0.5)),
    "ITT×4 50/50/50, steps recomputed": Kind(itt(0.5), "thinking_steps"),
    "ITT×4 50/50/50, all recomputed": Kind(itt(0.5), "all"),
    "ITT×4 90/90/90": Kind(itt(0.9)),
    "ITT×4 90/90/90, steps recomputed": Kind(itt(0.9), "thinking_steps"),
}


class Work(NamedTuple):
    """One step's batch.

    Attributes:
        rows: sequences.
        seq_len: tokens of each.
        loss_chunk_tokens: see `IttForCausalLM.forward`.
    """

    rows: int
    seq_len: int
    loss_chunk_tokens: int


def geometry(size: str) -> dict[str, Any]:
    """Read the settings of a file in `yamls/models`."""
    settings = yaml.safe_load((REPOSITORY / f"yamls/models/{size}.yaml").read_text())["model"]
    return {**settings, "attn_implementation": "sdpa"}


def make_model(size: str, kind: Kind | None) -> Any:
    """Make a model of ours, or transformers' own, in training mode."""
    if kind is None:
        return LlamaForCausalLM(LlamaConfig(**geometry(size))).train()
    model = IttForCausalLM(IttConfig(**geometry(size), **kind.thinking)).train()
    checkpoint_activations(model, kind.recomputed)
    return model


def share_weights(models: dict[str, Any]) -> list[torch.nn.Parameter]:
    """Give all models the same LLaMA parameters; returns every parameter once."""
    llama = dict(models[RAW].named_parameters())
    for model in models.values():
        for name, _ in list(model.named_parameters()):
            if name in llama:
                module, _, own = name.rpartition(".")
                setattr(model.get_submodule(module), own, llama[name])
    everything = itertools.chain(*(model.parameters() for model in models.values()))
    return list(dict.fromkeys(everything))


def loss_of(model: Any, batch: dict[str, torch.Tensor], loss_chunk_tokens: int) -> torch.Tensor:
    """Run a forward pass: transformers' loss for its model, ours for ours."""
    ours = {"loss_chunk_tokens": loss_chunk_tokens} if isinstance(model, IttForCausalLM) else {}
    with torch.autocast(DEVICE, torch.bfloat16, enabled=IS_GPU):
        return model(**batch, use_cache=False, **ours).loss


def step(
    model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], chunk: int
) -> None:
    """Do one training step."""
    loss_of(model, batch, chunk).backward()
    clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def timed(call: Callable[[], None]) -> float:
    """Return seconds: wall time on a GPU, time of the process on a CPU."""
    if not IS_GPU:
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def make_batch(work: Work, vocab_size: int) -> dict[str, torch.Tensor]:
    """Draw random tokens; the mask of ones lets attention use its causal kernel."""
    ids = torch.randint(0, vocab_size, (work.rows, work.seq_len), device=DEVICE)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def measure(
    size: str, names: list[str], work: Work, rounds: int, is_compiled: bool
) -> list[dict[str, Any]]:
    """Measure time per step of each model, and its ratio to dense and to transformers' loop."""
    kinds: dict[str, Kind | None] = {RAW: None, **{name: KINDS[name] for name in names}}
    models = {name: make_model(size, kind).to(DEVICE) for name, kind in kinds.items()}
    optimizer = torch.optim.AdamW(share_weights(models), lr=1e-5)
    for model in models.values():
        if is_compiled and isinstance(model, IttForCausalLM):
            compile_layers(model)
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(-1, rounds):  # the first round warms up, and compiles
        for name in random.Random(number).sample(list(models), len(models)):
            batch = make_batch(work, models[name].config.vocab_size)
            call = partial(step, models[name], optimizer, batch, work.loss_chunk_tokens)
            seconds = timed(call)
            if number >= 0:
                times[name].append(seconds)
            print(f"{work.seq_len} round {number} {name}: {seconds:.2f} s", file=sys.stderr)
    peaks = {
        name: peak_activations(size, model, kinds[name], work) for name, model in models.items()
    }
    return [row(name, models, times, peaks, work) for name in models]


def peak_activations(size: str, model: Any, kind: Kind | None, work: Work) -> float:
    """Measure the bytes that a forward and backward pass needs above weights and gradients."""
    if IS_GPU:
        model.zero_grad(set_to_none=False)  # gradients are there before and after
        batch = make_batch(work, model.config.vocab_size)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss_of(model, batch, work.loss_chunk_tokens).backward()
        return torch.cuda.max_memory_allocated() - before
    masks = "transformers.models.llama.modeling_llama.create_causal_mask"
    with (
        FakeTensorMode(),
        mock.patch.object(itt_modeling, "causal_mask", return_value=None),
        mock.patch(masks, return_value=None),
    ):
        fake = make_model(size, kind)
        for parameter in fake.parameters():
            parameter.grad = torch.zeros_like(parameter)
        tracker = MemTracker()
        tracker.track_external(fake)
        batch = make_batch(work, fake.config.vocab_size)
        with tracker:
            loss_of(fake, batch, work.loss_chunk_tokens).backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
        own = sum(2 * parameter.nbytes for parameter in fake.parameters())
        return peak["Total"] - own


def row(
    name: str,
    models: dict[str, Any],
    times: dict[str, list[float]],
    peaks: dict[str, float],
    work: Work,
) -> dict[str, Any]:
    """Make one line of the table."""

    def flops(of: str) -> int:
        config = models[DENSE if of == RAW else of].config
        return 3 * executed_flops(config, work.rows, work.seq_len)

    def ratio(to: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))

    seconds = statistics.median(times[name])
    predicted, best = flops(name) / flops(DENSE), peak_flops()
    return {
        "seq_len": work.seq_len,
        "model": name,
        "tokens_per_second": work.rows * work.seq_len / seconds,
        "time_over_dense": ratio(DENSE),
        "executed_flops_over_dense": predicted,
        "measured_over_predicted": ratio(DENSE) / predicted,
        "speed_over_transformers": 1 / ratio(RAW),
        "peak_activation_megabytes": peaks[name] / 2**20,
        "peak_over_dense": peaks[name] / peaks[DENSE],
        "mfu": None if best is None else flops(name) / seconds / best,
    }


def peak_flops() -> float | None:
    """Return the bfloat16 FLOP/s of this GPU, if it is a known one."""
    name = torch.cuda.get_device_name() if IS_GPU else ""
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def trainer_share(size: str, name: str, work: Work, rounds: int, is_compiled: bool) -> float:
    """Measure a batch in Composer's trainer over one of a bare loop; they take turns."""
    from composer.core import Callback

    from itt_composer.models.building import model_of_recipe
    from itt_composer.models.composer_model import unwrap
    from itt_composer.recipe.schema import load_recipe
    from itt_composer.training.train import build_trainer
    from itt_composer.training.training_run import TrainingRun

    class BareSteps(Callback):
        """After each batch of the trainer, the same step without it."""

        def __init__(self) -> None:
            self.pairs: list[tuple[float, float]] = []
            self.since: float | None = None

        def batch_end(self, state: Any, logger: Any) -> None:
            now = clock()
            batch = {key: state.batch[key] for key in ("input_ids", "attention_mask", "labels")}
            model = unwrap(state.model)
            bare = partial(step, model, state.optimizers[0], batch, work.loss_chunk_tokens)
            seconds = timed(bare)
            if self.since is not None:
                self.pairs.append((now - self.since, seconds))
            self.since = clock()

    def clock() -> float:
        if IS_GPU:
            torch.cuda.synchronize()
        return time.perf_counter() if IS_GPU else time.process_time()

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        overrides = trainer_overrides(Path(folder), size, work, rounds, is_compiled)
        kind = "llama" if name == DENSE else "itt_x4"
        recipe = load_recipe(REPOSITORY / f"yamls/pretrain/{kind}_162m.yaml", overrides)
        model = model_of_recipe(recipe)
        trainer = build_trainer(recipe, TrainingRun(recipe), model, "gpu" if IS_GPU else "cpu")
        bare_steps = BareSteps()
        trainer.state.callbacks.append(bare_steps)
        with contextlib.suppress(StopIteration):
            trainer.fit(duration=f"{rounds + 1}ba")
        trainer.close()
    return statistics.median(whole / bare for whole, bare in bare_steps.pairs)


def trainer_overrides(
    folder: Path, size: str, work: Work, rounds: int, is_compiled: bool
) -> list[str]:
    """Make shards in a folder and give the keys of a recipe that trains on them."""
    shards = folder / "shards"
    tokens = work.rows * work.seq_len * (rounds + 4)
    make_shards(shards, max(1, tokens * 4 // 10**6), work.seq_len, geometry(size)["vocab_size"])
    return [
        f"parts.model={REPOSITORY}/yamls/models/{size}.yaml",
        f"run_folder={folder}/run",
        f"data={{local: {shards}, seq_len: {work.seq_len}, domains: null, num_workers: 0}}",
        "algorithms.capacity_annealing=null",
        "loggers.tensorboard=null",
        f"train.max_duration={rounds + 2}ba",
        f"train.global_batch_size={work.rows}",
        f"train.microbatch_size={work.rows}",
        f"train.eval_batch_size={work.rows}",
        "train.eval_batches=1",
        f"train.eval_interval={rounds + 2}ba",
        "train.save_interval=1000ba",
        f"train.calibration_rows={work.rows}",
        f"train.precision={'amp_bf16' if IS_GPU else 'fp32'}",
        f"train.device={'gpu' if IS_GPU else 'cpu'}",
        f"train.compile={str(is_compiled).lower()}",
        f"train.loss_chunk_tokens={work.loss_chunk_tokens}",
    ]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Write the results as a Markdown table."""
    headers = (
        "seq",
        "model",
        "tokens/s",
        "÷ transformers'",
        "time ÷ dense",
        "FLOPs ÷ dense",
        "measured ÷ predicted",
        "peak activations, MB",
        "÷ dense",
        "MFU",
    )
    lines = [f"| {' | '.join(headers)} |", f"|{' --- |' * len(headers)}"]
    for found in rows:
        cells = (
            f"{found['seq_len']:,}",
            found["model"],
            f"{found['tokens_per_second']:,.0f}",
            f"{found['speed_over_transformers']:.2f}",
            f"{found['time_over_dense']:.2f}",
            f"{found['executed_flops_over_dense']:.2f}",
            f"{found['measured_over_predicted']:.2f}",
            f"{found['peak_activation_megabytes']:,.0f}",
            f"{found['peak_over_dense']:.2f}",
            "–" if found["mfu"] is None else f"{100 * found['mfu']:.1f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    size: Annotated[str, typer.Option(help="A file of yamls/models.")] = "llama_162m",
    seq_lens: Annotated[str, typer.Option(help="Tokens of a sequence.")] = "1024,4096",
    microbatch: Annotated[int, typer.Option(help="Sequences of a step.")] = 1,
    rounds: Annotated[int, typer.Option(help="Of which the median is taken.")] = 3,
    models: Annotated[str, typer.Option(help="Some of the names, by ';'.")] = ";".join(KINDS),
    trainer: Annotated[bool, typer.Option(help="Measure Composer's trainer as well.")] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile our layers.")] = False,
    loss_chunk_tokens: Annotated[int, typer.Option(help="Logits at a time.")] = 1024,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Measure training steps."""
    torch.set_num_threads(threads)
    device = torch.cuda.get_device_name() if IS_GPU else machine()
    rows: list[dict[str, Any]] = []
    shares: list[str] = []
    for seq_len in map(int, seq_lens.split(",")):
        work = Work(microbatch, seq_len, loss_chunk_tokens)
        rows += measure(size, models.split(";"), work, rounds, compiled)
    if trainer:
        work = Work(microbatch, int(seq_lens.split(",")[0]), loss_chunk_tokens)
        for name in (DENSE, "ITT×4 50/50/50"):
            share = trainer_share(size, name, work, 2 * rounds, compiled)
            shares.append(f"Composer's trainer ÷ bare loop, {name}, {work.seq_len}: {share:.3f}")
    print(f"Device: {device}; torch {torch.__version__}, {threads} thread(s).", end=" ")
    print(f"Command: {command_line()}\n")
    print("\n".join([as_markdown(rows), "", *shares]))
    if output is not None:
        results = {"device": device, "command": command_line(), "rows": rows, "trainer": shares}
        write_json(output, results)


if __name__ == "__main__":
    typer.run(main)
