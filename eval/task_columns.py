"""Declares the columns that the tasks of the paper's suite read from their data files."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from itt_composer.data.columns import Columns, Text

Texts = Annotated[list[str], Field(min_length=1, description="list of strings")]
FourTexts = Annotated[list[str], Field(min_length=4, max_length=4, description="list of 4 strings")]


def _holds(part: str, reason: str) -> AfterValidator:
    def check(text: str) -> str:
        if part not in text:
            raise ValueError(reason)
        return text

    return AfterValidator(check)


class SciQ(Columns):
    """SciQ."""

    question: Text
    support: Text
    distractor1: Text
    distractor2: Text
    distractor3: Text
    correct_answer: Text


class Piqa(Columns):
    """PIQA."""

    goal: Text
    sol1: Text
    sol2: Text
    label: Annotated[Literal[0, 1], Field(description="0 or 1")]


class WinoGrande(Columns):
    """WinoGrande."""

    sentence: Annotated[
        str, _holds("_", "should hold the gap _"), Field(description="string with the gap _")
    ]
    option1: Text
    option2: Text
    answer: Annotated[Literal["1", "2"], Field(description='"1" or "2"')]


class Choices(BaseModel):
    """Options of an ARC question and their labels."""

    model_config = ConfigDict(strict=True)

    text: Texts
    label: Texts


class Arc(Columns):
    """ARC-Easy and ARC-Challenge."""

    question: Text
    choices: Annotated[Choices, Field(description="text and label, lists of strings")]
    answerKey: Annotated[str, Field(description="string, one of the labels")]

    @model_validator(mode="after")
    def _has_its_answer(self) -> "Arc":
        if len(self.choices.text) != len(self.choices.label):
            raise ValueError("choices: text and label should be of one length")
        if self.answerKey not in self.choices.label:
            raise ValueError(f"answerKey={self.answerKey!r} is not one of the labels of choices")
        return self


class HellaSwag(Columns):
    """HellaSwag."""

    activity_label: Text
    ctx_a: Text
    ctx_b: Text
    endings: FourTexts
    label: Annotated[
        Literal["0", "1", "2", "3", 0, 1, 2, 3], Field(description='"0", "1", "2" or "3"')
    ]


class LogiQA(Columns):
    """LogiQA."""

    label: Annotated[Literal["a", "b", "c", "d"], Field(description='"a", "b", "c" or "d"')]
    context: Text
    question: Text
    options: FourTexts


class BoolQ(Columns):
    """BoolQ, as in SuperGLUE."""

    passage: Text
    question: Text
    label: Annotated[Literal[0, 1], Field(description="0 for no, 1 for yes")]


class Lambada(Columns):
    """LAMBADA in OpenAI's form."""

    text: Annotated[
        str, _holds(" ", "should hold several words"), Field(description="string of several words")
    ]


class Mmlu(Columns):
    """A subject of MMLU."""

    question: Text
    choices: FourTexts
    answer: Annotated[Literal[0, 1, 2, 3], Field(description="0, 1, 2 or 3")]


class NqOpen(Columns):
    """NQ-open."""

    question: Text
    answer: Texts


BY_TASK: dict[str, type[Columns]] = {
    "sciq": SciQ,
    "piqa": Piqa,
    "winogrande": WinoGrande,
    "arc_easy": Arc,
    "arc_challenge": Arc,
    "hellaswag": HellaSwag,
    "logiqa": LogiQA,
    "boolq": BoolQ,
    "lambada_openai": Lambada,
    "nq_open": NqOpen,
}
MMLU_DATASET = "cais/mmlu"


def columns_of(task: str, config: Mapping[str, Any]) -> type[Columns] | None:
    """Return the columns of a leaf task, or None for tasks outside of the paper's suite."""
    return Mmlu if config.get("dataset_path") == MMLU_DATASET else BY_TASK.get(task)
