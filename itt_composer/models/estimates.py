"""Estimates what a training run will take: GPU-hours, and memory per GPU.

Pure functions of a model's configuration and a recipe's settings. Memory is that of the tensors of
a training step without `torch.compile`, which keeps fewer of them; what CUDA, NCCL and
fragmentation take comes on top. docs/recipes.md says how it adds up. S is the length of a sequence.
"""

from dataclasses import dataclass

from itt_composer.models.configuration import IttConfig
from itt_composer.models.flops import dense_parameters, executed_flops, thinking_parameters
from itt_composer.models.routing import capacity
from itt_composer.recipe.schema import ActivationCheckpointing, Sharding

# Dense bf16 peaks of the SXM cards, FLOP/s.
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12}
FLOAT32 = 4  # bytes: weights, gradients, optimizer, and the states between layers
COMPUTE = {"fp32": FLOAT32, "amp_bf16": 2}  # bytes: what matrix products read and write


@dataclass(frozen=True)
class TrainingStep:
    """A training step, as far as its memory is concerned.

    Attributes:
        microbatch_size: sequences that go through the model at once.
        seq_len: tokens of each.
        precision, sharding, activation_checkpointing, loss_chunk_tokens: as in a recipe; see
            `itt_composer.recipe.schema.TrainRecipe`.
        shards: GPUs that hold one copy of the weights between them, under "fsdp" and "hybrid".
    """

    microbatch_size: int
    seq_len: int
    precision: str = "fp32"
    sharding: Sharding = "none"
    activation_checkpointing: ActivationCheckpointing = "none"
    loss_chunk_tokens: int = 1024
    shards: int = 1

    @property
    def tokens(self) -> int:
        return self.microbatch_size * self.seq_len

    @property
    def compute(self) -> int:
        """The bytes of a number in a matrix product."""
        return COMPUTE[self.precision]


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a training step.

    Attributes:
        states: weights, gradients and AdamW's two moments.
        activations: what the forward pass of a microbatch keeps for the backward pass, copies of
            the weights in its precision included.
        working: the larger of what the loss takes and what the backward pass computes again.
    """

    states: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        return self.states + self.activations + self.working


def gpu_hours(config: IttConfig, tokens: int, seq_len: int, peak_flops: float, mfu: float) -> float:
    """Return the hours of one GPU for training on so many tokens.

    Counts the executed FLOPs of forward and backward (twice the forward's) at the full ratios;
    what activation checkpointing computes again does not count, as in every MFU.

    Args:
        config: the model.
        tokens: of the whole training.
        seq_len: S.
        peak_flops: of the GPU, FLOP/s.
        mfu: share of the peak that training reaches, in 0..1.
    """
    flops_per_token = 3 * executed_flops(config, batch_size=1, seq_len=seq_len) / seq_len
    return flops_per_token * tokens / (peak_flops * mfu) / 3600


def training_memory(config: IttConfig, step: TrainingStep) -> Memory:
    """Estimate the bytes on one GPU at the peak of a training step."""
    kept, recomputed = zip(
        *(_layer_bytes(config, step, index) for index in range(config.num_hidden_layers)),
        strict=True,
    )
    state = FLOAT32 * config.hidden_size * step.tokens
    final_norm = 2 * state
    activations = step.microbatch_size * sum(kept) + final_norm
    loss, again = _loss_bytes(config, step), step.microbatch_size * max(recomputed)
    if step.activation_checkpointing == "all":
        loss += _weight_copy_bytes(config, step)  # gone when the forward pass ends
    else:
        activations += _weight_copy_bytes(config, step)
    gradients = 2 * state if again else 0
    return Memory(_state_bytes(config, step), activations, max(loss, again + gradients))


def _state_bytes(config: IttConfig, step: TrainingStep) -> int:
    """Count weights, gradients and moments in float32.

    Under "ddp" gradients travel in buckets of their own. Sharded weights are whole for two layers
    and the embeddings at a time, with their gradients.
    """
    embeddings, layers = _parameters(config)
    states = 4 * FLOAT32 * (embeddings + layers)
    if step.sharding in ("fsdp", "hybrid"):
        whole = embeddings + 2 * layers // config.num_hidden_layers
        return states // step.shards + 2 * FLOAT32 * whole
    return states + (FLOAT32 * (embeddings + layers) if step.sharding == "ddp" else 0)


def _weight_copy_bytes(config: IttConfig, step: TrainingStep) -> int:
    """Count the layers' weights as mixed precision casts them for a forward pass."""
    if step.compute == FLOAT32:
        return 0
    return step.compute * _parameters(config)[1]


def _parameters(config: IttConfig) -> tuple[int, int]:
    """Return the parameters of the embeddings, and those of everything else."""
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return embeddings, dense_parameters(config) + thinking_parameters(config) - embeddings


def _loss_bytes(config: IttConfig, step: TrainingStep) -> int:
    """Count the loss's gradients, taken in the forward pass, and a chunk's logits.

    Each logit is held as the product's output, as log-probability in float32, twice while it is
    computed, and as the gradient of the chunk before.
    """
    embedding = config.vocab_size * config.hidden_size
    states = config.hidden_size * step.tokens
    gradients = FLOAT32 * (embedding + states)
    is_mixed = step.compute != FLOAT32
    chunk = min(step.loss_chunk_tokens, step.tokens)
    logits = (2 * step.compute + 2 * FLOAT32) * config.vocab_size * chunk
    cast = step.compute * embedding if is_mixed else 0
    return gradients + max(gradients, logits + cast + FLOAT32 * states)


def _layer_bytes(config: IttConfig, step: TrainingStep, index: int) -> tuple[int, int]:
    """Return, for one sequence, what a layer keeps and what the backward pass computes again."""
    state = FLOAT32 * config.hidden_size * step.seq_len
    first_pass = _pass_bytes(config, step, step.seq_len)
    again, between = [0], 0
    if index in config.thinking_layers:
        first_pass += state if config.step_encoding else 0
        ratios = [ratio for ratio in config.select_ratios if ratio > 0]
        again = [_thinking_step_bytes(config, step, ratio) for ratio in ratios]
        # Y[t-1]: the router reads it, and checkpointed steps start from it.
        is_kept = config.adaptive_routing or step.activation_checkpointing == "thinking_steps"
        between = len(ratios) * state if is_kept else 0
    if step.activation_checkpointing == "all":
        return state, first_pass + sum(again) + between
    if step.activation_checkpointing == "thinking_steps":
        return first_pass + between, max(again)
    return first_pass + sum(again) + between, 0


def _thinking_step_bytes(config: IttConfig, step: TrainingStep, ratio: float) -> int:
    """Return what a thinking step keeps of one sequence, besides the state it starts from."""
    tokens = capacity(ratio, step.seq_len)
    # w · f(Y), φ · (w · f(Y)), and what is put back, each with an input in float32.
    products = 2 * config.adaptive_routing + config.step_encoding
    positions = 2 * config.head_dim if config.adaptive_routing else 0
    extra = tokens * (products * config.hidden_size + positions)
    if config.reweighting == "symmetric" and config.step_encoding:
        extra += step.seq_len * config.hidden_size  # w · Y, of every token
    return _pass_bytes(config, step, tokens) + FLOAT32 * extra


def _pass_bytes(config: IttConfig, step: TrainingStep, tokens: int) -> int:
    """Return what one application of a layer to so many tokens keeps."""
    width, compute = config.hidden_size, step.compute
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    # The input of each of the two norms, and that divided by its root mean square.
    norms = 4 * FLOAT32 * width + 2 * FLOAT32
    # Mixed precision casts a norm's output anew for each of the matrices that read it.
    inputs = (2 if compute == FLOAT32 else 5) * compute * width
    attention = 2 * compute * (queries + keys) + FLOAT32 * config.num_attention_heads
    mlp = 4 * compute * config.intermediate_size
    return tokens * (norms + inputs + attention + mlp)
