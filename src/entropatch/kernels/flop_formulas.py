"""How many multiply-adds the package's operators take, for fvcore and for `torch.utils.flop_counter`.

PyTorch's counter copies the formulas it knows when one is made, so an operator that registered its own as it runs would
come too late; and the counter's module is not imported for them, since it brings Triton along, whose import takes a
tenth of PyTorch's. So the formulas are registered as soon as that module is imported, by a finder that waits for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from entropatch.kernels import cost
from entropatch.kernels.cost import Shape
from entropatch.kernels.registry import named

MODULE = "torch.utils.flop_counter"


def attention_entropy_macs(q: Shape, k: Shape, order: float, scale: float, backend: str, *rest: Any) -> int:
    return named(backend).entropy_macs(q, k)


def attend_with_entropy_macs(
    q: Shape, k: Shape, v: Shape, order: float, scale: float, num_prefix: int, backend: str, *rest: Any
) -> int:
    return named(backend).attend_macs(q, k, v)


def attention_backward_macs(
    grad_output: Shape | None, grad_entropy: Shape | None, q: Shape, k: Shape, v: Shape | None, *rest: Any
) -> int:
    return cost.gradient_macs(q, k, None if grad_output is None else v)


def column_norms_macs(q: Shape, k: Shape, power: float, scale: float, num_prefix: int, backend: str, *rest: Any) -> int:
    # A backend with a program of its own needs every logit twice: for the sums of the rows, and for the columns.
    return cost.logits_macs(q, k) * (2 if named(backend).column_norms else 1)


def row_entropies_macs(q: Shape, k: Shape, *rest: Any) -> int:
    return cost.logits_macs(q, k)


# Of each operator, from its inputs with shapes in place of tensors.
MACS: dict[str, Callable[..., int]] = {
    "attention_entropy": attention_entropy_macs,
    "attend_with_entropy": attend_with_entropy_macs,
    "attention_backward": attention_backward_macs,
    "column_norms": column_norms_macs,
    "row_entropies": row_entropies_macs,
}


def register_when_counted() -> None:
    """Register the formulas: now if PyTorch's counter is imported already, otherwise when it will be."""
    if MODULE in sys.modules:
        _register(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, _Finder())


def _register(counter: ModuleType) -> None:
    for name, macs in MACS.items():
        counter.register_flop_formula(getattr(torch.ops.entropatch, name))(_flops(macs))


def _flops(macs: Callable[..., int]) -> Callable[..., int]:
    """PyTorch counts two operations per multiply-add."""
    return lambda *inputs, out_shape=None, **named_inputs: 2 * macs(*inputs, **named_inputs)


class _Finder(MetaPathFinder):
    """Is asked for every import until the module's, finds it as without it, and has the formulas registered."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register
        return spec
