"""A setting with keep rates of its own, made cheaper or dearer as a whole."""

from __future__ import annotations

import dataclasses
import math

from entropatch.calibration.proposal import config_of, cuts_of, powered
from entropatch.config import PruneConfig
from entropatch.config_fields import each
from entropatch.schedule import KeepRate


def is_scalable(config: PruneConfig) -> bool:
    """Whether its keep rates say how many patches stay, and one of them removes some."""
    return config.schedule == KeepRate() and min(each(config.keep_rate)) < 1


def scaled(config: PruneConfig, depth: int, rate: float) -> PruneConfig:
    """The setting with every keep rate ρ moved to ρ^t, so that their geometric mean is `rate`.

    The costs of blocks keep their proportions in log ρ; the rates are rounded as a calibration's are, and blocks that
    then keep all are left out. `rate` in (0, 1) is to a setting of several rates what the keep rate is to a method.

    Args:
        config: as `is_scalable` allows.
        depth: blocks of the model.
        rate: of the result.
    """
    cuts = cuts_of(config, depth)
    mean = sum(math.log(cut.rate) for cut in cuts) / len(cuts)
    moved = config_of(powered(cuts, math.log(rate) / mean))
    return dataclasses.replace(moved, backend=config.backend)
