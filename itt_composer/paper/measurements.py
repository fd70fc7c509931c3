"""Finds which perplexities are one measurement, and which models repeat an experiment.

A measurement is identified by the weights and their precision, the text (shards and split) and the
setting: ratios, rule, early exit. It counts once, in however many files it stands. Only the same
setting on the same text with the weights of another seed is a repeat.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from itt_composer.paper import figures as paper
from itt_composer.recipe.description import OF_ONE_RUN
from itt_composer.results.model import MeasuredModel
from itt_composer.results.perplexity import PerplexityResults, Setting
from itt_composer.runs.repeats import common_name

# Relative: rounding on another device stays below it, thresholds that were estimated anew do not.
SAME_FIGURE = 1e-4
# Fields of a model: the recipe and rows that its seeds share, and how long they were trained.
EXPERIMENT = ("experiment_sha256", "trained_batches")


class CountedOnce:
    """Lets each measurement pass once.

    Attributes:
        repeated: how many figures were left out because they had been counted before.
        notes: a sentence for each of them that differs from the figure counted.
    """

    def __init__(self) -> None:
        self.repeated = 0
        self.notes: list[str] = []
        self._seen: dict[str, tuple[str, float]] = {}

    def new_settings(self, result: PerplexityResults) -> list[Setting]:
        """Return the settings of a result that no result before it holds."""
        new = []
        for setting in result.settings:
            key, path = _key(result, setting), result.model.path
            if key not in self._seen:
                self._seen[key] = path, setting.perplexity
                new.append(setting)
                continue
            self.repeated += 1
            first, counted = self._seen[key]
            if not math.isclose(counted, setting.perplexity, rel_tol=SAME_FIGURE):
                self.notes.append(
                    f"{first} and {path} have the same weights and were measured in the same way, "
                    f"but came to {counted:.6g} and {setting.perplexity:.6g}; the first counts"
                )
        return new


def merged(results: Iterable[PerplexityResults]) -> tuple[list[PerplexityResults], list[str]]:
    """Make one result for each model on each text, with every measurement of it once.

    Args:
        results: in any number of files.

    Returns:
        The results, and sentences on what was left out.
    """
    found: dict[str, tuple[PerplexityResults, CountedOnce]] = {}
    for result in results:
        # The same weights asked to think otherwise are another model in the tables.
        ablation = paper.ablation_of(result.model.given())
        own = json.dumps([*_measured_on(result), result.model.select_ratios, ablation])
        whole, once = found.setdefault(
            own, (result.model_copy(update={"settings": []}), CountedOnce())
        )
        whole.settings += once.new_settings(result)
    notes = [note for _, once in found.values() for note in once.notes]
    repeated = sum(once.repeated for _, once in found.values())
    if repeated:
        notes.append(f"{repeated} figures stand in the files more than once, and count once")
    return [whole for whole, _ in found.values()], notes


def by_text(results: Iterable[PerplexityResults]) -> list[list[PerplexityResults]]:
    """Group results by text; figures of different texts do not compare."""
    texts: dict[str, list[PerplexityResults]] = {}
    for result in results:
        texts.setdefault(result.text_sha256, []).append(result)
    return list(texts.values())


def text_label(result: PerplexityResults) -> str:
    """Return `redpajama, validation, 1,000 tokens`."""
    suite, tokens = result.suite, result.settings[0].tokens
    return f"{Path(suite.data).name}, {suite.split}, {tokens:,} tokens"


def precision_label(model: MeasuredModel) -> str:
    """Return `, bfloat16`; nothing for float32."""
    return "" if model.dtype == "float32" else f", {model.dtype}"


def experiments_of(models: Sequence[MeasuredModel]) -> list[str]:
    """Return a key for each model, equal for the same weights and for other seeds of a recipe.

    A model that no run folder describes does not repeat any other weights.
    """
    known: dict[Any, tuple] = {}  # an export has the weights of a run, and no run folder
    for model in models:
        if model.experiment_sha256 is not None:
            experiment = (model.experiment_sha256, model.trained_batches)
            known.setdefault(model.weights_sha256, experiment)
    keys = []
    for model in models:
        own = (*OF_ONE_RUN, *EXPERIMENT)
        thinks = {name: value for name, value in model.given().items() if name not in own}
        weights = model.weights_sha256
        keys.append(json.dumps([thinks, *known.get(weights, [weights])], sort_keys=True))
    return keys


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for less than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def own_names(models: Iterable[MeasuredModel], by: str = "name") -> str:
    """Return the names (or paths) of repeats in one, taking the first for each set of weights."""
    names: dict[Any, str] = {}
    for model in models:
        names.setdefault(model.weights_sha256, getattr(model, by))
    return common_name(list(names.values()))


def _measured_on(result: PerplexityResults) -> list[Any]:
    return [result.model.weights_sha256, result.model.dtype, result.text_sha256]


def _key(result: PerplexityResults, setting: Setting) -> str:
    way = [setting.select_ratios, setting.router_selection, setting.early_exit]
    return json.dumps([*_measured_on(result), *way])
