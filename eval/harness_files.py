"""Writes a suite's results once more as lm-eval writes them."""

import json
from pathlib import Path

from itt_composer.basics.files import whole_folder, write_json
from itt_composer.results.tasks import HarnessResults, TaskMeasured, TaskResults


def write_harness_results(results: TaskResults, folder: Path) -> None:
    """Write `lm_eval/<model>/results.json` like `lm_eval --output_path`, and its samples.

    Runs with other few-shot seeds get folders of their own.

    Args:
        results: of the suite.
        folder: of the results, with the files of finished tasks in `tasks/`.
    """
    for name, files in _by_run(results, folder).items():
        merged: HarnessResults = {}
        samples: dict[str, list[str]] = {}
        for file in files:
            measured = TaskMeasured.model_validate(json.loads(file.read_bytes()))
            for key, value in measured.harness.items():
                merged.setdefault(key, {}).update(value)
            merged["config"] = {
                "model": "itt_composer",
                "model_args": {"pretrained": measured.model.path},
                "model_num_parameters": measured.model.parameters,
                "model_sha": measured.model.sha256,
            }
            if results.suite.log_samples:
                logged = file.with_suffix(".samples.jsonl").read_text(encoding="utf-8")
                for line in logged.splitlines():
                    samples.setdefault(json.loads(line)["task"], []).append(line)
        with whole_folder(folder / "lm_eval" / name) as place:
            write_json(place / "results.json", merged)
            for task, lines in samples.items():
                file = place / f"samples_{task}.jsonl"
                file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _by_run(results: TaskResults, folder: Path) -> dict[str, list[Path]]:
    """Return the files of each model and seed; a task that draws no examples is of every seed."""
    seeds = results.suite.fewshot_seeds
    runs: dict[str, list[Path]] = {}
    for model in results.models:
        for seed in seeds:
            name = _folder_name(model.path)
            files = runs.setdefault(f"{name}_seed{seed}" if len(seeds) > 1 else name, [])
            files += [
                folder / "tasks" / run.file
                for figures in results.tasks.values()
                for run in figures.runs
                if run.model == model.path and run.fewshot_seed in (None, seed)
            ]
    return runs


def _folder_name(path: str) -> str:
    if Path(path).name in ("", ".."):  # `.` and `..` would name a folder that exists
        path = str(Path(path).resolve())
    return path.strip("/").replace("/", "__") or "model"
