"""Statistics of the mean head against the float64 twin; those of Triton run in the child of `test_kernels`."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import reference_methods
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from entropatch import kernels
from entropatch.kernels import head_mean

IN_CHILD = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if IN_CHILD else ["reference", "streaming"]
# batch, heads, tokens, head width, prefix tokens
SHAPES = [(2, 3, 40, 24, 1), (1, 2, 35, 16, 5), (2, 2, 2, 8, 1)][: 2 if IN_CHILD else 3]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_mean, "BLOCK_LOGITS", 2 * 3 * 40 * 7)


def inputs(shape: tuple[int, ...], biased: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    batch, heads, n, width, _ = shape
    q, k = torch.randn(batch, n, 2, heads, width).mul(1.5).permute(2, 0, 3, 1, 4).unbind(0)
    bias = torch.rand(batch, n).mul(3).log() if biased else None
    if bias is not None and n > 3:
        bias[:, -1] = -math.inf
    return q, k, bias


def twin(function: Any, q: Tensor, k: Tensor, bias: Tensor | None, *parts: Any) -> Tensor:
    biases = [None] * len(q) if bias is None else bias.double().tolist()
    pairs = zip(q.double().numpy(), k.double().numpy(), biases, strict=True)
    return torch.tensor([function(a, b, 0.3, *parts, bias=own) for a, b, own in pairs], dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("power", "biased"), [(1.0, False), (4.0, False), (4.0, True), (64.0, True), (math.inf, True)])
def test_column_norms(backend: str, shape: tuple[int, ...], power: float, biased: bool) -> None:
    q, k, bias = inputs(shape, biased)
    got = kernels.column_norms(q, k, power, 0.3, shape[4], backend, bias)
    expected = twin(lambda a, b, s, bias: reference_methods.column_norm(a, b, s, shape[4], power, bias), q, k, bias)
    torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_row_entropies(backend: str, shape: tuple[int, ...], biased: bool) -> None:
    q, k, bias = inputs(shape, biased)
    got = kernels.row_entropies(q, k, 0.3, shape[4], backend, bias)
    expected = twin(lambda a, b, s, bias: reference_methods.mean_head_entropy(a, b, s, shape[4], bias), q, k, bias)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend: str) -> None:
    q, k, _ = inputs(SHAPES[0], False)
    q, k = q.half(), k.half()
    got = kernels.column_norms(q, k, 4.0, 0.3, 1, backend)
    assert got.dtype == torch.float32
    exact = kernels.column_norms(q.double(), k.double(), 4.0, 0.3, 1, "reference")
    torch.testing.assert_close(got.double(), exact, rtol=1e-3, atol=0)


if not IN_CHILD:

    def test_no_block_is_larger_than_it_may_be() -> None:
        q, k, _ = inputs(SHAPES[0], False)
        blocks = list(head_mean._blocks(q, k, 0.3, None, whole=False))
        assert [block.shape[1] for block in blocks] == [7] * 5 + [5]
        torch.testing.assert_close(torch.cat(blocks, 1), next(head_mean._blocks(q, k, 0.3, None, whole=True)))

    def test_they_compile_as_one_operator_and_are_counted() -> None:
        class Both(nn.Module):
            def forward(self, q: Tensor, k: Tensor) -> Tensor:
                norms = kernels.column_norms(q, k, 4.0, 0.3, 1, "streaming")
                return norms + kernels.row_entropies(q, k, 0.3, 1, "streaming")

        q, k, _ = inputs(SHAPES[0], False)
        exported = torch.export.export(Both(), (q, k))
        names = {str(node.target) for node in exported.graph.nodes}
        assert {"entropatch.column_norms.default", "entropatch.row_entropies.default"} <= names
        torch.testing.assert_close(exported.module()(q, k), Both()(q, k))
        with FlopCounterMode(display=False) as counter:
            Both()(q, k)
        assert counter.get_total_flops() == 2 * 2 * (2 * 3 * 40 * 40 * 24)
