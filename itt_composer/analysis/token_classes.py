"""Sorts tokens into kinds, by their text and by how often they occur.

A token that stands for text is of one of the first five kinds at most: `whitespace` (blanks and
line breaks alone), `digit` (digits alone), `punctuation` (neither letters nor digits: operators,
too), and with a letter in it `word begin` or `word inside`. A word is a run of letters and digits:
a token is inside of one if it begins with a letter or digit and the token before it ends in one.
Tokens around documents, and bytes that are not a whole character, are of no kind; such bytes count
as letters for the token after them.

`frequent` are the most frequent tokens of some rows that together make up half of them, `rare` the
least frequent that together make up a tenth; those around documents are left out of both.

Shapes: V ids, B batch, S sequence, C kinds.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from itt_composer.models.text_stream import NO_CHARACTER

KINDS = ("word begin", "word inside", "digit", "punctuation", "whitespace", "rare", "frequent")
FREQUENT_SHARE, RARE_SHARE = 0.5, 0.1
ANCHOR = "a"


class TokenClasses:
    """Finds the kinds of the tokens in rows.

    Args:
        tokenizer: whose tokens they are.
        counts_V: how often each id occurs in the rows that are looked at; only ids that occur
            have kinds.
    """

    def __init__(self, tokenizer: Any, counts_V: Tensor):
        special = set(tokenizer.all_special_ids)
        ids = [number for number in counts_V.nonzero().flatten().tolist() if number not in special]
        texts = token_texts(tokenizer, ids)
        size = len(counts_V)
        kinds = ("word", "digit", "punctuation", "whitespace", "begins", "ends")
        self._is = {kind: torch.zeros(size, dtype=torch.bool) for kind in kinds}
        for number, text in zip(ids, texts, strict=True):
            if text and NO_CHARACTER not in text:
                self._is[_kind_of(text)][number] = True
            # A byte is most often of a letter outside of ASCII.
            self._is["begins"][number] = text[:1].isalnum()
            self._is["ends"][number] = text[-1:].isalnum() or text[-1:] == NO_CHARACTER
        known_V = torch.zeros(size, dtype=torch.long)
        known_V[ids] = counts_V[ids].cpu()
        self._is["rare"], self._is["frequent"] = rare_and_frequent(known_V)

    def of(self, ids_BS: Tensor) -> Tensor:
        """Return whether each token is of each kind, in the order of `KINDS`: (C, B, S) booleans.

        The first token of a row has no token before it.
        """
        ids_BS = ids_BS.cpu()
        is_word_BS = self._is["word"][ids_BS]
        goes_on_BS = self._is["begins"][ids_BS]
        goes_on_BS[:, 1:] &= self._is["ends"][ids_BS[:, :-1]]
        goes_on_BS[:, 0] = False
        simple = [self._is[kind][ids_BS] for kind in KINDS[2:]]
        return torch.stack([is_word_BS & ~goes_on_BS, is_word_BS & goes_on_BS, *simple])


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text that each id stands for after other text, with a blank at its beginning."""
    anchor = tokenizer(ANCHOR, add_special_tokens=False).input_ids
    settings = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    start = len(tokenizer.decode(anchor, **settings))
    return [tokenizer.decode([*anchor, number], **settings)[start:] for number in ids]


def rare_and_frequent(counts_V: Tensor) -> tuple[Tensor, Tensor]:
    """Return which ids are rare and which are frequent, (V,) booleans each.

    Among ids that occur equally often, the lower ones count as the more frequent.
    """
    order_V = counts_V.argsort(descending=True, stable=True)
    ordered_V = counts_V[order_V]
    before_V = ordered_V.cumsum(0) - ordered_V
    total = int(counts_V.sum())
    is_frequent_V = torch.zeros(len(counts_V), dtype=torch.bool)
    is_rare_V = is_frequent_V.clone()
    is_frequent_V[order_V] = (before_V < FREQUENT_SHARE * total) & (ordered_V > 0)
    is_rare_V[order_V] = (before_V >= (1 - RARE_SHARE) * total) & (ordered_V > 0)
    return is_rare_V, is_frequent_V


def _kind_of(text: str) -> str:
    bare = text.strip()
    if not bare:
        return "whitespace"
    if all(character.isdigit() for character in bare):
        return "digit"
    return "word" if any(character.isalnum() for character in bare) else "punctuation"
