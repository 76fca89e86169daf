"""Operators of PyTorch that ONNX lacks, or that its exporter would write without their precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from entropatch.extras import require


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export` takes as its custom_translation_table."""
    op: Any = require("onnxscript", "export").opset18

    # Entropies of orders next to 1 divide by |order - 1|, before which e^x - 1 and log(1 + x) would lose all digits.

    def expm1(x: Any) -> Any:
        one, two = op.CastLike(1.0, x), op.CastLike(2.0, x)
        half = op.Tanh(op.Div(op.Clip(x, op.Neg(one), one), two))
        near = op.Div(op.Mul(two, half), op.Sub(one, half))  # e^x - 1 = 2 tanh(x/2) / (1 - tanh(x/2))
        return op.Where(op.Less(op.Abs(x), one), near, op.Sub(op.Exp(x), one))

    def log1p(x: Any) -> Any:
        one, two = op.CastLike(1.0, x), op.CastLike(2.0, x)
        low = op.CastLike(-0.5, x)
        part = op.Clip(x, low, one)
        near = op.Mul(two, op.Atanh(op.Div(part, op.Add(two, part))))  # log(1 + x) = 2 artanh(x / (2 + x))
        return op.Where(op.And(op.Less(x, one), op.Greater(x, low)), near, op.Log(op.Add(x, one)))

    def stable_sort(x: Any, *, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
        # By ONNX's standard, TopK gives ties to the lower index, in either direction.
        length = op.Unsqueeze(op.Gather(op.Shape(x), dim), [0])
        return op.TopK(x, length, axis=dim, largest=int(descending), sorted=1)

    aten = torch.ops.aten
    return {aten.expm1.default: expm1, aten.log1p.default: log1p, aten.sort.stable: stable_sort}
