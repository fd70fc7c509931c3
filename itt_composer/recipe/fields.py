"""How a recipe's keys are declared: each once, with its type, default, meaning and source.

The schema checks recipes by these declarations, `changes.py` reads from them what a begun run can
follow, and `reference.py` writes the page of all keys.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

# What a run that goes on does with another value of a key.
FREE = "free"  # nothing that is computed depends on it, or only its rounding does
ON_REQUEST = "`--allow-changes`"  # it is followed where the user allows it
# Why a checkpoint cannot follow it.
SHAPE = "the checkpoint's weights are of that geometry"
START = "it has an effect at the very beginning only"

Positive = Annotated[int, Field(ge=1)]


class StrictModel(BaseModel):
    """Keys that stand together; an unknown one is refused, and so is a value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def field_notes(
    meaning: str, source: str = "", resume: str = "", implied: str = ""
) -> dict[str, Any]:
    """Return what a declaration says for readers, as keyword arguments of pydantic's `Field`.

    Args:
        meaning: a phrase or sentences in Markdown.
        source: the paper's table or algorithm, or the library's class that takes the value.
        resume: what a run that goes on does with another value: FREE, ON_REQUEST, or the reason why
            it refuses. Empty takes that of the section.
        implied: in words, the value that null stands for.
    """
    extra = {"source": source, "resume": resume, "implied": implied}
    said = {name: text for name, text in extra.items() if text}
    return {"description": meaning or None, "json_schema_extra": said}


def setting(
    default: Any,
    meaning: str = "",
    source: str = "",
    resume: str = "",
    implied: str = "",
    **constraints: Any,
) -> Any:
    """Declare a key of a pydantic class: `Field` with a meaning and a source.

    Args:
        default: `...` for a key that has to be given.
        meaning, source, resume, implied: see `field_notes`.
        **constraints: of `Field`, such as `gt=0`.
    """
    return Field(default, **field_notes(meaning, source, resume, implied), **constraints)
