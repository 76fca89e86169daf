"""Optional packages, with an error that says which extra brings them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """The optional module, or an ImportError that names the extra to install."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.partition('.')[0]} is needed here and not installed; run  pip install 'entropatch[{extra}]'"
        ) from error
