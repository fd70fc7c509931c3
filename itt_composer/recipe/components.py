"""Everything a recipe can name: optimizers, schedulers, algorithms, callbacks, loggers.

Each entry is a class of settings, registered by name with the import string of its target.
The class tells which keys the recipe may give, their types and defaults; the target is
imported only when it is built, so checking a recipe needs no torch. Example:

    @CALLBACKS.register("speed_monitor", "composer.callbacks:SpeedMonitor")
    class SpeedMonitor(Settings):
        window_size: int = Field(100, ge=1)
"""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model
from pydantic_core import PydanticCustomError

from itt_composer.basics.importing import imported
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
    """(50.0, "ba") for "50ba"."""
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


# A Composer time string.
Duration = Annotated[str, BeforeValidator(_check_duration)]
# The same, or none of it: "0ba", "0dur".
Span = Annotated[str, BeforeValidator(_check_span)]
# One that is asked for within epochs.
WithinEpochs = Annotated[str, BeforeValidator(_check_within_epochs)]
# A Composer time string in batches.
Batches = Annotated[str, BeforeValidator(_check_batches)]
# One share of the tokens for all thinking steps, or one per step.
Ratio = Annotated[float | list[float], BeforeValidator(_check_ratio)]


class Settings(BaseModel):
    """Settings of one component. Fields are the parameters of its target."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    target: ClassVar[str]
    # Of a function that is given the settings before training, and raises a UserError.
    check: ClassVar[str | None] = None

    def build(self, *args: Any) -> Any:
        """Import the target and call it with `args` and the settings."""
        return imported(self.target)(*args, **dict(self))


class Registry:
    """Names of one kind of component, each with its settings class."""

    def __init__(self, kind: str):
        self.kind = kind
        self._settings: dict[str, type[Settings]] = {}

    def register(self, name: str, target: str) -> Callable[[type[Settings]], type[Settings]]:
        """Class decorator: make `name` known, built by the "module:attribute" `target`."""

        def add(settings: type[Settings]) -> type[Settings]:
            settings.target = target
            self._settings[name] = settings
            return settings

        return add

    def __iter__(self) -> Iterator[tuple[str, type[Settings]]]:
        return iter(self._settings.items())

    def section(self) -> type["Section"]:
        """The recipe section that names components of this kind: `name: {its settings}`."""
        fields: dict[str, Any] = {
            name: (settings | None, None) for name, settings in self._settings.items()
        }
        return create_model(f"{self.kind.title()}Section", __base__=Section, **fields)


class Section(BaseModel):
    """A recipe section of named components. A name set to null is left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def named(self) -> dict[str, Settings]:
        """The components that the recipe names."""
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
class DecoupledAdamW(Settings):
    """AdamW with Composer's decoupled weight decay.

    A step multiplies every weight by 1 - `weight_decay` · rate / `lr`, whatever `lr` is: at the
    peak rate 0.1 takes 10 % of a weight per step. torch's AdamW takes `lr` · `weight_decay`, so
    its 0.1 at a peak of 3e-4 is 3e-5 here.
    """

    lr: float = Field(gt=0)
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)


@SCHEDULERS.register("cosine_with_warmup", "composer.optim:CosineAnnealingWithWarmupScheduler")
class CosineWithWarmup(Settings):
    """Linear warm-up, none at 0ba or 0dur, then cosine decay to `alpha_f` of the peak.

    Composer steps a schedule before it counts the batch: the batch after n batches has the rate
    that the schedule has after n - 1, and the first two have that of its start.
    """

    t_warmup: Span = "0.03dur"
    alpha_f: float = Field(0.1, ge=0, le=1)


@ALGORITHMS.register("gradient_clipping", "composer.algorithms:GradientClipping")
class GradientClipping(Settings):
    clipping_type: Literal["norm", "value", "adaptive"] = "norm"
    clipping_threshold: float = Field(1.0, gt=0)


@ALGORITHMS.register(
    "capacity_annealing", "itt_composer.training.capacity_annealing:CapacityAnnealing"
)
class CapacityAnnealing(Settings):
    """Algorithm 1 of the paper: fewer tokens and a warmer router at the start."""

    start_ratio: Ratio = 0.1
    target_ratio: Ratio | None = None
    start_temperature: float = Field(2.0, gt=0)
    end_temperature: float = Field(1.0, gt=0)
    duration: WithinEpochs = "0.1dur"
    shape: Shape = "linear"
    levels: Annotated[int, Field(ge=2)] | Literal["continuous"] = 8


@ALGORITHMS.register("loss_guard", "itt_composer.training.loss_guard:LossGuard")
class LossGuard(Settings):
    """Stops, or skips the step, when the loss or a gradient is not finite or the loss jumps."""

    on_nan: Literal["stop", "skip"] = "stop"
    on_spike: Literal["stop", "skip"] | None = None
    spike_nats: float = Field(0.5, gt=0)
    spike_deviations: float = Field(6.0, gt=0)
    window: int = Field(100, ge=2)
    max_skips: int = Field(10, ge=1)


@CALLBACKS.register("console_lines", "itt_composer.training.watching.console_lines:ConsoleLines")
class ConsoleLines(Settings):
    """One readable line per interval and one per evaluation."""

    interval: WithinEpochs = "50ba"


@CALLBACKS.register("domain_shares", "itt_composer.training.watching.domain_shares:DomainShares")
class DomainShares(Settings):
    """Logs the shares in which the domains have really been drawn."""

    interval: WithinEpochs = "50ba"


@CALLBACKS.register("thinking_stats", "itt_composer.training.watching.thinking_stats:ThinkingStats")
class ThinkingStats(Settings):
    """Logs what each step of each thinking layer does; nothing for a dense model."""

    interval: Batches = "50ba"


@CALLBACKS.register("gradient_norms", "itt_composer.training.watching.gradient_norms:GradientNorms")
class GradientNorms(Settings):
    """Logs the gradients' norms before clipping: routers, step encodings, the rest, all."""

    interval: Batches = "50ba"


@CALLBACKS.register(
    "gradient_nuclear_norm",
    "itt_composer.training.watching.gradient_nuclear_norm:GradientNuclearNorm",
)
class GradientNuclearNorm(Settings):
    """Logs the nuclear norm of each attention projection's gradient before clipping."""

    interval: Batches = "100ba"


@CALLBACKS.register("lm_eval", "eval.lm_eval_callback:TaskEvaluation")
class LmEval(Settings):
    """Tasks of lm-eval on the model in training: by default all eleven, the shards' tokenizer."""

    check: ClassVar[str | None] = "eval.task_data:check_training_tasks"

    suite: str | None = None
    eval_interval: Batches = "5000ba"
    only: list[str] | None = None
    limit: Limit | None = 200
    data_dir: str | None = None
    tokenizer: str = ""


@CALLBACKS.register("speed_monitor", "composer.callbacks:SpeedMonitor")
class SpeedMonitor(Settings):
    """Throughput in tokens/s and FLOP/s; MFU where the device's peak is known."""

    window_size: int = Field(50, ge=1)
    gpu_flops_available: float | None = None


@CALLBACKS.register("runtime_estimator", "composer.callbacks:RuntimeEstimator")
class RuntimeEstimator(Settings):
    """Logs the hours that are left, evaluations included."""


@CALLBACKS.register("lr_monitor", "composer.callbacks:LRMonitor")
class LRMonitor(Settings):
    """Logs the learning rate."""


@CALLBACKS.register("memory_monitor", "composer.callbacks:MemoryMonitor")
class MemoryMonitor(Settings):
    """Logs the device's memory; does nothing on a CPU."""


@LOGGERS.register("json_lines", "itt_composer.training.watching.json_lines:JsonLinesLogger")
class JsonLines(Settings):
    """Every metric, one JSON object per batch; a resumed run appends to its own file."""

    path: str


@LOGGERS.register("tensorboard", "composer.loggers:TensorboardLogger")
class TensorBoard(Settings):
    """Writes into `log_dir/<run_name>`, so that runs stand side by side."""

    log_dir: str = "runs/tensorboard"
    flush_interval: int = Field(100, ge=1)


@LOGGERS.register("wandb", "itt_composer.training.watching.wandb_metrics:WandBMetricsLogger")
class WeightsAndBiases(Settings):
    project: str | None = None
    group: str | None = None
    entity: str | None = None
    tags: list[str] | None = None
