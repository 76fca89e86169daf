"""How many tokens a stage may leave: what its schedule asks for, within what its reduction can do."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from entropatch.config import Stage
from entropatch.surgery.plan_check import WHOLE


def allowed(stage: Stage, k: Any, n: Any) -> Any:
    """The count of a schedule, at least what the reduction must leave and at most the n tokens present."""
    return min(asked(stage, k, least(stage, n)), n)


def asked(stage: Stage, k: Any, fewest: Any) -> Any:
    """The count of a schedule, at least `fewest`. Raises ValueError for what is no whole number."""
    # A tensor of one number is what torch.jit.trace, which counts multiply-adds, has for sizes.
    one = isinstance(k, Tensor) and k.ndim == 0 and k.dtype in WHOLE
    if not (one or isinstance(k, (int, torch.SymInt, Integral))) or isinstance(k, bool):
        raise ValueError(
            f"{type(stage.schedule).__name__}.count must return a whole number of tokens, but got {k!r}; "
            "round it, or say per_image = True where it is one for each image."
        )
    return max(k, fewest)


def least(stage: Stage, n: Any) -> Any:
    """The fewest of n tokens that the reduction can leave."""
    return max(n - stage.reduction.most_removed(n), min(n, 1))


def within(counts: Tensor, fewest: Any, most: Any) -> Tensor:
    """The counts (batch,) of a schedule, at least `fewest` and at most `most`."""
    # torch.jit.trace has sizes as tensors on the CPU, which `clamp` refuses beside counts on a GPU.
    fewest, most = (size.to(counts.device) if isinstance(size, Tensor) else size for size in (fewest, most))
    return counts.clamp_min(fewest).clamp_max(most)
