"""Schedules of capacity annealing as numbers: where they start, end, and how often they change."""

import random
from itertools import pairwise

import pytest

from itt_composer.recipe.schedules import quantised, ratios_at, shaped, temperature_at

SHAPES = ("linear", "cosine")
LEVELS = (2, 3, 8, 13, "continuous")
STARTS = (0.1, [0.05, 0.3, 0.1])
TARGETS = [0.5, 0.9, 1.0]
SPAN = 500


def whole_span(start=0.1, targets=TARGETS, **options):
    """The ratios at each of 500 batches, at the end of the span and long after it."""
    return [ratios_at(batch / SPAN, start, targets, **options) for batch in (*range(501), 5000)]


@pytest.mark.parametrize("start", STARTS, ids=["one start", "a start per step"])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_rises_from_its_start_to_its_target(shape, levels, start):
    span = whole_span(start, shape=shape, levels=levels)
    assert span[0] == ([0.1] * 3 if start == 0.1 else start)
    assert span[SPAN] == span[-1] == TARGETS
    for ratios in zip(*span, strict=True):
        assert all(before <= after for before, after in pairwise(ratios))


@pytest.mark.parametrize("levels", LEVELS[:-1])
@pytest.mark.parametrize("shape", SHAPES)
def test_there_are_as_many_settings_as_levels_and_no_more(shape, levels):
    span = whole_span(STARTS[1], shape=shape, levels=levels)
    assert len(set(map(tuple, span))) == levels
    for ratios in zip(*span, strict=True):
        assert len(set(ratios)) == levels
        steps_up = {round(b - a, 9) for a, b in pairwise(sorted(set(ratios)))}
        assert len(steps_up) == 1, "levels are not at equal distances"


def test_a_straight_schedule_stays_equally_long_on_every_level():
    span = [quantised(shaped(batch / SPAN, "linear"), 5) for batch in range(SPAN)]
    assert span == [level / 4 for level in range(5) for _ in range(100)]


def test_without_levels_every_batch_has_a_ratio_of_its_own():
    assert len(set(map(tuple, whole_span(levels="continuous")))) == SPAN + 1


def test_the_shapes_are_a_line_and_half_a_cosine():
    progress = [0, 0.25, 0.5, 0.75, 1, 7]
    assert [shaped(p, "linear") for p in progress] == [0, 0.25, 0.5, 0.75, 1, 1]
    cosine = [0, (1 - 2**-0.5) / 2, 0.5, (1 + 2**-0.5) / 2, 1, 1]
    assert [shaped(p, "cosine") for p in progress] == pytest.approx(cosine)
    assert [temperature_at(p, 2.0, 1.0) for p in progress] == [2, 1.75, 1.5, 1.25, 1, 1]
    assert temperature_at(0.25, 2.0, 1.0, "cosine") == pytest.approx(2 - cosine[1])


def test_one_start_does_not_hold_for_a_step_with_a_lower_target():
    assert ratios_at(0, 0.6, [0.3, 0.7]) == [0.3, 0.6]
    assert ratios_at(0.5, 0.6, [0.3, 0.7]) == pytest.approx([0.3, 0.65])


def test_full_capacity_is_reached_through_the_ratios_between():
    span = [ratios_at(batch / 10, 0.1, [1.0], levels=10)[0] for batch in range(10)]
    assert span == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def test_what_is_in_force_does_not_depend_on_what_was_before():
    expected = whole_span(shape="cosine", levels=8)
    order = list(range(SPAN))
    random.Random(0).shuffle(order)
    for batch in order:
        ratios = ratios_at(batch / SPAN, 0.1, TARGETS, shape="cosine", levels=8)
        assert ratios == expected[batch]
