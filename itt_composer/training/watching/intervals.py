"""Which batches are watched."""

from composer.core import State, Time, TimeUnit


class BatchInterval:
    """Is due at every n-th batch, the first included; a resumed run watches the same ones.

    Args:
        interval: batches from one to the next ("50ba").

    Raises:
        ValueError: another unit, or a number that is not positive.
    """

    def __init__(self, interval: str):
        time = Time.from_input(interval)
        if time.unit != TimeUnit.BATCH or time.value < 1:
            raise ValueError(f"interval must be a number of batches such as 50ba, not {interval}")
        self.batches = time.value

    def is_due(self, state: State) -> bool:
        """Whether the batch that is being trained on is one of them."""
        return state.timestamp.batch.value % self.batches == 0
