"""Schedules of methods that learn which tokens to drop: a share of all patches, or those that the scores say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from entropatch.schedule import Schedule, Site


@dataclass(frozen=True)
class ShareOfTotal(Schedule):
    """k = int(n0 · ρ^s) in the s-th reducing block, of the n0 patches that entered the model: DynamicViT's (Rao 2021).

    The power and the product are computed and cut off in double precision, as the released code does it, so that 0.7²
    of 100 patches are 48. Where blocks have rates of their own, their product stands for the power. At least 1.
    """

    def count(self, site: Site, mass: Tensor | None) -> int:
        if isinstance(site.total, torch.SymInt):
            return torch.sym_int(site.total * site.share)
        return int(int(site.total) * site.share)
