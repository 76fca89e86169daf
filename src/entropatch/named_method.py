"""`Method`, a named way to prune; names of several parts: coverage, as in "evit@2", one per block, "renyi-inf_evit"."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from entropatch.criteria import Criterion, Random, Renyi
from entropatch.reductions import Drop, Reduction
from entropatch.schedule import KeepRate, Schedule

COVERING, THEN = "@", "_"


@dataclass(frozen=True)
class Method:
    """A named way to prune.

    Attributes:
        name: short and plain, for command lines, file names and records: "renyi-2". Lower-case letters,
            digits, "-", "." and "+".
        label: for tables and figures: "Rényi, order 2".
        description: what it keeps, in a sentence, for the margin of a figure.
        criterion: how patches are scored.
        reduction: what becomes of the others.
        schedule: how many stay in which blocks.
        rank: where it stands in tables and menus; low ones first, equal ones by name.
        compared: whether comparisons that name no methods include it.
        trained: whether it does nothing good before it was trained, as one with weights of its own.
        coverage: as in `PruneConfig`; like criterion and reduction one for each pruning block, where the name has
            parts.
    """

    name: str
    label: str
    description: str
    criterion: Criterion | tuple[Criterion, ...] = field(default_factory=Renyi)
    reduction: Reduction | tuple[Reduction, ...] = field(default_factory=Drop)
    schedule: Schedule = field(default_factory=KeepRate)
    rank: float = 100.0
    compared: bool = True
    trained: bool = False
    coverage: int | tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9.+@_-]*", self.name):
            raise ValueError(
                f'name must be lower-case letters, digits, "-", "." and "+", such as "key-norm", but got {self.name!r}.'
            )
        for what, kind in (("criterion", Criterion), ("reduction", Reduction), ("schedule", Schedule)):
            given = getattr(self, what)
            if not all(isinstance(one, kind) for one in (given if isinstance(given, tuple) else (given,))):
                raise TypeError(f"{what} must be a {kind.__name__}, but got {given!r}.")

    @property
    def parts(self) -> tuple[tuple[Criterion, Reduction], ...]:
        """Criterion and reduction; of each pruning block, where the name has parts."""
        if isinstance(self.criterion, tuple) and isinstance(self.reduction, tuple):
            return tuple(zip(self.criterion, self.reduction, strict=True))
        assert not isinstance(self.criterion, tuple)
        assert not isinstance(self.reduction, tuple)
        return ((self.criterion, self.reduction),)

    @property
    def needs_scores(self) -> bool:
        """Whether a criterion is asked, in any block."""
        return any(reduction.needs_scores for _, reduction in self.parts)

    @property
    def scores_attention(self) -> bool:
        """Whether a block's attention alone says its scores, also of a model that keeps all patches."""
        return self.needs_scores and not any(criterion.before for criterion, _ in self.parts)

    @property
    def needs_class_token(self) -> bool:
        """Whether a model without a class token is refused."""
        return any(
            reduction.needs_class_token or (reduction.needs_scores and criterion.needs_class_token)
            for criterion, reduction in self.parts
        )

    @property
    def predicts(self) -> bool:
        """Whether only a model that makes maps can have it; groups of methods are without it."""
        return any(reduction.needs_scores and criterion.predicts for criterion, reduction in self.parts)

    @property
    def order(self) -> float | None:
        """The order of the entropy that scores the patches; None for a method that uses no entropy."""
        return self.criterion.order if self.needs_scores and isinstance(self.criterion, Renyi) else None

    @property
    def drops_by_entropy(self) -> bool:
        """Whether it is the paper's: patches of high entropy are dropped, at a keep rate. Its orders differ alone."""
        plain = self.reduction == Drop() and self.schedule == KeepRate() and self.coverage is None
        return self.order is not None and plain

    @property
    def is_random(self) -> bool:
        """Whether chance says what stays: a floor for others, which is never recommended and depends on a seed."""
        return any(reduction.needs_scores and isinstance(criterion, Random) for criterion, reduction in self.parts)

    @property
    def takes_keep_rate(self) -> bool:
        """Whether a keep rate means anything to its schedule."""
        return self.schedule.uses_keep_rate

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules outside this package that its criterion, reduction and schedule come from."""
        modules = dict.fromkeys(type(part).__module__ for pair in self.parts for part in (*pair, self.schedule))
        return tuple(module for module in modules if module.partition(".")[0] != "entropatch")

    @property
    def sort_key(self) -> tuple[float, str]:
        """Where it stands among methods."""
        return self.rank, self.name


def is_composed(name: Any) -> bool:
    """Whether a name has parts, which no registered method's has."""
    return isinstance(name, str) and (COVERING in name or THEN in name)


def composed(name: str, find: Callable[[str], Method]) -> Method:
    """The method that a name with parts means.

    Args:
        name: "evit@2" is EViT that keeps the best patch of each 2 × 2 cell first; "renyi-inf@2_evit_shannon-merge" is
            one method for each pruning block.
        find: the registered method of a name; raises ValueError for an unknown one.

    Raises:
        ValueError: a part is unknown, a side is no number of at least 2, or the parts differ in their schedules.
    """
    found = [_covering(part, find) for part in name.split(THEN)]
    if len(found) == 1:
        return found[0]
    first, label = found[0], " → ".join(one.label for one in found)
    description = "One method for each pruning block: " + ", then ".join(one.label for one in found) + "."
    name = THEN.join(one.name for one in found)
    rank, trained = max(one.rank for one in found), any(one.trained for one in found)
    texts = {"name": name, "label": label, "description": description}
    return replace(first, **texts, rank=rank, trained=trained, compared=False, **joined(found))


def joined(methods: Sequence[Method]) -> dict[str, Any]:
    """Criteria, reductions and coverage of one method for each block, and the schedule they share.

    Raises:
        ValueError: they differ in their schedules.
    """
    schedules = {method.schedule for method in methods}
    if len(schedules) > 1:
        names = ", ".join(method.name for method in methods)
        raise ValueError(
            f"methods of several blocks must share a schedule, but {names} have {len(schedules)} of them; "
            "give criterion=(…), reduction=(…) and one schedule=… instead."
        )
    fields = {name: tuple(getattr(one, name) for one in methods) for name in ("criterion", "reduction", "coverage")}
    return fields | {"schedule": schedules.pop()}


def _covering(part: str, find: Callable[[str], Method]) -> Method:
    name, at, side = part.partition(COVERING)
    method = find(name)
    if not at:
        return method
    if not re.fullmatch("[1-9][0-9]{0,3}", side) or side == "1":
        raise ValueError(f"{name}@SIDE takes the side of a cell in patches, at least 2, but got {part!r}.")
    if not method.needs_scores:
        raise ValueError(f"{name} does not choose by scores, so it covers no cells; leave @{side} out.")
    if method.schedule.chooses:
        raise ValueError(f"{name} says itself which patches stay, so it covers no cells; leave @{side} out.")
    return replace(
        method,
        name=f"{method.name}{COVERING}{side}",
        label=f"{method.label}, {coverage_text(int(side))}",
        description=f"{method.description} The best of each {side} × {side} cell of the grid come first.",
        coverage=int(side),
        rank=method.rank + 0.001,
        compared=False,
    )


def coverage_text(side: int | None) -> str:
    """Coverage in labels: "the best of each 2 × 2"; empty for none."""
    return "" if side is None else f"the best of each {side} × {side}"
