"""How many operations the package's operators take, for `torch.utils.flop_counter`.

The formulas are registered as soon as that module is there. It is not imported for them: it brings Triton along, whose
import takes a tenth of PyTorch's.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

MODULE = "torch.utils.flop_counter"


def attention_entropy_flop(q: Any, k: Any, *args: Any, **kwargs: Any) -> int:
    *lead, n, d = q
    return 2 * torch.Size(lead).numel() * n * k[-2] * d


def attend_with_entropy_flop(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    batch, heads, n, d = q
    return 2 * batch * heads * n * k[-2] * (d + v[-1])


def register_when_counted() -> None:
    """Register the formulas: now if PyTorch's counter is imported already, otherwise when it will be."""
    if MODULE in sys.modules:
        _register(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, _Finder())


def _register(counter: ModuleType) -> None:
    counter.register_flop_formula(torch.ops.entropatch.attention_entropy)(attention_entropy_flop)
    counter.register_flop_formula(torch.ops.entropatch.attend_with_entropy)(attend_with_entropy_flop)


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
