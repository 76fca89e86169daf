"""What a calibration found: the setting, the trade-off on images held out, the floor, and what was tried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from entropatch.calibration.proposal import Cuts, config_of
from entropatch.config import PruneConfig
from entropatch.records.uncertainty import FEWEST, MULTIPLE

CHOSEN, RANDOM, DEFAULT = "calibrated", "random", "default"
BETTER, WORSE, ALIKE = "beats", "is worse than", "cannot be told from"


@dataclass(frozen=True)
class Row:
    """One setting on the images held out.

    Attributes:
        name: `CHOSEN`, `RANDOM`, `DEFAULT` or a method's.
        label: for tables.
        config: the setting.
        cost: in `unit`s of the budget.
        losses: of each image held out, (images,).
    """

    name: str
    label: str
    config: PruneConfig
    cost: float
    losses: np.ndarray

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def error(self) -> float:
        """One standard error of the mean over images."""
        return standard_error(self.losses)


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Calibration:
    """What `entropatch.calibration.calibrated` found.

    Attributes:
        config: the setting.
        rows: the chosen setting and what it is compared with, at the same cost, on the images held out.
        curve: the same for the chosen setting, random and the default at other costs.
        singles: one block pruned alone, as records: block, choice, keep_rate, loss.
        additivity: of the schedules judged together: joint loss over the sum of single ones, by way of adding.
        objective, unit, budget, dense: what was minimised; what the budget is in, how much, and the dense model's.
        counts: images chosen by and held out, passes, schedules.
        left_out: what the model does not take of what is usually compared, by its label, and why.
        drop: the largest mean loss that was asked for; None under another budget.
    """

    config: PruneConfig
    rows: tuple[Row, ...]
    curve: tuple[Row, ...]
    singles: tuple[dict[str, Any], ...]
    additivity: dict[str, dict[str, float]]
    objective: str
    unit: str
    budget: float
    dense: float
    counts: dict[str, int]
    left_out: Mapping[str, str] = field(default_factory=dict)
    drop: float | None = None

    @property
    def missed(self) -> str:
        """That the loss on the images held out is above the one allowed, in words; "" where it is not."""
        chosen = self.rows[0]
        if self.drop is None or chosen.loss <= self.drop:
            return ""
        return (
            f"On the images held out the loss is {chosen.loss:.4g} ± {chosen.error:.2g}, above the drop of "
            f"{self.drop:g} allowed, which the images chosen by meet; ask for a smaller one, or give more images."
        )

    @property
    def verdict(self) -> str:
        """Whether the chosen setting beats the floor, the default and the best of the other methods: by more than two
        standard errors of the paired difference on at least six images, without allowance for how many are compared."""
        (_, *others) = self.rows
        lines = [self.missed] if self.missed else []
        lines += [self._against(row, row.label) for row in others if row.name in (RANDOM, DEFAULT)]
        rest = [row for row in others if row.name not in (RANDOM, DEFAULT)]
        rest.sort(key=lambda row: (math.isnan(row.loss), row.loss))
        lines += [self._against(row, f"{row.label}, the best of the others,") for row in rest[:1]]
        if better := [row.label for row in rest[1:] if self._paired(row)[0] == WORSE]:
            lines.append(f"It is worse than {', '.join(better)} by more than two paired errors.")
        return "\n".join(lines)

    def _against(self, row: Row, label: str) -> str:
        word, mean, error = self._paired(row)
        return (
            f"The calibrated setting {word} {label} at the same cost: {self.rows[0].loss:.4g} against "
            f"{row.loss:.4g}, paired difference {mean:+.4g} ± {error:.2g}."
        )

    def _paired(self, row: Row) -> tuple[str, float, float]:
        """What the paired difference of a row's losses says of the chosen setting, its mean and standard error."""
        difference = row.losses - self.rows[0].losses
        mean, error = float(difference.mean()), standard_error(difference)
        if len(difference) < FEWEST or not abs(mean) > MULTIPLE * error:
            return ALIKE, mean, error
        return (BETTER if mean > 0 else WORSE), mean, error


def singles_of(by: dict[Any, float]) -> tuple[dict[str, Any], ...]:
    """Sensitivities as records."""
    return tuple(
        {"block": block, "choice": choice.label, "keep_rate": rate, "loss": loss}
        for (block, choice, rate), loss in by.items()
    )


def additivity_of(joint: dict[Cuts, float], sums: dict[Cuts, float]) -> dict[str, float]:
    """The median of joint loss over sum, and Spearman's rank correlation of both."""
    pairs = np.array([(joint[cuts], sums[cuts]) for cuts in joint if cuts in sums], dtype=np.float64)
    if len(pairs) < 3:
        return {}
    ranks = pairs.argsort(0).argsort(0).astype(float)
    return {
        "schedules": float(len(pairs)),
        "joint over sum": float(np.median(pairs[:, 0] / pairs[:, 1].clip(1e-12))),
        "rank correlation": float(np.corrcoef(ranks.T)[0, 1]),
    }


def row_of(name: str, label: str, cuts: Cuts, cost: float, losses: np.ndarray) -> Row:
    return Row(name, label, config_of(cuts), cost, losses)
