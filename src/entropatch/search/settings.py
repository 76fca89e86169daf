"""What a search is about, as settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from entropatch.config import PruneConfig
from entropatch.measure.evaluation import Speed
from entropatch.measure.variants import check_setting, takes_keep_rate
from entropatch.methods import DENSE, compared_methods
from entropatch.search.points import LARGEST_SEED, SCOPES, TRAINING_FREE, known_method
from entropatch.search.scaling import is_scalable
from entropatch.train import ModelSpec, Recipe

ORDERS = (0.5, 1.0, 2.0, 4.0, math.inf)
KEEP_RATES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def default_methods() -> tuple[str, ...]:
    """Dense, the methods that comparisons show, and the orders 0.5, 1, 2, 4 and ∞, in the order of their ranks."""
    return (DENSE, *compared_methods(ORDERS))


@dataclass(frozen=True)
class SearchSettings:
    """A search over methods (orders among them) and keep rates, for one model and data set.

    Attributes:
        spec: the model and the weights it starts from.
        scope: "training-free" tests one set of weights under every setting; "finetuned" trains each setting.
        methods: "dense" and names of `entropatch.methods`, "renyi-<order>" for any order; `default_methods` if not
            given.
        keep_rates: ρ in (0, 1], the same at every pruning block; none with a target.
        seeds: of training; in the scope "training-free" of random pruning alone, the one method that depends on them.
        blocks: 0-based pruning blocks; None is ¼, ½ and ¾ of the depth.
        more_blocks: further sets of them, at which every method is tried too.
        leave_out: whether a method that the model refuses, or that no keep rate brings to the target, is left out with
            a line, as of a group of methods; an error otherwise.
        configs: settings given as wholes, by what they are to be called, each at its own cost; with a target all their
            keep rates ρ are moved to ρ^t, so that it is met. In the command line by the names of their files.
        recipe: of the fine-tuning runs. Its image_size and precision hold in both scopes.
        target_gflops: a budget in 10⁹ multiply-adds per image; each method gets the largest keep rate of four decimals
            that meets it.
        target_speedup: a budget in images/s over those of the dense model; likewise, of two decimals, as measured.
        batch_size: images per pass over the test set, in the scope "training-free".
        speed: how images/s are measured.

    Raises:
        ValueError, TypeError: a setting is out of range, or two do not go together.
    """

    spec: ModelSpec
    scope: str = TRAINING_FREE
    methods: tuple[str, ...] = field(default_factory=lambda: default_methods())
    keep_rates: tuple[float, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    blocks: tuple[int, ...] | None = None
    recipe: Recipe = field(default_factory=Recipe)
    target_gflops: float | None = None
    target_speedup: float | None = None
    batch_size: int = 64
    speed: Speed = field(default_factory=Speed)
    more_blocks: tuple[tuple[int, ...], ...] = ()
    leave_out: bool = False
    configs: Mapping[str, PruneConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}, but got {self.scope!r}.")
        self._check_target()
        rates = self.keep_rates or (() if self.has_target else KEEP_RATES)
        checked = {
            "methods": tuple(map(known_method, self.methods)),
            "keep_rates": tuple(PruneConfig(keep_rate=rate, blocks=self.blocks).keep_rate for rate in rates),
            "seeds": self.seeds,
        }
        for name, values in checked.items():
            if not values and (name != "keep_rates" or not self.has_target):
                raise ValueError(f"{name} must hold at least one entry, but got none.")
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))
        self._check_blocks()
        self._check_configs()
        for seed in self.seeds:
            if not 0 <= seed <= LARGEST_SEED:
                raise ValueError(f"a seed must lie in 0 … {LARGEST_SEED}, but got {seed}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but got {self.batch_size}.")
        if self.recipe.distillation:
            raise ValueError(
                "a search trains without a teacher, but the recipe has distillation "
                f"{self.recipe.distillation}; set it to 0, and distil what is recommended with `entropatch finetune`."
            )

    def _check_blocks(self) -> None:
        """Raise where a set of blocks is none, is given twice, or does not suit a method of several parts."""
        sets = [PruneConfig(blocks=blocks).blocks for blocks in (self.blocks, *self.more_blocks)]
        twice = [blocks for i, blocks in enumerate(sets) if blocks in sets[:i]]
        if twice or None in sets[1:]:
            what = "the default ones stand first or not at all" if None in sets[1:] else f"{twice[0]} is there twice"
            raise ValueError(f"more_blocks must hold sets of blocks other than the first, but {what}.")
        object.__setattr__(self, "more_blocks", tuple(sets[1:]))
        for blocks in sets if len(sets) > 1 else ():
            for method in self.methods:
                if method != DENSE:
                    PruneConfig(method=method, blocks=blocks)

    def _check_configs(self) -> None:
        for name, config in self.configs.items():
            check_setting(name, config)
            if self.has_target and not is_scalable(config):
                raise ValueError(
                    f"a target is met by keep rates, but {name} has none below 1 or another schedule "
                    f"({config.schedule!r}); leave it out, or the target."
                )

    def _check_target(self) -> None:
        if self.target_gflops is not None and self.target_speedup is not None:
            raise ValueError("target_gflops and target_speedup exclude each other; give one of the two.")
        if self.has_target and self.keep_rates:
            raise ValueError(
                "with a target the keep rates follow from it, but got both; leave one of keep_rates and target out."
            )
        for name, least in (("target_gflops", 0.0), ("target_speedup", 1.0)):
            value = getattr(self, name)
            if value is not None and not least < value < math.inf:
                raise ValueError(f"{name} must be a number above {least:g}, but got {value}.")
        if self.has_target and not self.configs and all(known_method(name) == DENSE for name in self.methods):
            raise ValueError("a target needs a method that prunes, but got dense alone.")
        fixed = [name for name in self.methods if name != DENSE and not takes_keep_rate(name)]
        if self.has_target and fixed and not self.leave_out:
            raise ValueError(
                f"a target is met by the keep rate, but {', '.join(fixed)} takes none; leave it out, or the target."
            )

    @property
    def has_target(self) -> bool:
        """Whether the keep rates follow from a budget."""
        return self.target_gflops is not None or self.target_speedup is not None

    def compared(self) -> dict[str, Any]:
        """What must be equal for results to be of one study, as JSON holds it.

        Methods, keep rates, seeds, further blocks and configs are not in it: a study may be continued with more.
        """
        recipe = self.recipe.to_dict()
        if self.scope == TRAINING_FREE:
            recipe = {name: recipe[name] for name in ("image_size", "precision")}
        return {
            "scope": self.scope,
            "model": self.spec.to_dict(),
            "blocks": None if self.blocks is None else list(self.blocks),
            "recipe": recipe,
            "target_gflops": self.target_gflops,
            "target_speedup": self.target_speedup,
            "speed": dataclasses.asdict(self.speed),
        }
