"""Measures gradient nuclear norms of easy and hard problems, which motivate the paper.

A model is fine-tuned on a few problems and asked others. Those that it answers correctly are easy,
the rest hard; for each, the nuclear norm of its loss gradient is taken at every layer's q, k, v and
o projection. A weight that several thinking steps share has one gradient, the sum over the steps.

Shapes: S tokens of a row, N problems, L layers, P projections.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from itt_composer.analysis.problems import EncodedProblem, Problem, encode_problem
from itt_composer.analysis.rows import positions_of
from itt_composer.basics.errors import UserError
from itt_composer.models.likelihood_batches import TOKENS_PER_BATCH, plan
from itt_composer.models.likelihoods import Scorer
from itt_composer.models.projections import (
    PROJECTIONS,
    Projection,
    attention_projections,
    nuclear_norm,
)
from itt_composer.models.tokenizer import document_ids
from itt_composer.results.gradients import GroupNorms, MeasuredGradients, Problems

MOST_GRADIENT = 1.0  # norm at which gradients are clipped in fine-tuning
# Called with the name of the stage, and how much of it is done and in all.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FineTuning:
    """How a model is fine-tuned on the first problems of a file: AdamW without weight decay.

    Attributes:
        problems: the first so many; 0 leaves the model as it is.
        epochs: over them.
        learning_rate: the same throughout.
        batch_size: problems in a batch.
        seed: of their order, and of dropout where the model has it.
    """

    problems: int = 100
    epochs: int = 3
    learning_rate: float = 5e-5
    batch_size: int = 8
    seed: int = 0


def analyse_gradients(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    fine_tuning: FineTuning,
    measured: int | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
    file: str = "",
) -> MeasuredGradients:
    """Fine-tune, ask, and take the gradients: the whole protocol.

    Args:
        model: on its device; it is changed.
        tokenizer: the model's own.
        problems: the first ones are for fine-tuning, those after them are asked.
        fine_tuning: how.
        measured: how many are asked; None is all that are left.
        on_progress: called after each problem.
        file: that the problems are from, for the result.

    Raises:
        UserError: there are too few problems, fine-tuning diverges, or the model's projections
            are not of a known kind.
    """
    projections = attention_projections(model)
    asked = list(problems[fine_tuning.problems :][:measured])
    if len(problems) < fine_tuning.problems or not asked:
        raise UserError(
            f"there are {len(problems)} problems, and {fine_tuning.problems} of them are for "
            "fine-tuning, so none is left to measure; lower --fine-tune"
        )
    encoded = encode_all(model, tokenizer, problems[: fine_tuning.problems + len(asked)])
    learnt, asked_rows = encoded[: fine_tuning.problems], encoded[fine_tuning.problems :]
    losses = fine_tune(model, learnt, fine_tuning, on_progress)
    answers = answer(model, asked_rows)
    is_easy_N = torch.tensor(
        [given == problem.correct for given, problem in zip(answers, asked_rows, strict=True)]
    )
    norms_NLP = problem_nuclear_norms(model, asked_rows, projections, on_progress)
    settings = {f"fine_tuning_{name}": value for name, value in asdict(fine_tuning).items()}
    return MeasuredGradients(
        problems=Problems(
            file=file,
            fine_tuned_on=len(learnt),
            accuracy=is_easy_N.double().mean().item(),
            cut=sum(problem.lost > 0 for problem in asked_rows),
            fine_tuning_cut=sum(problem.lost > 0 for problem in learnt),
            **_letters(asked, answers),
            **settings,
            fine_tuning_losses=losses,  # type: ignore[call-arg]  # undeclared, as the settings
        ),
        projections=list(PROJECTIONS),
        layers=list(range(norms_NLP.shape[1])),
        thinking_layers=list(getattr(model.config, "thinking_layers", [])),
        easy=norms_summary(norms_NLP[is_easy_N]),
        hard=norms_summary(norms_NLP[~is_easy_N]),
    )


def _letters(asked: Sequence[Problem], answers: Sequence[int]) -> dict[str, Any]:
    """Return how many problems were asked, and which letters are right and were answered."""
    given = (problem.letters[place] for problem, place in zip(asked, answers, strict=True))
    return {
        "measured": len(asked),
        "chance": sum(1 / len(problem.options) for problem in asked) / len(asked),
        "answered": _counts(given),
        "correct": _counts(problem.correct for problem in asked),
    }


def _counts(letters: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(letters).items()))


def encode_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
) -> list[EncodedProblem]:
    """Encode the problems as the model's tokens, at most as many as it has positions."""
    config: Any = model.config
    eos = config.eos_token_id
    ends = [] if eos is None else [eos[0] if isinstance(eos, list) else eos]
    longest = positions_of(config, tokenizer)

    def encode(text: str) -> list[int]:
        return document_ids(tokenizer, text)

    return [encode_problem(problem, encode, ends, longest) for problem in problems]


def fine_tune(
    model: PreTrainedModel,
    problems: Sequence[EncodedProblem],
    settings: FineTuning,
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[float]:
    """Train a model to give the responses, one row at a time, so that nothing is padded.

    Args:
        model: all of its weights are trained, with dropout if it has any.
        problems: may be empty; then nothing happens.
        settings: how; `settings.problems` is not used.
        on_progress: called after each problem.

    Returns:
        The mean loss of each epoch, nats per token of the responses.

    Raises:
        UserError: a loss is not finite.
    """
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(settings.seed)
    losses = []
    with torch.random.fork_rng(), _training(model):
        torch.manual_seed(settings.seed)
        for epoch in range(settings.epochs if problems else 0):
            order = torch.randperm(len(problems), generator=generator).tolist()
            total = 0.0
            for start in range(0, len(order), settings.batch_size):
                batch = [problems[place] for place in order[start : start + settings.batch_size]]
                for problem in batch:
                    loss = response_loss(model, problem)
                    if not loss.isfinite():
                        raise UserError(
                            f"fine-tuning diverged in epoch {epoch + 1}: the loss is "
                            f"{loss.item()}; lower --learning-rate"
                        )
                    (loss / len(batch)).backward()
                    total += loss.item()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MOST_GRADIENT)
                optimizer.step()
                optimizer.zero_grad()
                done = epoch * len(order) + start + len(batch)
                on_progress("fine-tuning", done, settings.epochs * len(order))
            losses.append(total / len(order))
    return losses


@contextlib.contextmanager
def _training(model: PreTrainedModel) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.eval()


def response_loss(model: PreTrainedModel, problem: EncodedProblem) -> Tensor:
    """Return the mean cross entropy of the response's tokens, nats; the question is given."""
    ids_1S = torch.tensor([problem.row], device=model.device)
    mask_1S = torch.ones_like(ids_1S)
    # Not the model's own loss, which some models (BART) take without a shift by one token.
    logits_1SV = model(input_ids=ids_1S, attention_mask=mask_1S, use_cache=False).logits
    start = max(1, problem.response_start)
    return F.cross_entropy(logits_1SV[0, start - 1 : -1], ids_1S[0, start:])


def answer(model: PreTrainedModel, problems: Sequence[EncodedProblem]) -> list[int]:
    """Return, for each problem, the place of the option whose letter is likeliest."""
    requests = [choice for problem in problems for choice in problem.choices]
    scorer = Scorer(model)
    batches = plan(
        requests,
        getattr(model.config, "max_position_embeddings", None)
        or max(map(_request_length, requests)),
        batch_size=None,
        tokens_per_batch=TOKENS_PER_BATCH.get(model.device.type, TOKENS_PER_BATCH["cpu"]),
        can_share=False,  # letters of one token are read from the same place
        can_pad=not scorer.looks_ahead,
    )
    found: dict[int, float] = {}
    for batch in batches:
        for request, (likelihood, _) in scorer.score(batch).items():
            found[request] = likelihood
    values = iter(found[request] for request in range(len(requests)))
    answers = []
    for problem in problems:
        own = [next(values) for _ in problem.choices]
        answers.append(own.index(max(own)))
    return answers


def _request_length(request: tuple[list[int], list[int]]) -> int:
    return len(request[0]) + len(request[1])


def problem_nuclear_norms(
    model: PreTrainedModel,
    problems: Sequence[EncodedProblem],
    projections: Sequence[Projection] | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Tensor:
    """Compute the nuclear norms of each problem's `response_loss` gradient.

    Takes one backward pass per problem, to the projections' weights alone. Gradients have the
    model's dtype, their singular values float64.

    Args:
        model: in evaluation mode.
        problems: each on its own.
        projections: as `attention_projections` gives them, or None.
        on_progress: called after each problem.

    Returns:
        norms (N, L, P), float64.

    Raises:
        UserError: the model's projections are not of a known kind.
    """
    projections = projections or attention_projections(model)
    weights = list(dict.fromkeys(projection.weight for projection in projections))
    norms = []
    for done, problem in enumerate(problems, start=1):
        with tokens_through(projections) as tokens:
            loss = response_loss(model, problem)
        gradients = dict(zip(weights, torch.autograd.grad(loss, weights), strict=True))
        of_problem = [
            nuclear_norm(projection.of(gradients[projection.weight]), tokens[projection.module])
            for projection in projections
        ]
        norms.append(torch.stack(of_problem).cpu())
        on_progress("gradients", done, len(problems))
    return torch.stack(norms).view(len(problems), -1, len(PROJECTIONS))


@contextlib.contextmanager
def tokens_through(projections: Sequence[Projection]) -> Iterator[dict[torch.nn.Module, int]]:
    """Count the tokens that go through each projection's module, each time it is applied."""
    tokens = dict.fromkeys((projection.module for projection in projections), 0)

    def count(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tokens[module] += inputs[0].shape[:-1].numel()

    handles = [module.register_forward_pre_hook(count) for module in tokens]
    try:
        yield tokens
    finally:
        for handle in handles:
            handle.remove()


def norms_summary(norms_NLP: Tensor) -> GroupNorms:
    """Summarise norms over the problems of a group.

    The deviation is that of the group itself (divided by N); without problems all are None.
    """
    count, layers, _ = norms_NLP.shape
    mean: dict[str, list[float | None]] = {}
    std: dict[str, list[float | None]] = {}
    for place, name in enumerate(PROJECTIONS):
        own_NL = norms_NLP[:, :, place]
        mean[name] = own_NL.mean(dim=0).tolist() if count else [None] * layers
        std[name] = own_NL.std(dim=0, correction=0).tolist() if count else [None] * layers
    return GroupNorms(problems=count, mean=mean, std=std)
