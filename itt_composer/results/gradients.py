"""The result of `itt analyse gradients`: nuclear norms for easy and hard problems."""

from typing import ClassVar

from pydantic import Field, model_validator

from itt_composer.results.base import AnalysisFile, ResultPart


class Problems(ResultPart):
    """How problems were learnt and asked; the settings of fine-tuning are kept undeclared.

    Attributes:
        file: of the problems.
        fine_tuned_on: problems that the model was fine-tuned on.
        measured: problems that it was asked.
        accuracy: fraction of these answered correctly.
        chance: the same for guesses.
        answered, correct: how often each letter was answered, and was right.
        cut, fine_tuning_cut: problems asked and learnt that were longer than the model takes.
    """

    file: str
    fine_tuned_on: int
    measured: int
    accuracy: float
    chance: float
    answered: dict[str, int] = Field({})
    correct: dict[str, int] = Field({})
    cut: int = 0
    fine_tuning_cut: int = 0


class GroupNorms(ResultPart):
    """Norms over some problems: by projection, a list over the layers; None without problems."""

    problems: int
    mean: dict[str, list[float | None]]
    std: dict[str, list[float | None]]


class MeasuredGradients(ResultPart):
    """All that was measured on a model.

    Attributes:
        problems: how it was done.
        projections: q, k, v and o.
        layers: counted from 0.
        thinking_layers: those of them that think.
        easy, hard: problems that the model answered correctly, and the others.
    """

    problems: Problems
    projections: list[str]
    layers: list[int]
    thinking_layers: list[int] = Field([])
    easy: GroupNorms
    hard: GroupNorms

    @model_validator(mode="after")
    def _has_every_layer(self) -> "MeasuredGradients":
        for name, group in (("easy", self.easy), ("hard", self.hard)):
            for figure, by_projection in (("mean", group.mean), ("std", group.std)):
                for projection in self.projections:
                    count = len(by_projection.get(projection, ()))
                    if count != len(self.layers):
                        raise ValueError(
                            f"{name}.{figure}.{projection} has {count} values for "
                            f"{len(self.layers)} layers"
                        )
        return self


class GradientResults(MeasuredGradients, AnalysisFile):
    """The whole file."""

    KIND: ClassVar[str] = "gradients"
    FORMAT: ClassVar[int] = 1
    MADE_BY: ClassVar[str] = "`itt analyse gradients`"
