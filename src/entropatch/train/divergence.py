"""Whether a run still learns: its loss and gradients must be finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# More steps in a row without a finite gradient than any gradient scaler needs to find its scale.
MOST_SKIPPED = 100


class DivergedError(RuntimeError):
    """The loss or the gradients are no longer finite."""


def check_finite(loss: float, norm: Tensor | None, *, scaled: bool, where: str, advice: str) -> None:
    """Raise DivergedError unless the loss, and without a gradient scaler the gradients' norm, are finite.

    Args:
        loss: of the step.
        norm: of its gradients; None where nobody measured it.
        scaled: whether a gradient scaler is at work; then infinite gradients are part of its search for a scale.
        where: the step, in words.
        advice: what is left, and what to change.
    """
    gradients = scaled or norm is None or bool(torch.isfinite(norm))
    if math.isfinite(loss) and gradients:
        return
    what = "the gradients are" if math.isfinite(loss) else f"the loss is {loss},"
    raise DivergedError(f"{what} not finite in {where}; that step was not taken. {advice}")


class Skipped:
    """Counts steps that the gradient scaler skipped one after another."""

    in_a_row: int

    def __init__(self) -> None:
        self.in_a_row = 0

    def step(self, skipped: bool) -> None:
        """One step more. Raises DivergedError after more in a row than a scaler needs."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row > MOST_SKIPPED:
            raise DivergedError(
                f"the gradients of {MOST_SKIPPED} steps in a row were not finite in float16, so nothing is learnt; use "
                "bfloat16 or float32, or a lower learning rate."
            )
