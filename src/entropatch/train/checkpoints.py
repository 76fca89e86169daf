"""Checkpoints: one folder for each, complete or not there, and nothing in them that runs code when read.

A checkpoint is written under a hidden name, flushed to disk, and renamed; a rename either happens or does not. So
whenever the process is killed, the newest visible folder is a whole checkpoint. Each lists the checksums of its files:
one that was damaged afterwards is noticed, and the run goes on from the one before it.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from entropatch.error_text import one_line
from entropatch.train.checkpoint_files import (
    CHECKPOINT,
    DAMAGED,
    DRAFT,
    flush,
    folders,
    own_files,
    remove,
    set_aside,
    write,
)
from entropatch.train.progress import Progress
from entropatch.train.random_state import random_state, set_random_state
from entropatch.train.sums import SUMS, check_sums, sums_of

KEPT = 2
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read. The message says which, and what is left intact."""


class _DamagedError(CheckpointError):
    def __init__(self, path: Path, error: Exception):
        self.what = f"the checkpoint {path} could not be read: {one_line(error)}"
        super().__init__(
            f"{self.what}. Remove that folder to continue from the one before it, or the whole run to begin again."
        )


@dataclass(frozen=True)
class _State:
    """What a checkpoint holds."""

    path: Path
    progress: Progress
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    training: dict[str, Any]
    random: dict[str, Any] | None


class Checkpoints:
    """The checkpoints of one run, written by all processes together.

    Each folder holds model.safetensors and, if there is one, ema.safetensors; training.pt, the state of optimiser and
    gradient scaler; random-<process>.pt, the random numbers of each process; progress.json: epoch, step in the epoch
    (the sampler's position; the schedule follows from it), sums so far, and the records of all epochs; and SHA256SUMS,
    the checksums of all these. Only such files are ever removed.

    Args:
        folder: where they are, or a link to there; on a disk that all processes share.
        process, processes: this process's number, and how many there are.
        wait: returns when every process has called it.
        agree: called by every process with a value; returns the first process's.
        on_text: told in a line of what was damaged or is left.
        run: what tells this run from others, whose checkpoints it must not take for its own, since `folder` may be a
            link; None does not look.
    """

    def __init__(
        self,
        folder: Path,
        process: int = 0,
        processes: int = 1,
        wait: Callable[[], None] = lambda: None,
        agree: Callable[[Any], Any] = lambda value: value,
        on_text: Callable[[str], None] = lambda text: None,
        run: str | None = None,
    ):
        self.folder, self.process, self.processes, self.wait = folder, process, processes, wait
        self.agree, self.on_text, self.run = agree, on_text, run

    def all(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = [path for path in folders(self.folder, CHECKPOINT) if any(own_files(path))]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]))

    def latest(self) -> Path | None:
        """The newest checkpoint; None if there is none."""
        return next(reversed(self.all()), None)

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
                remove(draft)
                draft.mkdir(parents=True)
            self.wait()
            write(draft / f"random-{self.process}.pt", lambda path: torch.save(random_state(), path))
            if self.process == 0:
                write(draft / "model.safetensors", lambda path: save_file(_tensors(model), path))
                if ema is not None:
                    write(draft / "ema.safetensors", lambda path: save_file(_tensors(ema), path))
                state = {
                    "optimizer": optimizer.state_dict(),
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "run": self.run,
                }
                write(draft / "training.pt", lambda path: torch.save(state, path))
                text = json.dumps(progress.to_dict())
                write(draft / "progress.json", lambda path: path.write_text(text, encoding="utf-8"))
            self.wait()
            if self.process == 0:
                sums = sums_of(draft)
                write(draft / SUMS, lambda path: path.write_text(sums, encoding="ascii"))
                flush(draft)
                draft.rename(final)
                flush(self.folder)
                self._remove_old()
            self.wait()
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.process == 0:
                remove(draft)
            left = self.latest()
            intact = f"The last good one, {left}, is intact" if left else "There is no earlier one"
            # Left by `remove`, which takes no files that are not a checkpoint's.
            in_the_way = isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            remedy = f"move what {final} holds elsewhere" if in_the_way else "free the disk"
            raise CheckpointError(
                f"the checkpoint {final} could not be written: {error}. {intact}; {remedy} and start the same command "
                "again."
            ) from error
        return final

    def resume(
        self, model: nn.Module, ema: nn.Module | None, optimizer: Any, scaler: Any | None
    ) -> tuple[Path, Progress] | None:
        """Put everything back as the newest sound checkpoint has it; None if there are none. Called by every process.

        Damaged ones are set aside, as damaged-update-…, and told of.

        Raises:
            CheckpointError: there are checkpoints, but none is sound; or it is another model's.
        """
        state, trouble = self._newest_sound() if self.process == 0 else (None, None)
        name, trouble = self.agree((None if state is None else state.path.name, trouble))
        if trouble is not None:
            raise CheckpointError(trouble)
        if name is None:
            return None
        path = self.folder / name
        return path, self._put_back(state or self._read(path), model, ema, optimizer, scaler)

    def restore(
        self, path: Path, model: nn.Module, ema: nn.Module | None, optimizer: Any, scaler: Any | None
    ) -> Progress:
        """Put everything back as it was when `path` was saved.

        Raises:
            CheckpointError: a file is missing or damaged, or is another model's.
        """
        return self._put_back(self._read(path), model, ema, optimizer, scaler)

    def clear(self) -> None:
        """Remove the checkpoints of a run that is complete, and the folder if it is empty then.

        Files that no checkpoint consists of stay, and so does a link in the folder's place; both are told of.
        """
        if not self.folder.is_dir():
            return
        for pattern in (CHECKPOINT, DRAFT, DAMAGED):
            for path in folders(self.folder, pattern):
                remove(path)
        left = sorted(path.name for path in self.folder.iterdir())
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            self.on_text(f"left in {self.folder}, since this run did not write it: {', '.join(left[:3])}{more}")
        elif self.folder.is_symlink():
            self.on_text(f"{self.folder} is a link to {self.folder.resolve()}, which is empty now; the link stays")
        else:
            self.folder.rmdir()

    def remove_drafts(self) -> None:
        """Remove what a killed process left half written."""
        for draft in folders(self.folder, DRAFT):
            remove(draft)

    def _remove_old(self) -> None:
        for old in self.all()[:-KEPT]:
            # Hidden first, so that a half removed one is never taken for whole.
            hidden = old.with_name(f".{old.name}.draft")
            old.rename(hidden)
            remove(hidden)

    def _newest_sound(self) -> tuple[_State | None, str | None]:
        """The newest sound checkpoint; and what is wrong where there are only others."""
        damaged: dict[Path, str] = {}
        for path in reversed(self.all()):
            try:
                state = self._read(path)
            except _DamagedError as error:
                damaged[path] = error.what
                continue
            except CheckpointError as error:
                return None, str(error)
            return state, self._put_aside(damaged)
        if not damaged:
            return None, None
        return None, f"{'; '.join(damaged.values())}. None is sound: remove {self.folder} to begin the run again."

    def _put_aside(self, damaged: dict[Path, str]) -> str | None:
        """Have damaged checkpoints out of the way, and tell of them; what is wrong if that cannot be."""
        for path, text in damaged.items():
            try:
                aside = set_aside(path)
            except OSError as error:
                return f"{text}, and cannot be set aside: {error}."
            self.on_text(f"{text}. It is set aside as {aside.name}")
        return None

    def _read(self, path: Path) -> _State:
        """Everything in a checkpoint. Raises CheckpointError, of the kind _DamagedError unless the system refuses."""
        try:
            check_sums(path)
            progress = Progress.from_dict(json.loads((path / "progress.json").read_text(encoding="utf-8")))
            # Always by weights_only: a checkpoint is data, whoever may have written to the folder.
            training = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
            numbers, averaged = path / f"random-{self.process}.pt", path / "ema.safetensors"
            # A run continued on more processes has none for the new ones, nor needs any.
            drawn = torch.load(numbers, map_location="cpu", weights_only=True) if numbers.exists() else None
            for file, state in (("training.pt", training), (numbers.name, drawn)):
                if not isinstance(state, dict) and (path / file).exists():
                    raise ValueError(f"{file} holds no state but {str(state)[:60]!r}")
            model, ema = load_file(path / "model.safetensors"), load_file(averaged) if averaged.exists() else None
        except Exception as error:  # whatever a damaged file makes its reader meet
            if isinstance(error, OSError) and not isinstance(error, MISSING):
                raise CheckpointError(
                    f"the checkpoint {path} could not be read: {error}. It may be sound: see to the disk or the "
                    "permissions, and start the same command again."
                ) from error
            raise _DamagedError(path, error) from error
        if self.run is not None and training.get("run") != self.run:
            raise CheckpointError(
                f"the checkpoint {path} is another run's; give each run a folder for its checkpoints, or remove those."
            )
        return _State(path, progress, model, ema, training, drawn)

    @staticmethod
    def _put_back(
        state: _State, model: nn.Module, ema: nn.Module | None, optimizer: Any, scaler: Any | None
    ) -> Progress:
        try:
            model.load_state_dict(state.model)
            if ema is not None:
                if state.ema is None:
                    raise ValueError("ema.safetensors is missing")
                ema.load_state_dict(state.ema)
            optimizer.load_state_dict(state.training["optimizer"])
            if scaler is not None and state.training["scaler"] is not None:
                scaler.load_state_dict(state.training["scaler"])
            if state.random is not None:
                set_random_state(state.random)
        except Exception as error:  # whatever PyTorch, NumPy and Python say to a state of another shape
            raise CheckpointError(
                f"the checkpoint {state.path} does not fit this run: {one_line(error)}. Remove that folder to "
                "continue from the one before it, or the whole run to begin again."
            ) from error
        return state.progress


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
