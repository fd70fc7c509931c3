"""lm-eval's view of a model: its own `HFLM`, with likelihoods that share what requests share.

Prompts, tokens and truncation are the harness's. Every rank is given all requests, computes its
share of the batches and learns the results of the others, so that few-shot examples, and with
them the results, are the same on any number of ranks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval import ranks
from eval.likelihoods import TOKENS_PER_BATCH, Likelihood, Scorer, plan, share_out

# Requests done and in all.
OnProgress = Callable[[int, int], None]


class EvaluatedLM(HFLM):
    """A model and its tokenizer, as lm-eval asks them.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: its own.
        on_progress: called after each batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        on_progress: OnProgress = lambda done, total: None,
    ):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1)  # type: ignore[arg-type]
        self.on_progress = on_progress
        self.requests_per_batch: int | None = None
        self._scorer = Scorer(model, self.tokenizer.pad_token_id or 0)
        self._can_share = self._scorer.can_share()
        self._tokens_per_batch = TOKENS_PER_BATCH[model.device.type]

    @property
    def max_gen_toks(self) -> int:
        """The harness's, where the model is long enough for a prompt beside it."""
        return min(super().max_gen_toks, self.max_length // 2)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[Likelihood]:
        """Likelihoods of (context, continuation) texts; tokenizes all texts at once."""
        pairs = [self._with_spaces_moved(*request.args) for request in requests]
        texts = {text for pair in pairs for text in (pair[0], pair[0] + pair[1]) if pair[0]}
        encoded = self._encode_all(sorted(texts))
        tokenized = []
        for request, (context, continuation) in zip(requests, pairs, strict=True):
            if context:
                own = encoded[context]
                tokens = (own, encoded[context + continuation][len(own) :])
            else:
                tokens = self._after_nothing(continuation)
            tokenized.append((request.args, *tokens))
        return self._loglikelihood_tokens(tokenized)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Likelihood]:
        batches = plan(
            [(context, continuation) for _, context, continuation in requests],
            self.max_length,
            self.requests_per_batch,
            self._tokens_per_batch,
            self._can_share,
        )
        own = share_out(batches, ranks.world_size())[ranks.rank()]
        mine: dict[int, Likelihood] = {}
        total = sum(batches[place].cost for place in own)
        done = 0
        for place in own:
            mine.update(self._scorer.score(batches[place]))
            done += batches[place].cost
            self.on_progress(done, total)
        known = {index: value for part in ranks.gather(mine) for index, value in part.items()}
        return [known[index] for index in range(len(requests))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations of prompts, in batches of similar length."""
        lengths = [len(ids) for ids in self._encode_all([request.args[0] for request in requests], cut=True)]
        ...
        raise NotImplementedError
