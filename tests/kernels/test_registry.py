"""A backend is one file and one line: chosen, refused, run, differentiated and counted by what it states itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from entropatch import BlockAttention, PruneConfig, attention_entropy, kernels
from entropatch.kernels import backward, reference, registry
from entropatch.kernels.backend import Backend


def half_as_wide(q: Tensor) -> str | None:
    return "it wants heads of width 4" if q.shape[-1] != 4 else None


def attend(*inputs: Any) -> tuple[Tensor, Tensor]:
    output, entropy = reference.attend_with_entropy(*inputs)
    return output.transpose(1, 2).contiguous().transpose(1, 2), entropy  # laid out as an operator's output is


NEWCOMER = Backend(
    "newcomer",
    half_as_wide,
    reference.attention_entropy,
    attend,
    entropy_macs=lambda q, k: 1000 * q[0],
    attend_macs=lambda q, k, v: 3000 * q[0],
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BACKENDS", (NEWCOMER, *registry.BACKENDS))


def test_it_is_chosen_by_its_place_where_it_can_run() -> None:
    narrow, wide = torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 5, 8)
    assert kernels.choose_backend("auto", narrow) == "newcomer"
    assert kernels.choose_backend("auto", wide) == "streaming"
    assert kernels.choose_backend("newcomer", narrow) == "newcomer"
    with pytest.raises(ValueError, match=r'backend "newcomer" cannot run here: it wants heads of width 4\. Use'):
        kernels.choose_backend("newcomer", wide)


def test_it_is_named_wherever_backends_are() -> None:
    names = "auto, newcomer, reference, streaming, triton"
    with pytest.raises(ValueError, match=f"must be one of {names}, but got 'flash'"):
        attention_entropy(torch.zeros(5, 4), torch.zeros(5, 4), 2.0, backend="flash")
    with pytest.raises(ValueError, match=f"must be one of {names}, but got 'flash'"):
        PruneConfig(backend="flash")
    assert PruneConfig(backend="newcomer").backend == "newcomer"


def test_it_runs_and_is_differentiated_as_an_operator() -> None:
    q, k, v = (torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    ours = BlockAttention(q, k, v, num_prefix_tokens=1)
    other = BlockAttention(q, k, v, num_prefix_tokens=1, backend="reference")
    assert ours.backend == "newcomer"
    expected = torch.autograd.grad(other.entropy(2.0).sum(), (q, k))
    torch.testing.assert_close(torch.autograd.grad(ours.entropy(2.0).sum(), (q, k)), expected)
    compiled = torch.compile(lambda q, k: attention_entropy(q, k, 2.0), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k), attention_entropy(q, k, 2.0, backend="reference"))


def test_both_counters_take_its_own_costs() -> None:
    pytest.importorskip("fvcore")
    from entropatch.measure import count_flops

    class Attention(nn.Module):
        def forward(self, q: Tensor) -> tuple[Tensor, Tensor]:
            attention = BlockAttention(q, q, q, backend="newcomer")
            return attention.entropy(2.0), attention_entropy(q, q, 2.0, backend="newcomer")

    q = torch.randn(3, 2, 7, 4)
    assert count_flops(Attention(), q).by_operator == {"attend_with_entropy": 3000, "attention_entropy": 1000}
    with FlopCounterMode(display=False) as counter:
        Attention()(q)
    assert counter.get_total_flops() == 2 * 3 * (3000 + 1000)


class Products(TorchDispatchMode):
    """Multiply-adds of every matrix product, those in place too, which PyTorch's counter passes over."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "bmm" in func.name():
            a, b = args[-2:]
            self.macs += a.numel() * b.shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_output", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_gradients_count_as_the_products_that_they_take(with_output: bool, with_entropy: bool) -> None:
    q, k, v = (torch.randn(2, 3, 9, width) for width in (8, 8, 5))
    gradients = torch.randn(2, 3, 9, 5) if with_output else None, torch.randn(2, 3, 7) if with_entropy else None
    with Products() as products:
        backward.backward(*gradients, q, k, v, 2.0, 0.3, 2, None)
    with FlopCounterMode(display=False) as counter:
        torch.ops.entropatch.attention_backward(*gradients, q, k, v, 2.0, 0.3, 2, None)
    assert counter.get_total_flops() == 2 * products.macs > 0
