"""Recipes: YAML files and `key=value` overrides → one validated `Recipe`.

A recipe file names the parts it is made of and overrides what differs:

    parts:
      model: ../models/llama_162m.yaml
      thinking: ../thinking/itt_x4.yaml
      data: ../data/redpajama.yaml
      train: ../train/paper.yaml
    run_name: itt_x4_162m

Parts are merged in that order, then the recipe's own keys, then the command line's. Paths of
parts are relative to the file that names them (on the command line: to the current folder).
Every key is checked against the classes below, and nothing here imports torch.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from itt_composer.basics.errors import Mistakes, UserError
from itt_composer.recipe.checks import check_together
from itt_composer.recipe.components import (
    ALGORITHMS,
    CALLBACKS,
    LOGGERS,
    OPTIMIZERS,
    SCHEDULERS,
    Duration,
    LmEval,
    Section,
)
from itt_composer.recipe.layers import (
    COMMAND_LINE,
    Layer,
    Sources,
    as_yaml,
    parse_overrides,
    read_yaml,
    validate,
)
from itt_composer.recipe.llama_config import check_heads, check_rope_scaling
from itt_composer.recipe.thinking import ThinkingSettings

PART_NAMES = ("model", "thinking", "data", "train")
DEFAULT_RUN_FOLDER = "runs/${run_name}"
FORMS = {
    "run_name": "may hold letters, digits, '.', '_' and '-' only",
    "microbatch_size": 'should be a positive integer or "auto"',
    "cache_limit": 'should be a size such as "200gb"',
    "levels": 'should be an integer of at least 2 or "continuous"',
}

Sharding = Literal["fsdp", "hybrid", "ddp", "none"]
ActivationCheckpointing = Literal["none", "thinking_steps", "all"]

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _is_local(folder: str) -> str:
    if "://" in folder:
        raise ValueError(
            f"{folder} is an address, and checkpoints are kept in a folder; name one, and copy it "
            "to the store from there"
        )
    return folder


def _not_zero(count: int) -> int:
    if count == 0:
        raise ValueError("0 would leave nothing to go by; give a positive number, or -1 for all")
    return count


def _without_null(shares: Any) -> Any:
    if not isinstance(shares, dict):
        return shares
    kept = {name: share for name, share in shares.items() if share is not None}
    if not kept:
        raise ValueError("names no domain; give shares, or null for every domain there is")
    return kept


CountOrAll = Annotated[int, Field(ge=-1), AfterValidator(_not_zero)]


class ModelRecipe(_Group):
    """LLaMA geometry (Table 5 of the paper); names as in `transformers.LlamaConfig`.

    The last four are for a model to go on from (`init_from`) that has them.
    """

    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    vocab_size: Positive = 32000
    max_position_embeddings: Positive = 4096
    rope_theta: float = Field(10000.0, gt=0)
    rms_norm_eps: float = Field(1e-5, gt=0)
    initializer_range: float = Field(0.02, gt=0)
    tie_word_embeddings: bool = False
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    head_dim: Positive | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelRecipe":
        check_heads(
            self.hidden_size, self.num_attention_heads, self.num_key_value_heads, self.head_dim
        )
        check_rope_scaling(self.rope_scaling)
        return self


class DataRecipe(_Group):
    """MDS shards of fixed-length token rows, one stream per domain.

    Attributes:
        local: folder with `manifest.json`, `train/<domain>` and `validation/<domain>`; with
            `remote` set, the cache that shards are downloaded to.
        remote: the same layout in an object store, or null.
        seq_len: tokens of a row; must be the shards' own.
        tokenizer: file or folder of the tokenizer that the shards must have been made with, or
            null.
        domains: share of each domain in the training batches, normalised to 1; a domain set to
            null is left out. null for all of it takes every domain of the manifest in proportion
            to its size.
        validate_hash: read every shard before training starts, and every download, and compare
            its SHA-256; sizes are compared in any case.
        shuffle_seed: order of the training rows.
        shuffle_algo: "py1e" and "py1br" mix the rows of neighbouring shards, "naive" all rows.
        shuffle_block_size: rows of the stretch in which a shard's rows are spread, over all
            domains.
        num_canonical_nodes: parts of an epoch that are read side by side; with `remote`, the
            number of nodes, so that each downloads a part only. Part of the rows' order.
        num_workers: loader processes per rank.
        predownload: rows that a worker downloads ahead, or null for eight batches.
        cache_limit: most bytes of the cache, of each split ("200gb"), or null.
        download_retry: attempts to download a file.
        download_timeout: seconds for one file.
        worker_timeout: seconds for a batch, after which a loader process is taken to hang.
    """

    local: str
    remote: str | None = None
    seq_len: Positive
    tokenizer: str | None = None
    domains: Annotated[dict[str, Share], BeforeValidator(_without_null)] | None = None
    validate_hash: bool = True
    shuffle_seed: int = Field(17, ge=0)
    shuffle_algo: Literal["py1e", "py1br", "naive"] = "py1e"
    shuffle_block_size: Positive = 1 << 18
    num_canonical_nodes: Positive = 1
    num_workers: int = Field(2, ge=0)
    predownload: Positive | None = None
    cache_limit: Annotated[str, Field(pattern=r"^(?i:\d+(\.\d+)?[kmgt]b)$")] | None = None
    download_retry: Positive = 2
    download_timeout: float = Field(60.0, gt=0)
    worker_timeout: float = Field(600.0, gt=0)

    @model_validator(mode="after")
    def _cache_has_an_origin(self) -> "DataRecipe":
        if self.remote is None and self.cache_limit is not None:
            raise ValueError(
                f"cache_limit={self.cache_limit} needs remote: without it, local is no cache"
            )
        return self


class TrainRecipe(_Group):
    """What the Trainer does.

    Attributes:
        max_duration: length of training.
        global_batch_size: sequences per step, over all ranks.
        microbatch_size: sequences of a rank that go through the model at once; "auto" finds the
            largest that fits the GPU's memory.
        precision: "fp32", or "amp_bf16" for mixed precision.
        eval_interval: how often validation perplexity is measured.
        eval_batches: validation batches per evaluation, the same random sample of every domain
            each time, in proportion to its rows; -1 takes all.
        eval_batch_size: validation sequences per batch, over all ranks.
        calibration_rows: validation sequences, a random sample of every domain, that the final
            thresholds are measured on.
        save_interval: how often a checkpoint is written; the last batch always is.
        keep_checkpoints: how many are kept; -1 keeps all.
        autoresume: go on from the run's latest checkpoint, if there is one; false refuses to.
        rank_timeout: seconds without progress, after which a rank is taken to hang.
        progress_bar: on a terminal.
        device: null picks a GPU where there is one.
        sharding: how several ranks share the work: "fsdp" shards parameters, gradients and
            optimizer over all ranks, "hybrid" within each node, with a replica per node; "ddp"
            keeps all of them on every rank; "none" is for one rank.
        activation_checkpointing: what is computed again in the backward pass instead of kept:
            "none", "thinking_steps" (the steps after a layer's first pass) or "all" (every
            layer).
        compile: compile each layer with `torch.compile`.
        loss_chunk_tokens: tokens whose logits exist at the same time in the training loss.
    """

    max_duration: Duration
    global_batch_size: Positive
    microbatch_size: Positive | Literal["auto"]
    precision: Literal["fp32", "amp_bf16"]
    eval_interval: Duration = "500ba"
    eval_batches: CountOrAll = -1
    eval_batch_size: Positive = 16
    calibration_rows: Positive = 256
    save_interval: Duration = "1000ba"
    keep_checkpoints: CountOrAll = 2
    autoresume: bool = True
    rank_timeout: float = Field(1800.0, gt=0)
    progress_bar: bool = True
    device: Literal["cpu", "gpu"] | None = None
    sharding: Sharding = "fsdp"
    activation_checkpointing: ActivationCheckpointing = "none"
    compile: bool = False
    loss_chunk_tokens: Positive = 1024


class Parts(_Group):
    """Files this recipe is made of."""

    model: str | None = None
    thinking: str | None = None
    data: str | None = None
    train: str | None = None


if TYPE_CHECKING:
    OptimizerSection: TypeAlias = Section
    SchedulerSection: TypeAlias = Section
    AlgorithmsSection: TypeAlias = Section
    CallbacksSection: TypeAlias = Section
    LoggersSection: TypeAlias = Section
else:
    OptimizerSection, SchedulerSection = OPTIMIZERS.section(), SCHEDULERS.section()
    AlgorithmsSection, CallbacksSection = ALGORITHMS.section(), CALLBACKS.section()
    LoggersSection = LOGGERS.section()


class Recipe(_Group):
    """A whole training run.

    Attributes:
        parts: the files the recipe was made of.
        run_name: names the run's folder, its logs and its checkpoints.
        run_folder: where checkpoints, the resolved recipe, logs and the final model go.
        seed: of the weights and everything else that is random.
        init_from: transformers folder of an ITT (or Loop, or dense) model whose weights training
            starts with, or null. A run that goes on from its own checkpoint does without it.
        optimizer, scheduler: exactly one component each.
        algorithms, callbacks, loggers: any number; one set to null is left out.
    """

    parts: Parts = Parts()
    run_name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    run_folder: Annotated[str, AfterValidator(_is_local)]
    seed: int = Field(17, ge=0, lt=2**31)
    init_from: str | None = None
    model: ModelRecipe
    thinking: ThinkingSettings = ThinkingSettings()
    data: DataRecipe
    train: TrainRecipe
    optimizer: OptimizerSection
    scheduler: SchedulerSection
    algorithms: AlgorithmsSection = AlgorithmsSection()
    callbacks: CallbacksSection = CallbacksSection()
    loggers: LoggersSection = LoggersSection()

    @model_validator(mode="after")
    def _tasks_know_the_tokenizer(self) -> "Recipe":
        tasks = self.callbacks.named().get("lm_eval")
        if isinstance(tasks, LmEval) and not tasks.tokenizer:
            tasks.tokenizer = f"{self.data.local}/tokenizer"
        return self

    def resolved_thinking(self) -> ThinkingSettings:
        """The thinking settings with every implied value filled in."""
        return self.thinking.resolve(self.model.num_hidden_layers)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and its parts, merge the overrides, check everything.

    Args:
        path: the recipe file.
        overrides: `key=value` texts of the command line; values are YAML.

    Raises:
        UserError: one sentence per mistake, each with the file (or "command line"), the key and
            what to do.
    """
    layers = list(_layers(Path(path), overrides))
    recipe = validate(Recipe, layers, FORMS)
    check_together(recipe, Sources(layers))
    return recipe


def recipe_as_yaml(recipe: Recipe) -> str:
    """The resolved recipe as one YAML document."""
    return as_yaml(recipe_values(recipe))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe: everything that was asked for or implied, by key."""
    values = recipe.model_dump(exclude_none=True)
    values["thinking"] = {
        name: value for name, value in vars(recipe.resolved_thinking()).items() if value is not None
    }
    values.pop("parts")
    return values


def _layers(path: Path, overrides: Sequence[str]) -> Iterator[Layer]:
    """(source, content) of every part, the recipe and the command line, in merging order."""
    own = read_yaml(path)
    from_command_line = parse_overrides(overrides)
    yield "default", OmegaConf.create({"run_name": "???", "run_folder": DEFAULT_RUN_FOLDER})
    for source, content in ((str(path), own), (COMMAND_LINE, from_command_line)):
        if not isinstance(content.get("parts", OmegaConf.create()), DictConfig):
            raise UserError(
                f"{source}: parts must be a mapping of {', '.join(PART_NAMES)} to files"
            )
    mistakes = Mistakes()
    for name in PART_NAMES:
        with mistakes:
            yield from _part(
                name, (COMMAND_LINE, Path(), from_command_line), (str(path), path.parent, own)
            )
    mistakes.tell()
    yield str(path), own
    yield COMMAND_LINE, from_command_line


def _part(name: str, *named_in: tuple[str, Path, DictConfig]) -> Iterator[Layer]:
    """The part that the first of some sources names: none if it is set to null there.

    Args:
        name: of the part.
        named_in: (source, folder that paths are relative to, content).

    Raises:
        UserError: it is not there, or cannot be read.
    """
    for source, folder, content in named_in:
        try:
            part = OmegaConf.select(content, f"parts.{name}")
        except OmegaConfBaseException as error:
            reason = str(error.msg or error).splitlines()[0]
            raise UserError(f"{source}: parts.{name}: {reason}") from None
        if isinstance(part, str):
            file = Path(os.path.normpath(folder / part))
            if not file.is_file():
                raise UserError(f"{source}: parts.{name} names {file}, which is not there")
            yield str(file), read_yaml(file)
            return
        if part is None and "parts" in content and name in content.parts:
            return
