"""The LLaMA layer that ITT is built on: the modules of transformers, computed by code of our own.

transformers renames the arguments of its layers from release to release, and takes what it does not
know in `**kwargs`. So the modules, their parameters' names and the attention kernels are its, and
the order of computation stands here, once for all releases.

Shapes: B batch, S sequence, C cached tokens, D hidden size, N heads, H head size.
"""

from typing import Any

from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from itt_composer.models.configuration import IttConfig


class Attention(LlamaAttention):
    """LLaMA's attention."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        cache: Any = None,
        position_ids: Tensor | None = None,
        cache_position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output, (B, S, D), and the attention weights, (B, N, S, C + S), if computed.

        Args:
            hidden_states: (B, S, D).
            attention_mask: in the form that the attention implementation takes.
            position_embeddings: cos and sin, each (B or 1, S, H).
            cache: takes keys and values, (B, N, S, H) each, by `update`; gives those of C + S.
            position_ids: (B or 1, S); flash attention finds packed documents by them.
            cache_position: column of each token, (S,); static caches of transformers 4 read it.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            project(hidden_states).view(heads).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if cache is not None:
            place = {"cache_position": cache_position}
            key, value = cache.update(key, value, self.layer_idx, place)
        kind = self.config._attn_implementation
        attend = eager_attention_forward if kind == "eager" else ALL_ATTENTION_FUNCTIONS[kind]
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            position_ids=position_ids,
        )
        output = output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.o_proj(output), weights


class DenseLayer(GradientCheckpointingLayer):
    """A LLaMA decoder layer: attention and MLP, each after a norm and with a residual.

    Args:
        config: the model's configuration.
        layer_idx: its place, from 0, which is also that of its cache.
    """

    def __init__(self, config: IttConfig, layer_idx: int):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = Attention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: Any = None,
        position_ids: Tensor | None = None,
        cache_position: Tensor | None = None,
    ) -> Tensor:
        """Return the states, (B, S, D); see `Attention.forward`."""
        assert position_embeddings is not None
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(
            normed, attention_mask, position_embeddings, cache, position_ids, cache_position
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
