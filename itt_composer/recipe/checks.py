"""What only several settings of a recipe together show to be wrong; all of it is told at once."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from itt_composer.basics.errors import UserError
from itt_composer.recipe.components import CapacityAnnealing, LmEval, amount_and_unit
from itt_composer.recipe.layers import Sources
from itt_composer.recipe.schedules import check_ratios
from itt_composer.recipe.thinking import ThinkingSettings

if TYPE_CHECKING:
    from itt_composer.recipe.schema import Recipe

# Of the variants of a layer that are kept (models/wrapping.py); batches of another size are more.
MOST_COMPILED_LEVELS = 32
GPU_ONLY = {"precision": ("amp_bf16", "fp32"), "microbatch_size": ("auto", "a number")}
WARMUP = "scheduler.cosine_with_warmup.t_warmup"
ANNEALING = "algorithms.capacity_annealing"

# A key, and the sentence without its source.
Mistake = tuple[str, str]


def check_together(recipe: "Recipe", sources: Sources) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: one sentence per mistake, with the source of the key.
    """
    found = [*_of_thinking(recipe), *_of_time(recipe), *_of_the_rest(recipe)]
    if found:
        raise UserError("\n".join(f"{sources.of(key)}: {told}" for key, told in found))


def of_the_device(recipe: "Recipe") -> Iterator[Mistake]:
    """What a recipe asks for that a CPU cannot do."""
    for name, (value, instead) in GPU_ONLY.items():
        if getattr(recipe.train, name) == value:
            key = f"train.{name}"
            yield key, f"{key}={value} needs a GPU; on a CPU set {key} to {instead}"


def _of_thinking(recipe: "Recipe") -> Iterator[Mistake]:
    try:
        thinking = recipe.resolved_thinking()
    except ValueError as error:
        named = [word for word in re.findall(r"\w+", str(error)) if word in vars(recipe.thinking)]
        key = f"thinking.{named[0] if named else 'thinking'}"
        yield key, f"{key}: {error}"
        return
    if 0 in (thinking.select_ratios or []):
        key = "thinking.select_ratios"
        yield (
            key,
            f"{key}: a step of ratio 0 would never be trained; lower thinking.thinking_steps "
            "instead",
        )
    if thinking.router_selection == "threshold":
        key = "thinking.router_selection"
        yield (
            key,
            f"{key}=threshold is for inference; train with top_k, the thresholds are estimated on "
            "the way",
        )
    annealing = recipe.algorithms.named().get("capacity_annealing")
    if isinstance(annealing, CapacityAnnealing):
        yield from _of_annealing(recipe, annealing, thinking)


def _of_annealing(
    recipe: "Recipe", annealing: CapacityAnnealing, thinking: ThinkingSettings
) -> Iterator[Mistake]:
    if not thinking.adaptive_routing:
        yield (
            ANNEALING,
            f"{ANNEALING} needs a router, but thinking.thinking or thinking.adaptive_routing "
            f"leaves none; set {ANNEALING}=null",
        )
        return
    if _outlasts(annealing.duration, recipe):
        key = f"{ANNEALING}.duration"
        yield (
            key,
            f"{key}={annealing.duration} is longer than training, so the ratios would never reach "
            "their targets; shorten it",
        )
    try:
        check_ratios(annealing.start_ratio, annealing.target_ratio, thinking.select_ratios or [])
    except ValueError as error:
        key = f"{ANNEALING}.{str(error).split()[0]}"
        yield key, f"{key}: {error}"
    levels = annealing.levels
    if recipe.train.compile and (levels == "continuous" or levels > MOST_COMPILED_LEVELS):
        key = f"{ANNEALING}.levels"
        yield (
            key,
            f"{key}={levels}: with train.compile every level is a compilation; give a number up to "
            f"{MOST_COMPILED_LEVELS}, such as 8",
        )


def _of_time(recipe: "Recipe") -> Iterator[Mistake]:
    duration = recipe.train.max_duration
    if duration.endswith("dur"):
        key = "train.max_duration"
        yield (
            key,
            f"{key}={duration}: is itself what shares of training refer to; give batches (ba), "
            "tokens (tok) or epochs (ep)",
        )
        return
    tasks, interval = recipe.callbacks.named().get("lm_eval"), recipe.train.eval_interval
    if isinstance(tasks, LmEval) and not _is_multiple(tasks.eval_interval, interval):
        key = "callbacks.lm_eval.eval_interval"
        yield (
            key,
            f"{key}={tasks.eval_interval} is no multiple of train.eval_interval={interval}, and "
            "tasks follow an evaluation of the run; give both in batches, the one a multiple of "
            "the other",
        )
    warmup = getattr(recipe.scheduler.named().get("cosine_with_warmup"), "t_warmup", "0.03dur")
    unit, whole_unit = (amount_and_unit(time)[1].replace("ep", "ba") for time in (warmup, duration))
    if unit not in ("dur", whole_unit):
        yield (
            WARMUP,
            f"{WARMUP}={warmup} is of another unit than train.max_duration={duration}, and the "
            "schedule compares them; give a share of training, such as 0.03dur, or the same unit",
        )
    if _outlasts(warmup, recipe):
        yield (
            WARMUP,
            f"{WARMUP}={warmup} is longer than training, so the learning rate would never reach "
            "its peak; shorten it",
        )


def _of_the_rest(recipe: "Recipe") -> Iterator[Mistake]:
    for name in ("optimizer", "scheduler"):
        count = len(getattr(recipe, name).named())
        if count != 1:
            yield name, f"{name} must name one component, not {count}"
    if recipe.data.seq_len > recipe.model.max_position_embeddings:
        key = "data.seq_len"
        yield (
            key,
            f"{key}={recipe.data.seq_len} is longer than "
            f"model.max_position_embeddings={recipe.model.max_position_embeddings}",
        )
    if recipe.train.device == "cpu":
        yield from of_the_device(recipe)


def _is_multiple(interval: str, of: str) -> bool:
    """Whether a time string is so many times another of the same unit."""
    (amount, unit), (base, base_unit) = amount_and_unit(interval), amount_and_unit(of)
    return unit == base_unit and amount % base == 0


def tokens_in(time: str, recipe: "Recipe") -> int | None:
    """Tokens that the recipe trains on in a time; None for epochs and shares of training."""
    amount, unit = amount_and_unit(time)
    seq_len = recipe.data.seq_len
    sizes = {"ba": recipe.train.global_batch_size * seq_len, "sp": seq_len, "tok": 1}
    return int(amount * sizes[unit]) if unit in sizes else None


def _outlasts(span: str, recipe: "Recipe") -> bool:
    """Whether a time is longer than training; False where that depends on the size of the data."""
    (amount, unit), (whole, whole_unit) = map(amount_and_unit, (span, recipe.train.max_duration))
    if unit == "dur":
        return amount > 1
    if unit == whole_unit:
        return amount > whole
    tokens, all_tokens = tokens_in(span, recipe), tokens_in(recipe.train.max_duration, recipe)
    return tokens is not None and all_tokens is not None and tokens > all_tokens
