"""Computes next-token cross entropy without the logits of the whole batch.

Logits in float32 are the largest tensor of a small language model: 32,000 values per token, where
a layer keeps some 20,000. Here they exist for a chunk of tokens at a time. The gradients of a
chunk follow from its logits, so they are taken at once, in the forward pass, and nothing is
computed twice. Kernels that fuse the same need Triton and a GPU; this runs anywhere.

Shapes: B batch, S sequence, N tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

IGNORED_LABEL = -100


# Logits (N, V), targets (N,) and what each target counts (N,) → the weighted sum of the losses, and
# the gradient (N, V) of each token's own loss, in the type of the logits.
ChunkLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def loss_and_gradient(
    logits_NV: Tensor, targets_N: Tensor, scale_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted cross entropy of a chunk, and the gradient of each loss unweighted."""
    exact = torch.promote_types(logits_NV.dtype, torch.float32)
    log_probabilities_NV = logits_NV.log_softmax(dim=-1, dtype=exact)
    index_N1, scale_N1 = targets_N.clamp(min=0).unsqueeze(-1), scale_N.unsqueeze(-1).to(exact)
    loss = -(log_probabilities_NV.gather(-1, index_N1) * scale_N1).sum()
    grad_NV = log_probabilities_NV.exp_()
    minus_one_N1 = torch.full_like(scale_N1, -1)
    return loss, grad_NV.scatter_add_(-1, index_N1, minus_one_N1).to(logits_NV.dtype)


def next_token_loss(
    hidden_states_BSD: Tensor,
    output_weight_VD: Tensor,
    labels_BS: Tensor,
    chunk_tokens: int,
    chunk_loss: ChunkLoss = loss_and_gradient,
) -> Tensor:
    """Return the mean negative log-likelihood of the next tokens, in nats, as from whole logits.

    Args:
        hidden_states_BSD: the input of the output embedding.
        output_weight_VD: the output embedding.
        labels_BS: token ids, not shifted; -100 marks tokens that are not to be predicted.
        chunk_tokens: how many tokens' logits exist at the same time.
        chunk_loss: `loss_and_gradient`, or a compiled form of it.

    Returns:
        A scalar, in float32 at least.
    """
    targets_N = F.pad(labels_BS, (0, 1), value=IGNORED_LABEL)[:, 1:].reshape(-1)
    hidden_ND = hidden_states_BSD.reshape(-1, hidden_states_BSD.shape[-1])
    return _ChunkedCrossEntropy.apply(
        hidden_ND, output_weight_VD, targets_N, chunk_tokens, chunk_loss
    )


class OutputEmbedding(nn.Linear):
    """The output embedding: gives logits, or the loss without them."""

    def next_token_loss(
        self,
        hidden_states_BSD: Tensor,
        labels_BS: Tensor,
        chunk_tokens: int,
        chunk_loss: ChunkLoss = loss_and_gradient,
    ) -> Tensor:
        """Compute `next_token_loss` here: sharding gathers the weight for a call of this module."""
        return next_token_loss(hidden_states_BSD, self.weight, labels_BS, chunk_tokens, chunk_loss)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        chunk_tokens: int,
        chunk_loss: ChunkLoss,
    ) -> Tensor:
        device = hidden_ND.device.type
        dtype = hidden_ND.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        cast_VD = weight_VD.to(dtype)
        is_counted_N = targets_N != IGNORED_LABEL
        scale_N = is_counted_N.double() / is_counted_N.sum()
        total = hidden_ND.new_zeros((), dtype=torch.promote_types(dtype, torch.float32))
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        # Scaled and summed in float32, whatever type the weight was gathered in: 1/N rounded to
        # eight bits would scale every gradient.
        exact = torch.promote_types(weight_VD.dtype, torch.float32)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=exact) if wants_weight else None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden_ND), chunk_tokens):
                rows = slice(start, start + chunk_tokens)
                chunk_ND = hidden_ND[rows].to(dtype)
                scale_N1 = scale_N[rows].unsqueeze(-1).to(exact)
                logits_NV = F.linear(chunk_ND, cast_VD)
                loss, grad_NV = chunk_loss(logits_NV, targets_N[rows], scale_N[rows])
                total += loss
                if grad_hidden_ND is not None:
                    grad_hidden_ND[rows] = (grad_NV @ cast_VD) * scale_N1
                scaled_ND = (chunk_ND * scale_N1).to(dtype)
                if grad_weight_VD is not None and grad_weight_VD.dtype == dtype:
                    grad_weight_VD.addmm_(grad_NV.T, scaled_ND)
                elif grad_weight_VD is not None:
                    grad_weight_VD += grad_NV.T @ scaled_ND
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        ctx.gradients = grad_hidden_ND, grad_weight_VD
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a loss in chunks can be taken once only")
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(grad_loss)  # in place: they are large
        return (*gradients, None, None, None)
