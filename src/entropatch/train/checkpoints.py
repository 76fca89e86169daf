"""Checkpoints: one folder for each, complete or not there, and nothing in them that runs code when read.

A checkpoint is written under a hidden name, flushed to disk, and renamed; a rename either happens or does not. So
whenever the process is killed, the newest visible folder is a whole checkpoint.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from entropatch.train.progress import Progress

KEPT = 2


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read. The message says which, and what is left intact."""


class Checkpoints:
    """The checkpoints of one run, written by all processes together.

    Each folder holds model.safetensors and, if there is one, ema.safetensors; training.pt, the state of optimiser and
    gradient scaler; random-<process>.pt, the random numbers of each process; and progress.json: epoch, step in the
    epoch (the sampler's position; the schedule follows from it), sums so far, and the records of all epochs.

    Args:
        folder: where they are; on a disk that all processes share.
        process, processes: this process's number, and how many there are.
        wait: returns when every process has called it.
    """

    def __init__(self, folder: Path, process: int = 0, processes: int = 1, wait: Callable[[], None] = lambda: None):
        self.folder, self.process, self.processes, self.wait = folder, process, processes, wait

    def latest(self) -> Path | None:
        """The newest checkpoint; None if there is none."""
        return max(self.folder.glob("update-*"), default=None)

    def save(
        self, progress: Progress, model: nn.Module, ema: nn.Module | None, optimizer: Any, scaler: Any | None
    ) -> Path:
        """Write a checkpoint, and remove all older ones but the last. Called by every process.

        Raises:
            CheckpointError: the disk is full, or it cannot be written for another reason. Earlier ones stay.
        """
        final = self.folder / f"update-{progress.updates:09d}"
        draft = self.folder / f".{final.name}.draft"
        try:
            if self.process == 0:
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
            self.wait()
            _write(draft / f"random-{self.process}.pt", lambda path: torch.save(_random_state(), path))
            if self.process == 0:
                _write(draft / "model.safetensors", lambda path: save_file(_tensors(model), path))
                if ema is not None:
                    _write(draft / "ema.safetensors", lambda path: save_file(_tensors(ema), path))
                state = {
                    "optimizer": optimizer.state_dict(),
                    "scaler": None if scaler is None else scaler.state_dict(),
                }
                _write(draft / "training.pt", lambda path: torch.save(state, path))
                text = json.dumps(progress.to_dict())
                _write(draft / "progress.json", lambda path: path.write_text(text, encoding="utf-8"))
            self.wait()
            if self.process == 0:
                _flush(draft)
                draft.rename(final)
                _flush(self.folder)
                self._remove_old()
            self.wait()
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            left = self.latest()
            intact = f"The last good one, {left}, is intact" if left else "There is no earlier one"
            raise CheckpointError(
                f"the checkpoint {final} could not be written: {error}. {intact}; free the disk and start the same "
                "command again."
            ) from error
        return final

    def restore(
        self, path: Path, model: nn.Module, ema: nn.Module | None, optimizer: Any, scaler: Any | None
    ) -> Progress:
        """Put everything back as it was when `path` was saved.

        Raises:
            CheckpointError: a file is missing or damaged, or is another model's.
        """
        try:
            progress = Progress.from_dict(json.loads((path / "progress.json").read_text(encoding="utf-8")))
            model.load_state_dict(load_file(path / "model.safetensors"))
            if ema is not None:
                ema.load_state_dict(load_file(path / "ema.safetensors"))
            # Always by weights_only: a checkpoint is data, whoever may have written to the folder.
            state = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
            optimizer.load_state_dict(state["optimizer"])
            if scaler is not None and state["scaler"] is not None:
                scaler.load_state_dict(state["scaler"])
            numbers = path / f"random-{self.process}.pt"
            if numbers.exists():  # a run continued on more processes has none for the new ones, nor needs any
                _set_random_state(torch.load(numbers, map_location="cpu", weights_only=True))
        except (
            OSError,
            RuntimeError,
            SafetensorError,
            ValueError,
            KeyError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            raise CheckpointError(
                f"the checkpoint {path} could not be read: {error}. Remove that folder to continue from the one before "
                "it, or the whole run to begin again."
            ) from error
        return progress

    def remove_drafts(self) -> None:
        """Remove what a killed process left half written."""
        for draft in self.folder.glob(".update-*.draft"):
            shutil.rmtree(draft, ignore_errors=True)

    def _remove_old(self) -> None:
        for old in sorted(self.folder.glob("update-*"))[:-KEPT]:
            # Hidden first, so that a half removed one is never taken for whole.
            hidden = old.with_name(f".{old.name}.draft")
            old.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _write(path: Path, write: Callable[[Path], object]) -> None:
    write(path)
    _flush(path)


def _flush(path: Path) -> None:
    """Wait until a file's or folder's content is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _random_state() -> dict[str, Any]:
    """Python's, NumPy's and PyTorch's random numbers, in types that load without running code."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    keys = np.asarray(keys, np.int64)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), torch.from_numpy(keys), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
