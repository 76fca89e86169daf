"""The settings of a search: what is tried, as points of a grid that Optuna's trials stand for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from entropatch.config import PruneConfig
from entropatch.config_fields import mapped
from entropatch.criteria import Criterion, Random
from entropatch.measure.variants import Variant, takes_keep_rate
from entropatch.methods import DENSE, find_method

TRAINING_FREE = "training-free"
FINETUNED = "finetuned"
SCOPES = (TRAINING_FREE, FINETUNED)
LARGEST_SEED = LARGEST_NUMBER = 2**31 - 1
ORDERS = "renyi-<order>"  # all finite orders of the paper's method, as one family; no method can have that name


@dataclass(frozen=True)
class Point(Variant):
    """One setting to try.

    Attributes:
        seed: of training; of the scores of random pruning.
        blocks: 0-based blocks that prune, where they are others than the study's.
    """

    seed: int = 0
    blocks: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """For file names and messages: "renyi-2-0.7-seed-0", or "evit-0.7-at-4-8-10-seed-0"."""
        rate = "" if self.keep_rate is None else f"-{self.keep_rate!r}"
        place = "" if self.blocks is None else f"-at-{'-'.join(map(str, self.blocks))}"
        return f"{self.method}{rate}{place}-seed-{self.seed}"

    @property
    def label(self) -> str:
        """How tables and figures call it, with its blocks where they are its own."""
        return self.setting_label + ("" if self.blocks is None else f" at {blocks_text(self.blocks)}")

    @property
    def setting_label(self) -> str:
        """The same without its blocks."""
        return super().label

    @property
    def sort_key(self) -> tuple[float, str, float]:
        """As of `Variant`, and of one method the study's blocks first."""
        rank, name, rate = super().sort_key
        return rank, " ".join((name, *(f"{block:06d}" for block in self.blocks or ()))), rate

    @property
    def is_random(self) -> bool:
        """Whether chance says which patches stay."""
        if self.setting is not None:
            return any(reduction.needs_scores and isinstance(one, Random) for one, reduction, _ in self.setting.parts)
        return self.method != DENSE and find_method(self.method).is_random

    @property
    def family(self) -> str:
        """What the study's table of methods calls it: the method's name, or `ORDERS` for the orders among them."""
        if self.method == DENSE or self.setting is not None:
            return self.method
        method = find_method(self.method)
        finite = method.order is not None and method.order <= sys.float_info.max
        return ORDERS if method.drops_by_entropy and finite else method.name

    def pruning(self, blocks: Sequence[int] | None, scope: str) -> PruneConfig | None:
        """What is pruned; None for dense. `blocks` are the study's.

        Random pruning draws by the point's seed; in training it draws anew at every step, from the run's seed.
        """
        config = self.config(blocks if self.blocks is None else self.blocks)
        seed = self.seed if scope == TRAINING_FREE else None
        if config is None:
            return None

        def seeded(criterion: Criterion) -> Criterion:
            return replace(criterion, seed=seed) if isinstance(criterion, Random) else criterion

        return replace(config, criterion=mapped(config.criterion, seeded))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        found: dict[str, Any] = {"method": self.method, "keep_rate": self.keep_rate, "seed": self.seed}
        if self.blocks is not None:
            found["blocks"] = list(self.blocks)
        if self.setting is not None:
            found["setting"] = self.setting.to_json()
        return found

    def parameters(self, number: int, place: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values and distributions of the trial's Optuna parameters: method, order, keep_rate, seed and blocks, those
        it has.

        Args:
            number: of the point's `family` in the study's table of methods. Optuna lets a range of numbers grow, but no
                list of choices, while a search may be continued with more methods; so an order is a number too.
            place: of its blocks in the study's table of blocks, where they are its own.
        """
        from optuna.distributions import FloatDistribution, IntDistribution

        values: dict[str, Any] = {"method_number": number, "seed": self.seed}
        values |= {} if place is None else {"blocks_number": place}
        kinds: dict[str, Any] = {name: IntDistribution(0, LARGEST_NUMBER) for name in values}
        if self.family == ORDERS:
            values["order"] = self.order
            kinds["order"] = FloatDistribution(sys.float_info.min, sys.float_info.max)
        if self.keep_rate is not None:
            values["keep_rate"] = self.keep_rate
            kinds["keep_rate"] = FloatDistribution(0.0, 1.0)
        return values, kinds


def blocks_text(blocks: Iterable[int]) -> str:
    """As "3, 6, 9"."""
    return ", ".join(map(str, blocks))


def known_method(name: str) -> str:
    """The one name of a method: "renyi-2.0" is "renyi-2", and "renyi-1" is "shannon". Errors as of `find_method`."""
    return name if name == DENSE else find_method(name).name


def grid(rates: Mapping[str, Iterable[float]], seeds: Sequence[int], scope: str) -> list[Point]:
    """Every method at each of its keep rates with every seed.

    Args:
        rates: the keep rates of each method; dense, and a method that takes none, is tried once for each seed.
        seeds: without training only random pruning depends on a seed, so the other methods are tried with the first.
        scope: one of `SCOPES`.
    """
    points = []
    for method, own in rates.items():
        for rate in own if takes_keep_rate(method) else (None,):
            drawn = seeds if scope == FINETUNED or Point(method).is_random else seeds[:1]
            points += [Point(method, rate, seed) for seed in drawn]
    return points
