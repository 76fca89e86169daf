"""What a run shows while it goes: TensorBoard curves, and how far it is. Both may be off, and then do nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from entropatch.extras import require
from entropatch.regularisation import EntropyPenalty
from entropatch.train.progress import OnStep, Progress

EVERY = 10


class Curves:
    """Scalars for TensorBoard; those of steps that a continued run takes again replace the earlier ones."""

    def __init__(self, folder: Path | None, updates: int):
        self.writer: Any = None
        if folder is not None:
            require("tensorboard", "train")
            from torch.utils.tensorboard.writer import SummaryWriter

            self.writer = SummaryWriter(str(folder), purge_step=updates + 1)

    def step(self, loss: float, learning_rate: float, penalties: Sequence[EntropyPenalty], updates: int) -> None:
        """Every tenth step's loss, learning rate and, of equally many images each, entropy penalties before weighting.

        Of the penalties' entropies the mean of each head, as in `epoch`; those of this process.
        """
        if self.writer is None or updates % EVERY:
            return
        self.writer.add_scalar("training/loss", loss, updates)
        self.writer.add_scalar("training/learning_rate", learning_rate, updates)
        if penalties:
            mean = torch.stack([penalty.value.detach() for penalty in penalties]).mean()
            self.writer.add_scalar("training/entropy_penalty", float(mean), updates)
            means = [penalty.means for penalty in penalties]
            self._entropies("training_entropy", {b: sum(m[b] for m in means) / len(means) for b in means[0]}, updates)

    def epoch(self, record: Mapping[str, Any], entropies: Mapping[int, Tensor], updates: int) -> None:
        """An epoch's record, and the mean normalised entropy of each head, (heads,) by block."""
        if self.writer is not None:
            for name in ("top1", "top5", "images_per_second"):
                self.writer.add_scalar(f"epoch/{name}", record[name], updates)
            self._entropies("entropy", entropies, updates)
            self.writer.flush()

    def _entropies(self, name: str, by_block: Mapping[int, Any], updates: int) -> None:
        """One curve for each block and head: "entropy/block_03/head_1"."""
        for block, heads in by_block.items():
            for head, value in enumerate(heads.tolist()):
                self.writer.add_scalar(f"{name}/block_{block:02}/head_{head}", value, updates)

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.writer is not None:
            self.writer.close()


class Reports:
    """Reports how far a run is, by batches, to an `OnStep`."""

    def __init__(self, on_step: OnStep | None, progress: Progress, epochs: int, steps: int):
        self.on_step, self.progress, self.epochs, self.steps = on_step, progress, epochs, steps

    def training(self, loss: float | None = None) -> None:
        """So many steps of the run are taken, the last with this loss."""
        said = "" if loss is None else f", loss {loss:.3f}"
        self._tell("training", self.progress.updates, self.epochs * self.steps, said)

    def testing(self, batches: int) -> Callable[[], None]:
        """To be called after each batch of an epoch's test."""
        done = count(1)
        return lambda: self._tell("testing", next(done), batches, "")

    def _tell(self, what: str, done: int, total: int, said: str) -> None:
        if self.on_step is not None:
            self.on_step(what, done, total, f"epoch {min(self.progress.epoch + 1, self.epochs)}/{self.epochs}{said}")
