"""Gradients of entropy and output by blocks of rows: right, without the matrix, compiled, or refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from entropatch import BlockAttention, attention_entropy
from entropatch.kernels import attend_with_entropy, backward

ORDERS = [0.5, 0.9, 1.0, 1.1, 2.0, math.inf]


def learnt(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("order", [*ORDERS, 0.01, 1 + 1e-9, 30.0])
@pytest.mark.parametrize("backend", ["auto", "streaming"])
def test_entropy_differentiates_as_the_function(backend: str, order: float) -> None:
    q, k = learnt(2, 4, 3), learnt(2, 5, 3)
    assert torch.autograd.gradcheck(lambda q, k: attention_entropy(q, k, order, backend=backend), (q, k))


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_differentiates_as_the_function(order: float) -> None:
    q, k, v, bias = learnt(2, 2, 6, 3), learnt(2, 2, 6, 3), learnt(2, 2, 6, 3), learnt(2, 6)

    def entropy(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        return BlockAttention(q, k, v, key_bias=bias, num_prefix_tokens=2, backend="streaming").entropy(order)

    def output(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return BlockAttention(q, k, v, key_bias=bias, num_prefix_tokens=2).output()

    def both(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return attend_with_entropy(q, k, v, order, 0.7, 2, "streaming", bias)

    assert torch.autograd.gradcheck(entropy, (q, k, bias))
    assert torch.autograd.gradcheck(output, (q, k, v, bias))
    assert torch.autograd.gradcheck(both, (q, k, v, bias))


def test_keys_of_padding_get_no_gradient() -> None:
    q, k, v, bias = learnt(1, 2, 6, 3), learnt(1, 2, 6, 3), learnt(1, 2, 6, 3), torch.zeros(1, 6).double()
    bias[:, 4:] = -math.inf
    bias.requires_grad_()
    for order in ORDERS:
        output, entropy = attend_with_entropy(q, k, v, order, 0.7, 1, "streaming", bias)
        _, dk, dv, db = torch.autograd.grad(output.pow(2).sum() + entropy.pow(2).sum(), (q, k, v, bias))
        assert dk[:, :, :4].abs().min() > 0
        for gradient in (dk[:, :, 4:], dv[:, :, 4:], db[:, 4:]):
            assert (gradient == 0).all()


@pytest.mark.parametrize("logits", [1, 40 * 7, 40 * 40, 3 * 40 * 40])
def test_gradients_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch, logits: int) -> None:
    inputs = [learnt(2, 3, 40, 8), learnt(2, 3, 40, 8), learnt(2, 3, 40, 8), learnt(2, 40)]

    def gradients() -> tuple[Tensor, ...]:
        q, k, v, bias = inputs
        output, entropy = attend_with_entropy(q, k, v, 2.0, 0.3, 5, "streaming", bias)
        return torch.autograd.grad(output.pow(2).sum() + entropy.pow(2).sum(), inputs)

    whole = gradients()
    monkeypatch.setattr(backward, "CPU_LOGITS", logits)
    torch.testing.assert_close(gradients(), whole, rtol=1e-10, atol=1e-10)


def test_gradients_never_form_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    n, largest = 1500, 0
    q, k, v = (learnt(1, 2, n, 8, dtype=torch.float32) for _ in range(3))
    monkeypatch.setattr(backward, "CPU_LOGITS", 100 * n)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // 4)
            return result

    bias = torch.zeros(1, n)
    with Watch(), torch.no_grad():
        backward.backward(torch.ones_like(q), torch.ones(1, 2, n - 1), q, k, v, 0.9, 0.3, 1, bias)
    assert 90 * n < largest <= 100 * n


@pytest.mark.parametrize("order", [0.9, 1.0, 2.0])
def test_compiles_into_one_graph_forwards_and_backwards(order: float) -> None:
    qkv = learnt(2, 9, 3, 2, 8, dtype=torch.float32)
    bias = learnt(2, 9, dtype=torch.float32)

    def loss(qkv: Tensor, bias: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention = BlockAttention(q, k, v, key_bias=bias, num_prefix_tokens=1)
        return attention.entropy(order).mean() + attention.output().pow(2).mean()

    expected = torch.autograd.grad(loss(qkv, bias), (qkv, bias))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(qkv, bias), (qkv, bias)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_differentiate_in_float32(dtype: torch.dtype) -> None:
    q, k = (torch.randn(2, 3, 12, 8).to(dtype).requires_grad_() for _ in range(2))
    exact = [x.detach().double().requires_grad_() for x in (q, k)]
    right = torch.autograd.grad(attention_entropy(*exact, 2.0).sum(), exact)
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.autograd.grad(attention_entropy(q, k, 2.0).sum(), (q, k))
    for gradient, expected in zip(got, right, strict=True):
        assert gradient.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double(), expected, rtol=eps, atol=1e-6)


def test_scoring_with_gradients_leaves_the_output_to_pytorch() -> None:
    """A pruning block scores without gradients; a regulariser asks with them. Both keep the differentiable output."""
    q, k, v = (learnt(1, 2, 8, 4) for _ in range(3))
    attention = BlockAttention(q, k, v, num_prefix_tokens=1)
    with torch.no_grad():
        assert not attention.entropy(2.0).requires_grad
    assert attention.entropy(2.0).requires_grad
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attention.output(), plain)
    assert attention.output().requires_grad


def test_an_output_kept_without_a_graph_is_not_given_where_one_is_needed() -> None:
    q, k, v = (learnt(1, 2, 8, 4) for _ in range(3))
    with torch.no_grad():
        attention = BlockAttention(q, k, v, num_prefix_tokens=1)
        attention.entropy(2.0)
        assert not attention.output().requires_grad
    assert attention.output().requires_grad
    assert attention.entropy(2.0).requires_grad


def test_second_derivatives_are_refused_with_the_way_to_them() -> None:
    q = learnt(1, 4, 3)
    (slope,) = torch.autograd.grad(attention_entropy(q, q, 2.0).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match=r'no second derivatives.*backend="reference"'):
        slope.sum().backward()
    (slope,) = torch.autograd.grad(attention_entropy(q, q, 2.0, backend="reference").sum(), q, create_graph=True)
    slope.sum().backward()
    assert q.grad is not None


@pytest.mark.parametrize("with_values", [False, True])
def test_the_operator_of_the_gradients_is_registered_properly(with_values: bool) -> None:
    q, k, v = torch.randn(2, 9, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    prefix = 1 if with_values else 0
    gradients = (torch.randn(2, 2, 9, 4) if with_values else None, torch.randn(2, 2, 9 - prefix))
    args = (*gradients, q, k, v if with_values else None, 2.0, 0.3, prefix, torch.zeros(2, 9) if with_values else None)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.entropatch.attention_backward.default, args, test_utils=checks)
    real = torch.ops.entropatch.attention_backward(*args)
    fakes = torch.ops.entropatch.attention_backward(*(x.to("meta") if isinstance(x, Tensor) else x for x in args))
    for got, fake in zip(real, fakes, strict=True):
        assert (got.shape, got.stride(), got.dtype) == (fake.shape, fake.stride(), fake.dtype)


def test_nothing_to_differentiate_gives_no_gradients() -> None:
    q = torch.zeros(0, 2, 5, 4, requires_grad=True)
    attention_entropy(q, q, 2.0).sum().backward()
    assert q.grad is not None
    assert q.grad.shape == q.shape
