"""All settings of a search, at the keep rates asked for or at those that meet its budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from entropatch.config import PruneConfig
from entropatch.measure.budget import BudgetError, rate_for_gflops, rate_for_speedup
from entropatch.measure.timing import speed_ratio
from entropatch.methods import DENSE
from entropatch.search.noted import KEPT_RATES, noted_rates
from entropatch.search.points import FINETUNED, Point, grid
from entropatch.search.scaling import scaled
from entropatch.surgery import block_count

if TYPE_CHECKING:
    from optuna import Study

    from entropatch.search.experiment import Experiment
    from entropatch.search.settings import SearchSettings


def all_points(settings: SearchSettings, experiment: Experiment, study: Study) -> list[Point]:
    """Every method at its keep rates with every seed, at each set of blocks, and the settings given as wholes."""
    points = grid(keep_rates(settings, experiment, study), settings.seeds, settings.scope)
    for blocks in settings.more_blocks:
        rates = {name: own for name, own in keep_rates(settings, experiment, study, blocks).items() if name != DENSE}
        points += [replace(point, blocks=blocks) for point in grid(rates, settings.seeds, settings.scope)]
    for name, config in settings.configs.items():
        found = _meeting_config(settings, experiment, study, name, config) if settings.has_target else config
        point = Point(name, setting=found)
        seeds = settings.seeds if settings.scope == FINETUNED or point.is_random else settings.seeds[:1]
        points += [replace(point, seed=seed) for seed in seeds]
    return points


def keep_rates(
    settings: SearchSettings, experiment: Experiment, study: Study, blocks: Sequence[int] | None = None
) -> dict[str, list[float]]:
    """The keep rates of each method: those asked for, or the one that meets the budget.

    What was found for a budget is noted in the study and holds for all workers, so that measuring again does not move
    it.

    Args:
        settings, experiment, study: of the search.
        blocks: where they are others than the study's.
    """
    if not settings.has_target:
        return {method: list(settings.keep_rates or ()) for method in settings.methods}
    own = None if blocks is None else tuple(blocks)
    found: dict[str, list[float]] = {}
    for method in settings.methods:

        def config(rate: float, method: str = method) -> PruneConfig | None:
            return Point(method, rate, blocks=own).pruning(settings.blocks, settings.scope)

        key = method if own is None else f"{method} at {','.join(map(str, own))}"
        try:
            found[method] = [] if method == DENSE else [_noted_or_met(settings, experiment, study, key, config)]
        except BudgetError as error:
            if not settings.leave_out:
                raise
            experiment.on_text(f"{key} is left out: {error}")
            found[method] = []
    return found


def _meeting_config(
    settings: SearchSettings, experiment: Experiment, study: Study, name: str, config: PruneConfig
) -> PruneConfig:
    """A setting given as a whole, scaled to the budget."""
    depth = block_count(experiment.dense)
    rate = _noted_or_met(settings, experiment, study, name, lambda rate: scaled(config, depth, rate))
    return scaled(config, depth, rate)


def _noted_or_met(
    settings: SearchSettings,
    experiment: Experiment,
    study: Study,
    key: str,
    config: Callable[[float], PruneConfig | None],
) -> float:
    """The keep rate that the study notes under a name; where there is none, the one that meets the budget."""
    noted = noted_rates(study)
    if key not in noted:
        experiment.on_text(f"{key}: the keep rate that meets the budget")
        try:
            last = next(iter(noted.values()), {})  # the one found last stands first
            found = _met(settings, experiment, key, config, last.get("keep_rate"))
        except BudgetError as error:
            raise BudgetError(f"{key}: {error}") from error
        noted = {key: found, **noted_rates(study)}  # one found elsewhere meanwhile stays
        study.set_user_attr(KEPT_RATES, noted)
    return noted[key]["keep_rate"]


def _met(
    settings: SearchSettings,
    experiment: Experiment,
    key: str,
    config: Callable[[float], PruneConfig | None],
    near: float | None,
) -> dict[str, Any]:
    """The largest keep rate that meets the budget, and what it was judged by; multiply-adds from near another's on."""
    if settings.target_gflops is not None:
        gflops = cache(lambda rate: experiment.gflops(config(rate)))
        rate = rate_for_gflops(gflops, experiment.dense_gflops, settings.target_gflops, near)
        return {"keep_rate": rate, "gflops": gflops(rate)}
    assert settings.target_speedup is not None

    def speedup(rate: float) -> float:
        timings = experiment.time(config(rate))
        return speed_ratio(timings["this"], timings[DENSE]).median

    rate, measured = rate_for_speedup(
        speedup, settings.target_speedup, lambda text: experiment.on_text(f"{key}: {text}")
    )
    return {"keep_rate": rate, "speedup": measured}
