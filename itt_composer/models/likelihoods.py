"""Computes log-likelihoods of continuations; what requests share is encoded once.

Multiple-choice questions ask for several continuations of one context, and few-shot tasks put the
same examples before every question. Of each batch that `likelihood_batches` planned, the prefix
goes through the model once, each question's own tokens continue from its key/value cache, and each
continuation from its question's.

Shapes: B questions, R continuations, P tokens of the prefix, S of a question's own, C of a
continuation but its last, V vocabulary.
"""

import copy
import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from itt_composer.basics.errors import UserError
from itt_composer.models import IttForCausalLM
from itt_composer.models.likelihood_batches import Question, QuestionBatch, TokenIds

# Nats, see `tolerance`.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
TOLERANCE_IN_HALF_PRECISION = 0.25

# (log-likelihood in nats, whether greedy decoding gives the continuation)
Likelihood = tuple[float, bool]


def tolerance(model: PreTrainedModel) -> float:
    """Return the nats that a likelihood may move by when tokens come in several passes."""
    device = model.device.type
    mixed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    return TOLERANCE.get(mixed, TOLERANCE_IN_HALF_PRECISION)


def is_too_large(error: Exception) -> bool:
    """Return whether something did not fit into the memory of the device or the machine."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


class Scorer:
    """Computes the likelihoods of batches on one model.

    Args:
        model: any causal language model, on its device and in evaluation mode.

    Attributes:
        looks_ahead: whether tokens depend on later ones, padding included: then rows of a batch
            must not differ in length.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self.looks_ahead = isinstance(model, IttForCausalLM) and not model.config.is_causal_at(
            model.config.select_ratios
        )
        self._prefix: tuple[TokenIds, Any] = ((), None)

    def score(self, batch: QuestionBatch) -> dict[int, Likelihood]:
        """Return likelihoods by the requests' numbers; a batch that does not fit is halved.

        Raises:
            UserError: a single question does not fit.
        """
        try:
            return self._score(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_too_large(error):
                raise
        self._prefix = ((), None)
        clear_device_cache(garbage_collection=True)
        if len(batch.questions) == 1:
            raise UserError(
                f"{batch.rows} continuations of {batch.cost // batch.rows} tokens do not fit into "
                "the memory; set model.dtype=bfloat16, or use a machine with more"
            )
        first, second = batch.halves()
        return {**self.score(first), **self.score(second)}

    def can_share(self) -> bool:
        """Return whether this model gives the same likelihoods when tokens come in several passes.

        Not every model has a key/value cache, and under a rule that looks ahead tokens depend on
        later ones; so it is tried out.
        """
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, self.model.config.vocab_size, (24,), generator=generator)
        tokens = tuple(ids.tolist())
        questions = [
            Question(tokens[:12], {tokens[12:15]: [0], tokens[15:20]: [1]}),
            Question(tokens[:8], {tokens[20:]: [2], tokens[5:6]: [3]}),
        ]
        whole = self._score(QuestionBatch((), questions, is_split=False))
        try:
            for prefix in ((), tokens[:6]):
                split = self._score(QuestionBatch(prefix, questions, is_split=True))
                worst = max(abs(split[index][0] - whole[index][0]) for index in whole)
                if not worst <= tolerance(self.model):
                    return False
        except Exception:  # a model that was not made for it may raise anything
            return False
        finally:
            self._prefix = ((), None)
        return True

    @torch.no_grad()
    def _score(self, batch: QuestionBatch) -> dict[int, Likelihood]:
        return self._score_split(batch) if batch.is_split else self._score_whole(batch)

    def _score_whole(self, batch: QuestionBatch) -> dict[int, Likelihood]:
        """Score in one pass; continuations that differ in their last token alone share a row."""
        rows: dict[TokenIds, int] = {}
        wanted = Wanted()
        for question in batch.questions:
            start = len(question.context) - 1
            for continuation, requests in question.continuations.items():
                inputs = question.context + continuation[:-1]
                row = rows.setdefault(inputs, len(rows))
                wanted.ask(requests, row, start, continuation)
        ids_BS, mask_BS = self._padded(rows)
        # The causal kernels take no other mask, and padding comes last.
        wanted.find(self._logits(ids_BS, torch.ones_like(mask_BS), wanted))
        return wanted.likelihoods()

    def _score_split(self, batch: QuestionBatch) -> dict[int, Likelihood]:
        """Score the contexts first, then those tokens that follow a continuation's first one."""
        size = len(batch.prefix)
        cache = self._expanded(batch.prefix, len(batch.questions))
        own = [question.context[size:] for question in batch.questions]
        ids_BS, mask_BS = self._padded(own)
        ones_BPS = mask_BS.new_ones(len(own), size + ids_BS.shape[1])
        first, rest = Wanted(), Wanted()
        sources: list[int] = []
        continued: list[TokenIds] = []
        for row, question in enumerate(batch.questions):
            for continuation, requests in question.continuations.items():
                first.ask(requests, row, len(own[row]) - 1, continuation[:1])
                if continuation[1:]:
                    rest.ask(requests, len(sources), 0, continuation[1:])
                    sources.append(row)
                    continued.append(continuation[:-1])
        first.find(self._logits(ids_BS, ones_BPS, first, cache))
        likelihoods = first.likelihoods()
        if not sources:
            return likelihoods
        rows_R = torch.tensor(sources, device=ids_BS.device)
        cache.batch_select_indices(rows_R)
        ids_RC, mask_RC = self._padded(continued)
        mask_RPS = torch.cat([mask_BS.new_ones(len(own), size), mask_BS], dim=1)[rows_R]
        mask_RPSC = torch.cat([mask_RPS, mask_RC], dim=1)
        rest.find(self._logits(ids_RC, mask_RPSC, rest, cache))
        for request, (value, is_greedy) in rest.likelihoods().items():
            before, was_greedy = likelihoods[request]
            likelihoods[request] = before + value, was_greedy and is_greedy
        return likelihoods

    def _logits(
        self, ids_BS: Tensor, mask_BPS: Tensor, wanted: "Wanted", cache: Any = None
    ) -> Tensor:
        """Return the logits at the wanted places of the tokens at hand, (N, V)."""
        inputs: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            inputs["past_key_values"] = cache
        if self._takes_positions:
            positions_BPS = (mask_BPS.cumsum(dim=1) - 1).clamp(min=0)
            inputs["position_ids"] = positions_BPS[:, -ids_BS.shape[1] :]
        rows_N, places_N = (index.to(ids_BS.device) for index in wanted.places())
        is_narrowed = False

        def narrow(head: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nonlocal is_narrowed
            is_narrowed = True
            return (states[0][rows_N, places_N][None], *states[1:])

        # The output embedding is the largest matrix of a small model; most logits are not wanted.
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(narrow) if head is not None else None
        try:
            logits = self.model(input_ids=ids_BS, attention_mask=mask_BPS, **inputs).logits
        finally:
            if hook is not None:
                hook.remove()
        return logits[0] if is_narrowed else logits[rows_N, places_N]

    def _expanded(self, prefix: TokenIds, rows: int) -> Any:
        """Return a cache that holds the prefix in every row."""
        if not prefix:
            return DynamicCache(config=self.model.config)
        if self._prefix[0] != prefix:
            cache = DynamicCache(config=self.model.config)
            ids_BP = torch.tensor([prefix], device=self.model.device)
            some = Wanted()
            some.ask([], 0, 0, (0,))
            self._logits(ids_BP, torch.ones_like(ids_BP), some, cache)
            self._prefix = (prefix, cache)
        cache = copy.deepcopy(self._prefix[1])
        cache.batch_select_indices(torch.zeros(rows, dtype=torch.long, device=self.model.device))
        return cache

    def _padded(self, rows: Iterable[TokenIds]) -> tuple[Tensor, Tensor]:
        """Return token ids and a mask of those that are not padding, both (rows, longest)."""
        rows = list(rows)
        ids_BS = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask_BS = torch.zeros_like(ids_BS)
        for row, tokens in enumerate(rows):
            ids_BS[row, : len(tokens)] = torch.tensor(tokens)
            mask_BS[row, : len(tokens)] = 1
        return ids_BS.to(self.model.device), mask_BS.to(self.model.device)


class Wanted:
    """The tokens whose likelihoods are wanted, each after a place of a batch; summed by request."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int], int] = {}
        self._tokens: list[tuple[int, int]] = []
        self._asked: list[tuple[list[int], slice]] = []
        self._found: list[tuple[float, bool]] = []

    def ask(self, requests: list[int], row: int, place: int, tokens: TokenIds) -> None:
        """Ask for the likelihood of tokens, the first of which follows the token at a place."""
        start = len(self._tokens)
        for offset, token in enumerate(tokens):
            number = self._numbers.setdefault((row, place + offset), len(self._numbers))
            self._tokens.append((number, token))
        self._asked.append((requests, slice(start, len(self._tokens))))

    def places(self) -> tuple[Tensor, Tensor]:
        """Return the rows and places whose logits are needed, each (N,)."""
        rows, places = zip(*self._numbers, strict=True)
        return torch.tensor(rows), torch.tensor(places)

    def find(self, logits_NV: Tensor) -> None:
        """Take the likelihoods from the logits, in float32."""
        numbers, tokens = (
            torch.tensor(part, device=logits_NV.device) for part in zip(*self._tokens, strict=True)
        )
        log_probs_NV = logits_NV.float().log_softmax(dim=-1)
        values = log_probs_NV[numbers, tokens].tolist()
        is_best = (logits_NV.argmax(dim=-1)[numbers] == tokens).tolist()
        self._found = list(zip(values, is_best, strict=True))

    def likelihoods(self) -> dict[int, Likelihood]:
        """Return the likelihoods by the requests' numbers."""
        likelihoods = {}
        for requests, tokens in self._asked:
            values, are_best = zip(*self._found[tokens], strict=True)
            likelihoods.update(dict.fromkeys(requests, (math.fsum(values), all(are_best))))
        return likelihoods
