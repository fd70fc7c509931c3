"""Ends a text at the first of some texts, which may be spread over several pieces."""

from collections.abc import Sequence


class StopAt:
    """Hands text on until one of the stops appears.

    Args:
        stops: texts; none ends nothing.

    Attributes:
        is_reached: whether one has appeared.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""
        self.is_reached = False

    def push(self, piece: str) -> str:
        """Return the text that can no longer be the beginning of a stop."""
        if self.is_reached:
            return ""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.is_reached, self._held = True, ""
            return text[: min(places)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def end(self) -> str:
        """Return what was held back, as no stop came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of the text begin the stop."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
