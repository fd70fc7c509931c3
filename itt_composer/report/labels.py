"""Places the names of points so that they cover no point and no other name."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

NAME_LETTER, HEIGHT = 5.8, 11.0  # pixels of a name
MARGIN = 8.0  # from the middle of a point to its name
MARKER = 6.0  # half of a point's width
# Pixels of the area that the points span, in print, on a phone and on the widest page; between
# these sizes points move apart in either direction.
AREAS = ((200, 190), (250, 168), (600, 300), (1000, 320))


class Place(NamedTuple):
    """A place beside a point: pixels from its middle, and the end of the name that is there."""

    dx: float
    dy: float
    align: str


PLACES = (
    Place(0, -MARGIN - HEIGHT / 2, "center"),
    Place(0, MARGIN + HEIGHT / 2, "center"),
    Place(MARGIN, 0, "left"),
    Place(-MARGIN, 0, "right"),
)
Box = tuple[float, float, float, float]


def placed(
    names: Mapping[int, str], views: Sequence[Mapping[int, tuple[float, float]]]
) -> dict[int, Place]:
    """Return the place of each name that finds one which is free in every view.

    Args:
        names: of points, by the points' numbers.
        views: points that are drawn together, (x, y) by their numbers.
    """
    areas = [_in_pixels(view, size) for view in views if view for size in AREAS]
    found: dict[int, Place] = {}
    for number in names:
        for place in PLACES:
            if all(_is_free(number, place, area, names, found) for area in areas):
                found[number] = place
                break
    return found


def _is_free(
    number: int,
    place: Place,
    area: Mapping[int, tuple[float, float]],
    names: Mapping[int, str],
    chosen: Mapping[int, Place],
) -> bool:
    """Say whether a name covers no point of an area and no name that is placed already."""
    if number not in area:
        return True
    own = _box(area[number], names[number], place)
    boxes = [_box(area[other], names[other], chosen[other]) for other in chosen if other in area]
    boxes += [(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in area.values()]
    return not any(_meet(own, box) for box in boxes)


def _in_pixels(
    view: Mapping[int, tuple[float, float]], size: tuple[int, int]
) -> dict[int, tuple[float, float]]:
    places = []
    for axis in (0, 1):
        values = [point[axis] for point in view.values()]
        span = (max(values) - min(values)) or 1.0
        places.append([size[axis] * (value - min(values)) / span for value in values])
    return {number: (x, size[1] - y) for number, x, y in zip(view, *places, strict=True)}


def _box(point: tuple[float, float], name: str, place: Place) -> Box:
    width = NAME_LETTER * len(name)
    x, y = point[0] + place.dx, point[1] + place.dy
    left = x - width * {"left": 0.0, "center": 0.5, "right": 1.0}[place.align]
    return left, y - HEIGHT / 2, left + width, y + HEIGHT / 2


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
