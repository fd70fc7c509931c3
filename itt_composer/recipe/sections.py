"""The sections of a recipe that describe model, data and training: their keys are declared here."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from itt_composer.basics.errors import FieldError
from itt_composer.recipe.components import Duration
from itt_composer.recipe.fields import FREE, ON_REQUEST, START, Positive, StrictModel, setting
from itt_composer.recipe.llama_config import check_heads, check_rope_scaling

LLAMA = "transformers `LlamaConfig`"
STREAMING = "streaming `StreamingDataset`"
TRAINER = "Composer `Trainer`"

Sharding = Literal["fsdp", "hybrid", "ddp", "none"]
ActivationCheckpointing = Literal["none", "thinking_steps", "all"]

PositiveFloat = Annotated[float, Field(gt=0)]


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
CacheSize = Annotated[
    str,
    Field(pattern=r"^(?i:\d+(\.\d+)?[kmgt]b)$"),
    WithJsonSchema({"type": "string", "format": "size"}),
]


class ModelRecipe(StrictModel):
    """LLaMA's geometry, under the names of `transformers.LlamaConfig`.

    The last four are for a model to go on from (`init_from`) that has them.
    """

    hidden_size: Positive = setting(..., "width of the residual stream", "Table 5")
    intermediate_size: Positive = setting(..., "width inside the MLP", "Table 5")
    num_hidden_layers: Positive = setting(..., "decoder layers", "Table 5")
    num_attention_heads: Positive = setting(..., "query heads", "Table 5")
    num_key_value_heads: Positive = setting(
        ..., "key and value heads; a divisor of the query heads", "Table 5"
    )
    vocab_size: Positive = setting(32000, "ids of the tokenizer", "Table 5")
    max_position_embeddings: Positive = setting(
        4096, "longest sequence, in tokens", LLAMA, ON_REQUEST
    )
    rope_theta: float = setting(10000.0, "base of the rotary positions", LLAMA, ON_REQUEST, gt=0)
    rms_norm_eps: float = setting(1e-5, "ε of the norms", LLAMA, ON_REQUEST, gt=0)
    initializer_range: float = setting(
        0.02, "standard deviation of the initial weights", LLAMA, START, gt=0
    )
    tie_word_embeddings: bool = setting(
        False, "use the embeddings' weights for the output, too", LLAMA
    )
    attn_implementation: Literal["sdpa", "eager"] = setting(
        "sdpa", "how attention is computed", LLAMA, ON_REQUEST
    )
    head_dim: Positive | None = setting(
        None, "size of a head; even", LLAMA, implied="`hidden_size / num_attention_heads`"
    )
    attention_bias: bool = setting(False, "the attention's projections have a bias", LLAMA)
    mlp_bias: bool = setting(False, "the MLP's projections have a bias", LLAMA)
    rope_scaling: dict[str, Any] | None = setting(
        None, "how rotary positions are scaled for longer sequences", LLAMA, ON_REQUEST
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelRecipe":
        check_heads(
            self.hidden_size, self.num_attention_heads, self.num_key_value_heads, self.head_dim
        )
        check_rope_scaling(self.rope_scaling)
        return self


class DataRecipe(StrictModel):
    """MDS shards of fixed-length token rows, one stream per domain."""

    local: str = setting(
        ...,
        "folder with `manifest.json`, `train/<domain>` and `validation/<domain>`; with `remote` "
        "set, the cache that shards are downloaded to",
        STREAMING,
        FREE,
    )
    remote: str | None = setting(
        None, "address of the same folder in an object store", STREAMING, FREE
    )
    seq_len: Positive = setting(..., "tokens of a row; must be the shards' own")
    tokenizer: str | None = setting(
        None,
        "file or folder of the tokenizer that the shards must have been made with; null compares "
        "nothing",
        resume=FREE,
    )
    domains: Annotated[dict[str, PositiveFloat], BeforeValidator(_without_null)] | None = setting(
        None,
        "share of each domain in the training batches, divided by their sum; a domain set to null "
        "is left out",
        implied="every domain of the manifest, in proportion to its size",
    )
    validate_hash: bool = setting(
        True,
        "read every shard before training starts, and every download, and compare its SHA-256; "
        "sizes are compared in any case",
        STREAMING,
        FREE,
    )
    shuffle_seed: int = setting(17, "decides the order of the training rows", STREAMING, ge=0)
    shuffle_algo: Literal["py1e", "py1br", "naive"] = setting(
        "py1e",
        '"py1e" and "py1br" mix the rows of neighbouring shards, "naive" mixes all rows',
        STREAMING,
    )
    shuffle_block_size: Positive = setting(
        1 << 18,
        "rows of the stretch in which a shard's rows are spread, over all domains",
        STREAMING,
    )
    num_canonical_nodes: Positive = setting(
        1,
        "parts of an epoch that are read side by side; with `remote`, the number of nodes, so that "
        "each downloads a part only; decides the order of the rows, too",
        STREAMING,
    )
    num_workers: int = setting(2, "loader processes per rank", "PyTorch `DataLoader`", FREE, ge=0)
    predownload: Positive | None = setting(
        None, "rows that a worker downloads ahead", STREAMING, FREE, "eight batches"
    )
    cache_limit: CacheSize | None = setting(
        None,
        'most bytes of the cache, for each split ("200gb"); needs `remote`',
        STREAMING,
        FREE,
        "no limit",
    )
    download_retry: Positive = setting(2, "attempts to download a file", STREAMING, FREE)
    download_timeout: float = setting(60.0, "seconds that one file may take", STREAMING, FREE, gt=0)
    worker_timeout: float = setting(
        600.0,
        "seconds that a batch may take; after that a loader process counts as hanging",
        "PyTorch `DataLoader`",
        FREE,
        gt=0,
    )

    @model_validator(mode="after")
    def _cache_has_an_origin(self) -> "DataRecipe":
        if self.remote is None and self.cache_limit is not None:
            raise FieldError(
                f"cache_limit={self.cache_limit} needs remote: without it, local is not a cache",
                *("cache_limit", "remote"),
            )
        return self


class TrainRecipe(StrictModel):
    """How the model is trained."""

    max_duration: Duration = setting(..., "length of training", TRAINER)
    global_batch_size: Positive = setting(..., "sequences per step, over all ranks")
    microbatch_size: Positive | Literal["auto"] = setting(
        ...,
        'sequences of a rank that go through the model at once; "auto" finds the largest number '
        "that fits the GPU's memory",
        f"{TRAINER}, `device_train_microbatch_size`",
        FREE,
    )
    precision: Literal["fp32", "amp_bf16"] = setting(..., '"amp_bf16" is mixed precision', TRAINER)
    eval_interval: Duration = setting(
        "500ba", "how often validation perplexity is measured", TRAINER
    )
    eval_batches: CountOrAll = setting(
        -1,
        "validation batches per evaluation, the same random sample of every domain each time, in "
        "proportion to its rows; -1 takes all",
        f"{TRAINER}, `eval_subset_num_batches`",
    )
    eval_batch_size: Positive = setting(16, "validation sequences per batch, over all ranks")
    calibration_rows: Positive = setting(
        256,
        "validation sequences, a random sample of every domain, that the final thresholds are "
        "measured on",
    )
    save_interval: Duration = setting(
        "1000ba", "how often a checkpoint is written; the last batch always is", TRAINER, FREE
    )
    keep_checkpoints: CountOrAll = setting(
        2,
        "how many checkpoints are kept; -1 keeps all",
        f"{TRAINER}, `save_num_checkpoints_to_keep`",
        FREE,
    )
    autoresume: bool = setting(
        True,
        "go on from the run's latest checkpoint, if there is one; false refuses to",
        TRAINER,
        FREE,
    )
    rank_timeout: float = setting(
        1800.0,
        "seconds without progress; after that a rank counts as hanging",
        resume=FREE,
        gt=0,
    )
    progress_bar: bool = setting(True, "draw a progress bar, on a terminal", TRAINER, FREE)
    device: Literal["cpu", "gpu"] | None = setting(
        None, "what to train on", TRAINER, FREE, "a GPU where there is one"
    )
    sharding: Sharding = setting(
        "fsdp",
        'how several ranks share the work: "fsdp" shards parameters, gradients and optimizer over '
        'all ranks, "hybrid" within each node, with a replica per node; "ddp" keeps all of them on '
        'every rank; "none" is for one rank',
        resume=FREE,
    )
    activation_checkpointing: ActivationCheckpointing = setting(
        "none",
        'what is computed again in the backward pass instead of kept: "none", "thinking_steps" '
        '(the steps after a layer\'s first pass) or "all" (every layer)',
        resume=FREE,
    )
    compile: bool = setting(False, "compile each layer with `torch.compile`", "PyTorch", FREE)
    loss_chunk_tokens: Positive = setting(
        1024, "tokens whose logits exist at the same time in the training loss", resume=FREE
    )


class Parts(StrictModel):
    """Files that this recipe is made of; null takes none."""

    model: str | None = setting(None, "the part with the geometry")
    thinking: str | None = setting(None, "the part with the thinking settings")
    data: str | None = setting(None, "the part with the shards")
    train: str | None = setting(None, "the part with schedule, optimizer and callbacks")
