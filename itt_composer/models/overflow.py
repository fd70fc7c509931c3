"""Ends a generation whose logits are NaN or infinite; argmax would make plausible tokens of them.

Shapes: B batch, S sequence, V vocabulary.
"""

import math

from torch import Tensor
from transformers import LogitsProcessor


class OverflowInLogitsError(ArithmeticError):
    """A model's logits hold NaN or infinity.

    Attributes:
        tokens: how many the model had been given, in each row.
    """

    def __init__(self, tokens: int):
        super().__init__(f"the logits after {tokens} tokens hold NaN or infinity")
        self.tokens = tokens


class RefuseOverflow(LogitsProcessor):
    """Looks at the logits of each token; minus infinity is what a masked token has.

    Raises:
        OverflowInLogitsError: at the first NaN or infinity.
    """

    def __call__(self, ids_BS: Tensor, logits_BV: Tensor) -> Tensor:
        if not (logits_BV < math.inf).all():
            raise OverflowInLogitsError(ids_BS.shape[1])
        return logits_BV
