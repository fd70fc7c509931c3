"""Perplexity of a model on token rows: overall, per domain, at any way of thinking.

Several ranks share the batches. What a batch holds and the order in which batches are added up do
not depend on their number, so neither do the figures.

Shapes: B batch, S sequence, V vocabulary.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from transformers import PreTrainedModel

from eval import ranks
from eval.suite import PerplexitySuite
from eval.token_bytes import TokenBytes, read_token_bytes
from itt_composer.basics.errors import UserError
from itt_composer.basics.losses import perplexity
from itt_composer.data.manifest import Manifest
from itt_composer.data.prepare import check_files
from itt_composer.data.shards import check_vocabulary
from itt_composer.data.stored_rows import StoredRows, batches_of
from itt_composer.models import IttForCausalLM
from itt_composer.models.calibration import RealisedShares
from itt_composer.models.flops import executed_flops, paper_tflops
from itt_composer.models.likelihoods import is_too_large
from itt_composer.recipe.thinking import ELASTIC_FIELDS
from itt_composer.results.model import MeasuredModel
from itt_composer.results.perplexity import (
    PerplexityFigures,
    PerplexityResults,
    Setting,
    SuiteOfPerplexity,
)
from itt_composer.runs.loading import load_named_model, think_as, why_no_numbers


class Sums(NamedTuple):
    """Sums over a batch or more: nats, tokens predicted, and bytes of their text if known."""

    loss: float
    tokens: int
    bytes: int | None

    @classmethod
    def total(cls, parts: Sequence["Sums"]) -> "Sums":
        """Add up all parts, in their order."""
        known = [part.bytes for part in parts if part.bytes is not None]
        return cls(
            sum(part.loss for part in parts),
            sum(part.tokens for part in parts),
            sum(known) if len(known) == len(parts) else None,
        )


class Batch(NamedTuple):
    """Consecutive rows of a domain; the same whatever the number of ranks."""

    domain: str
    rows: range


def measure_settings(
    suite: PerplexitySuite, on_progress: Callable[[int, int], None]
) -> PerplexityResults:
    """Measure every setting of a suite; each rank takes a part of the batches.

    Args:
        suite: what to measure.
        on_progress: called after each batch with this rank's rows done and in all.

    Returns:
        The results, on every rank.

    Raises:
        UserError: shards are missing or damaged; the model cannot be loaded, cannot think that
            way, or computes NaN.
    """
    data, manifest = Path(suite.data), Manifest.read(suite.data)
    domains = manifest.rows(suite.split)
    check_files(data, [(suite.split, domain) for domain in domains], suite.validate_hash)
    evaluated = load_named_model(suite.model.path[0], ranks.device(), suite.model, "model")
    model = evaluated.model
    weights = ranks.of_first(operator.attrgetter("weights_sha256"), evaluated)
    described = MeasuredModel(**evaluated.description(), weights_sha256=weights)
    source = evaluated.tokenizer_source
    check_vocabulary(data, manifest, evaluated.path, model.config.vocab_size, source)
    ways = list(_ways_asked(suite, model))
    for way in ways:  # report a mistake before hours of measuring
        try:
            think_as(model, way)
        except UserError as error:
            raise UserError(
                f"model={evaluated.path} cannot think as the suite asks: {error}; give that key of "
                "the suite another value on the command line, where [null] is the model's own"
            ) from None
    rows = {domain: StoredRows(data / suite.split / domain) for domain in domains}
    if ranks.is_first_of_node():
        for stream in rows.values():
            stream.prepare()
    ranks.gather(None)
    batches = batches_in_order(domains, suite.batch_size)
    own = batches[ranks.rank() :: ranks.world_size()]
    count = Count(sum(len(batch.rows) for batch in own) * len(ways), on_progress)
    token_bytes = read_token_bytes(data, manifest)
    measure = RowsMeasured(model, rows, batches, token_bytes, suite.batch_size)
    settings = []
    for way in ways:
        think_as(model, way)
        settings.append(measure.setting(manifest.seq_len, count.add))
    return PerplexityResults(
        suite=SuiteOfPerplexity(**suite.model_dump()),
        seq_len=manifest.seq_len,
        text_sha256=manifest.split_sha256(suite.split),
        model=described,
        settings=settings,
    )


def _ways_asked(suite: PerplexitySuite, model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """Yield the thinking settings to measure at; where a suite has null, the model's own."""
    own = {name: getattr(model.config, name, None) for name in ELASTIC_FIELDS}
    for values in itertools.product(suite.select_ratios, suite.router_selection, suite.early_exit):
        given = dict(zip(ELASTIC_FIELDS, values, strict=True))
        yield own | {name: value for name, value in given.items() if value is not None}


@dataclass
class Count:
    """Counts this rank's rows, and reports them."""

    total: int
    on_progress: Callable[[int, int], None]
    done: int = 0

    def add(self, rows: int) -> None:
        """Report that so many more are done."""
        self.done += rows
        self.on_progress(self.done, self.total)


def batches_in_order(domains: Mapping[str, int], batch_size: int) -> list[Batch]:
    """Return all rows, one domain after the other; the last batch of each may be smaller."""
    return [
        Batch(domain, range(start, min(start + batch_size, count)))
        for domain, count in domains.items()
        for start in range(0, count, batch_size)
    ]


@dataclass
class RowsMeasured:
    """Measures a model on batches of rows.

    Attributes:
        model: on this rank's device.
        rows: by domain.
        batches: of all ranks.
        token_bytes: None where the tokenizer does not give the bytes of its tokens.
        most_rows: that go through the model at once; halved when the memory runs out.
    """

    model: PreTrainedModel
    rows: Mapping[str, StoredRows]
    batches: Sequence[Batch]
    token_bytes: TokenBytes | None
    most_rows: int

    def setting(self, seq_len: int, on_rows: Callable[[int], None]) -> Setting:
        """Measure the model as it thinks now; every rank must ask, and gets the same figures.

        Args:
            seq_len: tokens of a row.
            on_rows: called after each batch of this rank with its number of rows.

        Raises:
            UserError: on every rank: the loss is NaN or infinite.
        """
        own: dict[int, Sums] = {}
        shares = RealisedShares()
        for number in range(ranks.rank(), len(self.batches), ranks.world_size()):
            own[number] = self._in_memory(self.batches[number], shares)
            if not math.isfinite(own[number].loss):
                break  # all ranks refuse it, below
            on_rows(len(self.batches[number].rows))
        by_number: dict[int, Sums] = {}
        all_shares = RealisedShares()
        for measured, counted in ranks.gather((own, shares)):
            by_number |= measured
            all_shares.add(counted)
        self._refuse_nan(by_number)
        by_domain: dict[str, list[Sums]] = {name: [] for name in self.rows}
        for number, batch in enumerate(self.batches):
            by_domain[batch.domain].append(by_number[number])
        totals = {domain: Sums.total(parts) for domain, parts in by_domain.items()}
        return _setting(self.model, seq_len, totals, all_shares)

    def _refuse_nan(self, measured: Mapping[int, Sums]) -> None:
        for number, batch in enumerate(self.batches):
            if number in measured and not math.isfinite(measured[number].loss):
                raise UserError(
                    f"the loss on rows {batch.rows.start:,} to {batch.rows.stop - 1:,} of the "
                    f"domain {batch.domain} is {measured[number].loss}, so there is no "
                    f"perplexity; {why_no_numbers(self.model)}"
                )

    def _in_memory(self, batch: Batch, shares: RealisedShares) -> Sums:
        """Measure a batch, in parts where the device has no memory for all of it."""
        parts: list[Sums] = []
        rows = batch.rows
        while rows:
            part, counted = Batch(batch.domain, rows[: self.most_rows]), RealisedShares()
            try:
                parts.append(self._batch(part, counted))
            except (RuntimeError, MemoryError) as error:
                if not is_too_large(error):
                    raise
                if len(part.rows) == 1:
                    raise UserError(
                        "a single row does not fit into the memory; set model.dtype=bfloat16, or "
                        "use a machine with more"
                    ) from None
                self.most_rows = len(part.rows) // 2
            else:
                shares.add(counted)
                rows = rows[len(part.rows) :]
                continue
            clear_device_cache(garbage_collection=True)
        return Sums.total(parts)

    def _batch(self, batch: Batch, shares: RealisedShares) -> Sums:
        (tensors,) = batches_of(self.rows[batch.domain], batch.rows, len(batch.rows))
        on_device = {key: tensor.to(self.model.device) for key, tensor in tensors.items()}
        nll_BS = token_losses(self.model, on_device, shares)
        table = self.token_bytes
        text_bytes = None if table is None else table.count(tensors["input_ids"])
        return Sums(nll_BS.double().sum().item(), nll_BS.numel(), text_bytes)


@torch.inference_mode()
def token_losses(
    model: PreTrainedModel, batch: dict[str, Tensor], shares: RealisedShares | None = None
) -> Tensor:
    """Return the negative log-likelihood of every token but each row's first.

    Args:
        model: in evaluation mode.
        batch: `input_ids`, `attention_mask` and `labels`, (B, S) each.
        shares: counts the tokens that take each step; None counts nothing.

    Returns:
        nats in float32, (B, S-1).
    """
    watch = {}
    if shares is not None and isinstance(model, IttForCausalLM):
        watch["on_step"] = shares.count
    logits_BSV = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
        **watch,
    ).logits
    predicted_BVS = logits_BSV[:, :-1].float().transpose(1, 2)
    return F.cross_entropy(predicted_BVS, batch["labels"][:, 1:], reduction="none")


def _setting(
    model: PreTrainedModel, seq_len: int, measured: Mapping[str, Sums], shares: RealisedShares
) -> Setting:
    counted: dict[str, Any] = {}
    if isinstance(model, IttForCausalLM):
        by_step = shares.by_step(model.config.thinking_steps)
        means = [sum(layers) / len(layers) if layers else 0.0 for layers in by_step]
        executed = executed_flops(model.config, 1, seq_len, means)
        counted = {
            "realised_shares": by_step,
            "paper_flops_per_token": paper_tflops(model.config, seq_len) * 1e12 / seq_len,
            "executed_flops_per_token": executed / seq_len,
        }
    return Setting(
        select_ratios=list(getattr(model.config, "select_ratios", [])),
        router_selection=getattr(model.config, "router_selection", None),
        early_exit=getattr(model.config, "early_exit", 0.0),
        **_figures_of(Sums.total(list(measured.values()))).given(),
        domains={domain: _figures_of(part) for domain, part in measured.items()},
        **counted,
    )


def _figures_of(sums: Sums) -> PerplexityFigures:
    loss = sums.loss / sums.tokens
    return PerplexityFigures(
        tokens=sums.tokens,
        bytes=sums.bytes,
        loss=loss,
        perplexity=perplexity(loss),
        bits_per_byte=sums.loss / math.log(2) / sums.bytes if sums.bytes else None,
    )
