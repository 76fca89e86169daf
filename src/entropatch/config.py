"""What to prune, where and how much: `PruneConfig`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

from entropatch.config_fields import UNSET, check_blocks, check_rate, find_reduction, shortened, written_out
from entropatch.criteria import Criterion, Renyi
from entropatch.kernels.choice import check_backend
from entropatch.methods import Method, find_method, method_of, renyi_method
from entropatch.records.files import write_text
from entropatch.reductions import Reduction
from entropatch.schedule import MOST_SIZES, RemovePerBlock, Schedule, exact_rate

VERSION = 1
KEEP_RATE = 0.7
_DEPTH = 12  # of a model on which two schedules are compared by the blocks they would take


@dataclass(frozen=True)
class Stage:
    """What one block does with the tokens.

    Attributes:
        block: 0-based.
        index, count: which of how many reducing blocks it is.
        keep_rate: ρ of this block.
        rate: the same as an exact fraction.
        criterion, reduction, schedule: as in `PruneConfig`.
    """

    block: int
    index: int
    count: int
    keep_rate: float
    rate: tuple[int, int]
    criterion: Criterion
    reduction: Reduction
    schedule: Schedule


@dataclass(frozen=True)
class PruneConfig:
    """A complete pruning setting; frozen, comparable, and saved as JSON.

    Args:
        keep_rate: ρ in (0, 1], the share of the patch tokens present that each pruning block keeps, k = ceil(ρ·n), so
            the rate compounds over blocks; or one rate for each pruning block. 1.0 keeps all: the stock model.
        criterion: how patches are scored. The default, `Renyi(order=2.0)`, is this package's choice; the searched
            orders of arXiv 2604.03803 are not published.
        blocks: 0-based blocks that prune, ascending; None leaves them to the schedule: for keep rates ¼, ½ and ¾ of the
            depth, (3, 6, 9) of 12, the paper's; for `RemovePerBlock` all of them.
        reduction: what becomes of the others, by its short name or as a `Reduction`: "drop" removes them; "fuse"
            appends EViT's one fused token made of them; "merge" merges each into the kept one most like it; "bipartite"
            is ToMe's matching.
        schedule: how many stay; `KeepRate()` unless another `Schedule` is given.
        backend: what computes the entropies: "auto", "reference", "streaming" or "triton" (see `entropatch.kernels`).
        method: the name of a registered method (`entropatch.methods`); short for its criterion, reduction and schedule.
        order: short for `criterion=Renyi(order)`.
        r: tokens removed per block, one number or one for each; short for `schedule=RemovePerBlock(r)`.

    Raises:
        ValueError, TypeError: a field is out of range or of the wrong type; the message names rule, value and fix.
    """

    keep_rate: float | tuple[float, ...] = KEEP_RATE
    criterion: Criterion = UNSET
    blocks: tuple[int, ...] | None = None
    reduction: str | Reduction = UNSET
    schedule: Schedule = UNSET
    backend: str = "auto"
    method: InitVar[str | None] = None
    r: InitVar[int | Sequence[int] | None] = None
    order: InitVar[float | None] = None

    def __post_init__(self, method: str | None, r: int | Sequence[int] | None, order: float | None) -> None:
        given = {name: getattr(self, name) for name in ("criterion", "reduction", "schedule")}
        for name, value in written_out(given, method, order, r).items():
            object.__setattr__(self, name, value)
        rates = self.keep_rate
        if isinstance(rates, Sequence) and not isinstance(rates, str):
            object.__setattr__(self, "keep_rate", tuple(check_rate(rate) for rate in rates))
        else:
            object.__setattr__(self, "keep_rate", check_rate(rates))
        if not isinstance(self.criterion, Criterion):
            raise TypeError(f"criterion must be a Criterion such as Renyi(order=2.0), but got {self.criterion!r}.")
        object.__setattr__(self, "reduction", shortened(find_reduction(self.reduction)))
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule such as RemovePerBlock(r=13), but got {self.schedule!r}.")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", check_blocks(self.blocks))
        check_backend(self.backend)
        self._check_ignored()
        if isinstance(self.keep_rate, tuple) and self.blocks is not None and len(self.keep_rate) != len(self.blocks):
            raise ValueError(
                f"keep_rate must be one number or one per block, but got {len(self.keep_rate)} rates "
                f"for {len(self.blocks)} blocks {self.blocks}."
            )

    def _check_ignored(self) -> None:
        """Refuse what would have no effect."""
        if not self.reducing.needs_scores and self.criterion != Renyi():
            raise ValueError(
                f"reduction {self.reducing.kind!r} asks no criterion, so {self.criterion!r} would have no effect; "
                'leave it out, or use reduction="merge".'
            )
        if not self.schedule.uses_keep_rate and self.keep_rate != KEEP_RATE:
            raise _ignored_rate(self.schedule, self.keep_rate)
        if self.schedule.per_image and len({*self.schedule.sizes, 1.0}) > MOST_SIZES:
            raise ValueError(
                f"a schedule with a number for each image has at most {MOST_SIZES} sizes with 1.0, always one of them, "
                f"but {self.schedule!r} has {self.schedule.sizes}."
            )
        if self.schedule.per_image and not self.reducing.needs_scores:
            raise ValueError(
                f"{self.schedule!r} reads the scores of patches, but reduction {self.reducing.kind!r} has none; use "
                'reduction="drop" or "merge".'
            )

    @property
    def reducing(self) -> Reduction:
        """The `Reduction` that `reduction` is, or stands for by its short name."""
        return find_reduction(self.reduction)

    @property
    def named(self) -> Method | None:
        """The registered method that criterion, reduction and schedule make up; None if they have no name."""
        return method_of(self.criterion, self.reducing, self.schedule)

    @property
    def label(self) -> str:
        """For tables and figures: "Rényi, order 2"; criterion and reduction in words where they have no name."""
        if self.named is not None:
            return self.named.label
        usual = method_of(self.criterion, self.reducing, type(self.schedule)())
        if usual is not None:
            return f"{usual.label}, {self.schedule.label}"
        if isinstance(self.criterion, Renyi):
            criterion = renyi_method(self.criterion.order).label
        else:
            fields = {key: value for key, value in vars(self.criterion).items() if not key.startswith("_")}
            text = ", ".join(f"{key} {value}" for key, value in fields.items())
            criterion = type(self.criterion).__name__ + (f" ({text})" if text else "")
        parts = [criterion if self.reducing.needs_scores else "", self.reducing.outcome, self.schedule.label]
        return ", ".join(part for part in parts if part)

    def stages(self, depth: int) -> tuple[Stage, ...]:
        """What each reducing block of a model of `depth` blocks does, ascending.

        Raises:
            ValueError: a block lies outside the model, or the number of rates is not the number of blocks.
        """
        blocks = self.schedule.blocks(depth) if self.blocks is None else self.blocks
        if blocks and blocks[-1] >= depth:
            raise ValueError(f"blocks must lie in 0 … {depth - 1} for a model of depth {depth}, but got {blocks}.")
        rates = self.keep_rate if isinstance(self.keep_rate, tuple) else (self.keep_rate,) * len(blocks)
        if len(rates) != len(blocks):
            raise ValueError(f"keep_rate must be one number or one per block {blocks}, but got {len(rates)} rates.")
        self.schedule.check(len(blocks))
        return tuple(
            Stage(block, i, len(blocks), rate, exact_rate(rate), self.criterion, self.reducing, self.schedule)
            for i, (block, rate) in enumerate(zip(blocks, rates, strict=True))
        )

    def changed(self, **fields: Any) -> PruneConfig:
        """This setting with other fields, given as for `PruneConfig`; what a new one makes meaningless is dropped.

        A `method` replaces criterion, reduction and schedule, `order` the criterion, `r` the schedule. Another kind of
        schedule chooses its own blocks, unless some are given.
        """
        dropped: set[str] = set()
        if fields.get("method") is not None:
            dropped |= {"criterion", "reduction", "schedule"}
        dropped |= {"criterion"} if fields.get("order") is not None else set()
        dropped |= {"schedule"} if fields.get("r") is not None else set()
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in dropped | set(fields)}
        reduction = fields.get("reduction", kept.get("reduction"))
        if reduction is not None and not find_reduction(reduction).needs_scores:
            kept.pop("criterion", None)
        schedule = self._next_schedule(fields)
        if not schedule.uses_keep_rate:
            if "keep_rate" in fields:
                raise _ignored_rate(schedule, fields["keep_rate"])
            kept.pop("keep_rate", None)
        if type(schedule) is not type(self.schedule):
            kept.pop("blocks", None)
        return PruneConfig(**{**kept, **fields})

    def _next_schedule(self, fields: dict[str, Any]) -> Schedule:
        """The schedule that `changed` will have."""
        if fields.get("r") is not None:
            return RemovePerBlock(fields["r"])
        if fields.get("method") is not None:
            return find_method(fields["method"]).schedule
        schedule = fields.get("schedule")
        return schedule if isinstance(schedule, Schedule) else self.schedule

    def warmed(self, share: float) -> PruneConfig:
        """This setting with each keep rate ρ moved to ρ + (1 - ρ)·share, as EViT's warm-up does: 1 keeps all."""
        rates = self.keep_rate if isinstance(self.keep_rate, tuple) else (self.keep_rate,)
        # Rounded, since a rate counts as the decimal that is written; four digits are below one patch of any grid.
        moved = tuple(min(round(rate + (1 - rate) * share, 4), 1.0) for rate in rates)
        return dataclasses.replace(self, keep_rate=moved if isinstance(self.keep_rate, tuple) else moved[0])

    def to_json(self) -> str:
        """This setting as a JSON object; `from_json` gives an equal one back."""
        saved = {
            "version": VERSION,
            "keep_rate": self.keep_rate,
            "criterion": self.criterion.to_dict(),
            "blocks": self.blocks,
            "reduction": self.reduction if isinstance(self.reduction, str) else self.reduction.to_dict(),
            "schedule": self.schedule.to_dict(),
            "backend": self.backend,
        }
        return json.dumps(saved, indent=2)

    @classmethod
    def from_json(cls, text: str) -> PruneConfig:
        """The setting that `to_json` wrote. Fields left out take their defaults; "method", "order" and "r" are short
        for others, as in `PruneConfig`.

        Raises:
            ValueError, TypeError: broken JSON, a newer version, unknown fields, or a value that is out of range.
        """
        try:
            return cls._from_data(json.loads(text))
        except RecursionError:
            raise ValueError("a pruning config must be a flat JSON object, but this one is nested too deep.") from None
        except OverflowError as error:
            raise ValueError(f"a number of the pruning config is out of range: {error}.") from None

    @classmethod
    def _from_data(cls, data: Any) -> PruneConfig:
        if not isinstance(data, dict):
            raise ValueError(f"a pruning config must be a JSON object, but got {type(data).__name__}.")
        version = data.pop("version", VERSION)
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= VERSION:
            raise ValueError(
                f"version of a pruning config must be {VERSION}, but got {version!r}: it was written by a newer "
                "entropatch, or by hand; upgrade, or leave it out."
            )
        known = list(cls.__dataclass_fields__)
        if unknown := sorted(set(data) - set(known)):
            raise ValueError(f"a pruning config has the fields {', '.join(known)}, but got {unknown}.")
        for name, family in (("criterion", Criterion), ("schedule", Schedule)):
            if name in data:
                data[name] = family.from_dict(data[name])
        if isinstance(data.get("reduction"), dict):
            data["reduction"] = Reduction.from_dict(data["reduction"])
        if data.get("order") == "inf":
            data["order"] = float("inf")
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


def _ignored_rate(schedule: Schedule, keep_rate: Any) -> ValueError:
    return ValueError(
        f"{schedule!r} says by itself how many tokens stay, so keep_rate={keep_rate!r} would have no effect; leave it "
        f"out, or give schedule={'RemovePerBlock()' if isinstance(schedule, RemovePerBlock) else 'KeepRate()'} with it."
    )


def method_config(name: str, keep_rate: float | Sequence[float], blocks: Sequence[int] | None = None) -> PruneConfig:
    """The setting of a named method at a keep rate ρ in (0, 1], or one per block. Errors as of `PruneConfig`."""
    rates: Any = keep_rate  # a tuple, or refused, by `PruneConfig`
    return PruneConfig(rates, blocks=None if blocks is None else tuple(blocks), method=name)
