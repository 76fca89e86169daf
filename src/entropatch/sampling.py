"""ATS's schedule: patches drawn by inverse-transform sampling of their importance, a number for each image."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor

from entropatch.schedule import Schedule, Site, check_sizes, default_blocks, kept_count


@dataclass(frozen=True)
class InverseTransform(Schedule):
    """Adaptive token sampling (ATS, Fayyaz et al. 2022): each image keeps the patches that K fixed points sample.

    Of the shares S_j of the importance (`Criterion.mass`; `ValueAttention` for ATS), sorted ascending, the sums
    C_i = S_1 + … + S_i are stretched to F_i = (C_i - C_1) / (C_n - C_1), so that F_1 = 0 and F_n = 1. K points stand
    evenly from the least positive F to 1, both included. Each samples the patch with the nearest F, of equally near
    ones the first; a patch sampled several times is kept once. So K is a limit: of an image whose importance lies in
    few patches few stay. Nothing is drawn at random. In float64.

    The paper's points are (2k - 1) / 2K, with the patches in their own order and F not stretched; sorting, stretching
    and these points are its released code's. That code drops inside the attention: only sampled patches are queries,
    all are keys and values. Here the attention of all is computed and the others are dropped in the middle of the
    block, which gives the same tokens and costs their rows. That code fills images up to the longest of the batch, with
    tokens of importance 0 that take part in its later sums, so that there even the least important patch is sampled;
    here images do not know of each other. Its order of the kept tokens is that of their scores, here their own, which
    no output depends on. It adds 10⁻⁶ to the sums of its softmax, knows no prefix token but the class token, and
    computes in float32, so that of two patches that are equally near but for rounding it may sample the other.

    Args:
        samples: K, the same in every stage; the released model's is the number of patches that enter it. Then all
            blocks from a quarter of the depth on sample, (3, …, 11) of 12, and there is no keep rate. Where more than K
            patches are present, only the K of the highest importance can be sampled, the points below them all by the
            least of these: so does the released sampler. None takes K = ceil(ρ·n) of the n present at the keep rate ρ,
            in the blocks where other methods prune, and all n can be sampled; 1 keeps all.
        sizes: as in `CumulativeImportance`; numbers are rounded up to them by further patches of the highest scores, so
            that more images run together. None keeps exactly what was sampled, in as many groups as there are numbers.
    """

    per_image: ClassVar[bool] = True

    samples: int | None = None
    sizes: tuple[float, ...] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        samples: Any = self.samples
        if samples is not None:
            if isinstance(samples, bool) or not isinstance(samples, Integral):
                raise TypeError(f"samples must be a number of points, or None for the keep rate, but got {samples!r}.")
            if samples < 2:
                raise ValueError(f"samples must be at least 2, the least and the largest, but got {samples!r}.")
            object.__setattr__(self, "samples", int(samples))
        if self.sizes is not None:
            object.__setattr__(self, "sizes", check_sizes(self.sizes))

    @property
    def uses_keep_rate(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Only where no number of samples is given."""
        return self.samples is None

    @property
    def label(self) -> str:
        return "" if self.samples is None else f"{self.samples} samples"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return default_blocks(depth) if self.samples is None else tuple(range(depth // 4, depth))

    def rounded(self, counts: Tensor, site: Site) -> Tensor:
        return counts if self.sizes is None else super().rounded(counts, site)

    def chosen(self, site: Site, mass: Tensor) -> Tensor:
        if self.samples is None and site.rate[0] == site.rate[1]:
            return torch.ones_like(mass, dtype=torch.bool)
        if self.samples is None:
            return sampled(mass, kept_count(site.rate, site.n))
        return sampled(mass, self.samples, self.samples)

    def count(self, site: Site, mass: Tensor | None) -> Tensor:
        assert mass is not None
        return self.chosen(site, mass).sum(1)


def sampled(mass: Tensor, points: int, among: int | None = None) -> Tensor:
    """Which patches `points` points sample from their shares of the importance: (batch, n) -> (batch, n) bool.

    `among`: only so many of the highest shares can be sampled; None: all.
    """
    shares, order = mass.double().sort(dim=1, stable=True)
    sums = shares.cumsum(1)
    least, most = sums[:, :1], sums[:, -1:]
    unit = ((sums - least) / (most - least)).contiguous()
    first = torch.where(unit > 0, unit, 1.0).amin(1, keepdim=True)
    if among is not None:
        unit, order = unit[:, -among:].contiguous(), order[:, -among:]
    even = torch.linspace(0 if points > 1 else 1, 1, points, dtype=unit.dtype, device=unit.device)
    at = (first + (1 - first) * even).contiguous()
    last = int(unit.shape[1]) - 1  # a tensor on the CPU where multiply-adds are counted by tracing
    above = torch.searchsorted(unit, at).clamp_max(last)
    below = (above - 1).clamp_min(0)
    low, high = unit.gather(1, below), unit.gather(1, above)
    nearest = torch.searchsorted(unit, torch.where(at - low <= high - at, low, high).contiguous())
    nearest = nearest.clamp_max(last)
    # In numbers, since the tracer that counts multiply-adds knows no scatter of truths.
    mark = torch.zeros_like(mass).scatter(1, order.gather(1, nearest), 1.0)
    return torch.where(most > least, mark, 1.0) > 0  # equal sums, as of a single patch, sample nothing
