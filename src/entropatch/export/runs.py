"""An exported file run in a Python process of its own, in which entropatch cannot be imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("outside.py")


class OutsideError(RuntimeError):
    """A file that does not run without entropatch."""


def run_outside(
    runtime: str, paths: Sequence[Path], batches: Mapping[str, np.ndarray]
) -> list[dict[str, list[np.ndarray]]]:
    """What exported files give for each batch, in the files' order of outputs, from a process without entropatch.

    Args:
        runtime: one of `outside.RUNTIMES`.
        paths: the files.
        batches: images (batch, …) by a name of the batch.

    Raises:
        OutsideError: the process failed; the message ends with its last line.
    """
    with tempfile.TemporaryDirectory(prefix="entropatch-export-") as folder:
        inputs, outputs = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(inputs, allow_pickle=False, **batches)  # pyright: ignore[reportArgumentType]
        # Given as text and run in a folder of its own, so that no file beside it is mistaken for a library.
        command = [sys.executable, "-c", SCRIPT.read_text(encoding="utf-8"), runtime, str(inputs), str(outputs)]
        files = [str(path.absolute()) for path in paths]
        done = subprocess.run([*command, *files], cwd=folder, capture_output=True, check=False)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise OutsideError(
                f"the exported file does not run in {runtime} without entropatch: "
                f"{lines[-1].strip() if lines else f'exit status {done.returncode}'}"
            )
        with np.load(outputs) as found:
            return [{name: _in_order(found, f"{i}/{name}/") for name in batches} for i in range(len(paths))]


def _in_order(found: Mapping[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    """The arrays called by the prefix and 0, 1, …"""
    return [found[f"{prefix}{i}"] for i in range(sum(key.startswith(prefix) for key in found))]
