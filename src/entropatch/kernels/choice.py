"""Which backend computes the entropy of a block."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

# Asked once, since torch.compile cannot trace the question.
TRITON_INSTALLED = find_spec("triton") is not None

BACKENDS = ("auto", "reference", "streaming", "triton")


def check_backend(backend: str) -> str:
    """Return `backend`, or raise ValueError naming the backends there are."""
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, but got {backend!r}.")
    return backend


def choose_backend(backend: str, q: Tensor) -> str:
    """The backend that will run for these queries: "reference", "streaming" or "triton".

    "auto" takes Triton on CUDA where it is installed and the head width suits it, and streaming everywhere else; while
    exporting to ONNX, which knows no operators of ours, it takes the reference.

    Raises:
        ValueError: the backend is unknown, or asked for by name and cannot run on this device or head width.
    """
    check_backend(backend)
    if backend == "auto":
        if torch.onnx.is_in_onnx_export():
            return "reference"
        return "triton" if _why_not_triton(q) is None else "streaming"
    if backend == "triton" and (reason := _why_not_triton(q)) is not None:
        raise ValueError(f'backend "triton" cannot run here: {reason}. Use backend="auto".')
    return backend


def _why_not_triton(q: Tensor) -> str | None:
    if not TRITON_INSTALLED:
        return "the package triton is not installed"
    if not q.is_cuda and not interpreting():
        return f"it needs a CUDA tensor, but the queries are on {q.device.type}"
    if q.dtype == torch.float64:
        return "it computes in float32, and the queries are float64"
    if q.shape[-1] > 128:
        return f"it needs a head width of at most 128, but got {q.shape[-1]}"
    return None


def interpreting() -> bool:
    """Whether Triton runs its kernels on the CPU, as TRITON_INTERPRET=1 makes it."""
    return os.environ.get("TRITON_INTERPRET") == "1"
