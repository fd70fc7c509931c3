"""What may be asked of the server: OpenAI's fields, and how much to think; no torch.

A field that nothing reads is refused, so that no request is answered as if it had been followed.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from itt_composer.basics.errors import UserError
from itt_composer.models.generation_options import LOWEST_TEMPERATURE

MOST_STOPS = 4
# OpenAI's fields that this server does not follow, with the values that ask for nothing.
NOT_DONE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(_as_list),
    Field(max_length=MOST_STOPS),
]
Prompt = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1, max_length=1)]


class BadRequestError(UserError):
    """A request that cannot be followed.

    Attributes:
        key: the field that is wrong, if it is one.
        status: of HTTP.
    """

    def __init__(self, sentence: str, key: str | None = None, status: int = 400):
        super().__init__(sentence)
        self.key, self.status = key, status


class StreamOptions(BaseModel):
    """How to stream.

    Attributes:
        include_usage: send the counts of tokens at the end.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None


class GenerationRequest(BaseModel):
    """What both kinds of requests have.

    Attributes:
        model: the name of the served model.
        max_tokens: the most tokens to generate.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that tokens are sampled from.
        seed: of sampling; None draws one.
        stop: texts that end the answer, and are not part of it.
        stream: whether to send the answer piece by piece.
        stream_options: how.
        user: who asks; nothing reads it.
        select_ratios: ρ_t of this request; None is the model's own.
        early_exit: ε of this request; None is the model's own.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    select_ratios: list[float] | None = None
    early_exit: float | None = None

    @field_validator("temperature")
    @classmethod
    def _is_high_enough(cls, temperature: float | None) -> float | None:
        if temperature is not None and 0 < temperature < LOWEST_TEMPERATURE:
            raise ValueError(f"must be 0 or at least {LOWEST_TEMPERATURE}")
        return temperature


class CompletionRequest(GenerationRequest):
    """Of `/v1/completions`.

    Attributes:
        prompt: the text to continue, or a list of one.
    """

    prompt: Prompt = [""]


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Return it as chat templates take it."""
        is_text = isinstance(self.content, str)
        text = self.content if is_text else "".join(part.text for part in self.content)  # type: ignore[union-attr]
        return {"role": self.role, "content": text}  # type: ignore[dict-item]


class ChatRequest(GenerationRequest):
    """Of `/v1/chat/completions`.

    Attributes:
        messages: the conversation so far.
        max_completion_tokens: the newer name of `max_tokens`.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


Kind = TypeVar("Kind", bound=GenerationRequest)


def read_request(kind: type[Kind], content: Any) -> Kind:
    """Check the JSON of a request.

    Raises:
        BadRequestError: it is not an object, or the first field that is wrong or not followed.
    """
    if not isinstance(content, dict):
        raise BadRequestError("the request must be a JSON object")
    asked = dict(content)
    for key, nothing in NOT_DONE.items():
        value = asked.pop(key, None)
        if value is not None and (type(value), value) not in [(type(one), one) for one in nothing]:
            raise BadRequestError(f"{key}={value!r} is not done by this server: leave it out", key)
    try:
        return kind.model_validate(asked)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"] if not _is_of_a_type(part))
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            what = "this server does not know that field, so it would change nothing: leave it out"
        raise BadRequestError(f"{key}: {what}", key) from None


def _is_of_a_type(part: int | str) -> bool:
    """Whether a part of pydantic's place is the name of a type in a union."""
    return isinstance(part, str) and (part == "str" or "[" in part)
