"""One model that answers one request at a time, each with its own amount of thinking."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from itt_composer.basics.errors import UserError
from itt_composer.models.generation import Generation, check_ids, generate, most_steps, prompt_ids
from itt_composer.models.generation_options import GenerationOptions
from itt_composer.recipe.thinking import ELASTIC_FIELDS, check_early_exit
from itt_composer.runs.loading import LoadedModel, decide_token_by_token, think_as
from itt_composer.serving.requests import (
    BadRequestError,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
)
from itt_composer.serving.stops import StopAt

TOKENS_OF_A_COMPLETION = 16  # where a request does not say, as in OpenAI's API


@dataclass
class Answer:
    """What a request has come to.

    Attributes:
        finish_reason: "stop" at the end of a document or a stop, else "length".
        prompt_tokens: of the request.
        completion_tokens: that were generated.
        thinking_steps: how often each step was taken, over all tokens and layers.
    """

    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    thinking_steps: list[int]

    def usage(self) -> dict[str, Any]:
        """Return the counts as OpenAI names them, with the thinking steps."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "thinking_steps": self.thinking_steps,
        }


class ServedModel:
    """A model and its tokenizer; not for several threads at once.

    Args:
        loaded: the model.

    Raises:
        UserError: it has no tokenizer, or needs thresholds and has none.
    """

    def __init__(self, loaded: LoadedModel):
        self._loaded = loaded
        self._model: Any = loaded.model
        self._tokenizer: Any = loaded.tokenizer()
        decide_token_by_token(self._model, loaded.place)

    @property
    def name(self) -> str:
        """The name that requests give."""
        return self._loaded.name

    def check_thinking(self, request: GenerationRequest) -> None:
        """Refuse an amount of thinking that this model does not do; changes nothing.

        Raises:
            BadRequestError: names the field.
        """
        model, config = self._model, self._model.config
        for key in ("select_ratios", "early_exit"):
            if getattr(request, key) is not None and not most_steps(config)[0]:
                raise BadRequestError(f"{key}: {self.name} takes no thinking steps", key)
        ratios, key = request.select_ratios, "select_ratios"
        try:
            if ratios is not None:
                config.checked_select_ratios(ratios)
                if any(0 < ratio < 1 for ratio in ratios) and not model.has_thresholds:
                    raise ValueError(f"{self.name} has no thresholds for parts of the tokens")
            if request.early_exit is not None:
                key = "early_exit"
                check_early_exit(request.early_exit)
        except ValueError as error:
            raise BadRequestError(f"{key}: {error}", key) from None

    def prompt(self, request: GenerationRequest) -> list[int]:
        """Return the ids that a request begins with.

        Raises:
            BadRequestError: they do not fit, or the tokenizer has no chat template that takes them.
        """
        config = self._model.config
        try:
            if isinstance(request, CompletionRequest):
                return prompt_ids(config, self._tokenizer, request.prompt[0])
            assert isinstance(request, ChatRequest)
            ids = self._chat_ids(request)
            check_ids(config, ids)
            return ids
        except BadRequestError:
            raise
        except UserError as error:
            key = "prompt" if isinstance(request, CompletionRequest) else "messages"
            raise BadRequestError(str(error), key) from None

    def answer(
        self,
        request: GenerationRequest,
        ids: list[int],
        write: Callable[[str], None],
        is_over: Callable[[], bool],
    ) -> Answer:
        """Generate the answer to a request.

        Args:
            request: what was asked; see `check_thinking`.
            ids: of its prompt, see `prompt`.
            write: is given the text, piece by piece.
            is_over: asked after each token; ends the answer there.

        Raises:
            OverflowInLogitsError: logits are NaN or infinite.
        """
        stop = StopAt(request.stop or [])

        def pass_on(text: str, steps: int | None) -> None:
            if piece := stop.push(text):
                write(piece)

        with self._thinking(request):
            generation = generate(
                self._model,
                self._tokenizer,
                ids,
                self._options(request),
                pass_on,
                with_prompt=False,
                is_over=lambda: stop.is_reached or is_over(),
            )
        if rest := stop.end():
            write(rest)
        return _answer(generation, stop.is_reached)

    def _options(self, request: GenerationRequest) -> GenerationOptions:
        """Return OpenAI's defaults where the request says nothing."""
        most = request.max_tokens
        if isinstance(request, ChatRequest):
            room = self._model.config.max_position_embeddings
            most = request.max_completion_tokens or most or room
        return GenerationOptions(
            max_new_tokens=most or TOKENS_OF_A_COMPLETION,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
        )

    @contextmanager
    def _thinking(self, request: GenerationRequest) -> Iterator[None]:
        """Let the model think as a request asks, and then as before."""
        config = self._model.config
        before = {name: getattr(config, name, None) for name in ELASTIC_FIELDS}
        asked = {"select_ratios": request.select_ratios, "early_exit": request.early_exit}
        try:
            think_as(self._model, asked)
            decide_token_by_token(self._model, self._loaded.place)
            yield
        finally:
            think_as(self._model, before)

    def _chat_ids(self, request: ChatRequest) -> list[int]:
        tokenizer = self._tokenizer
        if not tokenizer.chat_template:
            raise BadRequestError(
                f"the tokenizer of {self.name} has no chat template: ask /v1/completions"
            )
        messages = [message.plain() for message in request.messages]
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise all kinds
            reason = " ".join(str(error).split())
            raise BadRequestError(
                f"the chat template of {self.name} does not take these messages: {reason}",
                "messages",
            ) from None
        # The names of special tokens are the template's own, so they are tokens here.
        return tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids


def _answer(generation: Generation, is_stopped: bool) -> Answer:
    reason = "stop" if is_stopped or generation.has_ended else "length"
    counts = generation.prompt_tokens, generation.new_tokens
    return Answer(reason, *counts, generation.counter.taken)
