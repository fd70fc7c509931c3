"""Generation speed and memory of dense, Loop and ITT models, all in one run.

    python -m benchmarks.inference                                # both sizes; about 20 minutes
    python -m benchmarks.inference --sizes tiny --output tiny.json

Random weights; thresholds such that steps are taken in the requested shares. Models take turns,
round after round, and each is compared with the dense model of its round, so that a busy machine
slows both. The ratio to expect is that of the FLOPs of the matrix products that torch counts
while the same tokens are decoded. Batch 1, float32 on a CPU, bfloat16 on a GPU. Peak memory is of
a process that has this model alone, above what it had before.
"""

import multiprocessing
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
import yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import REPOSITORY, command_line, machine
from itt_composer.basics.files import write_json
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.layer import ThinkingStep
from itt_composer.models.thresholds import quantiles_of

STEPS = 4
DENSE = "dense"


class Subject(NamedTuple):
    """A model at one setting.

    Attributes:
        name: in the table.
        model: on its device.
        select_ratios: ρ_t; empty for a model without routers.
    """

    name: str
    model: Any
    select_ratios: tuple[float, ...] = ()


class Work(NamedTuple):
    """What each subject does in a round.

    Attributes:
        prompt_tokens: in one forward pass that fills the cache.
        new_tokens: one by one after that.
    """

    prompt_tokens: int
    new_tokens: int


def subject_names(ratios: list[float]) -> list[str]:
    """Name every subject in the order of the table."""
    routed = ["/".join([f"{100 * ratio:.0f}"] * (STEPS - 1)) for ratio in ratios]
    return ["transformers", DENSE, f"Loop×{STEPS}", *(f"ITT×{STEPS} {name}" for name in routed)]


def make_subject(size: str, name: str, trunk: Subject | None = None) -> Subject:
    """A subject with random weights, the same for all of a size, and no thresholds yet.

    Args:
        size: a file of yamls/models.
        name: one of `subject_names`.
        trunk: another ITT of this size, whose weights are shared.
    """
    geometry = yaml.safe_load((REPOSITORY / f"yamls/models/{size}.yaml").read_text())["model"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model: Any
    ratios: tuple[float, ...] = ()
    if name == "transformers":
        model = LlamaForCausalLM(LlamaConfig(**geometry))
    elif name == DENSE:
        model = IttForCausalLM(IttConfig(**geometry, thinking="dense"))
    elif name.startswith("Loop"):
        model = IttForCausalLM(IttConfig(**geometry, thinking="loop", thinking_steps=STEPS))
    else:
        ratios = tuple(int(part) / 100 for part in name.split()[1].split("/"))
        if trunk is None:
            model = IttForCausalLM(IttConfig(**geometry, thinking_steps=STEPS))
        else:
            shared = {id(parameter): parameter for parameter in trunk.model.parameters()}
            model = deepcopy(trunk.model, shared)
    model = model.eval().to(torch.device(device))
    if device == "cuda":
        model = model.to(torch.bfloat16)
    if ratios:
        model.set_select_ratios(ratios)
        for layer in model.thinking_layers:
            layer.score_quantiles = torch.zeros_like(layer.score_quantiles, dtype=torch.float32)
        model.set_router_selection("threshold")
    return Subject(name, model, ratios)


@torch.no_grad()
def set_thresholds(subject: Subject, work: Work) -> None:
    """Make the tokens that will be decoded take steps in the requested shares."""
    model, hooks = subject.model, []
    for layer in model.thinking_layers:
        for step, router in enumerate(layer.routers):

            def keep(module: Any, args: Any, scores: Any, layer: Any = layer, at: int = step):
                layer.score_quantiles[:, at] = quantiles_of(scores[:, -work.new_tokens :])

            hooks.append(router.register_forward_hook(keep))
    model(random_row(model, work), use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def decode(subject: Subject, work: Work, **options: Any) -> tuple[float, float]:
    """Do the work with random tokens; returns seconds of the prompt and of the new tokens."""
    model = subject.model
    lengths = [work.prompt_tokens] + [1] * work.new_tokens
    prompt_BS, *new = random_row(model, work).split(lengths, dim=1)
    started = now(model)
    cache = model(prompt_BS, use_cache=True, logits_to_keep=1).past_key_values
    between = now(model)
    for token_BS in new:
        model(token_BS, past_key_values=cache, use_cache=True, **options)
    return between - started, now(model) - between


def random_row(model: Any, work: Work) -> torch.Tensor:
    """Draw the tokens of all the work, always the same: (1, S)."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, work.prompt_tokens + work.new_tokens)
    return torch.randint(3, model.config.vocab_size, shape, generator=generator).to(model.device)


def now(model: Any) -> float:
    """Return seconds, once the device has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def count(subject: Subject, work: Work) -> tuple[float, list[float]]:
    """Count FLOPs executed per new token, and the share of tokens that took each step."""
    options: dict[str, Any] = {}
    taken = [0] * len(subject.select_ratios)
    if taken:

        def note(done: ThinkingStep) -> None:
            taken[done.step - 1] += int(done.is_selected_BS.sum())

        options["on_step"] = note
    used = subject.model.config._attn_implementation
    subject.model.set_attn_implementation("eager")  # torch 2.7 does not count the CPU's fused one
    with FlopCounterMode(display=False) as whole:
        decode(subject, work, **options)
    with FlopCounterMode(display=False) as prompt:
        decode(subject, Work(work.prompt_tokens, 0))
    subject.model.set_attn_implementation(used)
    flops = (whole.get_total_flops() - prompt.get_total_flops()) / work.new_tokens
    chances = work.new_tokens * len(getattr(subject.model.config, "thinking_layers", ()))
    return flops, [steps / chances for steps in taken]


def peak_memory(size: str, name: str, work: Work, thresholds: list[Any]) -> float:
    """MB that one subject needs at most while it works: weights, cache and activations.

    On a CPU to be called in a process of its own.

    Args:
        size, name: see `make_subject`.
        work: what it does.
        thresholds: every thinking layer's `score_quantiles` as lists.
    """
    before = _status("VmRSS")
    subject = make_subject(size, name)
    for layer, table in zip(_thinking_layers(subject), thresholds, strict=True):
        layer.score_quantiles.copy_(torch.tensor(table))
    if subject.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        decode(subject, work)
        return torch.cuda.max_memory_allocated() / 1e6
    decode(subject, work)
    return (_status("VmHWM") - before) / 1e6


def in_own_process(subject: Subject, size: str, work: Work) -> float:
    """Measure `peak_memory` of a subject like this one in a process of its own."""
    thresholds = [layer.score_quantiles.tolist() for layer in _thinking_layers(subject)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(peak_memory, size, subject.name, work, thresholds).result()


def _thinking_layers(subject: Subject) -> list[Any]:
    """List the layers with routers."""
    return subject.model.thinking_layers if subject.select_ratios else []


def _status(name: str) -> int:
    """Read a number of bytes that the kernel reports of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(
    size: str, ratios: list[float], work: Work, repeats: int, memory: bool
) -> list[dict[str, Any]]:
    """Measure a row of results per subject."""
    subjects: list[Subject] = []
    for name in subject_names(ratios):
        trunk = subjects[-1] if subjects and subjects[-1].select_ratios else None
        subjects.append(make_subject(size, name, trunk))
        if subjects[-1].select_ratios:
            set_thresholds(subjects[-1], work)
    counts = {subject.name: count(subject, work) for subject in subjects}
    times: dict[str, list[tuple[float, float]]] = {subject.name: [] for subject in subjects}
    for round_number in range(repeats):
        for subject in random.Random(round_number).sample(subjects, len(subjects)):
            times[subject.name].append(decode(subject, work))
    return [
        {
            **_row(size, name, work, times[name], times[DENSE], counts[name], counts[DENSE][0]),
            "peak_megabytes": in_own_process(subject, size, work) if memory else None,
        }
        for name, subject in zip(times, subjects, strict=True)
    ]


def _row(
    size: str,
    name: str,
    work: Work,
    times: list[tuple[float, float]],
    dense_times: list[tuple[float, float]],
    counted: tuple[float, list[float]],
    dense_flops: float,
) -> dict[str, Any]:
    flops, shares = counted
    ratios = [own[1] / dense[1] for own, dense in zip(times, dense_times, strict=True)]
    prompt_ratios = [own[0] / dense[0] for own, dense in zip(times, dense_times, strict=True)]
    quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "size": size,
        "model": name,
        "realised_shares": shares,
        "prefill_tokens_per_second": work.prompt_tokens / statistics.median(t[0] for t in times),
        "prefill_ratio": statistics.median(prompt_ratios),
        "decode_tokens_per_second": work.new_tokens / statistics.median(t[1] for t in times),
        "decode_ratio": statistics.median(ratios),
        "decode_ratio_quartiles": [quarters[0], quarters[2]],
        "flops_per_token": flops,
        "flops_ratio": flops / dense_flops,
        "measured_over_predicted": statistics.median(ratios) / (flops / dense_flops),
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Write the results as a Markdown table."""
    headers = (
        "size",
        "model",
        "steps taken %",
        "prefill tokens/s",
        "decode tokens/s",
        "time per token ÷ dense (quartiles)",
        "FLOPs ÷ dense",
        "measured ÷ predicted",
        "peak MB",
    )
    lines = [f"| {' | '.join(headers)} |", f"|{' --- |' * len(headers)}"]
    for row in rows:
        low, high = row["decode_ratio_quartiles"]
        cells = (
            row["size"],
            row["model"],
            "/".join(f"{100 * share:.0f}" for share in row["realised_shares"]) or "–",
            f"{row['prefill_tokens_per_second']:,.0f}",
            f"{row['decode_tokens_per_second']:,.1f}",
            f"{row['decode_ratio']:.2f} ({low:.2f}–{high:.2f})",
            f"{row['flops_ratio']:.2f}",
            f"{row['measured_over_predicted']:.2f}",
            "–" if row["peak_megabytes"] is None else f"{row['peak_megabytes']:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    sizes: Annotated[str, typer.Option(help="Files of yamls/models.")] = "tiny,llama_162m",
    ratios: Annotated[str, typer.Option(help="ρ of every step of an ITT.")] = "0.9,0.7,0.5,0.3,0",
    prompt_tokens: Annotated[int, typer.Option(help="Tokens that fill the cache.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Tokens decoded one by one.")] = 32,
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 15,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
    memory: Annotated[bool, typer.Option(help="Measure memory, a process per model.")] = True,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Measure prefill, decoding and memory."""
    torch.set_num_threads(threads)
    work = Work(prompt_tokens, new_tokens)
    shares = [float(ratio) for ratio in ratios.split(",")]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()
    rows = []
    for size in sizes.split(","):
        rows += measure(size, shares, work, repeats, memory)
    print(f"Device: {device}; torch {torch.__version__}, {threads} thread(s).", end=" ")
    print(f"Command: {command_line()}\n")
    print(as_markdown(rows))
    if output is not None:
        results = {"device": device, "command": command_line(), "threads": threads, "rows": rows}
        write_json(output, results)


if __name__ == "__main__":
    typer.run(main)
