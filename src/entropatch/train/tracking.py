"""What a run shows while it goes: TensorBoard curves and a progress bar. Both may be off, and then do nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from entropatch.extras import require
from entropatch.regularisation import EntropyPenalty

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


class ProgressBar:
    """Steps done of all steps, with the time left, on the error stream."""

    task: Any

    def __init__(self, total: int, done: int, shown: bool):
        self.bar: Any = None
        if shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            console = Console(stderr=True)
            self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
            self.task = self.bar.add_task("", total=total, completed=done)

    def step(self, text: str) -> None:
        """One step further."""
        if self.bar is not None:
            self.bar.update(self.task, advance=1, description=text)

    def __enter__(self) -> ProgressBar:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
