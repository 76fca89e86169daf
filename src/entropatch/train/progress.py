"""How far a run has come."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


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

    def best(self) -> dict[str, Any]:
        """The record of the epoch with the highest top-1; the earliest of equals."""
        return max(self.history, key=lambda record: record["top1"])

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them; floats come back to the last bit."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Progress:
        """What `to_dict` described. Raises ValueError for other fields."""
        if set(data) != {entry.name for entry in dataclasses.fields(cls)}:
            raise ValueError(f"the progress of a run has other fields than {sorted(data)}")
        return cls(**data)
