"""What to prune, where and how much: `PruneConfig`, and the arithmetic of its keep rates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from entropatch.criteria import Criterion, Renyi
from entropatch.kernels.choice import check_backend
from entropatch.reduction import REDUCTIONS


@dataclass(frozen=True)
class PruneConfig:
    """A complete pruning setting; frozen, comparable, and saved as JSON.

    Args:
        keep_rate: ρ in (0, 1], the share of the patch tokens present that each pruning block keeps, k = ceil(ρ·n), so
            the rate compounds over blocks; or one rate for each entry of `blocks`. 1.0 keeps all: the stock model.
        criterion: how patches are scored. The default, `Renyi(order=2.0)`, is this package's choice; the searched
            orders of arXiv 2604.03803 are not published.
        blocks: 0-based blocks that prune, ascending; None means ¼, ½ and ¾ of the depth: (3, 6, 9) of 12, the paper's.
        reduction: "drop" removes the other patches; "fuse" appends EViT's one fused token made of them.
        backend: what computes the entropies: "auto", "reference", "streaming" or "triton" (see `entropatch.kernels`).

    Raises:
        ValueError, TypeError: a field is out of range or of the wrong type; the message names rule, value and fix.
    """

    keep_rate: float | tuple[float, ...] = 0.7
    criterion: Criterion = field(default_factory=Renyi)
    blocks: tuple[int, ...] | None = None
    reduction: str = "drop"
    backend: str = "auto"

    def __post_init__(self) -> None:
        rates = self.keep_rate
        if isinstance(rates, Sequence) and not isinstance(rates, str):
            object.__setattr__(self, "keep_rate", tuple(_check_rate(rate) for rate in rates))
        else:
            object.__setattr__(self, "keep_rate", _check_rate(rates))
        if not isinstance(self.criterion, Criterion):
            raise TypeError(f"criterion must be a Criterion such as Renyi(order=2.0), but got {self.criterion!r}.")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", _check_blocks(self.blocks))
        if not isinstance(self.reduction, str) or self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, but got {self.reduction!r}.")
        check_backend(self.backend)
        if isinstance(self.keep_rate, tuple) and self.blocks is not None and len(self.keep_rate) != len(self.blocks):
            raise ValueError(
                f"keep_rate must be one number or one per block, but got {len(self.keep_rate)} rates "
                f"for {len(self.blocks)} blocks {self.blocks}."
            )

    def schedule(self, depth: int) -> dict[int, float]:
        """The keep rate of each pruning block of a model of `depth` blocks: {block: rate}, ascending.

        Raises:
            ValueError: a block lies outside the model, or the number of rates is not the number of blocks.
        """
        blocks = default_blocks(depth) if self.blocks is None else self.blocks
        if blocks and blocks[-1] >= depth:
            raise ValueError(f"blocks must lie in 0 … {depth - 1} for a model of depth {depth}, but got {blocks}.")
        rates = self.keep_rate if isinstance(self.keep_rate, tuple) else (self.keep_rate,) * len(blocks)
        if len(rates) != len(blocks):
            raise ValueError(f"keep_rate must be one number or one per block {blocks}, but got {len(rates)} rates.")
        return dict(zip(blocks, rates, strict=True))

    def to_json(self) -> str:
        """This setting as a JSON object; `from_json` gives an equal one back."""
        data = asdict(self) | {"criterion": self.criterion.to_dict()}
        return json.dumps(data, indent=2)

    @classmethod
    def from_json(cls, text: str) -> PruneConfig:
        """The setting that `to_json` wrote. Raises ValueError for unknown fields, criteria or broken JSON."""
        data: Any = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(f"a pruning config must be a JSON object, but got {type(data).__name__}.")
        unknown = set(data) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"a pruning config has the fields {', '.join(cls.__dataclass_fields__)}, but got {sorted(unknown)}."
            )
        if "criterion" in data:
            data["criterion"] = Criterion.from_dict(data["criterion"])
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)

    @classmethod
    def load(cls, path: str | Path) -> PruneConfig:
        """The setting in a JSON file."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def default_blocks(depth: int) -> tuple[int, ...]:
    """Blocks at ¼, ½ and ¾ of the depth, 0-based: (3, 6, 9) of 12; fewer for models of under four blocks."""
    return tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))


def exact_rate(keep_rate: float) -> tuple[int, int]:
    """The decimal the user wrote, as numerator and denominator: 0.55 is 11/20, not the nearest binary fraction."""
    rate = Fraction(repr(keep_rate))
    return rate.numerator, rate.denominator


def kept_count(rate: tuple[int, int], n: int) -> int:
    """k = ceil(ρ·n) in exact integers: 0.55 of 100 is 55, though math.ceil(0.55 * 100) is 56.

    `n` may be a symbolic size of torch.compile or torch.export.
    """
    numerator, denominator = rate
    return (n * numerator + denominator - 1) // denominator


def _check_rate(rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, Real):
        raise TypeError(f"keep_rate must be a number in (0, 1], or one per block, but got {rate!r}.")
    if not 0 < rate <= 1:  # NaN too  # pyright: ignore[reportOperatorIssue]
        raise ValueError(f"keep_rate must lie in (0, 1], 1 keeping every patch, but got {rate!r}.")
    return float(rate)


def _check_blocks(blocks: Any) -> tuple[int, ...]:
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
