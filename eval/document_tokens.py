"""Gives lm-eval the tokens of prompts, with the ids of training documents."""

from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import Tensor

from itt_composer.models.tokenizer import document_ids, documents_ids


class DocumentTokens(HFLM):
    """The harness's model, its texts encoded by `documents_ids`.

    The ids are the harness's own, except where a text begins with the name of BOS, and the
    tokenizer takes that for text: the harness would leave BOS out.
    """

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Return the ids of a text."""
        if add_special_tokens is not None or self.add_bos_token is not None:
            return super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        return document_ids(self.tokenizer, string)[-(left_truncate_len or 0) :]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return the ids of texts, padded, and the attention mask: both (texts, longest)."""
        if self.add_bos_token is not None:
            return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        ids = [own[-(left_truncate_len or 0) :] for own in documents_ids(self.tokenizer, strings)]
        # Only `pad` takes ids; transformers would warn that it is slower than `__call__`.
        self.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        padded = self.tokenizer.pad(
            {"input_ids": ids}, padding="longest", padding_side=padding_side, return_tensors="pt"
        )
        return padded["input_ids"], padded["attention_mask"]
