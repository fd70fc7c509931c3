"""Perplexity of a model on token rows: overall, per domain, at any way of thinking.

Shapes: B batch, S sequence, V vocabulary.
"""

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from eval import ranks
from eval.models import THINKING_KEYS, load_evaluated, think_as
from eval.suite import PerplexitySuite
from itt_composer.calibration import RealisedShares
from itt_composer.data.shards import domains_with_rows, read_manifest
from itt_composer.data.stored_rows import StoredRows, batches_of
from itt_composer.errors import UserError
from itt_composer.flops import executed_flops, paper_tflops
from itt_composer.models import IttForCausalLM


def run(suite: PerplexitySuite, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure every setting of a suite.

    Args:
        suite: what to measure.
        on_progress: called after each batch with the rows done and in all.

    Returns:
        `{"suite", "seq_len", "model", "settings": [...]}`. Each setting has `select_ratios`,
        `router_selection`, `early_exit`, `tokens` (predicted), `loss` (nats per token),
        `perplexity`, `domains` (the same three per domain), `tokens_per_second`, and for our
        models `realised_shares` (of the tokens that took each step, a list over the thinking
        layers), `paper_flops_per_token` (at the ratios asked for) and `executed_flops_per_token`
        (at the realised shares), of one forward pass.

    Raises:
        UserError: the model cannot be loaded, or cannot think that way.
    """
    manifest = read_manifest(suite.data)
    domains = domains_with_rows(manifest, suite.split)
    device = ranks.device()
    evaluated = load_evaluated(suite.model, suite.model.path[0], device)
    model = evaluated.model
    if manifest["vocab_size"] > model.config.vocab_size:
        raise UserError(
            f"data={suite.data} was made with a tokenizer of {manifest['vocab_size']} ids, but "
            f"model={evaluated.path} has {model.config.vocab_size}"
        )
    asked = list(itertools.product(suite.select_ratios, suite.router_selection, suite.early_exit))
    total = sum(domains.values()) * len(asked)
    done = 0
    settings = []
    own = {name: getattr(model.config, name, None) for name in THINKING_KEYS}

    def put_in_force(setting: tuple[Any, ...]) -> None:
        given = dict(zip(THINKING_KEYS, setting, strict=True))
        think_as(model, own | {name: value for name, value in given.items() if value is not None})

    for setting in asked:  # a mistake is told before hours of measuring
        put_in_force(setting)
    for setting in asked:
        put_in_force(setting)
        shares = RealisedShares()
        started = time.monotonic()
        measured = {}
        for domain in domains:
            loss_sum, tokens = 0.0, 0
            rows = StoredRows(Path(suite.data) / suite.split / domain)
            for batch in batches_of(rows, range(len(rows)), suite.batch_size):
                nll_BS = token_losses(
                    model, {key: x.to(device) for key, x in batch.items()}, shares
                )
                loss_sum += nll_BS.double().sum().item()
                tokens += nll_BS.numel()
                done += len(nll_BS)
                on_progress(done, total)
            measured[domain] = (loss_sum, tokens)
        seconds = time.monotonic() - started
        settings.append(_setting(model, manifest["seq_len"], measured, seconds, shares))
    return {
        "suite": suite.model_dump(),
        "seq_len": manifest["seq_len"],
        "model": evaluated.description(),
        "settings": settings,
    }


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
    measured: dict[str, tuple[float, int]],
    seconds: float,
    shares: RealisedShares,
) -> dict[str, Any]:
    losses, counts = zip(*measured.values(), strict=True)
    setting = {
        "select_ratios": getattr(model.config, "select_ratios", []),
        "router_selection": getattr(model.config, "router_selection", None),
        "early_exit": getattr(model.config, "early_exit", 0.0),
        **_summary(sum(losses), sum(counts)),
        "domains": {domain: _summary(*pair) for domain, pair in measured.items()},
        "tokens_per_second": sum(counts) / seconds,
    }
    if isinstance(model, IttForCausalLM):
        by_step = shares.by_step(model.config.thinking_steps)
        means = [sum(layers) / len(layers) if layers else 0.0 for layers in by_step]
        setting["realised_shares"] = by_step
        setting["paper_flops_per_token"] = paper_tflops(model.config, seq_len) * 1e12 / seq_len
        executed = executed_flops(model.config, 1, seq_len, means)
        setting["executed_flops_per_token"] = executed / seq_len
    return setting


def _summary(loss_sum: float, tokens: int) -> dict[str, Any]:
    loss = loss_sum / tokens
    return {"tokens": tokens, "loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # no overflow
