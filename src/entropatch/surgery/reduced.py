"""What one stage of a forward pass did, as it is recorded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from entropatch.config import Stage
from entropatch.tokens import Plan, Tokens

NO_BACKEND = "none"  # in `Reduced`, where no entropy was asked for


@dataclass(frozen=True)
class Reduced:
    """What one stage did to some images of a batch, equally many tokens each.

    Attributes:
        stage: the stage.
        rows: numbers of these images in the batch, (images,); None for the whole batch.
        scores: importance of the tokens present, (images, n); None where no criterion was asked.
        tokens: values of the tokens present after the attention residual, (images, n, width).
        before, after: what they stood for.
        plan: what was done; None if all stayed.
        backend: which of `entropatch.kernels` was there to compute entropies.
    """

    stage: Stage
    rows: Tensor | None
    scores: Tensor | None
    tokens: Tensor
    before: Tokens
    after: Tokens
    plan: Plan | None
    backend: str
