"""Everything a recipe can name: optimizers, schedulers, algorithms, callbacks, loggers.

Each entry is a class of settings, registered by name with the import string of its target.
The class declares which keys the recipe may give, with types, defaults and meanings; the target
is imported only when it is built, so checking a recipe needs no torch. Example:

    @CALLBACKS.register("speed_monitor", "composer.callbacks:SpeedMonitor")
    class SpeedMonitorSettings(Settings):
        window_size: int = setting(100, "batches that the rate is taken over", ge=1)
"""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, create_model
from pydantic_core import PydanticCustomError

from itt_composer.basics.importing import imported
from itt_composer.recipe.fields import StrictModel, setting
from itt_composer.recipe.layers import Limit
from itt_composer.recipe.schedules import Shape

DURATION = re.compile(r"(\d+(?:e\d+)?(?=[bste])|\d+(?:\.\d+)?(?=d))(ba|sp|tok|ep|dur)", re.ASCII)


def _check_duration(value: Any) -> Any:
    match = DURATION.fullmatch(value) if isinstance(value, str) else None
    if match and float(match[1]) > 0:
        return value
    raise PydanticCustomError(
        "duration",
        "should be a positive time such as 500ba, 2e9tok, 1ep, or a share of training: 0.03dur",
    )


def _check_span(value: Any) -> Any:
    if isinstance(value, str) and DURATION.fullmatch(value):
        return value
    raise PydanticCustomError(
        "span",
        "should be a time such as 500ba or 2e9tok, or a share of training: 0.03dur; 0dur is none",
    )


def amount_and_unit(time: str) -> tuple[float, str]:
    """Split a time string: (50.0, "ba") for "50ba"."""
    match = DURATION.fullmatch(time)
    assert match, time
    return float(match[1]), match[2]


def _check_within_epochs(value: Any) -> Any:
    if isinstance(value, str) and value.endswith("ep"):
        raise PydanticCustomError(
            "within_epochs",
            "cannot be in epochs, which are counted when they are over; give batches (50ba), "
            "tokens (2e9tok) or a share of training (0.03dur)",
        )
    return _check_duration(value)


def _check_batches(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[1-9]\d*ba", value, re.ASCII):
        return value
    raise PydanticCustomError("batches", "should be a positive number of batches such as 50ba")


def _check_ratio(value: Any) -> Any:
    ratios = value if isinstance(value, list) else [value]
    if all(type(ratio) in (int, float) and 0 < ratio <= 1 for ratio in ratios):
        return value
    raise PydanticCustomError(
        "ratio",
        "should be a share of the tokens above 0 and up to 1, or a list with one for each step",
    )


# How the types are called on the page of all keys.
TIME = WithJsonSchema({"type": "string", "format": "time"})
TIME_IN_BATCHES = WithJsonSchema({"type": "string", "format": "time in batches"})
# A Composer time string.
Duration = Annotated[str, BeforeValidator(_check_duration), TIME]
# The same, or none of it: "0ba", "0dur".
Span = Annotated[str, BeforeValidator(_check_span), TIME]
# One that is asked for within epochs.
WithinEpochs = Annotated[str, BeforeValidator(_check_within_epochs), TIME]
# A Composer time string in batches.
Batches = Annotated[str, BeforeValidator(_check_batches), TIME_IN_BATCHES]
# One share of the tokens for all thinking steps, or one per step.
Ratios = Annotated[float | list[float], BeforeValidator(_check_ratio)]


class ComponentSettings(StrictModel):
    """The settings of one component. Fields are the parameters of its target."""

    target: ClassVar[str]
    # Import string of a function that is given the settings before training; raises a UserError.
    check: ClassVar[str | None] = None

    def build(self, *args: Any) -> Any:
        """Import the target and call it with `args` and the settings."""
        return imported(self.target)(*args, **dict(self))


class Registry:
    """The names of one kind of component, each with its settings class."""

    def __init__(self, kind: str):
        self.kind = kind
        self._settings: dict[str, type[ComponentSettings]] = {}

    def register(
        self, name: str, target: str
    ) -> Callable[[type[ComponentSettings]], type[ComponentSettings]]:
        """Class decorator: make `name` known, built by the "module:attribute" `target`."""

        def add(settings: type[ComponentSettings]) -> type[ComponentSettings]:
            settings.target = target
            self._settings[name] = settings
            return settings

        return add

    def __iter__(self) -> Iterator[tuple[str, type[ComponentSettings]]]:
        return iter(self._settings.items())

    def section(self) -> type["ComponentSection"]:
        """Make the recipe section that names components of this kind: `name: {its settings}`."""
        fields: dict[str, Any] = {
            name: (settings | None, setting(None, source=settings.target))
            for name, settings in self._settings.items()
        }
        return create_model(f"{self.kind.title()}Section", __base__=ComponentSection, **fields)


class ComponentSection(StrictModel):
    """A recipe section of named components. A name set to null is left out."""

    def named(self) -> dict[str, ComponentSettings]:
        """Return the components that the recipe names."""
        return {name: settings for name, settings in self if settings is not None}

    def build(self, *args: Any) -> list[Any]:
        """Build every named component."""
        return [settings.build(*args) for settings in self.named().values()]


OPTIMIZERS = Registry("optimizer")
SCHEDULERS = Registry("scheduler")
ALGORITHMS = Registry("algorithms")
CALLBACKS = Registry("callbacks")
LOGGERS = Registry("loggers")


@OPTIMIZERS.register("decoupled_adamw", "composer.optim:DecoupledAdamW")
class DecoupledAdamWSettings(ComponentSettings):
    """AdamW with Composer's decoupled weight decay.

    A step multiplies every weight by 1 - `weight_decay` · rate / `lr`, whatever `lr` is: at the
    peak rate 0.1 takes 10 % of a weight per step. torch's AdamW takes `lr` · `weight_decay`, so
    its 0.1 at a peak of 3e-4 is 3e-5 here.
    """

    lr: float = setting(..., "peak learning rate", gt=0)
    betas: list[float] = setting(
        [0.9, 0.95],
        "decay of the running means of gradients and of their squares",
        min_length=2,
        max_length=2,
    )
    eps: float = setting(1e-8, "added to the denominator", gt=0)
    weight_decay: float = setting(0.0, "share of each weight that a step takes at the peak", ge=0)


@SCHEDULERS.register("cosine_with_warmup", "composer.optim:CosineAnnealingWithWarmupScheduler")
class CosineWithWarmupSettings(ComponentSettings):
    """Linear warm-up, then cosine decay to a share of the peak.

    Composer steps a schedule before it counts the batch: the batch after n batches has the rate
    that the schedule has after n - 1, and the first two have that of its start.
    """

    t_warmup: Span = setting("0.03dur", "length of the warm-up; `0ba` and `0dur` are none")
    alpha_f: float = setting(0.1, "last rate, as a share of the peak", ge=0, le=1)


@ALGORITHMS.register("gradient_clipping", "composer.algorithms:GradientClipping")
class GradientClippingSettings(ComponentSettings):
    """Limits the gradients before each step."""

    clipping_type: Literal["norm", "value", "adaptive"] = setting(
        "norm", "what is limited: the norm of all, each value, or each norm beside its weight's"
    )
    clipping_threshold: float = setting(1.0, "the limit", gt=0)


@ALGORITHMS.register(
    "capacity_annealing", "itt_composer.training.capacity_annealing:CapacityAnnealing"
)
class CapacityAnnealingSettings(ComponentSettings):
    """Starts with fewer tokens in each step and a warmer router."""

    start_ratio: Ratios = setting(
        0.1, "ρ_t at the start, one for all steps or a list", "Algorithm 1"
    )
    target_ratio: Ratios | None = setting(
        None, "ρ_t at the end", "Algorithm 1", implied="`thinking.select_ratios`"
    )
    start_temperature: float = setting(
        2.0,
        "divides the routers' scores at the start; above 1 flattens the weights",
        "Algorithm 1",
        gt=0,
    )
    end_temperature: float = setting(1.0, "the same after annealing", "Algorithm 1", gt=0)
    duration: WithinEpochs = setting("0.1dur", "span of the annealing", "Algorithm 1")
    shape: Shape = setting("linear", '"cosine" has slow ends')
    levels: Annotated[int, Field(ge=2)] | Literal["continuous"] = setting(
        8,
        "different ratios that a step goes through, the first and the last included, since each "
        'costs a compilation; "continuous" gives each batch its own',
    )


@ALGORITHMS.register("loss_guard", "itt_composer.training.loss_guard:LossGuard")
class LossGuardSettings(ComponentSettings):
    """Stops, or skips the step, when the loss or a gradient is not finite or the loss jumps."""

    on_nan: Literal["stop", "skip"] = setting(
        "stop", "what is done about a loss or a gradient that is not finite"
    )
    on_spike: Literal["stop", "skip"] | None = setting(
        None, "what is done about a jump of the loss", implied="nothing"
    )
    spike_nats: float = setting(
        0.5, "least height of a jump above the running mean of the loss, in nats per token", gt=0
    )
    spike_deviations: float = setting(
        6.0, "the same in standard deviations of the running loss", gt=0
    )
    window: int = setting(100, "batches that the running loss is taken over", ge=2)
    max_skips: int = setting(10, "skips in a row after which training stops", ge=1)


@CALLBACKS.register("console_lines", "itt_composer.training.watching.console_lines:ConsoleLines")
class ConsoleLinesSettings(ComponentSettings):
    """Prints one readable line per interval and one per evaluation."""

    interval: WithinEpochs = setting("50ba", "how often")


@CALLBACKS.register("domain_shares", "itt_composer.training.watching.domain_shares:DomainShares")
class DomainSharesSettings(ComponentSettings):
    """Logs the shares in which the domains have really been drawn."""

    interval: WithinEpochs = setting("50ba", "how often")


@CALLBACKS.register("thinking_stats", "itt_composer.training.watching.thinking_stats:ThinkingStats")
class ThinkingStatsSettings(ComponentSettings):
    """Logs what each step of each thinking layer does; nothing for a dense model."""

    interval: Batches = setting("50ba", "how often")


@CALLBACKS.register("gradient_norms", "itt_composer.training.watching.gradient_norms:GradientNorms")
class GradientNormsSettings(ComponentSettings):
    """Logs the gradients' norms before clipping: routers, step encodings, the rest, all."""

    interval: Batches = setting("50ba", "how often")


@CALLBACKS.register(
    "gradient_nuclear_norm",
    "itt_composer.training.watching.gradient_nuclear_norm:GradientNuclearNorm",
)
class GradientNuclearNormSettings(ComponentSettings):
    """Logs the nuclear norm of each attention projection's gradient before clipping."""

    interval: Batches = setting("100ba", "how often")


@CALLBACKS.register("lm_eval", "eval.lm_eval_callback:TaskEvaluation")
class LmEvalSettings(ComponentSettings):
    """Runs tasks of lm-eval on the model in training."""

    check: ClassVar[str | None] = "eval.task_data:check_training_tasks"

    suite: str | None = setting(None, "file of a suite with tasks", implied="the eleven tasks")
    eval_interval: Batches = setting("5000ba", "how often; a multiple of `train.eval_interval`")
    only: list[str] | None = setting(None, "names of the tasks to run", implied="all of the suite")
    limit: Limit | None = setting(
        200, "documents of each task, its first ones, or their share", implied="all of them"
    )
    data_dir: str | None = setting(None, "folder that `itt eval fetch` filled", implied="the hub")
    tokenizer: str = setting("", "folder of the tokenizer; empty takes the shards'")


@CALLBACKS.register("speed_monitor", "composer.callbacks:SpeedMonitor")
class SpeedMonitorSettings(ComponentSettings):
    """Logs throughput in tokens/s and FLOP/s, and MFU where the device's peak is known."""

    window_size: int = setting(50, "batches that the rate is taken over", ge=1)
    gpu_flops_available: float | None = setting(
        None, "peak of a device, in FLOP/s", implied="Composer's list of GPUs"
    )


@CALLBACKS.register("runtime_estimator", "composer.callbacks:RuntimeEstimator")
class RuntimeEstimatorSettings(ComponentSettings):
    """Logs the hours that are left, evaluations included."""


@CALLBACKS.register("lr_monitor", "composer.callbacks:LRMonitor")
class LRMonitorSettings(ComponentSettings):
    """Logs the learning rate."""


@CALLBACKS.register("memory_monitor", "composer.callbacks:MemoryMonitor")
class MemoryMonitorSettings(ComponentSettings):
    """Logs the device's memory; does nothing on a CPU."""


@LOGGERS.register("json_lines", "itt_composer.training.watching.json_lines:JsonLinesLogger")
class JsonLinesSettings(ComponentSettings):
    """Writes every metric, one JSON object per batch; a resumed run appends to its own file."""

    path: str = setting(..., "the file")


@LOGGERS.register("tensorboard", "composer.loggers:TensorboardLogger")
class TensorBoardSettings(ComponentSettings):
    """Writes into `log_dir/<run_name>`, so that runs stand side by side."""

    log_dir: str = setting("runs/tensorboard", "folder of all runs")
    flush_interval: int = setting(100, "batches between writes", ge=1)


@LOGGERS.register("wandb", "itt_composer.training.watching.wandb_metrics:WandBMetricsLogger")
class WeightsAndBiasesSettings(ComponentSettings):
    """Sends every metric to Weights & Biases."""

    project: str | None = setting(None, "project that the run belongs to")
    group: str | None = setting(None, "group that the run belongs to")
    entity: str | None = setting(None, "user or team that the run belongs to")
    tags: list[str] | None = setting(None, "labels of the run")
