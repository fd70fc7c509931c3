"""Measures which tokens think, by layer and step: shares, router weights, overlap, kinds.

Step 0 is the first pass, which all tokens take; there is no step of ratio 0. "The step before" is
that of the same layer, the first pass apart.

Shapes: B batch, S sequence, C kinds of tokens, H bins of a histogram.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from itt_composer.analysis.rows import (
    SPLIT,
    document_beginning,
    open_shards,
    positions_of,
    validation_batches,
)
from itt_composer.analysis.token_classes import TOKEN_KINDS, TokenClasses
from itt_composer.basics.text import readable
from itt_composer.data.shards import check_vocabulary
from itt_composer.models import IttForCausalLM
from itt_composer.models.layer import ThinkingStep
from itt_composer.models.text_stream import IncrementalDecoder
from itt_composer.models.tokenizer import document_ids
from itt_composer.results.thinking import (
    Histogram,
    KindOfToken,
    RowsSeen,
    ShownText,
    StateNorm,
    StepEncoding,
    StepOfLayer,
    StepOfText,
    ThinkingResults,
)
from itt_composer.runs.loading import LoadedModel, think_as

BATCH_SIZE = 16
LONGEST_DOCUMENT = 512  # tokens that are shown one by one
BINS = 50
RANGES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
WEIGHT_DIGITS = 5  # of a text's weights


def analyse_thinking(
    evaluated: LoadedModel,
    shards: Path,
    rows: int,
    texts: Mapping[str, str],
    asked: Mapping[str, Any],
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> ThinkingResults:
    """Measure what `thinking.json` holds.

    Args:
        evaluated: the model; it keeps the rule that it is asked for.
        shards: whose validation rows it goes through.
        rows: how many; all if there are fewer.
        texts: shown token by token, by their names.
        asked: `select_ratios` and `router_selection`; None is as in training.
        on_progress: called with what is gone through, and how much of it is done and in all.

    Raises:
        UserError: shards without validation rows or in other tokens, or the model cannot think
            that way.
    """
    identity = evaluated.identity()
    model, tokenizer = evaluated.model, evaluated.tokenizer()
    config: Any = model.config
    manifest = open_shards(shards)
    source = evaluated.tokenizer_source
    check_vocabulary(shards, manifest, evaluated.path, config.vocab_size, source)
    # Training saves a model that routes by thresholds; its routers learnt by top-k.
    if getattr(config, "router_selection", None) == "threshold":
        asked = {**asked, "router_selection": asked["router_selection"] or "top_k"}
    think_as(model, asked)
    batches = validation_batches(shards, rows, BATCH_SIZE)
    with watched_norms(model) as norms:
        steps = thinking_steps(
            model, tokenizer, batches, lambda *counted: on_progress("validation rows", *counted)
        )
    document, ids = document_beginning(shards, manifest, LONGEST_DOCUMENT)
    shown = {document: ids}
    longest = positions_of(config, tokenizer)
    for name, text in texts.items():
        shown[name] = document_ids(tokenizer, text)[:longest]
    return ThinkingResults(
        **identity,
        data=RowsSeen(
            folder=readable(str(shards)),
            split=SPLIT,
            rows=sum(len(batch["input_ids"]) for batch in batches),
            tokens=sum(batch["input_ids"].numel() for batch in batches),
        ),
        router_selection=getattr(config, "router_selection", None),
        select_ratios=list(getattr(config, "select_ratios", [])),
        steps=steps,
        step_encodings=step_encodings(model),
        state_norms=[StateNorm(layer=layer, mean=norm) for layer, norm in norms.items()],
        texts=[think_about(model, tokenizer, readable(name), ids) for name, ids in shown.items()],
    )


class StepTotals:
    """Sums over the tokens of one step of one layer.

    Args:
        weights_range: smallest and largest weight of the router's norm; None without a router.
    """

    def __init__(self, weights_range: tuple[float, float] | None):
        self._range = weights_range
        self._has_step_before = False
        self._tokens = 0
        # Selected, in both steps, in either.
        self._selected, self._again, self._union = 0, 0, 0
        self._weight, self._square, self._selected_weight = 0.0, 0.0, 0.0
        self._counts_H = torch.zeros(BINS, dtype=torch.long)
        self._selected_H = torch.zeros(BINS, dtype=torch.long)
        self._of_kind_C = torch.zeros(len(TOKEN_KINDS), dtype=torch.long)
        self._selected_C = torch.zeros(len(TOKEN_KINDS), dtype=torch.long)

    def add(
        self,
        is_selected_BS: Tensor,
        weights_BS: Tensor | None,
        before_BS: Tensor | None,
        is_kind_CBS: Tensor,
    ) -> None:
        """Count a batch.

        Args:
            is_selected_BS: which tokens took the step.
            weights_BS: the router's; None without one.
            before_BS: which tokens took the step before; None for the first.
            is_kind_CBS: as `TokenClasses.of` gives them.
        """
        self._tokens += is_selected_BS.numel()
        self._selected += int(is_selected_BS.sum())
        self._of_kind_C += is_kind_CBS.sum(dim=(1, 2))
        self._selected_C += (is_kind_CBS & is_selected_BS).sum(dim=(1, 2))
        if before_BS is not None:
            self._has_step_before = True
            self._again += int((is_selected_BS & before_BS).sum())
            self._union += int((is_selected_BS | before_BS).sum())
        if weights_BS is not None:
            exact_BS = weights_BS.double()
            self._weight += exact_BS.sum().item()
            self._square += exact_BS.square().sum().item()
            self._selected_weight += exact_BS[is_selected_BS].sum().item()
            self._counts_H += self._binned(exact_BS.flatten())
            self._selected_H += self._binned(exact_BS[is_selected_BS])

    def summary(self, layer: int, step: int) -> StepOfLayer:
        """Return the step's statistics; None where something has no meaning."""
        mean, deviation, of_selected, histogram = None, None, None, None
        if self._range is not None:
            mean = self._weight / self._tokens
            deviation = max(self._square / self._tokens - mean**2, 0.0) ** 0.5
            of_selected = _ratio(self._selected_weight, self._selected)
            edges = torch.linspace(*self._range, BINS + 1, dtype=torch.float64)
            histogram = Histogram(
                edges=edges.tolist(),
                counts=self._counts_H.tolist(),
                selected_counts=self._selected_H.tolist(),
            )
        overlap, complement, union = None, None, None
        if self._has_step_before:
            overlap = _ratio(self._again, self._selected)
            complement = _ratio(self._selected - self._again, self._selected)
            union = _ratio(self._union, self._tokens)
        kinds = zip(TOKEN_KINDS, self._of_kind_C.tolist(), self._selected_C.tolist(), strict=True)
        return StepOfLayer(
            layer=layer,
            step=step,
            share=_ratio(self._selected, self._tokens),
            weight_mean=mean,
            weight_std=deviation,
            selected_weight_mean=of_selected,
            histogram=histogram,
            overlap=overlap,
            complement=complement,
            union=union,
            classes={
                kind: KindOfToken(tokens=tokens, share=_ratio(selected, tokens))
                for kind, tokens, selected in kinds
            },
        )

    def _binned(self, weights: Tensor) -> Tensor:
        assert self._range is not None
        low, high = self._range
        places = ((weights - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
        return torch.bincount(places, minlength=BINS)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


class StepWatcher:
    """Adds up the statistics of a model's thinking steps; give `note` to `model.watching`.

    Args:
        weights_range: as of `StepTotals`.
    """

    def __init__(self, weights_range: tuple[float, float] | None):
        self._range = weights_range
        self._totals: dict[tuple[int, int], StepTotals] = {}
        self._before: dict[int, Tensor] = {}
        self._is_kind_CBS = torch.zeros(len(TOKEN_KINDS), 0, 0, dtype=torch.bool)

    def begin_batch(self, is_kind_CBS: Tensor) -> None:
        """Note the kinds of a batch's tokens, before it goes through the model."""
        self._is_kind_CBS = is_kind_CBS
        self._before.clear()

    def note(self, done: ThinkingStep) -> None:
        """Count a step of the batch."""
        is_selected_BS = done.is_selected_BS.cpu()
        weights_BS = None if done.weights_BS is None else done.weights_BS.cpu()
        key = done.layer_idx, done.step
        totals = self._totals.setdefault(key, StepTotals(self._range))
        before_BS = self._before.get(done.layer_idx)
        totals.add(is_selected_BS, weights_BS, before_BS, self._is_kind_CBS)
        self._before[done.layer_idx] = is_selected_BS

    def steps(self) -> list[StepOfLayer]:
        """Return the statistics of each layer and step."""
        return [totals.summary(*place) for place, totals in sorted(self._totals.items())]


@contextmanager
def watched_norms(model: PreTrainedModel) -> Iterator[dict[int, float]]:
    """Measure the mean Euclidean norm of the tokens' states after each layer.

    Yields:
        norms by layer, to be read after the context; empty for a model that is not an ITT.
    """
    found: dict[int, float] = {}
    tokens: dict[int, int] = {}

    def note(layer: int, output: Any) -> None:
        state_BSD = output[0] if isinstance(output, tuple) else output
        norms_BS = state_BSD.double().norm(dim=-1)
        found[layer] = found.get(layer, 0.0) + norms_BS.sum().item()
        tokens[layer] = tokens.get(layer, 0) + norms_BS.numel()

    layers = model.model.layers if isinstance(model, IttForCausalLM) else ()
    with ExitStack() as hooks:
        for number, layer in enumerate(layers):
            handle = layer.register_forward_hook(
                lambda module, inputs, output, number=number: note(number, output)
            )
            hooks.callback(handle.remove)
        yield found
    for layer, total in found.items():
        found[layer] = total / tokens[layer]


@torch.inference_mode()
def thinking_steps(
    model: PreTrainedModel,
    tokenizer: Any,
    batches: Sequence[Mapping[str, Tensor]],
    on_progress: Any = lambda done, total: None,
) -> list[StepOfLayer]:
    """Measure what each step of each layer does with the tokens of rows, by the rule in force.

    Args:
        model: in evaluation mode; one that is not an ITT gives an empty list.
        tokenizer: its own.
        batches: `input_ids` (B, S) without padding.
        on_progress: called after each batch with the batches done and in all.
    """
    if not isinstance(model, IttForCausalLM):
        return []
    counts_V = torch.zeros(model.config.vocab_size, dtype=torch.long)
    for batch in batches:
        counts_V += torch.bincount(batch["input_ids"].flatten().cpu(), minlength=len(counts_V))
    classes = TokenClasses(tokenizer, counts_V)
    watcher = StepWatcher(RANGES.get(model.config.router_norm or ""))
    with model.watching(watcher.note):
        for done, batch in enumerate(batches, start=1):
            watcher.begin_batch(classes.of(batch["input_ids"]))
            _forward(model, batch["input_ids"])
            on_progress(done, len(batches))
    return watcher.steps()


def step_encodings(model: PreTrainedModel) -> list[StepEncoding]:
    """Return mean, deviation and range of each φ_t over its values; empty for a model without."""
    found = []
    for layer in model.thinking_layers if isinstance(model, IttForCausalLM) else ():
        if layer.step_encoding is None:
            continue
        for step, encoding_D in enumerate(layer.step_encoding.detach().double()):
            found.append(
                StepEncoding(
                    layer=layer.layer_idx,
                    step=step,
                    mean=encoding_D.mean().item(),
                    std=encoding_D.std(correction=0).item(),
                    min=encoding_D.min().item(),
                    max=encoding_D.max().item(),
                )
            )
    return found


@torch.inference_mode()
def think_about(model: PreTrainedModel, tokenizer: Any, name: str, ids: Sequence[int]) -> ShownText:
    """Return a text, every token with its weights and the steps it takes, by the rule in force.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        name: of the text.
        ids: its tokens, which go through the model alone.
    """
    steps: list[StepOfText] = []

    def note(done: ThinkingStep) -> None:
        weights = None
        if done.weights_BS is not None:
            weights = [round(weight, WEIGHT_DIGITS) for weight in done.weights_BS[0].tolist()]
        selected = done.is_selected_BS[0].int().tolist()
        steps.append(
            StepOfText(layer=done.layer_idx, step=done.step, weights=weights, selected=selected)
        )

    if isinstance(model, IttForCausalLM):
        with model.watching(note):
            _forward(model, torch.tensor([list(ids)]))
    return ShownText(name=name, tokens=texts_of(tokenizer, ids), steps=steps)


def texts_of(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Return the text that each token completes, as in a generation; joined, the whole text.

    A token in the middle of a character has none; one around documents stands by its name.
    """
    decoder, special = IncrementalDecoder(tokenizer), set(tokenizer.all_special_ids)
    texts = []
    for number in ids:
        text = decoder.push(number)
        texts.append(tokenizer.convert_ids_to_tokens(number) if number in special else text)
    if texts:
        texts[-1] += decoder.end()
    return texts


def _forward(model: IttForCausalLM, ids_BS: Tensor) -> None:
    ids_BS = ids_BS.to(model.device)
    model.model(input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS), use_cache=False)
