"""Time and memory of tasks here and by lm-eval's own `--model hf`, on the same folder.

    python -m benchmarks.evaluation TASK_DATA --tokenizer tokenizer.model   # about 15 minutes
    python -m benchmarks.evaluation TASK_DATA --tokenizer tokenizer.model --tasks piqa,mmlu_anatomy

TASK_DATA is what `itt eval fetch` wrote. The models have the paper's 162M geometry and random
weights, in float32 on one thread. The two sides take turns, each in a process of its own that was
forked with model and prompts at hand; what is timed is everything from the first prompt to the
results. Peak memory is above what the process began with.
"""

import logging
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

os.environ["TQDM_DISABLE"] = "1"

import torch
import typer
from lm_eval.models.huggingface import HFLM

from benchmarks.machine import REPOSITORY, machine
from data_prep.tokenizer import load_tokenizer
from eval.harness import measure
from eval.language_model import EvaluatedLM
from eval.suite import TaskSettings, TaskSuite
from eval.task_data import OpenTasks, open_tasks
from itt_composer.basics.files import write_json
from itt_composer.models.building import build_model
from itt_composer.models.calibration import calibrate
from itt_composer.models.folder import write_model_folder
from itt_composer.recipe.schema import load_recipe
from itt_composer.runs.loading import LoadedModel, load_named_model, think_causally
from itt_composer.runs.model_settings import ModelSettings

# lm-eval's documents for a task, so that a run takes a minute.
TASKS = {
    "piqa": (0, 60),
    "winogrande": (0, 60),
    "arc_easy": (0, 40),
    "lambada_openai": (0, 30),
    "arc_challenge": (25, 3),
    "boolq": (32, 2),
    "mmlu_anatomy": (5, 16),
    "nq_open": (32, 2),
}
BATCH_SIZE = 8  # of lm-eval; with 64, its most, the logits of the long prompts take 16 GB
COLUMNS = (
    *("model", "task", "shots", "questions", "lm_eval, s", "here, s", "times as fast"),
    *("lm_eval, GB", "here, GB", "differ by"),
)


def write_models(folder: Path, tokenizer: str, names: list[str]) -> Iterator[Path]:
    """Write the models of recipes, with random weights, as transformers folders."""
    load_tokenizer(tokenizer).save(folder / "tokenizer")
    for name in names:
        torch.manual_seed(0)
        model = build_model(load_recipe(REPOSITORY / f"yamls/pretrain/{name}.yaml"))
        if model.config.adaptive_routing:
            ids = torch.randint(3, model.config.vocab_size, (4, 256))
            calibrate(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
        write_model_folder(folder / name, model, "", folder / "tokenizer")
        yield folder / name


def in_a_process(side: Callable[[], Any]) -> dict[str, Any]:
    """Return seconds, peak memory in GB above the start, and the result."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def work() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        before = status("VmRSS")
        started = time.process_time()
        answer = side()
        seconds = time.process_time() - started
        queue.put({"seconds": seconds, "peak": status("VmHWM") - before, "answer": answer})

    process = context.Process(target=work)
    process.start()
    result = queue.get()
    process.join()
    return result


def status(field: str) -> float:
    """Read a memory field of this process, in GB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1e6


def likelihoods(samples: list[dict[str, Any]]) -> list[Any]:
    """Collect every answer of every question."""
    return [response for sample in samples for response in sample["filtered_resps"]]


def worst_difference(ours: list[Any], theirs: list[Any]) -> float:
    """Return the largest difference of likelihoods in nats; of texts, the share that differs."""
    if isinstance(theirs[0], str):
        return sum(a != b for a, b in zip(ours, theirs, strict=True)) / len(theirs)
    return max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))


def compare(
    evaluated: LoadedModel,
    source: OpenTasks,
    task: str,
    settings: TaskSettings,
    rounds: int,
) -> dict[str, Any]:
    """Measure one task by both sides, in turns."""
    suite = TaskSuite(
        model=ModelSettings(path=[evaluated.path]),
        tasks={task: settings},
        log_samples=True,
        output="nowhere",
    )
    lms = {
        "theirs": HFLM(
            pretrained=evaluated.model,  # type: ignore[arg-type]
            tokenizer=evaluated.tokenizer(),
            batch_size=BATCH_SIZE,
        ),
        "ours": EvaluatedLM(evaluated.model, evaluated.tokenizer()),
    }

    def answers_of(side: str) -> list[Any]:
        answers = measure(suite, task, settings, source, lms[side])  # type: ignore[arg-type]
        return likelihoods(answers.harness["samples"][task])

    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in lms}
    for _ in range(rounds):
        for side in lms:
            runs[side].append(in_a_process(partial(answers_of, side)))
    figures: dict[str, Any] = {
        side: {
            "seconds": statistics.median(run["seconds"] for run in of_side),
            "peak": max(run["peak"] for run in of_side),
        }
        for side, of_side in runs.items()
    }
    return {
        "model": evaluated.name,
        "task": task,
        "shots": settings.shots,
        "questions": settings.limit,
        **figures,
        "ratio": figures["theirs"]["seconds"] / figures["ours"]["seconds"],
        "worst": worst_difference(*(runs[side][0]["answer"] for side in ("ours", "theirs"))),
    }


def line_of(row: dict[str, Any]) -> str:
    """Write a row of the table in Markdown."""
    theirs, ours = row["theirs"], row["ours"]
    return (
        f"| {row['model']} | {row['task']} | {row['shots']} | {row['questions']} "
        f"| {theirs['seconds']:.1f} | {ours['seconds']:.1f} | {row['ratio']:.2f} "
        f"| {theirs['peak']:.2f} | {ours['peak']:.2f} | {row['worst']:.1e} |"
    )


def main(
    task_data: Annotated[Path, typer.Argument(help="Folder of `itt eval fetch`.")],
    tokenizer: Annotated[str, typer.Option(help="A tokenizer of 32,000 ids.")],
    tasks: Annotated[str, typer.Option(help="Names with commas between them.")] = ",".join(TASKS),
    models: Annotated[str, typer.Option()] = "llama_162m,itt_x4_162m",
    rounds: Annotated[int, typer.Option(min=1)] = 2,
    scale: Annotated[float, typer.Option(help="Times as many questions.")] = 1.0,
    output: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Compare `python -m eval` with `lm_eval --model hf`."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    chosen = {
        name: TaskSettings(shots=TASKS[name][0], limit=max(1, round(scale * TASKS[name][1])))
        for name in tasks.split(",")
    }
    rows = []
    print(
        machine(), f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|", sep="\n", flush=True
    )
    with tempfile.TemporaryDirectory() as place, open_tasks(chosen, str(task_data)) as source:
        for folder in write_models(Path(place), tokenizer, models.split(",")):
            evaluated = load_named_model(str(folder), torch.device("cpu"))
            think_causally(evaluated.model)
            for task in chosen:
                rows.append(compare(evaluated, source, task, chosen[task], rounds))
                print(line_of(rows[-1]), flush=True)
    if output is not None:
        write_json(output, rows)


if __name__ == "__main__":
    typer.run(main)
