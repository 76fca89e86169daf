"""Triton's interpreter, which runs its kernels on the CPU for the tests."""

from __future__ import annotations

import os


def interpreting() -> bool:
    """Whether Triton runs its kernels on the CPU, as TRITON_INTERPRET=1 makes it."""
    return os.environ.get("TRITON_INTERPRET") == "1"
