"""Which backend computes the entropy of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from entropatch.kernels import registry


def check_backend(backend: str) -> str:
    """Return `backend`, or raise ValueError naming the backends there are."""
    if not isinstance(backend, str) or backend not in registry.names():
        raise ValueError(f"backend must be one of {', '.join(registry.names())}, but got {backend!r}.")
    return backend


def choose_backend(backend: str, q: Tensor) -> str:
    """The name of the backend that will run for these queries (B, H, n, d).

    "auto" takes the first of the registry that can: Triton on CUDA where it is installed and the head width suits it,
    and streaming everywhere else; while exporting to ONNX, which knows no operators of ours, the reference.

    Raises:
        ValueError: the backend is unknown, or asked for by name and cannot run on this device or head width.
    """
    check_backend(backend)
    if backend == "auto":
        able = [b.name for b in registry.BACKENDS if b.plain or not torch.onnx.is_in_onnx_export()]
        return next(name for name in able if registry.named(name).why_not(q) is None)
    if (reason := registry.named(backend).why_not(q)) is not None:
        raise ValueError(f'backend "{backend}" cannot run here: {reason}. Use backend="auto".')
    return backend
