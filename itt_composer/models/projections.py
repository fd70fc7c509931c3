"""Finds the attention projections of a model, and computes the nuclear norm of their gradients.

The nuclear norm of a matrix is the sum of its singular values. The paper separates easy from hard
problems by that of the loss gradient with respect to each layer's attention projections.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention
from transformers.pytorch_utils import Conv1D

from itt_composer.basics.errors import UserError

PROJECTIONS = ("q", "k", "v", "o")
# Names of the fourth where each has a weight of its own: LLaMA's, OPT's and Phi's.
OUTPUTS = ("o_proj", "out_proj", "dense")
# Attention to an encoder, which a causal model does not use; BART keeps it all the same.
UNUSED = "encoder_attn"


@dataclass(frozen=True)
class Projection:
    """One projection of one layer; its weight may be a part of a matrix that others share.

    Attributes:
        layer: 0-based index.
        name: one of `PROJECTIONS`.
        module: the module whose `weight` holds it.
        parts: into how many equal parts the matrix falls; 1 is the projection alone.
        part: which of them this is.
        heads: 0 where the parts stand one after the other (GPT-2: columns); else the parts
            alternate by head along the rows (GPT-NeoX, BLOOM).
    """

    layer: int
    name: str
    module: nn.Module
    parts: int = 1
    part: int = 0
    heads: int = 0

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that holds the projection."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def of(self, matrix: Tensor) -> Tensor:
        """Return the projection's part of a matrix of the weight's shape."""
        if self.parts == 1:
            return matrix
        if not self.heads:
            return matrix.chunk(self.parts, dim=1)[self.part]
        by_head = matrix.view(self.heads, self.parts, -1, matrix.shape[1])
        return by_head[:, self.part].reshape(-1, matrix.shape[1])


def attention_projections(model: nn.Module) -> list[Projection]:
    """Find every layer's q, k, v and o, layer by layer.

    Known kinds: separate projections (LLaMA, Mistral, Qwen, OPT, Phi, BART, ITT, …), GPT-2's
    `c_attn`, and `query_key_value` of GPT-NeoX and BLOOM.

    Raises:
        UserError: a model of another kind.
    """
    found: list[Projection] = []
    for name, module in model.named_modules():
        layer = len(found) // len(PROJECTIONS)
        if not name.endswith(UNUSED):
            found += _projections_in(layer, dict(module.named_children()), module)
    if not found:
        raise UserError(
            f"{type(model).__name__} has no attention projections of a known kind (q_proj, k_proj, "
            "v_proj with o_proj, out_proj or dense; c_attn of GPT-2; query_key_value of GPT-NeoX "
            "and BLOOM)"
        )
    return found


def _projections_in(
    layer: int, children: dict[str, nn.Module], attention: nn.Module
) -> list[Projection]:
    for output_name in OUTPUTS:
        names = ("q_proj", "k_proj", "v_proj", output_name)
        if children.keys() >= set(names):
            pairs = zip(PROJECTIONS, names, strict=True)
            return [Projection(layer, name, children[child]) for name, child in pairs]
    # Others have matrices of these names that fall into parts in another way (StarCoder, Falcon).
    gpt2, by_head = children.get("c_attn"), children.get("query_key_value")
    fused: nn.Module
    if "c_proj" in children and isinstance(gpt2, Conv1D) and gpt2.nf == 3 * gpt2.nx:
        fused, output, heads = gpt2, children["c_proj"], 0
    elif isinstance(attention, (GPTNeoXAttention, BloomAttention)):
        assert isinstance(by_head, nn.Linear)
        fused, output, heads = by_head, children["dense"], by_head.in_features // _head(attention)
    else:
        return []
    parts = [Projection(layer, name, fused, 3, part, heads) for part, name in enumerate("qkv")]
    return [*parts, Projection(layer, "o", output)]


def _head(attention: GPTNeoXAttention | BloomAttention) -> int:
    """Return the width of a head."""
    return attention.head_dim if isinstance(attention, BloomAttention) else attention.head_size


def nuclear_norm(matrix: Tensor, most_rank: int | None = None) -> Tensor:
    """Sum a matrix's singular values, a scalar in float64; NaN if a value is not finite.

    Args:
        matrix: (m, n).
        most_rank: a bound on its rank, if one is known: the gradient of a weight is a sum of one
            outer product per token. A low one makes it several times as fast, and as exact: the
            matrix is expressed in a basis of its own range first, which random combinations of its
            columns span (Halko et al. 2011, arXiv 0909.4061, with as many as the rank).
    """
    exact = matrix.detach().double()
    if not exact.isfinite().all():
        return exact.new_tensor(torch.nan)
    if most_rank is not None and 2 * most_rank < min(exact.shape):
        generator = torch.Generator(exact.device).manual_seed(0)
        shape = (exact.shape[1], most_rank)
        random = torch.randn(shape, generator=generator, dtype=exact.dtype, device=exact.device)
        basis = torch.linalg.qr(exact @ random).Q
        exact = basis.T @ exact
    return torch.linalg.svdvals(exact).sum()
