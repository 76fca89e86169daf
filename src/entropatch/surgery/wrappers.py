"""Modules inside wrappers, and classes derived from a class that is swapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

# Where wrappers keep what they wrap: torch.compile, activation checkpointing, FSDP1, DDP and DataParallel.
WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module")
# PEFT's models wrap a tuner, which wraps the model; many other modules have parts of these names.
PEFT = ("base_model", "model")


def inside(module: nn.Module, wanted: Callable[[nn.Module], bool]) -> nn.Module | None:
    """The module, or the first one inside its wrappers, that is `wanted`; None if none is."""
    inner: Any = module
    while isinstance(inner, nn.Module):
        if wanted(inner):
            return inner
        # Past wrappers that answer for what they wrap.
        parts = vars(inner).get("_modules", {})
        names = PEFT if _is_peft(inner) else WRAPPED
        inner = next((parts[name] for name in names if name in parts), None)
    return None


def _is_peft(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.")


def without_peft(model: nn.Module) -> nn.Module:
    """The model that PEFT's wrappers hold; the model itself if it has none."""
    return (inside(model, lambda module: not _is_peft(module)) or model) if _is_peft(model) else model


def rebased(kind: type, table: Mapping[type, type]) -> type:
    """`kind`, or its base classes, replaced as the table says.

    FSDP2 and `torch.nn.utils.parametrize` derive a class of their own from a module's; such a class is built anew over
    the replaced one.
    """
    if kind in table:
        return table[kind]
    bases = tuple(rebased(base, table) for base in kind.__bases__)
    if bases == kind.__bases__:
        return kind
    namespace = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
    return type(kind)(kind.__name__, bases, namespace)
