"""What to prune, where and how much: `PruneConfig`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

from entropatch.config_fields import (
    UNSET,
    check_blocks,
    check_coverage,
    check_criterion,
    check_first,
    check_ignored,
    check_lengths,
    check_order_used,
    check_rate,
    each,
    find_reduction,
    ignored_rate,
    is_listed,
    loaded,
    mapped,
    setting_label,
    shortened,
    written_out,
)
from entropatch.criteria import Criterion
from entropatch.kernels.choice import check_backend
from entropatch.methods import Method, find_method, method_of
from entropatch.records.files import write_text
from entropatch.reductions import Reduction
from entropatch.schedule import RemovePerBlock, Schedule, compounded, exact_rate

VERSION = 2  # 2: one value per block, coverage
KEEP_RATE = 0.7
# The fields with one value, or one for each pruning block, and what each value must be.
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "keep_rate": check_rate,
    "criterion": check_criterion,
    "reduction": lambda reduction: shortened(find_reduction(reduction)),
    "coverage": check_coverage,
}


@dataclass(frozen=True)
class Stage:
    """What one block does with the tokens.

    Attributes:
        block: 0-based.
        index, count: which of how many reducing blocks it is.
        keep_rate: ρ of this block.
        rate: the same as an exact fraction.
        criterion, reduction, schedule, coverage: as in `PruneConfig`, those of this block.
        share: the keep rates of the reducing blocks up to this one multiplied; ρ to a power where all are ρ.
    """

    block: int
    index: int
    count: int
    keep_rate: float
    rate: tuple[int, int]
    criterion: Criterion
    reduction: Reduction
    schedule: Schedule
    coverage: int | None = None
    share: float = 1.0


@dataclass(frozen=True)
class PruneConfig:
    """A complete pruning setting; frozen, comparable, and saved as JSON.

    Args:
        keep_rate: ρ in (0, 1], the share of the patch tokens present that each pruning block keeps, k = ceil(ρ·n), so
            the rate compounds over blocks; or one rate for each pruning block. 1.0 keeps all: the stock model.
        criterion: how patches are scored; or one for each pruning block. The default, `Renyi(order=2.0)`, is this
            package's choice; the searched orders of arXiv 2604.03803 are not published.
        blocks: 0-based blocks that prune, ascending; None leaves them to the schedule: for keep rates ¼, ½ and ¾ of the
            depth, (3, 6, 9) of 12, the paper's; for `RemovePerBlock` all of them.
        reduction: what becomes of the others, by its short name or as a `Reduction`: "drop" removes them; "fuse"
            appends EViT's one fused token made of them; "merge" merges each into the kept one most like it; "bipartite"
            is ToMe's matching. Or one for each pruning block.
        schedule: how many stay; `KeepRate()` unless another `Schedule` is given.
        coverage: side, in patches, of the cells of the grid of which the best patch each is kept before any second one,
            so that no region is left empty (`entropatch.priorities.covering`); None for none, by the scores alone; or
            one entry for each pruning block.
        backend: what computes the entropies: "auto", "reference", "streaming" or "triton" (see `entropatch.kernels`).
        method: the name of a registered method (`entropatch.methods`), short for its criterion, reduction and schedule;
            or one for each pruning block, all of one schedule.
        order: short for `criterion=Renyi(order)`; or one for each pruning block.
        r: tokens removed per block, one number or one for each; short for `schedule=RemovePerBlock(r)`.

    Raises:
        ValueError, TypeError: a field is out of range or of the wrong type; the message names rule, value and fix.
    """

    keep_rate: float | tuple[float, ...] = KEEP_RATE
    criterion: Criterion | tuple[Criterion, ...] = UNSET
    blocks: tuple[int, ...] | None = None
    reduction: str | Reduction | tuple[str | Reduction, ...] = UNSET
    schedule: Schedule = UNSET
    backend: str = "auto"
    coverage: int | tuple[int | None, ...] | None = None
    method: InitVar[str | Sequence[str] | None] = None
    r: InitVar[int | Sequence[int] | None] = None
    order: InitVar[float | Sequence[float] | None] = None

    def __post_init__(
        self,
        method: str | Sequence[str] | None,
        r: int | Sequence[int] | None,
        order: float | Sequence[float] | None,
    ) -> None:
        given = {name: getattr(self, name) for name in ("criterion", "reduction", "schedule", "coverage")}
        for name, value in written_out(given, method, order, r).items():
            object.__setattr__(self, name, value)
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, mapped(getattr(self, name), check))
            if name != "keep_rate" and getattr(self, name) == ():
                raise ValueError(f"{name} must be one or one per block, but got none.")
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule such as RemovePerBlock(r=13), but got {self.schedule!r}.")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", check_blocks(self.blocks))
        check_backend(self.backend)
        check_lengths({name: getattr(self, name) for name in _CHECKS}, self.blocks)
        check_order_used(self.parts, order)
        check_ignored(self.parts, self.schedule, self.keep_rate, KEEP_RATE)

    @property
    def parts(self) -> tuple[tuple[Criterion, Reduction, int | None], ...]:
        """Criterion, reduction and coverage of each pruning block; one triple alone where it holds for all."""
        fields = (self.criterion, self.reduction, self.coverage)
        count = max(len(each(field)) for field in fields)
        criteria, reductions, sides = (each(field) * (1 if is_listed(field) else count) for field in fields)
        return tuple(zip(criteria, map(find_reduction, reductions), sides, strict=True))

    @property
    def named(self) -> Method | None:
        """The registered method that criterion, reduction and schedule make up; None if they have no name."""
        (part, *others) = dict.fromkeys(self.parts)
        return None if others or part[2] is not None else method_of(*part[:2], self.schedule)

    @property
    def label(self) -> str:
        """For tables and figures: "Rényi, order 2"; criterion and reduction in words where they have no name.

        Where they differ from block to block, all of them: "Rényi, order ∞ → EViT".
        """
        labels = [setting_label(*part, self.schedule) for part in self.parts]
        return labels[0] if len(set(labels)) == 1 else " → ".join(labels)

    def stages(self, depth: int) -> tuple[Stage, ...]:
        """What each reducing block of a model of `depth` blocks does, ascending.

        Raises:
            ValueError: a block lies outside the model, or a field with one value per block does not have as many.
        """
        blocks = self.schedule.blocks(depth) if self.blocks is None else self.blocks
        if blocks and blocks[-1] >= depth:
            raise ValueError(f"blocks must lie in 0 … {depth - 1} for a model of depth {depth}, but got {blocks}.")
        rates = self.keep_rate if isinstance(self.keep_rate, tuple) else (self.keep_rate,) * len(blocks)
        if len(rates) != len(blocks):
            raise ValueError(f"keep_rate must be one number or one per block {blocks}, but got {len(rates)} rates.")
        check_lengths({name: getattr(self, name) for name in _CHECKS}, blocks)
        self.schedule.check(len(blocks))
        parts = check_first(self.parts if len(self.parts) > 1 else self.parts * len(blocks), blocks, depth)
        return tuple(
            Stage(block, i, len(blocks), rate, exact_rate(rate), a, b, self.schedule, side, compounded(rates[: i + 1]))
            for i, (block, rate, (a, b, side)) in enumerate(zip(blocks, rates, parts, strict=True))
        )

    def changed(self, **fields: Any) -> PruneConfig:
        """This setting with other fields, given as for `PruneConfig`; what a new one makes meaningless is dropped.

        A `method` replaces criterion, reduction, schedule and coverage, `order` the criterion, `r` the schedule.
        Another kind of schedule chooses its own blocks, unless some are given.
        """
        dropped: set[str] = set()
        if fields.get("method") is not None:
            dropped |= {"criterion", "reduction", "schedule", "coverage"}
        dropped |= {"criterion"} if fields.get("order") is not None else set()
        dropped |= {"schedule"} if fields.get("r") is not None else set()
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in dropped | set(fields)}
        reduction = fields.get("reduction", kept.get("reduction"))
        if reduction is not None and not any(find_reduction(one).needs_scores for one in each(reduction)):
            kept.pop("criterion", None)
            kept.pop("coverage", None)
        schedule = self._next_schedule(fields)
        if not schedule.uses_keep_rate:
            if "keep_rate" in fields:
                raise ignored_rate(schedule, fields["keep_rate"])
            kept.pop("keep_rate", None)
        if type(schedule) is not type(self.schedule):
            kept.pop("blocks", None)
        return PruneConfig(**{**kept, **fields})

    def _next_schedule(self, fields: dict[str, Any]) -> Schedule:
        """The schedule that `changed` will have."""
        if fields.get("r") is not None:
            return RemovePerBlock(fields["r"])
        if fields.get("method") is not None:
            return find_method(each(fields["method"])[0]).schedule
        schedule = fields.get("schedule")
        return schedule if isinstance(schedule, Schedule) else self.schedule

    def warmed(self, share: float) -> PruneConfig:
        """This setting with each keep rate ρ moved to ρ + (1 - ρ)·share, as EViT's warm-up does: 1 keeps all."""

        def moved(rate: float) -> float:
            # Rounded, since a rate counts as the decimal that is written; four digits are below one patch of any grid.
            return min(round(rate + (1 - rate) * share, 4), 1.0)

        return dataclasses.replace(self, keep_rate=mapped(self.keep_rate, moved))

    def to_json(self) -> str:
        """This setting as a JSON object; `from_json` gives an equal one back."""
        saved = {
            "version": VERSION,
            "keep_rate": self.keep_rate,
            "criterion": mapped(self.criterion, lambda criterion: criterion.to_dict()),
            "blocks": self.blocks,
            "reduction": mapped(self.reduction, lambda one: one if isinstance(one, str) else one.to_dict()),
            "schedule": self.schedule.to_dict(),
            "backend": self.backend,
            "coverage": self.coverage,
        }
        return json.dumps(saved, indent=2)

    def to_dict(self) -> dict[str, Any]:
        """What `to_json` writes, as JSON holds it: dictionaries, lists, texts, numbers, True, False and None."""
        return json.loads(self.to_json())

    @classmethod
    def from_json(cls, text: str) -> PruneConfig:
        """The setting that `to_json` wrote. Fields left out take their defaults; "method", "order" and "r" are short
        for others, as in `PruneConfig`.

        Raises:
            ValueError, TypeError: broken JSON, a newer version, unknown fields, or a value that is out of range.
        """
        with _readable():
            data = json.loads(text)
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> PruneConfig:
        """The setting that `to_dict` gave; as `from_json`, with its errors."""
        with _readable():
            return cls._from_data(data)

    @classmethod
    def _from_data(cls, data: Any) -> PruneConfig:
        if not isinstance(data, dict):
            raise ValueError(f"a pruning config must be a JSON object, but got {type(data).__name__}.")
        data = dict(data)
        version = data.pop("version", VERSION)
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= VERSION:
            raise ValueError(
                f"version of a pruning config must be 1 or {VERSION}, but got {version!r}: it was written by a newer "
                "entropatch, or by hand; upgrade, or leave it out."
            )
        known = list(cls.__dataclass_fields__)
        if unknown := sorted(set(data) - set(known)):
            raise ValueError(f"a pruning config has the fields {', '.join(known)}, but got {unknown}.")
        for name, family in (("criterion", Criterion), ("schedule", Schedule), ("reduction", Reduction)):
            if name in data:
                data[name] = mapped(data[name], lambda one, of=family: loaded(one, of))
        if "order" in data:
            data["order"] = mapped(data["order"], lambda order: float("inf") if order == "inf" else order)
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file, whole or not at all."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> PruneConfig:
        """The setting in a JSON file.

        Raises:
            ValueError: the file holds no setting; the message names file and reason.
            OSError: it cannot be read.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:  # broken JSON and broken UTF-8 are ValueErrors
            raise ValueError(f"{path} holds no pruning config: {error}") from error


@contextmanager
def _readable() -> Iterator[None]:
    """Say in a ValueError what of a saved setting Python itself cannot read."""
    try:
        yield
    except RecursionError:
        raise ValueError("a pruning config must be a flat JSON object, but this one is nested too deep.") from None
    except OverflowError as error:
        raise ValueError(f"a number of the pruning config is out of range: {error}.") from None


def method_config(
    name: str | Sequence[str], keep_rate: float | Sequence[float], blocks: Sequence[int] | None = None
) -> PruneConfig:
    """The setting of a named method, or one per block, at a keep rate ρ in (0, 1], or one per block.

    Errors as of `PruneConfig`.
    """
    rates: Any = keep_rate  # a tuple, or refused, by `PruneConfig`
    return PruneConfig(rates, blocks=None if blocks is None else tuple(blocks), method=name)
