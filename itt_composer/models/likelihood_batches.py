"""Plans which questions go through a model together, and what they share.

A `QuestionBatch` holds questions with a common prefix, so that it can be encoded once. Batches are
planned from all requests and shared out over the ranks whole: what is computed does not depend on
the number of ranks.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from itt_composer.basics.errors import UserError

# Tokens in a batch, over all its rows, where no batch size is given; a CPU's cache is small.
TOKENS_PER_BATCH = {"cpu": 512, "cuda": 65_536}
# A prefix or a context is shared where that saves this share of the tokens.
WORTHWHILE = 0.3
SHORTEST_PREFIX = 32
SMALLEST_FAMILY = 8  # questions; with fewer the batches would be too small

TokenIds = tuple[int, ...]


@dataclass
class Question:
    """A context and its continuations.

    Attributes:
        context: its tokens, the shared prefix included.
        continuations: each with the requests that ask for it.
    """

    context: TokenIds
    continuations: dict[TokenIds, list[int]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """The tokens of the context and the longest continuation."""
        return len(self.context) + max(map(len, self.continuations))


@dataclass
class QuestionBatch:
    """Questions that go through the model together.

    Attributes:
        prefix: the first tokens of every context, encoded once; may be empty.
        questions: with at least one more token of context each.
        is_split: encode contexts first, continuations afterwards.
    """

    prefix: TokenIds
    questions: list[Question]
    is_split: bool

    @property
    def rows(self) -> int:
        """The number of continuations of all questions."""
        return sum(len(question.continuations) for question in self.questions)

    @property
    def cost(self) -> int:
        """The tokens in memory at the same time, padding included."""
        return self.rows * max(question.longest for question in self.questions)

    def halves(self) -> "tuple[QuestionBatch, QuestionBatch]":
        """Return the same questions in two batches."""
        middle = len(self.questions) // 2
        first, second = self.questions[:middle], self.questions[middle:]
        return replace(self, questions=first), replace(self, questions=second)


def plan(
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_length: int,
    batch_size: int | None,
    tokens_per_batch: int,
    can_share: bool,
    can_pad: bool = True,
    task: str = "NAME",
) -> list[QuestionBatch]:
    """Plan batches of similar length, the longest first.

    Args:
        requests: (context, continuation) pairs of token ids, neither empty; what is longer than
            the model loses its first tokens.
        max_length: tokens that the model takes.
        batch_size: most continuations in a batch; None goes by `tokens_per_batch`.
        tokens_per_batch: most tokens in a batch, padding included.
        can_share: whether the model goes on from a cache.
        can_pad: whether rows of a batch may differ in length.
        task: its name in the suite, for mistakes.

    Raises:
        UserError: a continuation is longer than what the model takes.
    """
    by_context: dict[TokenIds, Question] = {}
    for index, (context, continuation) in enumerate(requests):
        if len(continuation) > max_length:
            raise UserError(
                f"an answer of {task} has {len(continuation):,} tokens, and the model takes "
                f"{max_length:,}: leave the task out (tasks.{task}=null) or evaluate a model that "
                "takes more"
            )
        tokens = (*context, *continuation)[-(max_length + 1) :]
        end = len(tokens) - len(continuation)
        question = by_context.setdefault(tokens[:end], Question(tokens[:end]))
        question.continuations.setdefault(tokens[end:], []).append(index)
    batches: list[QuestionBatch] = []
    for prefix, family in _families(list(by_context.values()), can_share):
        by_kind: dict[tuple[bool, int], list[Question]] = defaultdict(list)
        for question in family:
            is_split = can_share and (bool(prefix) or _saves_tokens(question))
            for part in [question] if can_pad else _by_length(question):
                by_kind[is_split, 0 if can_pad else part.longest].append(part)
        for (is_split, _), alike in by_kind.items():
            for some in _chunks(alike, batch_size, tokens_per_batch):
                batches.append(QuestionBatch(prefix, some, is_split))
    return sorted(batches, key=lambda batch: -batch.cost)


def share_out(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Share batches out, by their places: each next one goes to the least busy rank."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    busy = [0] * ranks
    for place, cost in enumerate(costs):
        rank = busy.index(min(busy))
        shares[rank].append(place)
        busy[rank] += cost
    return shares


def _saves_tokens(question: Question) -> bool:
    """Return whether to encode the context apart from its continuations."""
    if len({continuation[:-1] for continuation in question.continuations}) == 1:
        return False  # one row in any case
    separate = sum(len(question.context) + len(text) for text in question.continuations)
    saved = len(question.context) * (len(question.continuations) - 1)
    return saved >= WORTHWHILE * separate


def _families(
    questions: list[Question], can_share: bool
) -> Iterator[tuple[TokenIds, list[Question]]]:
    """Yield questions whose contexts begin alike, with their common prefix (or an empty one)."""
    if not can_share:
        yield (), questions
        return
    alone: list[Question] = []
    family: list[Question] = []
    common: TokenIds = ()
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
    """Yield the same question for continuations of each length."""
    lengths = {len(continuation) for continuation in question.continuations}
    for length in sorted(lengths):
        continuations = {
            continuation: requests
            for continuation, requests in question.continuations.items()
            if len(continuation) == length
        }
        yield Question(question.context, continuations)


def _common(first: TokenIds, second: TokenIds) -> TokenIds:
    differing = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return first[: next(differing, min(len(first), len(second)))]


def _chunks(
    questions: Iterable[Question], batch_size: int | None, tokens_per_batch: int
) -> Iterator[list[Question]]:
    """Yield questions in order of length, as many together as fit a batch."""
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
