"""Log-likelihoods of continuations, what requests have in common encoded once.

Multiple-choice questions ask for several continuations of one context, and few-shot tasks put the
same examples before every question. A `Batch` is a number of questions with a common prefix: the
prefix goes through the model once, each question's own tokens continue from its key/value cache,
and each continuation from its question's. What is computed does not depend on the number of ranks:
batches are planned from all requests, and each is computed whole.

Shapes: B questions, R continuations, P tokens of the prefix, S of a question's own, C of a
continuation but its last, V vocabulary.
"""

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from itt_composer.errors import UserError
from itt_composer.models import IttForCausalLM

# Tokens in a batch, over all its rows, where no batch size is given.
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65_536}
# A prefix or a context is shared where that saves this share of the tokens.
WORTHWHILE = 0.2
SHORTEST_PREFIX = 32
SMALLEST_FAMILY = 8  # questions; with fewer the batches would be too small
# Nats that a likelihood may move by when tokens come in several passes.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
TOLERANCE_IN_HALF_PRECISION = 0.25

Tokens = tuple[int, ...]
# (log-likelihood in nats, whether greedy decoding gives the continuation)
Likelihood = tuple[float, bool]


@dataclass
class Question:
    """A context and its continuations.

    Attributes:
        context: its tokens, the shared prefix included.
        continuations: each with the requests that ask for it.
    """

    context: Tokens
    continuations: dict[Tokens, list[int]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Tokens of the context and the longest continuation."""
        return len(self.context) + max(map(len, self.continuations))


@dataclass
class Batch:
    """Questions that go through the model together.

    Attributes:
        prefix: the first tokens of every context, encoded once; may be empty.
        questions: with at least one more token of context each.
        is_split: encode contexts first, continuations afterwards.
    """

    prefix: Tokens
    questions: list[Question]
    is_split: bool

    @property
    def rows(self) -> int:
        """Continuations of all questions."""
        return sum(len(question.continuations) for question in self.questions)

    @property
    def cost(self) -> int:
        """Tokens in memory at the same time, padding included."""
        return self.rows * max(question.longest for question in self.questions)

    def halves(self) -> "tuple[Batch, Batch]":
        """The same questions in two batches."""
        middle = len(self.questions) // 2
        first, second = self.questions[:middle], self.questions[middle:]
        return Batch(self.prefix, first, self.is_split), Batch(self.prefix, second, self.is_split)


def plan(
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_length: int,
    batch_size: int | None,
    tokens_per_batch: int,
    can_share: bool,
    can_pad: bool = True,
) -> list[Batch]:
    """Batches of similar length, the longest first.

    Args:
        requests: (context, continuation) pairs of token ids, neither empty; what is longer than
            the model loses its first tokens.
        max_length: tokens that the model takes.
        batch_size: most continuations in a batch; None goes by `tokens_per_batch`.
        tokens_per_batch: most tokens in a batch, padding included.
        can_share: whether the model goes on from a cache.
        can_pad: whether rows of a batch may differ in length.
    """
    by_context: dict[Tokens, Question] = {}
    for index, (context, continuation) in enumerate(requests):
        tokens = (*context, *continuation)[-(max_length + 1) :]
        end = len(tokens) - len(continuation)
        question = by_context.setdefault(tokens[:end], Question(tokens[:end]))
        question.continuations.setdefault(tokens[end:], []).append(index)
    batches: list[Batch] = []
    for prefix, family in _families(list(by_context.values()), can_share):
        by_kind: dict[tuple[bool, int], list[Question]] = defaultdict(list)
        for question in family:
            is_split = can_share and (bool(prefix) or _saves_tokens(question))
            for part in [question] if can_pad else _by_length(question):
                by_kind[is_split, 0 if can_pad else part.longest].append(part)
        for (is_split, _), alike in by_kind.items():
            for some in _chunks(alike, batch_size, tokens_per_batch):
                batches.append(Batch(prefix, some, is_split))
    return sorted(batches, key=lambda batch: -batch.cost)


def share_out(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Which batches each rank computes, by their places: each next one goes to the least busy."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    busy = [0] * ranks
    for place, cost in enumerate(costs):
        rank = busy.index(min(busy))
        shares[rank].append(place)
        busy[rank] += cost
    return shares


class Scorer:
    """Computes the likelihoods of batches on one model.

    Args:
        model: any causal language model, on its device and in evaluation mode.
        pad_id: any token, which stands where there is none.

    Attributes:
        looks_ahead: whether tokens depend on later ones, padding included: then rows of a batch
            must not differ in length.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int = 0):
        self.model = model
        self.pad_id = pad_id
        parameters = inspect.signature(model.forward).parameters
        self._keeps_some_logits = "logits_to_keep" in parameters
        self._takes_positions = "position_ids" in parameters
        self.looks_ahead = isinstance(model, IttForCausalLM) and not model.config.is_causal(
            model.config.select_ratios
        )
        self._prefix: tuple[Tokens, Any] = ((), None)

    def score(self, batch: Batch) -> dict[int, Likelihood]:
        """Likelihoods by the requests' numbers; a batch that does not fit the memory is halved.

        Raises:
            UserError: a single question does not fit.
        """
        try:
            return self._score(batch)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
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

    @torch.inference_mode()
    def can_share(self) -> bool:
        """Whether this model gives the same likelihoods when tokens come in several passes.

        Not every model has a key/value cache, and under a rule that looks ahead tokens depend on
        later ones; so it is tried out.
        """
        ids = torch.randint(3, self.model.config.vocab_size, (24,), generator=_generator())
        tokens = tuple(ids.tolist())
        questions = [
            Question(tokens[:12], {tokens[12:15]: [0], tokens[15:20]: [1]}),
            Question(tokens[:8], {tokens[20:]: [2], tokens[5:6]: [3]}),
        ]
        whole = self._score(Batch((), questions, is_split=False))
        try:
            for prefix in ((), tokens[:6]):
                split = self._score(Batch(prefix, questions, is_split=True))
                worst = max(abs(split[index][0] - whole[index][0]) for index in whole)
                if not worst <= TOLERANCE.get(self.model.dtype, TOLERANCE_IN_HALF_PRECISION):
                    return False
        except Exception:  # whatever a model does that was not made for it
            return False
        finally:
            self._prefix = ((), None)
        return True

    @torch.inference_mode()
    def _score(self, batch: Batch) -> dict[int, Likelihood]:
        return self._score_split(batch) if batch.is_split else self._score_whole(batch)

    def _score_whole(self, batch: Batch) -> dict[int, Likelihood]:
        """One pass over contexts and continuations; those that differ in their last token share."""
        by_inputs: dict[Tokens, list[tuple[int, Tokens, list[int]]]] = defaultdict(list)
        for question in batch.questions:
            start = len(question.context) - 1
            for continuation, requests in question.continuations.items():
                inputs = question.context + continuation[:-1]
                by_inputs[inputs].append((start, continuation, requests))
        ids_BS, mask_BS = self._padded(by_inputs, on_left=False)
        mask_BS = torch.ones_like(mask_BS)  # the causal kernels take no other; padding comes last
        first = min(start for asked in by_inputs.values() for start, _, _ in asked)
        logits_BSV = self._logits(ids_BS, mask_BS, torch.arange(first, ids_BS.shape[1]))
        likelihoods = {}
        for row, asked in enumerate(by_inputs.values()):
            for start, continuation, requests in asked:
                places = slice(start - first, start - first + len(continuation))
                likelihood = self._likelihood(logits_BSV[row, places], continuation)
                likelihoods.update(dict.fromkeys(requests, likelihood))
        return likelihoods

    def _score_split(self, batch: Batch) -> dict[int, Likelihood]:
        """Contexts first, then the continuations from their caches."""
        size = len(batch.prefix)
        cache = self._expanded(batch.prefix, len(batch.questions))
        own = [question.context[size:] for question in batch.questions]
        ids_BS, mask_BS = self._padded(own, on_left=True)
        mask_BPS = torch.cat([mask_BS.new_ones(len(own), size), mask_BS], dim=1)
        first_BV = self._logits(ids_BS, mask_BPS, torch.tensor([ids_BS.shape[1] - 1]), cache)[:, 0]
        asked = [
            (row, continuation, requests)
            for row, question in enumerate(batch.questions)
            for continuation, requests in question.continuations.items()
        ]
        longer = [place for place, (_, continuation, _) in enumerate(asked) if continuation[1:]]
        rest_RCV: dict[int, Tensor] = {}
        if longer:
            rows_R = torch.tensor([asked[place][0] for place in longer], device=ids_BS.device)
            cache.batch_select_indices(rows_R)
            ids_RC, mask_RC = self._padded(
                [asked[place][1][:-1] for place in longer], on_left=False
            )
            mask_RPSC = torch.cat([mask_BPS[rows_R], mask_RC], dim=1)
            logits_RCV = self._logits(ids_RC, mask_RPSC, None, cache)
            rest_RCV = dict(zip(longer, logits_RCV, strict=True))
        likelihoods = {}
        for place, (row, continuation, requests) in enumerate(asked):
            logits_CV = first_BV[row : row + 1]
            if place in rest_RCV:
                own_CV = rest_RCV[place][: len(continuation) - 1]
                logits_CV = torch.cat([logits_CV, own_CV])
            likelihood = self._likelihood(logits_CV, continuation)
            likelihoods.update(dict.fromkeys(requests, likelihood))
        return likelihoods

    def _likelihood(self, logits_CV: Tensor, continuation: Tokens) -> Likelihood:
        log_probs_CV = logits_CV.float().log_softmax(dim=-1)
        ids_C = torch.tensor(continuation, device=logits_CV.device)
        log_probs_C = log_probs_CV.gather(1, ids_C[:, None])[:, 0]
        is_greedy = bool((log_probs_CV.argmax(dim=-1) == ids_C).all())
        return float(log_probs_C.double().sum()), is_greedy

    def _logits(
        self, ids_BS: Tensor, mask_BPS: Tensor, kept: Tensor | None, cache: Any = None
    ) -> Tensor:
        """Logits at the places `kept` (all: None) of the tokens at hand, (B, kept, V)."""
        inputs: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            inputs["past_key_values"] = cache
        if self._takes_positions:
            positions_BPS = (mask_BPS.cumsum(dim=1) - 1).clamp(min=0)
            inputs["position_ids"] = positions_BPS[:, -ids_BS.shape[1] :]
        if kept is not None and self._keeps_some_logits:
            inputs["logits_to_keep"] = kept.to(ids_BS.device)
        logits_BSV = self.model(input_ids=ids_BS, attention_mask=mask_BPS, **inputs).logits
        if kept is not None and not self._keeps_some_logits:
            logits_BSV = logits_BSV[:, kept.to(ids_BS.device)]
        return logits_BSV

    def _expanded(self, prefix: Tokens, rows: int) -> Any:
        """A cache that holds the prefix in every row."""
        if not prefix:
            return DynamicCache(config=self.model.config)
        if self._prefix[0] != prefix:
            cache = DynamicCache(config=self.model.config)
            ids_BP = torch.tensor([prefix], device=self.model.device)
            self._logits(ids_BP, torch.ones_like(ids_BP), torch.tensor([len(prefix) - 1]), cache)
            self._prefix = (prefix, cache)
        cache = copy.deepcopy(self._prefix[1])
        cache.batch_select_indices(torch.zeros(rows, dtype=torch.long, device=self.model.device))
        return cache

    def _padded(self, rows: Iterable[Tokens], on_left: bool) -> tuple[Tensor, Tensor]:
        """Token ids and what of them is no padding, both (rows, longest)."""
        rows = list(rows)
        longest = max(map(len, rows))
        ids_BS = torch.full((len(rows), longest), self.pad_id)
        mask_BS = torch.zeros_like(ids_BS)
        for row, tokens in enumerate(rows):
            place = slice(longest - len(tokens), None) if on_left else slice(len(tokens))
            ids_BS[row, place] = torch.tensor(tokens)
            mask_BS[row, place] = 1
        return ids_BS.to(self.model.device), mask_BS.to(self.model.device)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _saves_tokens(question: Question) -> bool:
    """Whether to encode the context apart from its continuations."""
    if len({continuation[:-1] for continuation in question.continuations}) == 1:
        return False  # one row in any case
    separate = sum(len(question.context) + len(text) for text in question.continuations)
    saved = len(question.context) * (len(question.continuations) - 1)
    return saved >= WORTHWHILE * separate


def _families(
    questions: list[Question], can_share: bool
) -> Iterator[tuple[Tokens, list[Question]]]:
    """Questions whose contexts begin alike, with what they have in common (or nothing)."""
    if not can_share:
        yield (), questions
        return
    alone: list[Question] = []
    family: list[Question] = []
    common: Tokens = ()
    for question in sorted(questions, key=lambda question: question.context):
        narrower = _common(common, question.context[:-1])
        lost = (len(common) - len(narrower)) * len(family)
        shortest = max(SHORTEST_PREFIX, WORTHWHILE * len(question.context))
        if family and len(narrower) >= max(lost, shortest):
            family.append(question)
            common = narrower
            continue
        if len(family) >= SMALLEST_FAMILY:
            yield common, family
        else:
            alone += family
        family, common = [question], question.context[:-1]
    if len(family) >= SMALLEST_FAMILY:
        yield common, family
    else:
        alone += family
    if alone:
        yield (), alone


def _by_length(question: Question) -> Iterator[Question]:
    """The same question for continuations of each length."""
    lengths = {len(continuation) for continuation in question.continuations}
    for length in sorted(lengths):
        continuations = {
            continuation: requests
            for continuation, requests in question.continuations.items()
            if len(continuation) == length
        }
        yield Question(question.context, continuations)


def _common(first: Tokens, second: Tokens) -> Tokens:
    differing = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return first[: next(differing, min(len(first), len(second)))]


def _chunks(
    questions: Iterable[Question], batch_size: int | None, tokens_per_batch: int
) -> Iterator[list[Question]]:
    """Questions in order of length, as many together as may be."""
    chunk: list[Question] = []
    for question in sorted(questions, key=lambda question: -question.longest):
        rows = sum(len(other.continuations) for other in [*chunk, question])
        longest = max(other.longest for other in [*chunk, question])
        is_full = rows > batch_size if batch_size else rows * longest > tokens_per_batch
        if chunk and is_full:
            yield chunk
            chunk = []
        chunk.append(question)
    if chunk:
        yield chunk
