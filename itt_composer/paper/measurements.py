"""Which figures of perplexity results are one measurement, and which repeat an experiment.

A measurement is told by the weights and their precision, the text (shards and split) and the
setting: ratios, rule, early exit. It counts once, in however many files it stands. Only the same
setting on the same text with the weights of another seed is a repeat.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itt_composer.paper import figures as paper
from itt_composer.recipe.description import OF_ONE_RUN
from itt_composer.runs.repeats import common_name

Result = Mapping[str, Any]
SETTING_FIELDS = ("select_ratios", "router_selection", "early_exit")
# Relative: rounding on another device stays below it, thresholds that were estimated anew do not.
SAME_FIGURE = 1e-4


class CountedOnce:
    """Lets each measurement pass once.

    Attributes:
        repeated: how many figures were left out, as they had been counted before.
        notes: a sentence for each of them that is another figure than the one counted.
    """

    def __init__(self) -> None:
        self.repeated = 0
        self.notes: list[str] = []
        self._seen: dict[str, tuple[Any, Any]] = {}

    def new_settings(self, result: Result) -> list[dict[str, Any]]:
        """The settings of a result that no result before it holds."""
        new = []
        for setting in result["settings"]:
            key, figure = _key(result, setting), setting.get("perplexity")
            path = result["model"].get("path")
            if key not in self._seen:
                self._seen[key] = path, figure
                new.append(setting)
                continue
            self.repeated += 1
            first, counted = self._seen[key]
            if not _are_same(counted, figure):
                self.notes.append(
                    f"{first} and {path} have the same weights and were measured in the same way, "
                    f"but came to {counted:.6g} and {figure:.6g}; the first counts"
                )
        return new


def _are_same(one: Any, other: Any) -> bool:
    try:
        return math.isclose(one, other, rel_tol=SAME_FIGURE)
    except TypeError:  # a file that was changed by hand; whoever draws it reports that
        return True


def merged(results: Iterable[Result]) -> tuple[list[dict[str, Any]], list[str]]:
    """One result for each model on each text, with every measurement of it once.

    Args:
        results: of perplexity suites, in any number of files.

    Returns:
        The results, and sentences on what was left out.
    """
    found: dict[str, tuple[dict[str, Any], CountedOnce]] = {}
    for result in results:
        model = result["model"]
        # The same weights told to think otherwise are another model in the tables.
        own = [*_identity(result), model.get("select_ratios"), paper.ablation_of(model)]
        merged, once = found.setdefault(
            json.dumps(own), ({**result, "settings": []}, CountedOnce())
        )
        merged["settings"] += once.new_settings(result)
    notes = [note for _, once in found.values() for note in once.notes]
    repeated = sum(once.repeated for _, once in found.values())
    if repeated:
        notes.append(f"{repeated} figures stand in the files more than once, and count once")
    return [merged for merged, _ in found.values()], notes


def by_text(results: Iterable[Result]) -> list[list[Result]]:
    """The results of each text; figures of different texts do not compare."""
    texts: dict[str, list[Result]] = {}
    for result in results:
        texts.setdefault(result["text_sha256"], []).append(result)
    return list(texts.values())


def text_label(result: Result) -> str:
    """`redpajama, validation, 1,000 tokens`."""
    suite, tokens = result["suite"], result["settings"][0]["tokens"]
    return f"{Path(suite['data']).name}, {suite['split']}, {tokens:,} tokens"


def precision_label(model: Mapping[str, Any]) -> str:
    """`, bfloat16`; nothing for float32."""
    dtype = model.get("dtype", "float32")
    return "" if dtype == "float32" else f", {dtype}"


# Of a description: the seeds' own recipe and rows, and for how long they were trained.
EXPERIMENT = ("experiment_sha256", "trained_batches")


def experiments_of(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """A key for each model, equal for the same weights and for other seeds of one experiment.

    Where no run folder told what a model was trained by, it is no repeat of any other weights.

    Args:
        models: as `LoadedModel.description` has them.
    """
    known: dict[Any, tuple] = {}  # an export has the weights of a run, and no run folder
    for model in models:
        if model.get("experiment_sha256") is not None:
            experiment = tuple(model.get(name) for name in EXPERIMENT)
            known.setdefault(model.get("weights_sha256"), experiment)
    keys = []
    for model in models:
        own = (*OF_ONE_RUN, *EXPERIMENT)
        thinks = {name: value for name, value in model.items() if name not in own}
        weights = model.get("weights_sha256")
        keys.append(json.dumps([thinks, *known.get(weights, [weights])], sort_keys=True))
    return keys


def own_names(models: Iterable[Mapping[str, Any]], by: str = "name") -> str:
    """The names of repeats, of each weights the first one."""
    names: dict[Any, str] = {}
    for model in models:
        names.setdefault(model.get("weights_sha256"), model[by])
    return common_name(list(names.values()))


def setting_at(
    settings: Sequence[dict[str, Any]], rules: Sequence[str | None]
) -> dict[str, Any] | None:
    """The first setting by one of the rules, the first rule before the others."""
    return next((s for rule in rules for s in settings if s["router_selection"] == rule), None)


def _identity(result: Result) -> list[Any]:
    model = result["model"]
    return [model.get("weights_sha256"), model.get("dtype"), result.get("text_sha256")]


def _key(result: Result, setting: Mapping[str, Any]) -> str:
    return json.dumps([*_identity(result), *(setting.get(name) for name in SETTING_FIELDS)])
