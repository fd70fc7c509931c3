"""A folder with the data of all eleven tasks: real files where they are at hand, else small ones.

    make_task_data(folder, shared_task_data(), documents=8)

Every task gets what the suite needs: questions, and more examples than its shots.
"""

import json
import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = 40  # the suite's 32 shots, the one more that the harness draws, and some to choose from
WORDS = (
    *("river", "stone", "window", "garden", "letter", "engine"),
    *("market", "copper", "forest", "signal", "bridge", "candle"),
)
ACTIONS = (
    *("carry", "paint", "lift", "follow", "measure", "clean"),
    *("repair", "open", "count", "hide", "polish", "weigh"),
)
Row = dict[str, Any]


def shared_task_data() -> Path | None:
    """The folder with the real evaluation files, or None where there is none."""
    shared = os.environ.get("ITT_SHARED_DATA", REPOSITORY.parent / "shared" / "data")
    folder = Path(shared) / "lm_eval"
    return folder if folder.is_dir() else None


def mmlu_subjects() -> list[str]:
    """`mmlu_abstract_algebra`, … : the 57 leaf tasks of MMLU."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0], "tasks/mmlu/default")
    return sorted(file.stem for file in folder.glob("mmlu_*.yaml"))


def make_task_data(folder: Path, shared: Path | None = None, documents: int = 8) -> Path:
    """Fill a data folder for `data_dir`.

    Args:
        folder: is made.
        shared: folder of real files; those there are taken instead of made ones.
        documents: questions of each task (of each MMLU subject, one in four of them).
    """
    for path, make in FILES.items():
        count = documents if path.endswith(("test", "validation")) else EXAMPLES
        write(folder / f"{path}.jsonl", questions(make, count, shared and shared / f"{path}.jsonl"))
    for subject in mmlu_subjects():
        write(folder / f"{subject}/test.jsonl", map(mmlu, range(max(1, documents // 4))))
        write(folder / f"{subject}/dev.jsonl", map(mmlu, range(100, 106)))
    return folder


def questions(make: Callable[[int], Row], count: int, real: Path | None) -> Iterable[Row]:
    """The first rows of a real file, or made ones."""
    if real is None or not real.is_file():
        return [make(number) for number in range(count)]
    with real.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, count)]


def write(file: Path, rows: Iterable[Row]) -> None:
    """JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def thing(number: int) -> str:
    """A short noun phrase that differs from number to number."""
    return f"the {WORDS[number % 12]} number {number}"


def sentence(number: int) -> str:
    """A sentence that differs from number to number."""
    first, second = WORDS[number % 12], WORDS[(5 * number + 3) % 12]
    return f"They {ACTIONS[number // 12 % 12]} the {first} beside the {second} number {number}."


def sciq(number: int) -> Row:
    """The support of every third is empty, as in SciQ."""
    return {
        "question": f"What do they {ACTIONS[number % 12]} first?",
        "distractor1": thing(number + 1),
        "distractor2": thing(number + 2),
        "distractor3": thing(number + 3),
        "correct_answer": thing(number),
        "support": "" if number % 3 == 0 else f" {sentence(number)}",
    }


def piqa(number: int) -> Row:
    """PIQA."""
    return {
        "goal": f"How do I {ACTIONS[number % 12]} {thing(number)}?",
        "sol1": sentence(number),
        "sol2": sentence(number + 7),
        "label": number % 2,
    }


def winogrande(number: int) -> Row:
    """WinoGrande."""
    return {
        "sentence": f"Ann gave Mary {thing(number)} because _ had asked for it {number} times.",
        "option1": "Ann",
        "option2": "Mary",
        "answer": "12"[number % 2],
    }


def arc(number: int) -> Row:
    """Three to five options, called by letters or by digits, as in ARC."""
    count = 3 + number % 3
    labels = list("ABCDE" if number % 4 else "12345")[:count]
    return {
        "id": f"made_{number}",
        "question": f"Which of these would they {ACTIONS[number % 12]}?",
        "choices": {"text": [thing(number + option) for option in range(count)], "label": labels},
        "answerKey": labels[number % count],
    }


def lambada(number: int) -> Row:
    """LAMBADA."""
    text = f"{sentence(number)} {sentence(number + 1)} Nobody saw the {WORDS[number % 12]}"
    return {"text": text}


def hellaswag(number: int) -> Row:
    """With the brackets that the harness removes."""
    return {
        "ind": number,
        "activity_label": "Moving things",
        "ctx_a": f"[header] How to {ACTIONS[number % 12]} [title] {sentence(number)}",
        "ctx_b": "they" if number % 2 else "",
        "ctx": sentence(number),
        "endings": [f"put down {thing(number + option)}. [step] Done." for option in range(4)],
        "source_id": f"made~{number}",
        "split": "val",
        "split_type": "indomain",
        "label": str(number % 4),
    }


def logiqa(number: int) -> Row:
    """LogiQA."""
    return {
        "label": "abcd"[number % 4],
        "context": f"{sentence(number)} {sentence(number + 4)}",
        "question": "Which of the following follows?",
        "options": [sentence(number + option) for option in range(4)],
    }


def boolq(number: int) -> Row:
    """BoolQ."""
    return {
        "question": f"do they {ACTIONS[number % 12]} it",
        "passage": f"{sentence(number)} {sentence(number + 2)}",
        "idx": number,
        "label": number % 2,
    }


def mmlu(number: int) -> Row:
    """MMLU."""
    return {
        "question": f"Which is {thing(number)}?",
        "subject": "made",
        "choices": [thing(number + option) for option in range(4)],
        "answer": number % 4,
    }


def nq_open(number: int) -> Row:
    """One or two answers."""
    return {
        "question": f"what do they {ACTIONS[number % 12]} on day {number}",
        "answer": [thing(number), WORDS[number % 12]][: 1 + number % 2],
    }


FILES: dict[str, Callable[[int], Row]] = {
    "sciq/test": sciq,
    "piqa/validation": piqa,
    "winogrande/validation": winogrande,
    "arc_easy/test": arc,
    "arc_challenge/test": arc,
    "arc_challenge/train": lambda number: arc(number + 1000),
    "hellaswag/validation": hellaswag,
    "hellaswag/train": lambda number: hellaswag(number + 1000),
    "logiqa/test": logiqa,
    "boolq/validation": boolq,
    "boolq/train": lambda number: boolq(number + 1000),
    "lambada_openai/test": lambada,
    "nq_open/validation": nq_open,
    "nq_open/train": lambda number: nq_open(number + 1000),
}


def own_datasets_cache(monkeypatch: Any, folder: Path) -> None:
    """Let `datasets` keep what it loads in a folder of the test, and use the network's loopback."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", folder / "downloads")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
