"""Schedules of methods that learn which tokens to drop: a share of all patches, or those that the scores say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from entropatch.schedule import RemovePerBlock, Schedule, Site, cut_off


@dataclass(frozen=True)
class ShareOfTotal(Schedule):
    """k = int(n0 · ρ^s) in the s-th reducing block, of the n0 patches that entered the model: DynamicViT's (Rao 2021).

    The power and the product are computed and cut off in double precision, as the released code does it, so that 0.7²
    of 100 patches are 48. Where blocks have rates of their own, their product stands for the power: its token ratios
    (0.8, 0.6, 0.3) are the keep rates (0.8, 0.6 / 0.8, 0.3 / 0.6). At least 1.
    """

    def count(self, site: Site, mass: Tensor | None) -> int:
        return cut_off(site.total, site.share)


@dataclass(frozen=True)
class RemoveBetweenBlocks(RemovePerBlock):
    """R tokens less before each block but the first and the last, and one more the first time: Token Cropr's.

    The released code (Bergner et al. 2025) removes R + 1 behind its first block, to make up for the class token. So
    does this wherever R is a single number above 0; for a model without a class token, or for another reduction than
    `Park`, which in the release prunes before the last block too, give one number for each block.

    Args:
        r: R; or one number for each reducing block, taken as they are; None: as many in all as three stages of the keep
            rate remove.
        inflection: as in `RemovePerBlock`.
    """

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(range(1, max(depth - 1, 2)))

    def count(self, site: Site, mass: Tensor | None) -> int:
        more = int(isinstance(self.r, int) and self.r > 0 and site.stage == 0)
        return super().count(site, mass) - more


@dataclass(frozen=True)
class AboveZero(Schedule):
    """The patches whose score is above 0 stay, in each image: those that a criterion decides to keep; perhaps none.

    Args:
        sizes: None: what images keep is not rounded, since with other patches than those they would give other outputs.
    """

    per_image: ClassVar[bool] = True
    reads: ClassVar[str] = "level"

    sizes: tuple[float, ...] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        if self.sizes is not None:
            raise ValueError(f"sizes must be None: the scores say which patches stay, but got {self.sizes!r}.")

    @property
    def label(self) -> str:
        return "as decided"

    def rounded(self, counts: Tensor, site: Site) -> Tensor:
        return counts

    def chosen(self, site: Site, mass: Tensor) -> Tensor:
        return mass > 0

    def count(self, site: Site, mass: Tensor | None) -> Tensor:
        assert mass is not None
        return (mass > 0).sum(1)


@dataclass(frozen=True)
class AboveZeroEverywhere(AboveZero):
    """`AboveZero` before every block but the first: A-ViT's (Yin et al. 2022)."""

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(range(1, depth))


@dataclass(frozen=True)
class AtExits(AboveZero):
    """`AboveZero` before the blocks at a half and two thirds of the depth, 6 and 8 of 12, so behind 5 and 7: DToP's
    exits in a ViT-B (Tang et al. 2023)."""

    @property
    def label(self) -> str:
        return ""

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(sorted({max(depth // 2, 1), max(2 * depth // 3, 1)} & set(range(depth))))


@dataclass(frozen=True)
class TowardsShare(AboveZero):
    """`AboveZero`, of a model that is trained to keep a share ρ^s of the batch's patches in the s-th reducing block.

    At inference the scores alone say how many stay; SPViT's (Kong et al. 2022). A keep rate of 1 keeps all.
    """

    @property
    def uses_keep_rate(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return True

    @property
    def label(self) -> str:
        return ""
