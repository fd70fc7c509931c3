"""Losses in nats per token, and perplexity."""

import math

# `exp` of more overflows.
MOST_NATS = 700.0


def perplexity(loss: float) -> float:
    """Return `exp(loss)`; a loss above `MOST_NATS` counts as that, so that it is finite.

    Args:
        loss: nats per token.
    """
    return math.exp(min(loss, MOST_NATS))
