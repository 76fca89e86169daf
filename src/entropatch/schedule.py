"""How many tokens stay, block by block: keep rates, tokens removed per block, a share of the importance per image.

A schedule says which blocks reduce, and is asked after scoring how many patch tokens stay: one number, or one for each
image. `n` may be a symbolic size of torch.compile or torch.export.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from entropatch.kinds import Kind

MOST_SIZES = 4
MOST_REMOVED = 10**9  # per block; no model has as many, and arithmetic with floats must hold


@dataclass(frozen=True)
class Site:
    """Where a schedule is asked.

    Attributes:
        block: 0-based.
        stage: how many blocks reduced before it.
        stages: how many blocks reduce.
        rate: ρ of this block as an exact fraction, (numerator, denominator); see `exact_rate`.
        n: patch tokens present.
        total: patches that entered the first block.
        share: the rates of the reducing blocks up to this one, this one's included, multiplied.
    """

    block: int
    stage: int
    stages: int
    rate: tuple[int, int]
    n: int
    total: int
    share: float = 1.0


class Schedule(Kind):
    """How many patch tokens stay. Subclasses are frozen dataclasses, so that they compare, hash and save.

    Attributes:
        per_image: whether `count` reads the scores and returns one number per image.
        reads: with `per_image` what it reads of them: "mass", shares of the image's importance (`Criterion.mass`), or
            "level", on a scale that images have in common (`Criterion.level`).
        sizes: with `per_image` the sizes that images run in, as rates of the patches that entered the model; numbers
            are rounded up to them. At most four with 1.0, which is always one.
    """

    example: ClassVar[str] = '{"name": "RemovePerBlock", "r": 13}'
    per_image: ClassVar[bool] = False
    reads: ClassVar[str] = "mass"
    sizes: tuple[float, ...] | None = (0.25, 0.5, 0.75, 1.0)

    @property
    def uses_keep_rate(self) -> bool:
        """Whether `PruneConfig.keep_rate` means anything to it."""
        return not self.per_image

    @property
    def label(self) -> str:
        """How many stay, in words, for labels; empty where the keep rate says it."""
        return "" if self.uses_keep_rate else type(self).__name__

    @property
    def chooses(self) -> bool:
        """Whether it says which patches stay (`chosen`), not only how many."""
        return type(self).chosen is not Schedule.chosen

    def rounded(self, counts: Tensor, site: Site) -> Tensor:
        """Numbers of tokens (batch,) rounded up to `sizes`, which depend on no other image."""
        rounded = torch.full_like(counts, site.n)
        for rate in sorted({*(self.sizes or ()), 1.0}, reverse=True):
            size = min(kept_count(exact_rate(rate), site.total), site.n)
            rounded = torch.where(counts <= size, size, rounded)
        return rounded

    def blocks(self, depth: int) -> tuple[int, ...]:
        """The blocks that reduce where the setting names none: ¼, ½ and ¾ of the depth."""
        return default_blocks(depth)

    def check(self, stages: int) -> None:
        """Raise ValueError if the schedule does not fit so many reducing blocks."""

    @abstractmethod
    def count(self, site: Site, mass: Tensor | None) -> int | Tensor:
        """How many of the `site.n` patch tokens stay: one number, or with `per_image` (batch,) int64.

        Args:
            site: where.
            mass: what the schedule `reads`, (batch, n), float32, with `per_image`; else None. The images are those of
                the batch that have as many tokens as each other.
        """

    def chosen(self, site: Site, mass: Tensor) -> Tensor | None:
        """Which patches `count` counts, (batch, n) bool, with `per_image`; None where they are the best.

        A reduction that keeps the best then keeps these first.
        """
        return None


@dataclass(frozen=True)
class KeepRate(Schedule):
    """k = ceil(ρ·n) of the n patch tokens present, so the rate compounds over the blocks. The paper's schedule."""

    def count(self, site: Site, mass: Tensor | None) -> int:
        return kept_count(site.rate, site.n)


@dataclass(frozen=True)
class FloorRate(Schedule):
    """k = int(n · ρ), at least 1, at a third and two thirds of the depth, blocks 4 and 8 of 12: Evo-ViT's (Xu 2022).

    Computed and cut off in double precision, as the released code does it, so that 0.29 of 100 patches are 28. Meant
    for `SlowFast`, which loses no tokens, so that n is the same in both.
    """

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(sorted({max(third * depth // 3, 1) for third in (1, 2)} & set(range(depth))))

    def count(self, site: Site, mass: Tensor | None) -> int:
        return cut_off(site.n, site.rate[0] / site.rate[1])  # the float it was before it was made exact


@dataclass(frozen=True)
class RemovePerBlock(Schedule):
    """ToMe's schedule (Bolya et al. 2023): r tokens less after each block; every block, unless the setting names some.

    What differs from the released code: there the two numbers of a tuple are r and f; and a list that is too short is
    filled up with zeros, one that is too long cut off.

    Args:
        r: how many tokens each block removes; or one number for each reducing block; or None: in all as many as three
            stages of the keep rate ρ remove, n - ceil(ρ·ceil(ρ·ceil(ρ·n))), spread evenly over the blocks.
        inflection: f in [-1, 1] makes a single r linear over the blocks, from a = int(r·(1 - f)) to 2r - a, each cut
            off to a whole number; f = -1 removes 2r in the first block and none in the last. Computed in double
            precision, as the released code does it, so that 10 tokens at f = 0.9 begin with 0: 1 - 0.9 is below 0.1.
    """

    r: int | tuple[int, ...] | None = None
    inflection: float = 0.0

    def __post_init__(self) -> None:
        given: Any = self.r
        listed = isinstance(given, Sequence) and not isinstance(given, str)
        # ToMe's own code takes r and an inflection as one tuple.
        apart = " For an inflection use RemovePerBlock(r, inflection=…)." if listed and len(given) == 2 else ""
        for r in given if listed else () if given is None else (given,):
            if isinstance(r, bool) or not isinstance(r, Integral):
                raise TypeError(f"r must be a number of tokens, or one for each block, but got {self.r!r}.{apart}")
            if r < 0:
                raise ValueError(f"r must be at least 0 tokens per block, but got {self.r!r}.{apart}")
            if int(r) > MOST_REMOVED:
                digits = len(str(r))
                raise ValueError(f"r must be at most {MOST_REMOVED} tokens per block, but got one of {digits} digits.")
        if given is not None:
            values: Any = given
            object.__setattr__(self, "r", tuple(int(r) for r in values) if listed else int(values))
        object.__setattr__(self, "inflection", number("inflection", self.inflection))
        if not -1 <= self.inflection <= 1:
            raise ValueError(f"inflection must lie in [-1, 1], but got {self.inflection!r}.")
        if self.inflection and (listed or self.r is None):
            raise ValueError("inflection needs a single r to make linear; leave it out with r per block or none.")

    @property
    def uses_keep_rate(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Only where r does not say how many go."""
        return self.r is None

    @property
    def label(self) -> str:
        if self.r is None:
            return ""
        if isinstance(self.r, tuple):
            return f"{', '.join(map(str, self.r))} tokens in its blocks"
        return f"{self.r} tokens per block" + (f", inflection {self.inflection:g}" if self.inflection else "")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(range(depth))

    def check(self, stages: int) -> None:
        if isinstance(self.r, tuple) and len(self.r) != stages:
            raise ValueError(f"r must be one number or one for each of the {stages} blocks, but got {len(self.r)}.")

    def count(self, site: Site, mass: Tensor | None) -> int:
        r = self.r
        if r is None:
            left = site.total
            for _ in range(3):
                left = kept_count(site.rate, left)
            gone = site.total - left
            removed = gone * (site.stage + 1) // site.stages - gone * site.stage // site.stages
        elif isinstance(r, tuple):
            removed = r[site.stage]
        else:
            first = int(r * (1 - self.inflection))
            removed = int(first + 2 * (r - first) / max(site.stages - 1, 1) * site.stage)
        return site.n - removed


@dataclass(frozen=True)
class CumulativeImportance(Schedule):
    """As many patches of each image as hold a share of its importance: easy images keep fewer, hard ones more.

    k is the least number whose highest importances (as shares, `Criterion.mass`) add up to `share`, rounded up to one
    of at most four sizes, so that images of one size run together; see `entropatch.surgery.loop`.

    Args:
        share: of the importance, in (0, 1].
        sizes: as in `Schedule`, each in (0, 1]; at most four with 1.0, which is always one.
    """

    per_image: ClassVar[bool] = True

    share: float = 0.9
    sizes: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", number("share", self.share))
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be a number in (0, 1], but got {self.share!r}.")
        object.__setattr__(self, "sizes", check_sizes(self.sizes))

    @property
    def label(self) -> str:
        return f"{self.share:.4g} of each image's importance"

    def count(self, site: Site, mass: Tensor | None) -> Tensor:
        assert mass is not None
        held = mass.double().sort(dim=1, descending=True).values.cumsum(1)
        # Rounding may leave the whole sum short of a share of 1. Of shares that are no numbers none is known to do.
        return (~(held >= self.share - 1e-6)).sum(1) + 1


def default_blocks(depth: int) -> tuple[int, ...]:
    """Blocks at ¼, ½ and ¾ of the depth, 0-based: (3, 6, 9) of 12; fewer for models of under four blocks."""
    return tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))


def check_sizes(given: Any) -> tuple[float, ...]:
    """The sizes of a schedule with a number for each image, ascending, 1.0 among them.

    Raises:
        TypeError, ValueError: not rates in (0, 1], or more than four.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"sizes must be a sequence of rates in (0, 1], but got {given!r}.")
    sizes = {*(number("each of sizes", size) for size in given), 1.0}
    if len(sizes) > MOST_SIZES or not all(0 < size <= 1 for size in sizes):
        raise ValueError(
            f"sizes must be rates in (0, 1], at most {MOST_SIZES} with 1.0, which is always one, but got {given!r}."
        )
    return tuple(sorted(sizes))


def number(name: str, value: Any) -> float:
    """The value as a float. Raises TypeError, which names the field, for what is no number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, but got {value!r}.")
    return float(value)  # pyright: ignore[reportArgumentType]


def cut_off(n: int, share: float) -> int:
    """int(n · share) in double precision, also of a number that is a symbol or, where it is traced, a tensor."""
    if isinstance(n, torch.SymInt):
        return torch.sym_int(n * share)
    return int(int(n) * share)


def compounded(rates: Sequence[float]) -> float:
    """The product of keep rates; of equal ones a power, as where one says it of all.

    Rates that are quotients of shares, (0.6, 0.35 / 0.6), give the shares back: a product that rounding alone keeps
    from a fraction is that fraction.
    """
    if len({*rates}) == 1:
        return rates[0] ** len(rates)
    product = math.prod(rates)
    meant = float(Fraction(product).limit_denominator())
    return meant if math.isclose(meant, product, rel_tol=1e-15) else product


def exact_rate(keep_rate: float) -> tuple[int, int]:
    """The decimal the user wrote, as numerator and denominator: 0.55 is 11/20, not the nearest binary fraction."""
    rate = Fraction(repr(keep_rate))
    return rate.numerator, rate.denominator


def kept_count(rate: tuple[int, int], n: Any) -> Any:
    """k = ceil(ρ·n) in exact integers: 0.55 of 100 is 55, though math.ceil(0.55 * 100) is 56.

    `n` may be a symbolic size of torch.compile or torch.export.
    """
    numerator, denominator = rate
    return (n * numerator + denominator - 1) // denominator
