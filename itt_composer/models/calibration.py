"""Estimates thresholds: measures how the routers' scores are distributed, in training and after.

In training the distributions are followed by a running estimate at the ratios in force
(`training/threshold_estimate.py`). `calibrate` measures them at every anchor setting.

Shapes: B batch, S sequence, A anchors, T thinking steps, Q quantiles.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from itt_composer.models.layer import IttDecoderLayer, ThinkingStep
from itt_composer.models.modeling import IttForCausalLM
from itt_composer.models.thresholds import anchor_settings, quantiles_of

# At an anchor of ratio 0 the step's scores are measured, but no token should take the step.
ALMOST_NONE = 1e-9

# Called with a thinking layer, the step's place in its tables (from 0) and its scores, (B, S).
OnScores = Callable[[IttDecoderLayer, int, Tensor], None]


@contextlib.contextmanager
def watched_scores(model: IttForCausalLM, on_scores: OnScores) -> Iterator[None]:
    """Pass the scores of every router to `on_scores`, before tokens are selected by them."""

    def watch(layer: IttDecoderLayer, step: int) -> Callable[..., None]:
        return lambda router, inputs, scores_BS: on_scores(layer, step, scores_BS)

    handles = [
        router.register_forward_hook(watch(layer, step))
        for layer in model.thinking_layers
        for step, router in enumerate(layer.routers or ())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def calibrate(
    model: IttForCausalLM,
    batches: Sequence[Mapping[str, Tensor]],
    gather: Callable[[Tensor], Tensor] = lambda scores: scores,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Measure the scores' distribution at every anchor setting, and fill in the model's tables.

    In each batch a step's threshold is that of the batch itself, so that later steps and layers
    see the tokens that the ratios ask for; tables are the means over the batches. Batches should
    therefore be large and each a mixture of all kinds of text.

    Args:
        model: with routers; its mode and settings are left as they are.
        batches: `input_ids` and `attention_mask`, each (B, S), without padding.
        gather: collects the scores of all ranks, where each has batches of its own.
        on_progress: called after each batch with the batches done and in all.

    Raises:
        ValueError: the model has no routers, or there is no batch.
    """
    config = model.config
    if not config.adaptive_routing:
        raise ValueError("the model has no routers, so there is nothing to calibrate")
    if not batches:
        raise ValueError("there is no batch to calibrate with")
    anchors = anchor_settings(config.thinking_steps - 1)
    measured = {layer: torch.zeros_like(layer.score_quantiles) for layer in model.thinking_layers}
    with _empty_tables(model):
        for anchor, ratios in enumerate(anchors):

            def measure(
                layer: IttDecoderLayer, step: int, scores_BS: Tensor, anchor: int = anchor
            ) -> None:
                quantiles_Q = quantiles_of(gather(scores_BS)).to(layer.score_quantiles.dtype)
                layer.score_quantiles[:, step] = quantiles_Q
                measured[layer][anchor, step] += quantiles_Q / len(batches)

            asked = [ratio or ALMOST_NONE for ratio in ratios]
            with watched_scores(model, measure):
                for index, batch in enumerate(batches, start=1):
                    model(
                        input_ids=batch["input_ids"],
                        attention_mask=batch["attention_mask"],
                        use_cache=False,
                        select_ratios=asked,
                        early_exit=0.0,
                        logits_to_keep=1,
                    )
                    on_progress(anchor * len(batches) + index, len(anchors) * len(batches))
    for layer, table_AXQ in measured.items():
        layer.score_quantiles.copy_(table_AXQ)


@contextlib.contextmanager
def _empty_tables(model: IttForCausalLM) -> Iterator[None]:
    """Have routers pick by tables that are to be filled; then put back mode, rule and tables."""
    config = model.config
    tables = {layer: layer.score_quantiles.clone() for layer in model.thinking_layers}
    selection, was_training = config.router_selection, model.training
    model.eval()
    config.router_selection = "threshold"
    try:
        for layer in tables:
            layer.score_quantiles.zero_()
        yield
    finally:
        config.router_selection = selection
        model.train(was_training)
        for layer, table_AXQ in tables.items():
            layer.score_quantiles.copy_(table_AXQ)


def update_estimate(layer: IttDecoderLayer, step: int, quantiles_Q: Tensor, decay: float) -> None:
    """Move the running estimate of one step's distribution, at every anchor, towards a new one.

    Args:
        layer: a thinking layer.
        step: place of the step in its tables, from 0.
        quantiles_Q: measured just now.
        decay: what remains of the old estimate, 0..1.
    """
    tables_AQ = layer.score_quantiles[:, step]
    estimate_AQ = torch.where(tables_AQ.isnan(), quantiles_Q, tables_AQ)
    tables_AQ.copy_(torch.lerp(quantiles_Q.to(estimate_AQ.dtype), estimate_AQ, decay))


@dataclass
class RealisedShares:
    """Counts the share of the tokens that took each step of each thinking layer.

    Pass `count` to a model as `on_step`.
    """

    taken: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    tokens: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))

    def count(self, done: ThinkingStep) -> None:
        key = done.layer_idx, done.step
        self.taken[key] += int(done.is_selected_BS.sum())
        self.tokens[key] += done.is_selected_BS.numel()

    def add(self, other: "RealisedShares") -> None:
        """Add the counts of another one."""
        for own, more in ((self.taken, other.taken), (self.tokens, other.tokens)):
            for key, count in more.items():
                own[key] += count

    def by_step(self, thinking_steps: int) -> list[list[float]]:
        """Return the share that took each step after the first pass, by step and thinking layer."""
        return [
            [self.taken[key] / self.tokens[key] for key in sorted(self.taken) if key[1] == step]
            for step in range(1, thinking_steps)
        ]
