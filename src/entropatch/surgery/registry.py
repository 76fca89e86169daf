"""The model libraries there are adapters for. A new one is its file in `adapters/` and one line here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from torch import nn

from entropatch.surgery.adapters.base import Adapter
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.wrappers import without_peft

# The package, and where its adapter is.
LIBRARIES: dict[str, tuple[str, str]] = {
    "timm": ("entropatch.surgery.adapters.timm", "TimmAdapter"),
    "transformers": ("entropatch.surgery.adapters.transformers", "TransformersAdapter"),
}


@dataclass(frozen=True)
class Tower:
    """A model whose blocks are understood, itself or inside a larger one.

    Attributes:
        module: the model.
        adapter: of its library.
        name: of the submodule that it is of the larger model; "" if it is none.
        reads: what is read of its tokens: one of `entropatch.surgery.adapters.base.READS`.
        holder: the larger model, and the adapter of its library; None if there is none.
    """

    module: nn.Module
    adapter: Adapter
    name: str
    reads: str
    holder: tuple[nn.Module, Adapter] | None = None


def tower_of(model: nn.Module) -> Tower | None:
    """The model, or the tower it holds; None for a model that no library knows.

    Raises:
        UnsupportedModelError: a library knows the model, but not what it does with the tokens of its tower.
    """
    inner = without_peft(model)
    adapter = adapter_of(inner)
    if adapter is not None:
        return Tower(inner, adapter, _name_in(model, inner), adapter.reads(inner))
    for library in _there():
        held = library.held(inner)
        if held is None:
            continue
        module = inner.get_submodule(held.name)
        adapter = adapter_of(module)
        if adapter is None:
            raise UnsupportedModelError(
                f"{type(inner).__name__} holds a {type(module).__module__}.{type(module).__qualname__} as "
                f".{held.name}, which is not supported."
            )
        return Tower(module, adapter, _name_in(model, module), held.reads, (inner, library))
    return None


def _name_in(model: nn.Module, part: nn.Module) -> str:
    return next((name for name, module in model.named_modules() if module is part), "")


def adapter_of(model: nn.Module) -> Adapter | None:
    """The adapter that recognises the model; no library is imported for it that is not imported already."""
    return next((adapter for adapter in _there() if adapter.recognises(model)), None)


def installed() -> list[Adapter]:
    """One adapter for each model library that is installed."""
    return [_made(*where) for package, where in LIBRARIES.items() if find_spec(package) is not None]


def _there() -> list[Adapter]:
    """One adapter for each model library that is imported already."""
    return [_made(*where) for package, where in LIBRARIES.items() if package in sys.modules]


def _made(module: str, name: str) -> Adapter:
    return getattr(import_module(module), name)()
