"""Eight bits by ONNX Runtime's own quantiser: weights, and the activations that meet them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from entropatch.extras import require

# Where weights are multiplied. Attention multiplies activations with each other, and what is kept depends on it: it
# stays in float32, as do norms, softmax and entropies.
INT8 = ("dynamic", "static")
OPERATORS = ("MatMul", "Gemm")


def quantise(path: Path, how: str, images: Iterable[np.ndarray]) -> str:
    """Replace an ONNX file by its quantised twin; returns what is to be said of it.

    Args:
        path: the file.
        how: "dynamic", activations' ranges measured in every run; or "static", those that `images` have, written into
            the graph as pairs of QuantizeLinear and DequantizeLinear.
        images: batches to take ranges from, (batch, …) each.
    """
    onnx: Any = require("onnx", "export")
    quantization: Any = require("onnxruntime.quantization", "export")
    prepared, quantised = path.with_name(f"prepared-{path.name}"), path.with_name(f"int8-{path.name}")
    with _quiet():
        quantization.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        weighted, others = _products(onnx.load(str(prepared)).graph)
        given: dict[str, Any] = {
            "op_types_to_quantize": list(OPERATORS),
            "nodes_to_exclude": others,
            "per_channel": True,
            "weight_type": quantization.QuantType.QInt8,
        }
        if how == "dynamic":
            quantization.quantize_dynamic(str(prepared), str(quantised), **given)
        else:
            reader = _Reader("images", images)
            given |= {"quant_format": quantization.QuantFormat.QDQ, "activation_type": quantization.QuantType.QUInt8}
            quantization.quantize_static(str(prepared), str(quantised), reader, **given)
    quantised.replace(path)
    prepared.unlink()
    return f"int8, {how}: {len(weighted)} products with weights; softmax, norms, entropies and attention in float32"


def _products(graph: Any) -> tuple[list[str], list[str]]:
    """Names of the nodes that multiply with weights, and of those that multiply activations."""
    weights = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in OPERATORS]
    weighted = [node.name for node in nodes if node.input[1] in weights]
    return weighted, [node.name for node in nodes if node.name not in weighted]


class _Reader:
    """Batches as the quantiser asks for them."""

    def __init__(self, name: str, images: Iterable[np.ndarray]):
        self._batches: Iterator[dict[str, np.ndarray]] = iter({name: batch} for batch in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
