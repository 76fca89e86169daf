"""Variants of one model: a method at a keep rate, and pruned copies that share the model's weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from torch import nn

from entropatch.config import PruneConfig, method_config
from entropatch.methods import DENSE, RANDOM, find_method, is_known, method_label
from entropatch.surgery import prune_


@dataclass(frozen=True)
class Variant:
    """One method at one keep rate, or a whole setting.

    Attributes:
        method: "dense", or the name of one of `entropatch.methods`, or what the setting is called.
        keep_rate: ρ in (0, 1]; None for dense, for a method whose schedule takes none, and for a setting.
        target: the budget in 10⁹ multiply-adds that the keep rate was found for, or has yet to be; None without one.
        setting: a whole setting, such as a calibrated one, in place of a method and a rate.
    """

    method: str
    keep_rate: float | None = None
    target: float | None = field(default=None, kw_only=True)
    setting: PruneConfig | None = field(default=None, kw_only=True)

    @property
    def label(self) -> str:
        """How tables and figures call the method. Raises ValueError for an unknown one."""
        return self.method if self.setting is not None else method_label(self.method)

    @property
    def order(self) -> float | None:
        """Of the entropy that scores the patches; None for dense, a setting, and a method that uses none."""
        return None if self.setting is not None or self.method == DENSE else find_method(self.method).order

    @property
    def sort_key(self) -> tuple[float, str, float]:
        """Where it stands in tables: dense first, then methods by rank, high keep rates first; settings last."""
        if self.setting is not None:
            return float("inf"), self.method, 0.0
        rank, name = (-float("inf"), "") if self.method == DENSE else find_method(self.method).sort_key
        return rank, name, -(self.keep_rate or 1.0)

    def config(self, blocks: Sequence[int] | None = None, backend: str = "auto") -> PruneConfig | None:
        """What is pruned; None for dense. A setting has its own blocks. Errors as of `method_config`."""
        if self.setting is not None:
            return self.setting if backend == "auto" else replace(self.setting, backend=backend)
        if self.method == DENSE:
            return None
        if self.keep_rate is None:
            return PruneConfig(method=self.method, blocks=None if blocks is None else tuple(blocks), backend=backend)
        return replace(method_config(self.method, self.keep_rate, blocks), backend=backend)


def variants_of(methods: Iterable[str], keep_rates: Iterable[float], targets: Iterable[float] = ()) -> list[Variant]:
    """Every method at each keep rate and target; dense, and a method that takes no keep rate, once."""
    each = [(rate, None) for rate in keep_rates] + [(None, target) for target in targets]
    return [
        Variant(method, rate, target=target)
        for method in methods
        for rate, target in (each if takes_keep_rate(method) else [(None, None)])
    ]


def check_setting(name: str, config: object) -> None:
    """Raise TypeError for what is no setting, ValueError for a name that is a method's or unfit for a file."""
    if not isinstance(config, PruneConfig):
        raise TypeError(f"configs must hold PruneConfigs, but {name} is {config!r:.80}.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", name) or name == DENSE or is_known(name):
        raise ValueError(
            f"a setting must be called by letters, digits, '.', '+', '_' and '-', and otherwise than a method, "
            f"but got {name!r}; rename its file."
        )


def floor_of(variant: Variant, variants: Iterable[Variant]) -> Variant | None:
    """Random pruning at the same target, or without one at the same keep rate, where it is among the variants."""
    of_random = [one for one in variants if one.method == RANDOM and one.target == variant.target]
    return next((one for one in of_random if variant.target is not None or one.keep_rate == variant.keep_rate), None)


def takes_keep_rate(method: str) -> bool:
    """Whether a keep rate means anything to the method of that name, or to "dense"."""
    return method != DENSE and find_method(method).takes_keep_rate


def pruned_copy(model: nn.Module, config: PruneConfig | None) -> nn.Module:
    """A copy of the model that shares its weights, pruned as the config says; the model itself for None.

    Raises:
        UnsupportedModelError, ValueError: as of `prune_`.
    """
    if config is None:
        return model
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return prune_(copy.deepcopy(model, shared), config)
