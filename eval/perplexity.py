"""Perplexity of a model on token rows: overall, per domain, at any way of thinking.

Several ranks share the batches. What a batch holds and the order in which batches are added up do
not depend on their number, so neither do the figures.

Shapes: B batch, S sequence, V vocabulary.
"""

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
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
from itt_composer.data.manifest import Manifest
from itt_composer.data.prepare import check_files
from itt_composer.data.shards import check_vocabulary
from itt_composer.data.stored_rows import StoredRows, batches_of
from itt_composer.models import IttForCausalLM
from itt_composer.models.calibration import RealisedShares
from itt_composer.models.flops import executed_flops, paper_tflops
from itt_composer.models.likelihoods import is_too_large
from itt_composer.recipe.thinking import ELASTIC_FIELDS
from itt_composer.runs.loading import load_named_model, think_as, why_no_numbers

FORMAT = 2


class Measured(NamedTuple):
    """Of a batch or more: nats and tokens predicted, and the bytes of their text if known."""

    loss_sum: float
    tokens: int
    bytes: int | None

    @classmethod
    def total(cls, parts: Sequence["Measured"]) -> "Measured":
        """Of all parts, added in their order."""
        known = [part.bytes for part in parts if part.bytes is not None]
        return cls(
            sum(part.loss_sum for part in parts),
            sum(part.tokens for part in parts),
            sum(known) if len(known) == len(parts) else None,
        )


class Batch(NamedTuple):
    """A stretch of a domain's rows; the same whatever the number of ranks."""

    domain: str
    rows: range


def run(suite: PerplexitySuite, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure every setting of a suite; each rank takes a part of the batches.

    Args:
        suite: what to measure.
        on_progress: called after each batch with this rank's rows done and in all.

    Returns:
        On every rank `{"kind", "format", "suite", "seq_len", "text_sha256", "model", "settings":
        [...]}`: the digests of the rows and of the weights tell what is the same measurement. Each
        setting has `select_ratios`, `router_selection`, `early_exit`, `tokens` (predicted),
        `bytes` (of their text; None where the tokenizer does not tell them), `loss` (nats per
        token), `perplexity`, `bits_per_byte`, `domains` (the same five per domain),
        and for our models `realised_shares` (of the tokens that took each
        step, a list over the thinking layers), `paper_flops_per_token` (at the ratios asked for)
        and `executed_flops_per_token` (at the realised shares), of one forward pass.

    Raises:
        UserError: shards that are missing or damaged; the model cannot be loaded, cannot think
            that way, or computes NaN.
    """
    data, manifest = Path(suite.data), Manifest.read(suite.data)
    domains = manifest.rows(suite.split)
    check_files(data, [(suite.split, domain) for domain in domains], suite.validate_hash)
    evaluated = load_named_model(suite.model.path[0], ranks.device(), suite.model, "model")
    model = evaluated.model
    weights = ranks.of_first(operator.attrgetter("weights_sha256"), evaluated)
    description = {**evaluated.description(), "weights_sha256": weights}
    source = evaluated.tokenizer_source
    check_vocabulary(data, manifest, evaluated.path, model.config.vocab_size, source)
    asked = list(itertools.product(suite.select_ratios, suite.router_selection, suite.early_exit))
    own = {name: getattr(model.config, name, None) for name in ELASTIC_FIELDS}

    def put_in_force(setting: tuple[Any, ...]) -> None:
        given = dict(zip(ELASTIC_FIELDS, setting, strict=True))
        think_as(model, own | {name: value for name, value in given.items() if value is not None})

    for setting in asked:  # a mistake is told before hours of measuring
        put_in_force(setting)
    rows = {domain: StoredRows(data / suite.split / domain) for domain in domains}
    if ranks.is_first_of_node():
        for stream in rows.values():
            stream.prepare()
    ranks.gather(None)
    batches = batches_in_order(domains, suite.batch_size)
    sizes = [len(batch.rows) for batch in batches[ranks.rank() :: ranks.world_size()]] * len(asked)
    done = itertools.accumulate(sizes)
    token_bytes = read_token_bytes(data, manifest)
    measure = Measurement(model, rows, batches, token_bytes, suite.batch_size)
    settings = []
    for setting in asked:
        put_in_force(setting)
        settings.append(
            measure.setting(manifest.seq_len, lambda: on_progress(next(done), sum(sizes)))
        )
    return {
        "kind": "perplexity",
        "format": FORMAT,
        "suite": suite.model_dump(),
        "seq_len": manifest.seq_len,
        "text_sha256": manifest.split_sha256(suite.split),
        "model": description,
        "settings": settings,
    }


def batches_in_order(domains: Mapping[str, int], batch_size: int) -> list[Batch]:
    """All rows of all domains, a domain after the other; the last batch of each may be smaller."""
    return [
        Batch(domain, range(start, min(start + batch_size, count)))
        for domain, count in domains.items()
        for start in range(0, count, batch_size)
    ]


@dataclass
class Measurement:
    """A model and the batches it is measured on.

    Attributes:
        model: on this rank's device.
        rows: of each domain.
        batches: of all ranks.
        token_bytes: None where the tokenizer does not tell them.
        most_rows: that go through the model at once; halved when the memory runs out.
    """

    model: PreTrainedModel
    rows: Mapping[str, StoredRows]
    batches: Sequence[Batch]
    token_bytes: TokenBytes | None
    most_rows: int

    def setting(self, seq_len: int, on_batch: Callable[[], None]) -> dict[str, Any]:
        """Measure the model as it thinks now; every rank must ask, and gets the same figures.

        Raises:
            UserError: on every rank: the loss is NaN or infinite.
        """
        own: dict[int, Measured] = {}
        shares = RealisedShares()
        for number in range(ranks.rank(), len(self.batches), ranks.world_size()):
            own[number] = self._in_memory(self.batches[number], shares)
            if not math.isfinite(own[number].loss_sum):
                break  # all ranks refuse it, below
            on_batch()
        by_number: dict[int, Measured] = {}
        all_shares = RealisedShares()
        for measured, counted in ranks.gather((own, shares)):
            by_number |= measured
            all_shares.add(counted)
        self._refuse_nan(by_number)
        by_domain: dict[str, list[Measured]] = {name: [] for name in self.rows}
        for number, batch in enumerate(self.batches):
            by_domain[batch.domain].append(by_number[number])
        totals = {domain: Measured.total(parts) for domain, parts in by_domain.items()}
        return _setting(self.model, seq_len, totals, all_shares)

    def _refuse_nan(self, measured: Mapping[int, Measured]) -> None:
        for number, batch in enumerate(self.batches):
            if number in measured and not math.isfinite(measured[number].loss_sum):
                raise UserError(
                    f"the loss on rows {batch.rows.start:,} to {batch.rows.stop - 1:,} of the "
                    f"domain {batch.domain} is {measured[number].loss_sum}, so there is no "
                    f"perplexity; {why_no_numbers(self.model)}"
                )

    def _in_memory(self, batch: Batch, shares: RealisedShares) -> Measured:
        """Measure a batch, in as many parts as the device's memory asks for."""
        parts: list[Measured] = []
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
        return Measured.total(parts)

    def _batch(self, batch: Batch, shares: RealisedShares) -> Measured:
        (tensors,) = batches_of(self.rows[batch.domain], batch.rows, len(batch.rows))
        on_device = {key: tensor.to(self.model.device) for key, tensor in tensors.items()}
        nll_BS = token_losses(self.model, on_device, shares)
        table = self.token_bytes
        text_bytes = None if table is None else table.count(tensors["input_ids"])
        return Measured(nll_BS.double().sum().item(), nll_BS.numel(), text_bytes)


@torch.inference_mode()
def token_losses(
    model: PreTrainedModel, batch: dict[str, Tensor], shares: RealisedShares | None = None
) -> Tensor:
    """Negative log-likelihood of every token but each row's first, (B, S-1), nats, float32."""
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
    model: PreTrainedModel,
    seq_len: int,
    measured: Mapping[str, Measured],
    shares: RealisedShares,
) -> dict[str, Any]:
    overall = Measured.total(list(measured.values()))
    setting = {
        "select_ratios": getattr(model.config, "select_ratios", []),
        "router_selection": getattr(model.config, "router_selection", None),
        "early_exit": getattr(model.config, "early_exit", 0.0),
        **_summary(overall),
        "domains": {domain: _summary(part) for domain, part in measured.items()},
    }
    if isinstance(model, IttForCausalLM):
        by_step = shares.by_step(model.config.thinking_steps)
        means = [sum(layers) / len(layers) if layers else 0.0 for layers in by_step]
        setting["realised_shares"] = by_step
        setting["paper_flops_per_token"] = paper_tflops(model.config, seq_len) * 1e12 / seq_len
        executed = executed_flops(model.config, 1, seq_len, means)
        setting["executed_flops_per_token"] = executed / seq_len
    return setting


def _summary(measured: Measured) -> dict[str, Any]:
    loss = measured.loss_sum / measured.tokens
    bits = measured.loss_sum / math.log(2)
    return {
        "tokens": measured.tokens,
        "bytes": measured.bytes,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # no overflow
        "bits_per_byte": bits / measured.bytes if measured.bytes else None,
    }
