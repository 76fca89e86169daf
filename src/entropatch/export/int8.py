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
        graph = onnx.load(str(prepared)).graph
        nodes = _weighted(graph)
        if how == "dynamic":
            quantization.quantize_dynamic(
                str(prepared), str(quantised), op_types_to_quantize=list(OPERATORS), nodes_to_quantize=nodes,
                per_channel=True,
            )  # fmt: skip
        else:
            quantization.quantize_static(
                str(prepared),
                str(quantised),
                _Reader(graph.input[0].name, images),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                nodes_to_quantize=nodes,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
    quantised.replace(path)
    prepared.unlink()
    return f"int8, {how}: {len(nodes)} of the products with weights; softmax, norms, entropies and attention in float32"


def _weighted(graph: Any) -> list[str]:
    """Names of the nodes that multiply with weights."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in OPERATORS and node.input[1] in weights]


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
