"""Continuing a text, each token with the thinking steps it took.

Shapes: B batch, S sequence.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria

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
        has_ended: whether the last token ends a document.
    """

    config: Any
    counter: StepCounter
    prompt_tokens: int
    new_tokens: int
    seconds: float
    is_cut: bool
    has_ended: bool

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


class StopWhen(StoppingCriteria):
    """Ends a generation when it is asked to; the token just made is its last."""

    def __init__(self, is_over: Callable[[], bool]):
        self._is_over = is_over

    def __call__(self, ids_BS: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        return torch.full((ids_BS.shape[0],), self._is_over(), device=ids_BS.device)


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
        raise UserError("this model has no token that begins a document: give a prompt")
    check_ids(config, ids)
    return ids


def check_ids(config: Any, ids: list[int]) -> None:
    """Refuse a prompt that the model cannot continue.

    Raises:
        UserError: more tokens than the model has positions for, or ids that it does not have.
    """
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


def generate(
    model: Any,
    tokenizer: Any,
    ids: list[int],
    options: GenerationOptions,
    write: Callable[[str, int | None], None],
    by_token: bool = False,
    with_prompt: bool = True,
    is_over: Callable[[], bool] = lambda: False,
) -> Generation:
    """Continue a text on the model's device, and hand it on piece by piece.

    Args:
        model: that thinks as wanted; see `think_as`.
        tokenizer: of the model.
        ids: of the prompt; see `prompt_ids`.
        options: how.
        write: is given the prompt and what follows, each piece with the steps it took.
        by_token: hand on each token by itself.
        with_prompt: hand on the prompt as well.
        is_over: asked after each token; ends the text there.

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
        streamer=TextStream(tokenizer, counter, write, by_token, with_prompt),
        logits_processor=[RefuseOverflow()],
        stopping_criteria=[StopWhen(is_over)],
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
    has_ended = bool(new_tokens) and int(output_BS[0, -1]) in _ends(model)
    seconds = time.perf_counter() - started
    return Generation(model.config, counter, len(ids), new_tokens, seconds, is_cut, has_ended)


def _ends(model: Any) -> list[int]:
    """Return the ids that end a document."""
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]
