"""Mistakes that only several settings of a recipe together show; all are reported at once."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from itt_composer.basics.errors import FieldError, UserError
from itt_composer.recipe.components import (
    CapacityAnnealingSettings,
    LmEvalSettings,
    amount_and_unit,
)
from itt_composer.recipe.layers import Sources
from itt_composer.recipe.schedules import check_ratios
from itt_composer.recipe.thinking import THINKING_FIELDS, ThinkingSettings

if TYPE_CHECKING:
    from itt_composer.recipe.schema import Recipe

# Fewer than the variants of a compiled layer that are kept (models/wrapping.py): batches of another
# size add some.
MOST_COMPILED_LEVELS = 32
GPU_ONLY = {"precision": ("amp_bf16", "fp32"), "microbatch_size": ("auto", "a number")}
WARMUP = "scheduler.cosine_with_warmup.t_warmup"
ANNEALING = "algorithms.capacity_annealing"


def check_together(recipe: "Recipe", sources: Sources) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: one sentence per mistake, with the source of the key that was set last.
    """
    found = [*_of_thinking(recipe), *_of_time(recipe), *_of_the_rest(recipe)]
    if found:
        raise UserError("\n".join(map(sources.blame, found)))


def of_the_device(recipe: "Recipe") -> Iterator[FieldError]:
    """Yield what a recipe asks for that a CPU cannot do."""
    for name, (value, instead) in GPU_ONLY.items():
        if getattr(recipe.train, name) == value:
            key = f"train.{name}"
            yield FieldError(
                f"{key}={value} needs a GPU; on a CPU set {key} to {instead}", key, "train.device"
            )


def _of_thinking(recipe: "Recipe") -> Iterator[FieldError]:
    try:
        thinking = recipe.resolved_thinking()
    except FieldError as error:
        yield _in_recipe(error, "thinking")
        return
    if 0 in (thinking.select_ratios or []):
        yield FieldError(
            "thinking.select_ratios: a step of ratio 0 would never be trained; lower "
            "thinking.thinking_steps instead",
            "thinking.select_ratios",
        )
    if thinking.router_selection == "threshold":
        yield FieldError(
            "thinking.router_selection=threshold is for inference; train with top_k, the "
            "thresholds are estimated on the way",
            "thinking.router_selection",
        )
    annealing = recipe.algorithms.named().get("capacity_annealing")
    if isinstance(annealing, CapacityAnnealingSettings):
        yield from _of_annealing(recipe, annealing, thinking)


def _in_recipe(error: FieldError, section: str) -> FieldError:
    """Return the same error about a recipe's keys; its first field is in the section."""

    def key(name: str) -> str:
        prefix = "thinking" if name in THINKING_FIELDS else section
        return f"{'model' if name == 'num_hidden_layers' else prefix}.{name}"

    return FieldError(f"{section}.{error}", *map(key, error.fields))


def _of_annealing(
    recipe: "Recipe", annealing: CapacityAnnealingSettings, thinking: ThinkingSettings
) -> Iterator[FieldError]:
    if not thinking.adaptive_routing:
        yield FieldError(
            f"{ANNEALING} needs a router, but thinking.thinking or thinking.adaptive_routing "
            f"leaves none; set {ANNEALING}=null",
            *(ANNEALING, "thinking.thinking", "thinking.adaptive_routing"),
        )
        return
    if _outlasts(annealing.duration, recipe):
        key = f"{ANNEALING}.duration"
        yield FieldError(
            f"{key}={annealing.duration} is longer than training, so the ratios would never reach "
            "their targets; shorten it",
            *(key, "train.max_duration"),
        )
    try:
        check_ratios(annealing.start_ratio, annealing.target_ratio, thinking.select_ratios or [])
    except FieldError as error:
        yield _in_recipe(error, ANNEALING)
    levels = annealing.levels
    if recipe.train.compile and (levels == "continuous" or levels > MOST_COMPILED_LEVELS):
        key = f"{ANNEALING}.levels"
        yield FieldError(
            f"{key}={levels}: with train.compile every level is a compilation; give a number up to "
            f"{MOST_COMPILED_LEVELS}, such as 8",
            *(key, "train.compile"),
        )


def _of_time(recipe: "Recipe") -> Iterator[FieldError]:
    duration = recipe.train.max_duration
    if duration.endswith("dur"):
        yield FieldError(
            f"train.max_duration={duration} is itself what shares of training refer to; give "
            "batches (ba), tokens (tok) or epochs (ep)",
            "train.max_duration",
        )
        return
    tasks, interval = recipe.callbacks.named().get("lm_eval"), recipe.train.eval_interval
    if isinstance(tasks, LmEvalSettings) and not _is_multiple(tasks.eval_interval, interval):
        key = "callbacks.lm_eval.eval_interval"
        yield FieldError(
            f"{key}={tasks.eval_interval} is not a multiple of train.eval_interval={interval}, and "
            "tasks follow an evaluation of the run; give both in batches, the one a multiple of "
            "the other",
            *(key, "train.eval_interval"),
        )
    warmup = getattr(recipe.scheduler.named().get("cosine_with_warmup"), "t_warmup", "0.03dur")
    unit, whole_unit = (amount_and_unit(time)[1].replace("ep", "ba") for time in (warmup, duration))
    if unit not in ("dur", whole_unit):
        yield FieldError(
            f"{WARMUP}={warmup} has another unit than train.max_duration={duration}, and the "
            "schedule compares them; give a share of training, such as 0.03dur, or the same unit",
            *(WARMUP, "train.max_duration"),
        )
    if _outlasts(warmup, recipe):
        yield FieldError(
            f"{WARMUP}={warmup} is longer than training, so the learning rate would never reach "
            "its peak; shorten it",
            *(WARMUP, "train.max_duration"),
        )


def _of_the_rest(recipe: "Recipe") -> Iterator[FieldError]:
    for name in ("optimizer", "scheduler"):
        count = len(getattr(recipe, name).named())
        if count != 1:
            yield FieldError(f"{name} must name one component, not {count}", name)
    if recipe.data.seq_len > recipe.model.max_position_embeddings:
        yield FieldError(
            f"data.seq_len={recipe.data.seq_len} is longer than "
            f"model.max_position_embeddings={recipe.model.max_position_embeddings}",
            *("data.seq_len", "model.max_position_embeddings"),
        )
    if recipe.train.device == "cpu":
        yield from of_the_device(recipe)


def _is_multiple(interval: str, of: str) -> bool:
    """Return whether a time is a multiple of another of the same unit."""
    (amount, unit), (base, base_unit) = amount_and_unit(interval), amount_and_unit(of)
    return unit == base_unit and amount % base == 0


def tokens_in(time: str, recipe: "Recipe") -> int | None:
    """Convert a time to tokens; return None for epochs and shares of training."""
    amount, unit = amount_and_unit(time)
    seq_len = recipe.data.seq_len
    sizes = {"ba": recipe.train.global_batch_size * seq_len, "sp": seq_len, "tok": 1}
    return int(amount * sizes[unit]) if unit in sizes else None


def _outlasts(span: str, recipe: "Recipe") -> bool:
    """Return whether a time is longer than training; False where only the data can show it."""
    (amount, unit), (whole, whole_unit) = map(amount_and_unit, (span, recipe.train.max_duration))
    if unit == "dur":
        return amount > 1
    if unit == whole_unit:
        return amount > whole
    tokens, all_tokens = tokens_in(span, recipe), tokens_in(recipe.train.max_duration, recipe)
    return tokens is not None and all_tokens is not None and tokens > all_tokens
