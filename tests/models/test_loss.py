"""The chunked loss against cross entropy on whole logits."""

import pytest
import torch
import torch.nn.functional as F

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.loss import next_token_loss

VOCABULARY = 301


def whole(hidden_BSD, weight_VD, labels_BS):
    logits_BSV = F.linear(hidden_BSD, weight_VD).to(
        torch.promote_types(weight_VD.dtype, torch.float)
    )
    return F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), labels_BS[:, 1:].flatten())


def inputs(dtype=torch.float64):
    torch.manual_seed(1)
    hidden_BSD = torch.randn(3, 17, 24, dtype=dtype, requires_grad=True)
    weight_VD = torch.randn(VOCABULARY, 24, dtype=dtype, requires_grad=True)
    labels_BS = torch.randint(VOCABULARY, (3, 17))
    labels_BS[1, 5:9] = -100
    return hidden_BSD, weight_VD, labels_BS


def with_gradients(loss, *inputs):
    return (loss.detach(), *torch.autograd.grad(2.5 * loss, inputs[:2]))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 51, 1000])
def test_loss_and_gradients_are_those_of_whole_logits(chunk_tokens):
    given = inputs()
    expected = with_gradients(whole(*given), *given)
    got = with_gradients(next_token_loss(*given, chunk_tokens), *given)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_under_autocast_the_loss_is_float32_and_gradients_those_of_whole_logits():
    given = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = with_gradients(whole(*given), *given)
        got = with_gradients(next_token_loss(*given, 7), *given)
    assert got[0].dtype == torch.float32
    assert [grad.dtype for grad in got[1:]] == [torch.float32, torch.float32]
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() / other.norm() < 5e-3  # bfloat16 keeps 8 bits
    exact = with_gradients(whole(*given), *given)
    for one, other in zip(got[1:], exact[1:], strict=True):
        # Errors of rounding are of both signs: none of them may scale the gradient as a whole.
        assert abs((one * other).sum() / (other * other).sum() - 1) < 5e-4


def test_the_gradient_of_a_bfloat16_weight_is_not_summed_over_chunks_in_bfloat16():
    # Sharding gathers such weights. A sum of equal parts would end at 256 of them.
    weight_VD = torch.zeros(4, 2, dtype=torch.bfloat16, requires_grad=True)
    hidden_BSD = torch.ones(1, 1025, 2, dtype=torch.bfloat16)
    next_token_loss(hidden_BSD, weight_VD, torch.zeros(1, 1025, dtype=torch.long), 1).backward()
    expected = torch.tensor([-0.75, 0.25, 0.25, 0.25])
    torch.testing.assert_close(weight_VD.grad[:, 0].float(), expected, rtol=1e-2, atol=0)


def test_gradients_are_given_once():
    # They are scaled in place: a second time would scale them again.
    loss = next_token_loss(*inputs(), 7)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        loss.backward()


def test_no_tensor_holds_the_logits_of_all_tokens():
    hidden_BSD, weight_VD, labels_BS = inputs(torch.float32)
    rows = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func in (torch.ops.aten.mm.default, torch.ops.aten._log_softmax.default):
                rows.add(tuple(out.shape))
            return out

    with Watch():
        next_token_loss(hidden_BSD, weight_VD, labels_BS, 8).backward()
    last = 3 * 17 % 8
    assert rows == {(8, VOCABULARY), (last, VOCABULARY), (8, 24), (last, 24)}


def test_the_model_gives_the_same_loss_without_logits():
    torch.manual_seed(2)
    config = IttConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )
    model = IttForCausalLM(config).double()
    ids = torch.randint(VOCABULARY, (2, 12))
    expected = model(ids, labels=ids)
    got = model(ids, labels=ids, loss_chunk_tokens=5)
    assert got.logits is None
    # transformers rounds the logits to float32 in any dtype.
    torch.testing.assert_close(got.loss.float(), expected.loss, rtol=1e-6, atol=0)
