"""Streams generated text as it comes, each token with the thinking steps it took.

Shapes: B batch, S sequence, N selections of one forward pass.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from itt_composer.models.layer import ThinkingStep

NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
MOST_HELD = 8  # tokens; a character has four bytes, so more of them are none


class StepCounter:
    """Counts thinking steps, per token and per step, of one sequence.

    Attributes:
        tokens: how many have gone through the model.
        taken: how often each of the T-1 steps was taken, over all tokens and layers.
    """

    def __init__(self, num_steps: int):
        self.tokens = 0
        self.taken = [0] * num_steps
        self._selections: list[tuple[int, Tensor]] = []

    def on_step(self, done: "ThinkingStep") -> None:
        """Record a step; pass this to the model's `forward` as `on_step`. B must be 1."""
        self._selections.append((done.step, done.is_selected_BS[0]))

    def end_pass(self, tokens: int) -> list[int]:
        """Return the steps that each token took in the forward pass that has ended."""
        self.tokens += tokens
        selections, self._selections = self._selections, []
        if not selections:
            return [0] * tokens
        import torch

        is_taken_NS = torch.stack([is_selected_S for _, is_selected_S in selections])
        counts = is_taken_NS.sum(dim=1).tolist()
        for (step, _), count in zip(selections, counts, strict=True):
            self.taken[step - 1] += count
        return [int(steps) for steps in is_taken_NS.sum(dim=0).tolist()]


class IncrementalDecoder:
    """Decodes tokens one by one as if together: no half characters, no lost blanks."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._shown: list[int] = []  # the last tokens whose text is out; what follows needs them
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Return the text that the token completes; empty while a character is incomplete."""
        self._held.append(token_id)
        text = self._held_text()
        if text.endswith(NO_CHARACTER) and len(self._held) < MOST_HELD:
            return ""
        self._shown, self._held = self._held, []
        return text

    def end(self) -> str:
        """Return what is left of an incomplete character."""
        text, self._held = self._held_text(), []
        return text

    def _held_text(self) -> str:
        before = self._decode(self._shown)
        return self._decode(self._shown + self._held)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


class TextStream:
    """A streamer for `generate(streamer=…)`; one sequence.

    How many steps a token took is known once it has gone through the model, when the next one is
    there. So a stream that shows them is one token late.

    Args:
        tokenizer: of the model.
        counter: its `on_step` must be passed to the same call of `generate`.
        write: called with a piece of text and the steps of the token that completed it; None
            where they are not known: of the last token, and of all without `tells_steps`.
        tells_steps: show each token's steps, and wait for them.
        with_prompt: show the prompt as well.
    """

    def __init__(
        self,
        tokenizer: Any,
        counter: StepCounter,
        write: Callable[[str, int | None], None],
        tells_steps: bool,
        with_prompt: bool = True,
    ):
        self._decoder = IncrementalDecoder(tokenizer)
        self._counter = counter
        self._write = write
        self._tells_steps = tells_steps
        self._hidden = 0 if with_prompt else None  # tokens still to be hidden; None: not known yet
        self._last: list[int] = []

    def put(self, value: "Tensor") -> None:
        """Take the prompt, then each new token before it goes through the model."""
        before, self._last = self._last, value.flatten().tolist()
        if self._hidden is None:
            self._hidden = len(self._last)
        steps = self._counter.end_pass(len(before)) if before else []
        if self._tells_steps:
            self._show(before, steps)
        else:
            self._show(self._last, [None] * len(self._last))

    def end(self) -> None:
        """Show the last token, which the model has not seen."""
        if self._tells_steps:
            self._show(self._last, [None] * len(self._last))
        self._write(self._decoder.end(), None)

    def _show(self, ids: list[int], steps: list[int] | list[None]) -> None:
        for token_id, taken in zip(ids, steps, strict=True):
            text = self._decoder.push(token_id)
            if self._hidden:
                self._hidden -= 1
            elif text:
                self._write(text, taken)
