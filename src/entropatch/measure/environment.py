"""The machine and software a figure was measured on."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def environment(device: str | torch.device = "cpu") -> dict[str, str | int | None]:
    """Hardware, threads and versions, as plain values that save as JSON.

    Args:
        device: the device the measurement ran on.

    Returns:
        device, hardware (GPU or CPU name), cpu, cores (available to this process), threads (PyTorch's intra-op),
        omp_num_threads and omp_wait_policy (None where the variable is not set), cpu_capability, python, torch, cuda
        (None on a CPU build), timm and entropatch versions, platform, date (UTC, ISO 8601).
    """
    from entropatch.version import __version__

    device = torch.device(device)
    cpu = _cpu_name()
    return {
        "device": str(device),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": cpu,
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "timm": _version("timm"),
        "entropatch": __version__,
        "platform": platform.platform(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def load_average() -> float | None:
    """Processes that ran or waited to run over the last minute, on average; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return None


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    """The processor's model name; `platform.processor()` is empty on most Linux systems."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
