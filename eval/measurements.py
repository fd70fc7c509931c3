"""Which figures of perplexity results are one measurement, and which repeat an experiment.

A measurement is told by the weights and their precision, the text (shards and split) and the
setting: ratios, rule, early exit. It counts once, in however many files it stands. Only the same
setting on the same text with other weights is a repeat.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import paper

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
    except TypeError:  # a file that was changed by hand, of which drawing tells
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


def of_other_batches(label: str, trained: Iterable[int | None]) -> list[str]:
    """A sentence where a mean is over weights of different lengths of training."""
    batches = sorted({count for count in trained if count is not None})
    if len(batches) < 2:
        return []
    told = " and ".join([", ".join(f"{count:,}" for count in batches[:-1]), f"{batches[-1]:,}"])
    return [f"{label}: the mean is over weights after {told} batches"]


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
