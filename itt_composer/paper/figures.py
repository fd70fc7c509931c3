"""Reads the paper's figures from `figures/`, and finds the rows that a model reproduces.

Accuracies are in percent, FLOPs in TFLOPs of a forward pass over 4,096 tokens.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from itt_composer.basics.errors import UserError
from itt_composer.recipe.description import GEOMETRY_FIELDS, kind_label, kind_of, steps_of

FOLDER = Path(__file__).with_suffix("")
# Share of the training tokens at which ITT×4 reaches the final loss of LLaMA-162M.
DATA_EFFICIENCY = 0.568
# Table 5.
GEOMETRIES: dict[tuple[Any, ...], str] = {
    (1024, 2560, 8, 32, 32, 32_000): "162M",
    (1536, 2560, 8, 32, 16, 32_000): "230M",
    (2048, 4096, 8, 32, 32, 32_000): "466M",
}
EVERY_OTHER_LAYER, LAYER_3 = [1, 3, 5, 7], [3]
# The text says every other layer, the FLOPs of the two larger sizes one layer.
THINKING_LAYERS = {
    "162M": [EVERY_OTHER_LAYER],
    "230M": [EVERY_OTHER_LAYER, LAYER_3],
    "466M": [EVERY_OTHER_LAYER, LAYER_3],
}
# ρ_t by the number of thinking steps, as the FLOPs of Table 1 have them.
SELECT_RATIOS = {2: [0.9], 3: [0.7, 0.7], 4: [0.5, 0.5, 0.5]}
ELASTIC_RATIOS = [0.7, 0.7, 0.7]
# An ITT's settings in Table 1. Thresholds stand for top-k where no token may look ahead.
ITT_SETTINGS: dict[str, tuple[Any, ...]] = {
    "adaptive_routing": (True,),
    "residual_thinking": (True,),
    "thinking_update": ("output",),
    "step_encoding": (True,),
    "step_encoding_init": (1.0, None),  # None: without step encoding
    "router_norm": ("sigmoid",),
    "router_selection": ("top_k", "threshold"),
    "reweighting": ("select_only",),
}
# Table 3, by the one setting that differs.
ABLATIONS = {
    ("adaptive_routing", False): "without routing",
    ("residual_thinking", False): "without RTC",
    ("step_encoding", False): "without step encoding",
    ("router_selection", "top_p"): "top-p",
    ("router_norm", "tanh"): "tanh",
    ("reweighting", "symmetric"): "symmetric",
}
NOT_ABLATED = "ITT×4"


@dataclass(frozen=True)
class Row:
    """A row of Table 1.

    Attributes:
        name: like "ITT×4-162M".
        recipe: in yamls/pretrain, whose FLOPs are the row's.
        tflops: as printed.
        accuracies: in percent, by lm-eval's task names.
        average: of them, as printed.
    """

    name: str
    recipe: str
    tflops: float
    accuracies: Mapping[str, float]
    average: float


@dataclass(frozen=True)
class ElasticRow:
    """A row of the elastic table; `select_ratios` is empty for the models beside it."""

    model: str
    recipe: str | None
    select_ratios: tuple[float, ...]
    tflops: float
    perplexity: float


@dataclass(frozen=True)
class AblationRow:
    """A row of Table 3; `tflops` is None where the paper prints none."""

    name: str
    recipe: str
    tflops: float | None
    perplexity: float


@lru_cache
def rows() -> Mapping[str, Row]:
    """Return Table 1 by the names of its rows, in its order."""
    return {line["model"]: _row(line) for line in _lines("table1")}


def _row(line: dict[str, str]) -> Row:
    figures = {key: float(value) for key, value in line.items() if key not in ("model", "recipe")}
    tflops, average = figures.pop("tflops"), figures.pop("average")
    return Row(line["model"], line["recipe"], tflops, figures, average)


def row(name: str) -> Row:
    """Return the row of that name.

    Raises:
        UserError: Table 1 has no such row; names those it has.
    """
    if name in rows():
        return rows()[name]
    close = get_close_matches(name.replace("x", "×"), rows(), n=1)
    hint = f"did you mean {close[0]!r}? It" if close else "it"
    raise UserError(f"the paper's Table 1 has no row {name!r}; {hint} has {', '.join(rows())}")


def tasks() -> list[str]:
    """Return the ten tasks of Table 1 by their names in lm-eval."""
    return list(next(iter(rows().values())).accuracies)


@lru_cache
def conditions() -> Mapping[str, tuple[int, str]]:
    """Return (shots, metric) of each task of the suite, NQ-open included."""
    return {line["task"]: (int(line["shots"]), line["metric"]) for line in _lines("tasks")}


def is_as_reported(task: str, shots: int | None, metric: str) -> bool:
    """Say whether a figure can stand beside the paper's."""
    return conditions().get(task) == (shots, metric)


def accuracy(name: str, task: str) -> float | None:
    """Return what a row of Table 1 reports for a task, in percent; None for other tasks.

    Raises:
        UserError: Table 1 has no such row.
    """
    return row(name).accuracies.get(task)


@lru_cache
def elastic() -> list[ElasticRow]:
    """Return the elastic table: sixteen settings of one model, and two models beside them."""
    return [
        ElasticRow(
            line["model"],
            line["recipe"] or None,
            tuple(int(part) / 100 for part in line["select_ratios"].split("/") if part),
            float(line["tflops"]),
            float(line["perplexity"]),
        )
        for line in _lines("elastic")
    ]


@lru_cache
def ablations() -> Mapping[str, AblationRow]:
    """Return Table 3 by the names of its rows, in its order."""
    return {
        line["ablation"]: AblationRow(
            line["ablation"],
            line["recipe"],
            float(line["tflops"]) if line["tflops"] else None,
            float(line["perplexity"]),
        )
        for line in _lines("ablations")
    }


def recipe_tflops() -> dict[str, float]:
    """Return the TFLOPs that the paper prints for models of recipes, by the recipes' names."""
    table: list[Row | ElasticRow | AblationRow] = [*rows().values(), *elastic()]
    table += ablations().values()
    return {line.recipe: line.tflops for line in table if line.recipe and line.tflops is not None}


def row_of(description: Mapping[str, Any]) -> str | None:
    """Return the row of Table 1 that a model reproduces, None for any other model.

    An ablated model, one at other ratios and one that exits early reproduce no row. Both readings
    of the thinking layers do: every other layer, and for the two larger sizes layer 3 alone.

    Args:
        description: of the model, see `LoadedModel.description`.
    """
    size, kind, steps = size_of(description), kind_of(description), steps_of(description)
    if size is None or kind is None or description.get("early_exit"):
        return None
    if kind != "dense" and description.get("thinking_layers") not in THINKING_LAYERS[size]:
        return None
    if kind == "itt" and (
        _deviations(description) or description.get("select_ratios") != SELECT_RATIOS.get(steps)
    ):
        return None
    if kind == "loop" and description.get("select_ratios") != [1.0] * (steps - 1):
        return None
    name = f"{kind_label(description)}-{size}"
    return name if name in rows() else None


def ablation_of(description: Mapping[str, Any]) -> str | None:
    """Return the row of Table 3 that a model of any size reproduces; None for other models.

    A model that was trained under top-p must be described under top-p.

    Args:
        description: of the model.
    """
    count = description.get("num_hidden_layers") or 0
    thinks_in_every_other = description.get("thinking_layers") == list(range(1, count, 2))
    is_x4 = kind_of(description) == "itt" and steps_of(description) == 4
    if not (is_x4 and thinks_in_every_other) or description.get("early_exit"):
        return None
    deviations = _deviations(description)
    ratios = [1.0] * 3 if "adaptive_routing" in deviations else SELECT_RATIOS[4]
    if description.get("select_ratios") != ratios:
        return None
    if not deviations:
        return NOT_ABLATED
    return ABLATIONS.get(next(iter(deviations.items()))) if len(deviations) == 1 else None


def is_elastic(description: Mapping[str, Any]) -> bool:
    """Say whether a model is the one of the elastic table, trained at 70/70/70."""
    at_half = {**description, "select_ratios": SELECT_RATIOS[4]}
    return description.get("select_ratios") == ELASTIC_RATIOS and (row_of(at_half) == "ITT×4-162M")


def size_of(description: Mapping[str, Any]) -> str | None:
    """Return "162M", "230M" or "466M" where the geometry is that of Table 5."""
    return GEOMETRIES.get(tuple(description.get(name) for name in GEOMETRY_FIELDS))


def _deviations(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an ITT that differ from those of Table 1."""
    found = {name: description.get(name) for name in ITT_SETTINGS}
    if found["adaptive_routing"] is False:  # a router's settings have no meaning
        found = {name: value for name, value in found.items() if value is not None}
    return {name: value for name, value in found.items() if value not in ITT_SETTINGS[name]}


def _lines(table: str) -> list[dict[str, str]]:
    with (FOLDER / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
