"""Whether one process, two ranks DDP and two ranks FSDP2 compute the same.

    python -m benchmarks.equality yamls/pretrain/quickstart.yaml [key=value …]

Trains dense, Loop and ITT on the same global batches, with and without activation checkpointing,
at two microbatch sizes, in each way of sharing the work. Prints a Markdown table: the largest
differences of any step's loss, of any step's gradient norm (before clipping, relative), and of any
weight after the last step, from one process that keeps
all activations and takes each batch at once. Gradients are clipped and capacity is annealed.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

STEPS = 20
GLOBAL_BATCH_SIZE = 4
REPOSITORY = Path(__file__).parents[1]
KINDS = {
    "dense": [
        "thinking={thinking: dense, thinking_steps: 1, select_ratios: null}",
        "algorithms.capacity_annealing=null",
    ],
    "loop": [
        "thinking={thinking: loop, thinking_steps: 4, select_ratios: null}",
        "algorithms.capacity_annealing=null",
    ],
    "itt": [
        "thinking={thinking: itt, thinking_steps: 4, select_ratios: [0.5, 0.5, 0.5]}",
        "algorithms.capacity_annealing={}",
    ],
}
CHECKPOINTING = {
    "dense": ["none", "all"],
    "loop": ["none", "thinking_steps", "all"],
    "itt": ["none", "thinking_steps", "all"],
}
MICROBATCH_SIZES = [2, 1]
WORLDS = {"1 process": (1, "none"), "2 ranks DDP": (2, "ddp"), "2 ranks FSDP2": (2, "fsdp")}
FIXED = [
    "parts.train=null",
    f"train.max_duration={STEPS}ba",
    f"train.global_batch_size={GLOBAL_BATCH_SIZE}",
    f"train.eval_batch_size={GLOBAL_BATCH_SIZE}",
    "train.eval_batches=1",
    f"train.eval_interval={STEPS}ba",
    f"train.save_interval={STEPS}ba",
    "train.calibration_rows=4",
    "train.precision=fp32",
    "train.device=cpu",
    "optimizer.decoupled_adamw.lr=1.0e-3",
    "scheduler.cosine_with_warmup={}",
    "algorithms.gradient_clipping.clipping_threshold=0.1",
    "callbacks.gradient_norms.interval=1ba",
    "data.num_workers=0",
]


class Case(NamedTuple):
    """One model, trained in one way."""

    kind: str
    checkpointing: str
    microbatch_size: int

    @property
    def overrides(self) -> list[str]:
        """The keys that it changes in a recipe."""
        return [
            *KINDS[self.kind],
            f"train.activation_checkpointing={self.checkpointing}",
            f"train.microbatch_size={self.microbatch_size}",
        ]


class Differences(NamedTuple):
    """Largest differences from the reference.

    Attributes:
        loss: of any step, nats.
        gradient_norm: of any step, before clipping, relative.
        weight: of any weight after the last step.
    """

    loss: float
    gradient_norm: float
    weight: float


CASES = [
    Case(kind, checkpointing, microbatch_size)
    for kind in KINDS
    for checkpointing in CHECKPOINTING[kind]
    for microbatch_size in MICROBATCH_SIZES
]
# Each kind, each microbatch size, and each way to share the work, in a third of the time.
FEW_CASES = [
    Case(kind, which[recomputed], MICROBATCH_SIZES[recomputed])
    for kind, which in CHECKPOINTING.items()
    for recomputed in (0, 1)
]
REFERENCES = [Case(kind, "none", GLOBAL_BATCH_SIZE) for kind in KINDS]


def train_all(
    recipe_file: Path, overrides: list[str], world: str, out: Path, cases: list[Case]
) -> None:
    """Train every case as this rank; rank 0 saves losses and weights in `out`."""
    from composer.utils import dist

    dist.initialize_dist("cpu")
    ranks, sharding = WORLDS[world]
    assert dist.get_world_size() == ranks, f"{world} is for {ranks} ranks"
    results = {}
    for number, case in enumerate([*REFERENCES, *cases] if ranks == 1 else cases):
        run_folder = f"run_folder={out.with_suffix('')}/{number}"
        keys = [*FIXED, *case.overrides, f"train.sharding={sharding}", run_folder, *overrides]
        results[tuple(case)] = train_one(recipe_file, keys)
    if dist.get_global_rank() == 0:
        torch.save(results, out)


def train_one(recipe_file: Path, overrides: list[str]) -> dict[str, Any] | None:
    """Losses and gradient norms of all steps and the weights after the last, on rank 0."""
    from composer.loggers import InMemoryLogger
    from composer.utils import reproducibility

    from itt_composer.models.building import build_model
    from itt_composer.recipe.schema import load_recipe
    from itt_composer.training.sharding import whole_model
    from itt_composer.training.train import build_trainer
    from itt_composer.training.training_run import TrainingRun

    recipe = load_recipe(recipe_file, overrides)
    reproducibility.seed_all(recipe.seed)
    trainer = build_trainer(recipe, TrainingRun(recipe), build_model(recipe), "cpu")
    log = InMemoryLogger()
    log.init(trainer.state, trainer.logger)
    trainer.logger.destinations = (*trainer.logger.destinations, log)
    trainer.fit()
    model = whole_model(trainer.state.model)
    trainer.close()
    if model is None:
        return None
    return {
        "kind": model.config.thinking,
        "losses": [float(loss) for _, loss in log.data["loss/train/total"]],
        "norms": [float(norm) for _, norm in log.data["gradient_norm/global"]],
        "weights": dict(model.state_dict()),
    }


def compare(files: dict[str, Path], cases: list[Case]) -> dict[tuple[Case, str], Differences]:
    """Find the largest differences by case and world."""
    results = {world: torch.load(file, weights_only=False) for world, file in files.items()}
    differences = {}
    for case in cases:
        reference = results["1 process"][Case(case.kind, "none", GLOBAL_BATCH_SIZE)]
        for world in WORLDS:
            got = results[world][case]
            assert got["kind"] == reference["kind"] == case.kind
            losses = zip(got["losses"], reference["losses"], strict=True)
            norms = zip(got["norms"], reference["norms"], strict=True)
            weights = [
                (got["weights"][name] - weight).abs().max()
                for name, weight in reference["weights"].items()
                if not name.endswith("score_quantiles")  # measured on other batches in each way
            ]
            differences[case, world] = Differences(
                loss=largest(abs(a - b) for a, b in losses),
                gradient_norm=largest(abs(a / b - 1) for a, b in norms),
                weight=largest(weights),
            )
    return differences


def largest(values: Iterable[float | torch.Tensor]) -> float:
    """Return the largest; NaN if any of them is NaN, which Python's `max` passes over."""
    return torch.tensor(list(values), dtype=torch.float64).max().item()


def table(differences: dict[tuple[Case, str], Differences]) -> str:
    """Write a Markdown table: a row per case, a column per world."""
    lines = [
        "| model | activation checkpointing | microbatch | " + " | ".join(WORLDS) + " |",
        "| --- " * (3 + len(WORLDS)) + "|",
    ]
    for case in dict.fromkeys(case for case, _ in differences):
        cells = [case.kind, case.checkpointing, str(case.microbatch_size)]
        cells += [", ".join(f"{each:.0e}" for each in differences[case, world]) for world in WORLDS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    recipe: Annotated[Path, typer.Argument(help="Names model and data.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    world: Annotated[str | None, typer.Option(hidden=True)] = None,
    out: Annotated[Path, typer.Option(hidden=True)] = Path("equality.pt"),
    few: Annotated[bool, typer.Option("--few", help="A third of the cases.")] = False,
) -> None:
    """Compare one process, DDP and FSDP2."""
    cases = FEW_CASES if few else CASES
    if world is not None:
        return train_all(recipe, overrides or [], world, out, cases)
    launcher = str(Path(sys.executable).with_name("composer"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{place}.pt" for place, name in enumerate(WORLDS)}
        for name, (ranks, _) in WORLDS.items():
            own = ["--world", name, "--out", str(files[name]), *(["--few"] if few else [])]
            program = (launcher, "-n", str(ranks), "-m", "benchmarks.equality")
            command = [*program, str(recipe), *(overrides or []), *own]
            subprocess.run(command, check=True, env=environment)
        print(table(compare(files, cases)))


if __name__ == "__main__":
    typer.run(main)
