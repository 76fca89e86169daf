"""The model libraries there are adapters for. A new one is its file in `adapters/` and one line here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from entropatch.surgery.adapters.base import READS, Adapter
from entropatch.surgery.wrappers import without_peft

# The package, and where its adapter is.
LIBRARIES: dict[str, tuple[str, str]] = {
    "timm": ("entropatch.surgery.adapters.timm", "TimmAdapter"),
    "torchvision": ("entropatch.surgery.adapters.torchvision", "TorchvisionAdapter"),
    "open_clip": ("entropatch.surgery.adapters.open_clip", "OpenClipAdapter"),
    "transformers": ("entropatch.surgery.adapters.transformers", "TransformersAdapter"),
}


def adapter_of(model: nn.Module) -> Adapter | None:
    """The adapter that recognises the model; no library is imported for it that is not imported already."""
    return next((adapter for adapter in _there() if adapter.recognises(model)), None)


@dataclass(frozen=True)
class Tower:
    """The model that is pruned inside a larger one of a library, or the larger one itself.

    Attributes:
        module: the model; its class may be one that no adapter knows.
        reads: what is read of its tokens: one of `entropatch.surgery.adapters.base.READS`.
        holder: the larger model around it, and the adapter of its library; None if there is none.
    """

    module: nn.Module
    reads: str
    holder: tuple[nn.Module, Adapter] | None = None


def tower_of(model: nn.Module) -> Tower:
    """The model that is pruned inside a larger one of a library; the last one found, pruned or not, or itself.

    Another class may say by its attribute `entropatch_tower` where in it the model is. PEFT's wrappers are passed by.

    Raises UnsupportedModelError where the larger model must not be pruned.
    """
    model = without_peft(model)
    tower = Tower(model, READS[0])
    while (adapter := adapter_of(tower.module)) is None:
        held = next(
            ((name, library) for library in _there() if (name := library.tower(tower.module)) is not None), None
        )
        if held is not None:
            name, library = held
            reads = max(tower.reads, library.reads_of_tower(tower.module), key=READS.index)
            tower = Tower(tower.module.get_submodule(name), reads, (tower.module, library))
            continue
        name = getattr(type(tower.module), "entropatch_tower", None)
        if name is None:
            return tower
        tower = Tower(without_peft(tower.module.get_submodule(name)), tower.reads, tower.holder)
    return Tower(tower.module, max(tower.reads, adapter.reads(tower.module), key=READS.index), tower.holder)


def supported() -> str:
    """What is understood, in words; of libraries that are not imported only their names, since that takes long."""
    there = [adapter.supported for adapter in _there()]
    others = [package for package in LIBRARIES if package not in sys.modules]
    return "; ".join(there) + (f"; models of {', '.join(others)}" if others else "")


def _there() -> list[Adapter]:
    """One adapter for each model library that is imported already."""
    return [_made(*where) for package, where in LIBRARIES.items() if package in sys.modules]


def _made(module: str, name: str) -> Adapter:
    return getattr(import_module(module), name)()


def pools_patches(model: Any) -> bool:
    """Whether a model says that it pools its patches, as timm's and OpenCLIP's do; of others it is not known."""
    pool = getattr(model, "global_pool", getattr(model, "pool_type", ""))
    return pool in ("avg", "avgmax", "max", "map") or getattr(model, "attn_pool", None) is not None
