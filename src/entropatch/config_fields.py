"""The fields of a `PruneConfig`: short forms written out, ranges and types checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from entropatch.criteria import Criterion, Renyi
from entropatch.deciding import AboveZero
from entropatch.methods import find_method, method_of
from entropatch.named_method import coverage_text, joined
from entropatch.reductions import Drop, Reduction
from entropatch.schedule import MOST_SIZES, KeepRate, RemovePerBlock, Schedule

READS = ("mass", "level")  # methods of a criterion
UNSET: Any = object()  # a field that was not given
Parts = tuple[tuple[Criterion, Reduction, int | None], ...]  # criterion, reduction and coverage of each block


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


def loaded(value: Any, family: type[Criterion] | type[Schedule] | type[Reduction]) -> Any:
    """What a saved setting holds; a reduction may stand there by its short name."""
    return value if family is Reduction and not isinstance(value, dict) else family.from_dict(value)


def is_listed(value: Any) -> bool:
    """Whether a field holds one value for each block."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def each(value: Any) -> tuple[Any, ...]:
    """The values of a field, one for each block; the one there is where it holds for all."""
    return tuple(value) if is_listed(value) else (value,)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A field with each of its values changed; a tuple where it holds one for each block."""
    return tuple(change(entry) for entry in value) if is_listed(value) else change(value)


def check_lengths(fields: Mapping[str, Any], blocks: tuple[int, ...] | None) -> None:
    """Raise ValueError for fields with one value for each block that are not as many as the blocks, or each other."""
    counts = {name: len(value) for name, value in fields.items() if is_listed(value)}
    for name, count in counts.items():
        what = {"keep_rate": "one number", "order": "one number"}.get(name, "one")
        if blocks is not None and count != len(blocks):
            plural = {"keep_rate": "rates", "criterion": "criteria"}.get(name, f"{name}s")
            raise ValueError(
                f"{name} must be {what} or one per block, but got {count} {plural} for {len(blocks)} blocks {blocks}."
            )
    if len(set(counts.values())) > 1:
        got = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ValueError(f"fields with one value per block must have equally many, but got {got}.")


def check_criterion(criterion: Any) -> Criterion:
    if not isinstance(criterion, Criterion):
        raise TypeError(f"criterion must be a Criterion such as Renyi(order=2.0), but got {criterion!r}.")
    return criterion


def check_coverage(side: Any) -> int | None:
    if side is None:
        return None
    if isinstance(side, bool) or not isinstance(side, Integral):
        raise TypeError(f"coverage must be the side of a cell in patches, or None for none, but got {side!r}.")
    if side < 2:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"coverage must be at least 2, since in a cell of one patch each is the best, but got {side!r}; "
            "use None for no coverage."
        )
    return int(side)


def written_out(given: dict[str, Any], method: Any, order: Any, r: Any) -> dict[str, Any]:
    """Criterion, reduction, schedule and coverage, with the short forms written out and the defaults filled in."""
    if method is not None:
        meant = _meant_by(method)
        for name, value in given.items():
            if name == "coverage" and not any(each(meant[name])):
                meant[name] = value
            elif name == "schedule" and r is not None and meant[name] == _removing(meant[name], None):
                meant[name] = _removing(meant[name], r)
            elif name == "schedule" and meant[name] == _usual(value):
                meant[name] = value  # the method's own kind of schedule, with other numbers
            elif value not in (UNSET, None, meant[name], getattr(meant[name], "kind", None)):
                raise TypeError(f"method={method!r} is short for its own {name}, so give one of the two, not both.")
        if order is not None and meant["criterion"] != mapped(order, Renyi):
            raise TypeError(f"method={method!r} has its own criterion; give order=… without a method.")
        if r is not None and meant["schedule"] != _removing(meant["schedule"], r):
            raise TypeError(f"method={method!r} has its own schedule; give r=… without a method.")
        return meant
    if order is not None:
        if given["criterion"] is not UNSET:
            raise TypeError("order=… is short for criterion=Renyi(order=…); give one of the two, not both.")
        given = given | {"criterion": mapped(order, Renyi)}
    if r is not None:
        if given["schedule"] is not UNSET:
            raise TypeError("r=… is short for schedule=RemovePerBlock(r=…); give one of the two, not both.")
        given = given | {"schedule": RemovePerBlock(r)}  # pyright: ignore[reportArgumentType]
    defaults: dict[str, Any] = {"criterion": Renyi, "reduction": Drop, "schedule": KeepRate}
    return {name: defaults[name]() if value is UNSET else value for name, value in given.items()}


def _removing(schedule: Schedule, r: Any) -> Schedule | None:
    """A schedule of that kind that removes r tokens per block, if the kind does so."""
    return type(schedule)(r) if isinstance(schedule, RemovePerBlock) else None


def _usual(schedule: Any) -> Schedule | None:
    """The schedule of that kind with its own defaults, if there is one."""
    try:
        return type(schedule)() if isinstance(schedule, Schedule) else None
    except TypeError:  # it has none
        return None


def _meant_by(method: Any) -> dict[str, Any]:
    """Criterion, reduction, schedule and coverage of a method, or of one for each block."""
    if not is_listed(method):
        found = find_method(method)
        return {name: getattr(found, name) for name in ("criterion", "reduction", "schedule", "coverage")}
    if not method:
        raise ValueError("method must be one name or one per block, but got none.")
    return joined([find_method(name) for name in method])


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


def setting_label(criterion: Criterion, reduction: Reduction, coverage: int | None, schedule: Schedule) -> str:
    """For tables and figures: the name the parts have together, or each of them in words."""
    covering = coverage_text(coverage)
    named = method_of(criterion, reduction, schedule)
    usual = named or method_of(criterion, reduction, type(schedule)())
    if usual is not None:
        words = [usual.label, "" if named else schedule.label, covering]
    else:
        scored = criterion.label if reduction.needs_scores else ""
        words = [scored, reduction.outcome, schedule.label, covering]
    return ", ".join(word for word in words if word)


def check_ignored(
    parts: Sequence[tuple[Criterion, Reduction, int | None]], schedule: Schedule, keep_rate: Any, usual: float
) -> None:
    """Raise ValueError for what would have no effect, or does not go together.

    Args:
        parts: criterion, reduction and coverage of each block.
        schedule: of the setting.
        keep_rate: of the setting; `usual` where none was given.
    """
    check_before(parts)
    for criterion, reduction, coverage in parts:
        if not reduction.needs_scores and criterion != Renyi():
            raise ValueError(
                f"reduction {reduction.kind!r} asks no criterion, so {criterion!r} would have no effect; "
                'leave it out, or use reduction="merge".'
            )
        if not reduction.needs_scores and coverage is not None:
            raise ValueError(
                f"reduction {reduction.kind!r} does not choose by scores, so coverage={coverage} would have no effect; "
                'leave it out, or use reduction="merge".'
            )
        if schedule.chooses and coverage is not None:
            raise ValueError(
                f"{schedule!r} says which patches stay, so coverage={coverage} would have no effect; leave it out, "
                "or use schedule=KeepRate()."
            )
        if isinstance(schedule, AboveZero) and not criterion.decides:
            raise ValueError(
                f"{schedule!r} keeps the patches that a criterion such as Halting() decides to keep, and {criterion!r} "
                "only ranks them; use schedule=KeepRate()."
            )
        if reduction.detours and not criterion.remembers:
            raise ValueError(
                f"reduction {reduction.kind!r} chooses before a block's attention, so it needs a criterion that "
                f"remembers the blocks before, but got {criterion!r}; use criterion=RunningClassAttention()."
            )
        if schedule.per_image and reduction.detours:
            raise ValueError(
                f"reduction {reduction.kind!r} takes one number for all images, but {schedule!r} has one for each; use "
                "schedule=FloorRate() or KeepRate()."
            )
        if schedule.per_image and not reduction.needs_scores:
            raise ValueError(
                f"{schedule!r} reads the scores of patches, but reduction {reduction.kind!r} has none; use "
                'reduction="drop" or "merge".'
            )
    if not schedule.uses_keep_rate and keep_rate != usual:
        raise ignored_rate(schedule, keep_rate)
    if schedule.reads not in READS:
        raise ValueError(
            f"{type(schedule).__name__}.reads must be one of {', '.join(READS)}, but is {schedule.reads!r}."
        )
    if schedule.per_image and len({*(schedule.sizes or ()), 1.0}) > MOST_SIZES:
        raise ValueError(
            f"a schedule with a number for each image has at most {MOST_SIZES} sizes with 1.0, always one of them, "
            f"but {schedule!r} has {schedule.sizes}."
        )


def check_order_used(parts: Sequence[tuple[Criterion, Reduction, int | None]], order: Any) -> None:
    """Raise ValueError for an order, also the usual one, where no block asks for scores."""
    if order is not None and not any(reduction.needs_scores for _, reduction, _ in parts):
        raise ValueError(
            f"reduction {parts[0][1].kind!r} asks no criterion, so order={order!r} would have no effect; leave it out, "
            'or use reduction="drop".'
        )


def check_before(parts: Sequence[tuple[Criterion, Reduction, int | None]]) -> None:
    """Raise ValueError where a criterion that decides before a block stands beside what does not."""
    early = [criterion for criterion, _, _ in parts if criterion.before]
    for criterion, _, _ in parts:
        for part in vars(criterion).values():
            if isinstance(part, Criterion) and part.before:
                raise ValueError(
                    f"{type(part).__name__} decides before a block's attention, so it cannot be a part of "
                    f"{type(criterion).__name__}, which asks that; use it alone."
                )
    if not early:
        if any(reduction.parks for _, reduction, _ in parts):
            raise ValueError(
                'reduction "park" is for criteria that decide before a block, such as QueryScore(); use "drop".'
            )
        return
    if len({*(criterion for criterion, _, _ in parts)}) > 1:
        raise ValueError(
            f"{type(early[0]).__name__} has weights that are trained together, so it is the criterion of all pruning "
            "blocks or of none; give one criterion."
        )
    for _, reduction, _ in parts:
        if not reduction.before or reduction.detours:
            raise ValueError(
                f"{type(early[0]).__name__} decides before a block's attention, which reduction {reduction.kind!r} "
                'asks for; use reduction="drop".'
            )


def check_first(parts: Parts, blocks: tuple[int, ...], depth: int) -> Parts:
    """Return the parts of each block, or raise ValueError where the first has nothing to choose by."""
    if parts and getattr(parts[0][0], "every", False) and blocks != tuple(range(1, depth)):
        raise ValueError(
            f"{type(parts[0][0]).__name__} looks at the tokens before every block but the first, so blocks must be 1 … "
            f"{depth - 1} of a model of depth {depth}, but got {blocks}; leave them out."
        )
    if parts and parts[0][1].parks and blocks[-1] >= depth - 1:
        raise ValueError(
            f"reduction 'park' joins the tokens again before the last block, {depth - 1}, which must not be a pruning "
            f"block then, but got {blocks}."
        )
    if blocks and blocks[0] == 0 and parts[0][1].detours:
        raise ValueError(
            f"reduction {parts[0][1].kind!r} chooses by the blocks before, of which block 0 has none; let blocks begin "
            f"at 1 or later, but got {blocks}."
        )
    return parts


def ignored_rate(schedule: Schedule, keep_rate: Any) -> ValueError:
    return ValueError(
        f"{schedule!r} says by itself how many tokens stay, so keep_rate={keep_rate!r} would have no effect; leave it "
        f"out, or give schedule={'RemovePerBlock()' if isinstance(schedule, RemovePerBlock) else 'KeepRate()'} with it."
    )
