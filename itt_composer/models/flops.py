"""Counts FLOPs in two ways: the paper's tables, and what the code executes.

They differ on purpose. The paper charges every extra step of a thinking layer with
ρ_t · dense / L, embeddings included, and a routed step's attention with ρ. The code does the
linear work of a routed step on ρ of the tokens, and its attention on ρ².

All figures are for one forward pass; a multiply-add counts as two.
"""

from collections.abc import Sequence

from itt_composer.models.configuration import IttConfig
from itt_composer.models.routing import capacity


def dense_parameters(config: IttConfig) -> int:
    """Count the LLaMA's parameters, both embeddings included, without routers and encodings."""
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    norms_per_layer = 2 * config.hidden_size
    layer = _linear_weights_per_layer(config) + _biases_per_layer(config) + norms_per_layer
    return embeddings + config.num_hidden_layers * layer + config.hidden_size


def thinking_parameters(config: IttConfig) -> int:
    """Count what thinking adds per layer: T-1 routers of d weights, T step encodings of d."""
    routers = (config.thinking_steps - 1) if config.adaptive_routing else 0
    encodings = config.thinking_steps if config.step_encoding else 0
    return len(config.thinking_layers) * (routers + encodings) * config.hidden_size


def paper_tflops(config: IttConfig, seq_len: int = 4096) -> float:
    """Count the TFLOPs of one forward pass over one sequence, as the paper's tables count them.

    dense = 2·P·S + 4·L·S²·d, and total = dense · (1 + n_itt/L · Σρ_t), with ρ_t = 1 for a Loop.

    Args:
        config: the model; its `select_ratios` are the ρ_t.
        seq_len: S, tokens of the sequence.
    """
    layers = config.num_hidden_layers
    dense = 2 * dense_parameters(config) * seq_len + 4 * layers * seq_len**2 * config.hidden_size
    extra_steps = len(config.thinking_layers) / layers * sum(config.select_ratios)
    return dense * (1 + extra_steps) / 1e12


def executed_flops(
    config: IttConfig,
    batch_size: int,
    seq_len: int,
    select_ratios: Sequence[float] | None = None,
) -> int:
    """Count the FLOPs of the matrix products in one forward pass of `IttForCausalLM`.

    Equals `torch.utils.flop_counter.FlopCounterMode` on the model with eager attention (counted
    over all pairs of tokens, though causal kernels skip half of them) under transformers 4; version
    5 computes the angles of the rotary embedding, 1e-5 of the whole, without a product. Under
    top-p and thresholds the number of selected tokens depends on the data; ρ stands in for their
    share.

    Args:
        config: the model.
        batch_size: B, sequences.
        seq_len: S, tokens of each.
        select_ratios: ρ_t, or the shares that took the steps; None takes the configuration's.
    """
    ratios = config.select_ratios if select_ratios is None else select_ratios
    rotary = config.head_dim * seq_len
    output = 2 * config.vocab_size * config.hidden_size * batch_size * seq_len
    passes = config.num_hidden_layers * _layer_flops(config, batch_size, seq_len)
    steps = sum(_thinking_step_flops(config, ratio, batch_size, seq_len) for ratio in ratios)
    return rotary + output + passes + len(config.thinking_layers) * steps


def _thinking_step_flops(config: IttConfig, ratio: float, batch_size: int, seq_len: int) -> int:
    if ratio == 0:
        return 0
    router = 2 * config.hidden_size * batch_size * seq_len if config.adaptive_routing else 0
    return router + _layer_flops(config, batch_size, capacity(ratio, seq_len))


def _layer_flops(config: IttConfig, batch_size: int, tokens: int) -> int:
    """Count one application of a decoder layer to `tokens` tokens of each sequence."""
    linear = 2 * _linear_weights_per_layer(config) * tokens
    attention = 4 * tokens**2 * config.num_attention_heads * config.head_dim
    return batch_size * (linear + attention)


def _linear_weights_per_layer(config: IttConfig) -> int:
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads)
    attention = heads * config.head_dim * config.hidden_size
    return attention + 3 * config.intermediate_size * config.hidden_size


def _biases_per_layer(config: IttConfig) -> int:
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    attention = heads * config.head_dim + config.hidden_size
    mlp = 2 * config.intermediate_size + config.hidden_size
    return config.attention_bias * attention + config.mlp_bias * mlp
