"""How far a run has come."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Told what is done, "training" or "testing", how many batches of it are, how many there are, and where it stands.
OnStep = Callable[[str, int, int, str], None]


@dataclass
class Progress:
    """The position in a run, and what was summed up on the way.

    Attributes:
        epoch: epochs finished.
        step: steps taken in the epoch at work.
        updates: steps taken in all.
        loss: sum of the training loss over the steps of the epoch at work.
        skipped: steps of that epoch that the gradient scaler skipped.
        damaged: names of the damaged images met in that epoch.
        seconds: time spent on that epoch.
        history: one record per finished epoch.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    loss: float = 0.0
    skipped: int = 0
    damaged: list[str] = field(default_factory=list)
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def next_epoch(self, record: dict[str, Any]) -> None:
        """An epoch is over."""
        self.history.append(record)
        self.epoch += 1
        self.step = self.skipped = 0
        self.loss = self.seconds = 0.0
        self.damaged = []

    def place(self, epochs: int, steps: int) -> str:
        """Where a run of so many epochs, of so many steps each, is; in words."""
        done = f"{self.epoch} of {epochs} epochs"
        if self.step:
            done += f" and {self.step} of {steps} steps of the next"
        return f"{done} are done, {self.updates} of {epochs * steps} steps in all"

    def best(self) -> dict[str, Any]:
        """The record of the epoch with the highest top-1, or mean IoU; the earliest of equals."""
        return max(self.history, key=lambda record: record["top1"] if "top1" in record else record["miou"])

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them; floats come back to the last bit."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Progress:
        """What `to_dict` described. Raises ValueError for anything else."""
        if not isinstance(data, dict) or set(data) != {entry.name for entry in dataclasses.fields(cls)}:
            raise ValueError(f"the progress of a run has other fields than {_shown(data)}")
        if wrong := [name for name, is_right in _KINDS.items() if not is_right(data[name])]:
            raise ValueError(f"the progress of a run cannot be with {wrong[0]} {_shown(data[wrong[0]])}")
        if data["epoch"] != len(data["history"]):
            raise ValueError(f"the progress of a run has {data['epoch']} epochs but {len(data['history'])} records")
        return cls(**data)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_record(value: Any) -> bool:
    named = ("damaged_training", "damaged_testing")
    scores = ("miou",) if isinstance(value, dict) and "miou" in value else ("top1", "top5")
    return (
        isinstance(value, dict)
        and all(_is_number(value.get(name)) for name in ("epoch", *scores, "seconds"))
        and all(isinstance(value.get(name), list) for name in named)
    )


_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("epoch", "step", "updates", "skipped"), _is_count),
    **dict.fromkeys(("loss", "seconds"), _is_number),
    "damaged": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "history": lambda value: isinstance(value, list) and all(map(_is_record, value)),
}


def _shown(value: Any) -> str:
    text = repr(sorted(value) if isinstance(value, dict) else value)
    return text if len(text) <= 100 else text[:99] + "…"
