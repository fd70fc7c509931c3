"""Perplexity of a model on token rows: overall, per domain, at any elastic setting.

Shapes: B batch, S sequence, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import itt_composer  # noqa: F401  (makes the Auto classes know ITT models)
from eval.suite import PerplexitySuite
from itt_composer.data.shards import domains_with_rows, read_manifest
from itt_composer.data.stored_rows import stored_rows
from itt_composer.data.streams import collate_rows
from itt_composer.errors import UserError
from itt_composer.flops import executed_flops, paper_tflops
from itt_composer.models import IttForCausalLM


def run(suite: PerplexitySuite, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure every setting of a suite.

    Args:
        suite: what to measure.
        on_progress: called after each batch with the rows done and in all.

    Returns:
        `{"suite", "seq_len", "parameters", "settings": [...]}`. Each setting has `select_ratios`,
        `tokens` (predicted), `loss` (nats per token), `perplexity`, `domains` (the same three per
        domain), `tokens_per_second`, and for our models `paper_flops_per_token` and
        `executed_flops_per_token` (one forward pass).

    Raises:
        UserError: the model cannot be loaded, or takes no such ratios.
    """
    manifest = read_manifest(suite.data)
    domains = domains_with_rows(manifest, suite.split)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(suite.model).eval()
    model.to(torch.device(device))  # type: ignore[arg-type]
    if manifest["vocab_size"] > model.config.vocab_size:
        raise UserError(
            f"data={suite.data} was made with a tokenizer of {manifest['vocab_size']} ids, but "
            f"model={suite.model} has {model.config.vocab_size}"
        )
    total = sum(domains.values()) * len(suite.select_ratios)
    done = 0
    settings = []
    own_ratios = getattr(model.config, "select_ratios", None)
    for ratios in suite.select_ratios:
        in_force = own_ratios if ratios is None else ratios
        if in_force is not None:
            _set_ratios(model, in_force)
        started = time.monotonic()
        measured = {}
        for domain in domains:
            loss_sum, tokens = 0.0, 0
            for batch in batches(Path(suite.data) / suite.split / domain, suite.batch_size):
                nll_BS = token_losses(model, {key: x.to(device) for key, x in batch.items()})
                loss_sum += nll_BS.double().sum().item()
                tokens += nll_BS.numel()
                done += len(nll_BS)
                on_progress(done, total)
            measured[domain] = (loss_sum, tokens)
        seconds = time.monotonic() - started
        settings.append(_setting(model, manifest["seq_len"], measured, seconds))
    return {
        "suite": suite.model_dump(),
        "seq_len": manifest["seq_len"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "settings": settings,
    }


def load_model(folder: str) -> PreTrainedModel:
    """Load a transformers folder; never runs code that lies in it.

    Raises:
        UserError: it holds no causal language model that can be read.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model={folder} cannot be loaded: {reason}") from None
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise UserError(f"model={folder} cannot be loaded: its files lack {missing}")
    return model


def batches(folder: Path, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Every row of one stream once, in stored order; the last batch may be smaller."""
    rows = stored_rows(folder)
    while batch := list(islice(rows, batch_size)):
        yield collate_rows(batch)


@torch.inference_mode()
def token_losses(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Negative log-likelihood of every token but each row's first, (B, S-1), nats, float32."""
    logits_BSV = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits
    predicted_BVS = logits_BSV[:, :-1].float().transpose(1, 2)
    return F.cross_entropy(predicted_BVS, batch["labels"][:, 1:], reduction="none")


def _set_ratios(model: PreTrainedModel, ratios: list[float]) -> None:
    if not isinstance(model, IttForCausalLM):
        raise UserError(f"select_ratios={ratios} needs an ITT model, not {type(model).__name__}")
    try:
        model.set_select_ratios(ratios)
    except ValueError as error:
        raise UserError(f"select_ratios={ratios}: {error}") from None


def _setting(
    model: PreTrainedModel,
    seq_len: int,
    measured: dict[str, tuple[float, int]],
    seconds: float,
) -> dict[str, Any]:
    losses, counts = zip(*measured.values(), strict=True)
    setting = {
        "select_ratios": getattr(model.config, "select_ratios", []),
        **_summary(sum(losses), sum(counts)),
        "domains": {domain: _summary(*pair) for domain, pair in measured.items()},
        "tokens_per_second": sum(counts) / seconds,
    }
    if isinstance(model, IttForCausalLM):
        setting["paper_flops_per_token"] = paper_tflops(model.config, seq_len) * 1e12 / seq_len
        setting["executed_flops_per_token"] = executed_flops(model.config, 1, seq_len) / seq_len
    return setting


def _summary(loss_sum: float, tokens: int) -> dict[str, Any]:
    loss = loss_sum / tokens
    return {"tokens": tokens, "loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # no overflow
