"""The model libraries there are adapters for. A new one is one file in `adapters/` and one line here."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from entropatch.surgery.adapters.base import Adapter

# The package that must be installed, and its adapter's module and class.
LIBRARIES: dict[str, tuple[str, str]] = {
    "timm": ("entropatch.surgery.adapters.timm", "TimmAdapter"),
}


def adapters() -> list[Adapter]:
    """One adapter for each model library that is installed."""
    there = [where for package, where in LIBRARIES.items() if find_spec(package) is not None]
    return [getattr(import_module(module), name)() for module, name in there]
