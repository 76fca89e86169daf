"""The fields of a `PruneConfig`: short forms written out, ranges and types checked."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from entropatch.criteria import Renyi
from entropatch.methods import find_method
from entropatch.reductions import Drop, Reduction
from entropatch.schedule import KeepRate, RemovePerBlock

UNSET: Any = object()  # a field that was not given


def find_reduction(reduction: Any) -> Reduction:
    """The reduction of that name with its own defaults, or the one given. Raises ValueError for anything else."""
    if isinstance(reduction, Reduction):
        return reduction
    if not isinstance(reduction, str) or reduction not in Reduction.kinds():
        raise ValueError(
            f"reduction must be one of {', '.join(Reduction.kinds())}, or a Reduction, but got {reduction!r}."
        )
    return Reduction.from_dict({"name": reduction})


def shortened(reduction: Reduction) -> str | Reduction:
    """The kind alone, where that means an equal one."""
    try:
        return reduction.kind if find_reduction(reduction.kind) == reduction else reduction
    except ValueError:  # private, or known twice
        return reduction


def written_out(given: dict[str, Any], method: Any, order: Any, r: Any) -> dict[str, Any]:
    """Criterion, reduction and schedule, with the short forms written out and the defaults filled in."""
    if method is not None:
        found = find_method(method)
        meant = {"criterion": found.criterion, "reduction": found.reduction, "schedule": found.schedule}
        for name, value in given.items():
            if name == "schedule" and r is not None and found.schedule == RemovePerBlock():
                meant[name] = RemovePerBlock(r)  # pyright: ignore[reportArgumentType]
            elif value is not UNSET and value not in (meant[name], getattr(meant[name], "kind", None)):
                raise TypeError(f"method={method!r} is short for its own {name}, so give one of the two, not both.")
        if order is not None and order != found.order:
            raise TypeError(f"method={method!r} has its own criterion; give order=… without a method.")
        if r is not None and meant["schedule"] != RemovePerBlock(r):  # pyright: ignore[reportArgumentType]
            raise TypeError(f"method={method!r} has its own schedule; give r=… without a method.")
        return meant
    if order is not None:
        if given["criterion"] is not UNSET:
            raise TypeError("order=… is short for criterion=Renyi(order=…); give one of the two, not both.")
        given = given | {"criterion": Renyi(order)}
    if r is not None:
        if given["schedule"] is not UNSET:
            raise TypeError("r=… is short for schedule=RemovePerBlock(r=…); give one of the two, not both.")
        given = given | {"schedule": RemovePerBlock(r)}  # pyright: ignore[reportArgumentType]
    defaults = {"criterion": Renyi, "reduction": Drop, "schedule": KeepRate}
    return {name: defaults[name]() if value is UNSET else value for name, value in given.items()}


def check_rate(rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, Real):
        raise TypeError(f"keep_rate must be a number in (0, 1], or one per block, but got {rate!r}.")
    if not 0 < rate <= 1:  # NaN too  # pyright: ignore[reportOperatorIssue]
        raise ValueError(f"keep_rate must lie in (0, 1], 1 keeping every patch, but got {rate!r}.")
    return float(rate)


def check_blocks(blocks: Any) -> tuple[int, ...]:
    if isinstance(blocks, str) or not isinstance(blocks, Sequence):
        raise TypeError(f"blocks must be a sequence of block indices such as (3, 6, 9), but got {blocks!r}.")
    for block in blocks:
        if isinstance(block, bool) or not isinstance(block, Integral):
            raise TypeError(f"blocks must hold integers, but got {block!r} in {tuple(blocks)}.")
    if not blocks or min(blocks) < 0 or list(blocks) != sorted(set(blocks)):
        raise ValueError(
            f"blocks must be one or more different 0-based indices in ascending order, but got {tuple(blocks)}."
        )
    return tuple(int(block) for block in blocks)
