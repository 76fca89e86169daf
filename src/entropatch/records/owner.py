"""Which process works on a trial, so that others on its machine know at once when it has died."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """This process, as JSON holds it: host (a name to read), machine, pid, started.

    `machine` is the same for two processes only if they see each other's process numbers: the identity of the running
    kernel and of the namespace of process numbers, which containers have for themselves. It is None where the system
    does not tell, and then nothing but a missing heartbeat says that the process is gone.
    """
    return {"host": platform.node(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_dead(process: Mapping[str, Any]) -> bool:
    """Whether a process that `this_process` described is certainly gone; False where that cannot be known."""
    machine, pid, started = _machine(), process.get("pid"), process.get("started")
    if machine is None or process.get("machine") != machine or type(pid) is not int or not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)  # a signal of number 0 is none: it only asks whether there is such a process
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return _started(pid) != started


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """When the process started, in ticks since the kernel did; None if it has ended, or the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return None if state in ("Z", "X") else int(fields[18])
