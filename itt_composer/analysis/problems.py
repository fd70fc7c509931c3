"""Multiple-choice problems with a rationale, as AQuA has them, and the text a model is given.

    Question: Three birds are flying at a fast rate of 900 kilometers per hour. …
    Options: A)32400 B)6000 C)600 D)60000 E)10
    Answer: A
    Rationale: To calculate the equivalent of miles in a kilometer …

The response begins after `Answer:`. The letter comes before the rationale: so one format serves to
train and to ask, and the rationale, which often names the letter, cannot give it away.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from itt_composer.basics.errors import UserError
from itt_composer.data.columns import Columns, Text, check_file

OPTION = re.compile(r"([A-Z])\)")
# A text as token ids.
Encode = Callable[[str], list[int]]


class Problem(Columns):
    """A line of a file of problems.

    Attributes:
        question: its text.
        options: each begins with its letter: `A)32400`.
        rationale: how to get to the answer.
        correct: the letter of the right option.
    """

    question: Text
    options: Annotated[list[str], Field(min_length=2, description="list such as A)12, B)24")]
    rationale: Text
    correct: Annotated[str, Field(description="letter of an option")]

    @model_validator(mode="after")
    def _has_its_answer(self) -> "Problem":
        matches = [OPTION.match(option) for option in self.options]
        for option, match in zip(self.options, matches, strict=True):
            if match is None:
                raise ValueError(f"the option {option!r} does not begin with its letter, as A)")
        if len(set(self.letters)) < len(self.options):
            raise ValueError("two options have the same letter")
        if self.correct not in self.letters:
            raise ValueError(f"correct={self.correct!r} is not the letter of an option")
        return self

    @property
    def letters(self) -> list[str]:
        """The letters of the options, in their order."""
        return [option[0] for option in self.options]

    @property
    def context(self) -> str:
        """What a model is asked."""
        return f"Question: {self.question}\nOptions: {' '.join(self.options)}\nAnswer:"

    @property
    def response(self) -> str:
        """What it should say."""
        return f" {self.correct}\nRationale: {self.rationale}"


def read_problems(file: Path) -> list[Problem]:
    """Read the problems in a file of JSON lines.

    Raises:
        UserError: the file does not exist, or a line is not a problem; names file and line.
    """
    if file.suffix != ".jsonl":
        raise UserError(
            f"--problems {file} is not a file of JSON lines; give one that ends in .jsonl"
        )
    if file.is_file() and not file.read_bytes().strip():
        raise UserError(f"--problems {file} holds no problems; name a file of them")
    check_file(file, Problem)
    with file.open(encoding="utf-8") as lines:
        return [Problem.model_validate_json(line) for line in lines if not line.isspace()]


@dataclass(frozen=True)
class EncodedProblem:
    """Token ids of a problem.

    Attributes:
        choices: the question (BOS first where the model has one) and an option's letter, for each
            option in their order.
        correct: place of the right option.
        row: context and response, with EOS at the end where the model has one.
        response_start: where in `row` the response begins; tokens from here on are in the loss.
        lost: tokens that were cut off at the row's beginning.
    """

    choices: list[tuple[list[int], list[int]]]
    correct: int
    row: list[int]
    response_start: int
    lost: int


def encode_problem(
    problem: Problem, encode: Encode, eos: Sequence[int], max_length: int
) -> EncodedProblem:
    """Encode a problem; a row that is too long loses its first tokens, as in evaluation.

    Args:
        problem: the problem.
        encode: gives the ids of a text that begins a document.
        eos: what ends a document; may be empty.
        max_length: tokens that the model takes.
    """
    context, response = _split(encode, problem.context, problem.response)
    row = [*context, *response, *eos]
    lost = max(0, len(row) - max_length)
    return EncodedProblem(
        choices=[_split(encode, problem.context, f" {letter}") for letter in problem.letters],
        correct=problem.letters.index(problem.correct),
        row=row[lost:],
        response_start=max(0, len(context) - lost),
        lost=lost,
    )


def _split(encode: Encode, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the ids of a context and of what follows it, cut where the whole text cuts them."""
    before, whole = encode(context), encode(context + continuation)
    place = 0
    while place < len(before) and before[place] == whole[place]:
        place += 1
    return whole[:place], whole[place:]
