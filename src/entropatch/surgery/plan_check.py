"""What criteria, schedules and reductions return fits the tokens they were given; refused by name otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.criteria import Criterion
from entropatch.reductions import Reduction
from entropatch.schedule import Schedule
from entropatch.tokens import Plan, Tokens

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def checked_plan(
    reduction: Reduction, attention: BlockAttention, tokens: Tokens, scores: Tensor | None, k: int
) -> Plan:
    """`reduction.plan(attention, tokens, scores, k)`, once its kinds and shapes are right.

    Indices out of range are left to the operators that gather by them: to look at each would wait for the GPU.

    Raises:
        ValueError: no `Plan`, or one whose tensors do not fit the tokens or each other.
    """
    plan: Any = reduction.plan(attention, tokens, scores, k)
    what = f"{type(reduction).__name__}.plan must return"
    if not isinstance(plan, Plan):
        raise ValueError(f"{what} an entropatch Plan, but got {type(plan).__name__}.")
    # Sizes are tensors there, and a comparison of them would be noted as a hazard.
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return plan
    batch = attention.q.shape[0]
    _check(what, "kept", plan.kept, (batch, k), whole=True)
    parts = {name: getattr(plan, name) for name in ("sources", "targets", "weights", "shares")}
    missing = [name for name, part in parts.items() if part is None]
    if missing and len(missing) < len(parts):
        raise ValueError(
            f"{what} a Plan with all of {', '.join(parts)}, or without any, but {', '.join(missing)} had none."
        )
    if not missing:
        sources = parts["sources"].shape[1] if getattr(parts["sources"], "ndim", 0) == 2 else -1
        for name, part in parts.items():
            _check(what, name, part, (batch, k if name == "weights" else sources), whole=name in ("sources", "targets"))
    if plan.appended is not None:
        extra = plan.appended.shape[1] if getattr(plan.appended, "ndim", 0) == 3 else -1
        _check(what, "appended", plan.appended, (batch, extra, tokens.n), whole=False)
    return plan


def checked_scores(criterion: Criterion, scores: Any, shape: tuple[int, int], method: str = "importance") -> Tensor:
    """What a criterion's method returned, which must be (batch, patches) = `shape`, floating point."""
    what = f"{type(criterion).__name__}.{method} must return (batch, patches) = {shape}"
    if not isinstance(scores, Tensor):
        raise ValueError(f"{what}, a floating-point tensor, but got {type(scores).__name__}.")
    if scores.shape != shape:
        raise ValueError(f"{what}, but got {tuple(scores.shape)}.")
    if not scores.is_floating_point():
        raise ValueError(f"{what}, floating point, but got {scores.dtype}; use scores.float().")
    return scores


def checked_state(criterion: Criterion, state: Tensor, shape: tuple[int, int]) -> Tensor:
    """What a criterion that follows handed on, which must be (batch, patches, …), `shape` and more."""
    if state.shape[:2] != shape:
        raise ValueError(
            f"{type(criterion).__name__}.follow must return (batch, patches, …) = {shape} …, but got "
            f"{tuple(state.shape)}."
        )
    return state


def checked_counts(schedule: Schedule, counts: Any, batch: int) -> Tensor:
    """What a schedule's `count` returned with `per_image`: a whole number for each image."""
    if not isinstance(counts, Tensor) or counts.shape != (batch,) or counts.dtype not in WHOLE:
        got = f"{counts.dtype} {tuple(counts.shape)}" if isinstance(counts, Tensor) else repr(counts)
        raise ValueError(
            f"{type(schedule).__name__}.count must return one whole number for each of the {batch} images, but got "
            f"{got}."
        )
    return counts


def _check(what: str, name: str, part: Any, shape: tuple[int, ...], *, whole: bool) -> None:
    fits = isinstance(part, Tensor) and part.shape == shape
    if fits and (part.dtype == torch.int64 if whole else part.is_floating_point()):
        return
    wanted = f"{'int64' if whole else 'floating point'} {str(shape).replace('-1', 'm')}"
    got = f"{part.dtype} {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
    raise ValueError(f"{what} a Plan with {name} {wanted}, but got {got}.")
