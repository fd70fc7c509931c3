"""Continuing a text, each token with the thinking steps it took.

Shapes: B batch, S sequence.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from itt_composer.basics.errors import UserError
from itt_composer.models.generation_options import GenerationOptions
from itt_composer.models.overflow import RefuseOverflow
from itt_composer.models.text_stream import StepCounter, TextStream
from itt_composer.models.tokenizer import document_ids


@dataclass
class Generation:
    """What a generation took.

    Attributes:
        config: of the model.
        counter: of the thinking steps.
        prompt_tokens: before it.
        new_tokens: that were generated.
        seconds: that it took.
        is_cut: whether it ended because the model has no more positions.
    """

    config: Any
    counter: StepCounter
    prompt_tokens: int
    new_tokens: int
    seconds: float
    is_cut: bool

    def summary(self) -> str:
        """Say it in one line."""
        speed = f"{self.new_tokens / self.seconds:,.1f} tokens/s"
        parts = [f"{self.new_tokens} tokens after {self.prompt_tokens}, {speed}"]
        taken, tokens = self.counter.taken, self.counter.tokens
        if taken:
            num_layers = len(self.config.thinking_layers)
            shares = [100 * of_step / (tokens * num_layers) for of_step in taken]
            steps = f"{sum(taken) / tokens:.2f} of {num_layers * len(shares)}"
            parts.append(f"{steps} thinking steps per token")
            asked = "/".join(f"{100 * ratio:.0f}" for ratio in self.config.select_ratios)
            realised = "/".join(f"{share:.0f}" for share in shares)
            parts.append(f"steps at {realised} % ({asked} asked)")
        return "; ".join(parts)


def most_steps(config: Any) -> tuple[int, int]:
    """Return T-1, and the steps that a token can take over all layers; 0 for a dense model."""
    num_steps = len(getattr(config, "select_ratios", []))
    return num_steps, num_steps * len(getattr(config, "thinking_layers", []))


def prompt_ids(config: Any, tokenizer: Any, prompt: str) -> list[int]:
    """Return the prompt's ids, as those of a document begin in training rows.

    Raises:
        UserError: nothing to begin with, or more than the model has positions for.
    """
    ids = document_ids(tokenizer, prompt)
    if not ids and config.bos_token_id is not None:
        ids = [config.bos_token_id]
    if not ids:
        raise UserError("this model has no token that begins a document: give a --prompt")
    if len(ids) >= config.max_position_embeddings:
        raise UserError(
            f"the prompt has {len(ids)} tokens and leaves no room in the model's "
            f"{config.max_position_embeddings} positions: shorten it"
        )
    if max(ids) >= config.vocab_size:
        raise UserError(
            f"the tokenizer gives id {max(ids)}, but the model has {config.vocab_size} ids: it is "
            "another model's tokenizer"
        )
    return ids


def generate(
    model: Any,
    tokenizer: Any,
    ids: list[int],
    options: GenerationOptions,
    write: Callable[[str, int | None], None],
    by_token: bool,
) -> Generation:
    """Continue a text on the model's device, and hand it on piece by piece.

    Args:
        model: that thinks as wanted; see `think_as`.
        tokenizer: of the model.
        ids: of the prompt; see `prompt_ids`.
        options: how.
        write: is given the prompt and what follows, each piece with the steps it took.
        by_token: hand on each token by itself.

    Raises:
        OverflowInLogitsError: logits are NaN or infinite.
    """
    num_steps, _ = most_steps(model.config)
    room = model.config.max_position_embeddings - len(ids)
    counter = StepCounter(num_steps)
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    output_BS = model.generate(
        torch.tensor([ids], device=model.device),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
        streamer=TextStream(tokenizer, counter, write, by_token),
        logits_processor=[RefuseOverflow()],
        # Whatever the folder's generation config says: text streams from one beam.
        use_cache=True,
        num_beams=1,
        cache_implementation=None,
        remove_invalid_values=False,
        max_new_tokens=min(options.max_new_tokens, room),
        **options.sampling(),
        **({"on_step": counter.on_step} if num_steps else {}),
    )
    new_tokens = output_BS.shape[1] - len(ids)
    is_cut = new_tokens == room < options.max_new_tokens
    seconds = time.perf_counter() - started
    return Generation(model.config, counter, len(ids), new_tokens, seconds, is_cut)
