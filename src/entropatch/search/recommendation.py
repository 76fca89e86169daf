"""The setting that a search recommends, and the rule it was chosen by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropatch.config import PruneConfig
from entropatch.methods import DENSE
from entropatch.search.accuracy_tables import cell, printed
from entropatch.search.points import Point
from entropatch.search.summaries import Summary

TOLERANCE = 1.0


def recommend(
    summaries: Sequence[Summary], settings: Mapping[str, Any], tolerance: float = TOLERANCE
) -> tuple[Summary | None, str]:
    """The setting to use, and the rule it was chosen by. Random pruning is never chosen.

    With a budget: the highest mean top-1 among the settings that meet it. Without: the fewest multiply-adds among those
    whose mean top-1 is at most `tolerance` below the dense model's; if there is none, or dense was not tried, the
    highest mean top-1. Of equals, the one of fewer multiply-adds, then of higher top-1, then the first in the table.

    Args:
        summaries: as `summaries_of` gives them.
        settings: of the study, as `SearchSettings.compared` gives them.
        tolerance: in percent of the test images.
    """
    candidates = [s for s in summaries if s.method != DENSE and not s.is_random]
    dense = next((s for s in summaries if s.method == DENSE), None)
    if budget := budget_text(settings):
        most = settings["target_gflops"]
        met = [s for s in candidates if most is None or _gflops(s) <= most]
        rule = f"the highest mean top-1 that meets the budget ({budget})"
        return max(met, key=lambda s: (printed(s), -_gflops(s)), default=None), rule
    near = [s for s in candidates if dense is not None and printed(s) >= round(printed(dense) - tolerance, 6)]
    if near:
        rule = f"the fewest multiply-adds with a mean top-1 no more than {tolerance:g} % (absolute) below dense"
        return min(near, key=lambda s: (_gflops(s), -printed(s))), rule
    why = "dense was not tried" if dense is None else f"none is within {tolerance:g} % (absolute) of dense"
    return max(
        candidates, key=lambda s: (printed(s), -_gflops(s)), default=None
    ), f"the highest mean top-1, since {why}"


def budget_text(settings: Mapping[str, Any]) -> str | None:
    """The budget of a study in a few words; None without one."""
    if settings["target_gflops"] is not None:
        return f"at most {settings['target_gflops']:g} GFLOPs"
    if settings["target_speedup"] is not None:
        return f"at least {settings['target_speedup']:g}× the images/s of dense"
    return None


def recommended_config(chosen: Summary, settings: Mapping[str, Any]) -> PruneConfig:
    """The setting as `prune_` takes it."""
    config = Point(chosen.method, chosen.keep_rate).pruning(settings["blocks"], settings["scope"])
    assert config is not None
    return config


def chosen_text(chosen: Summary | None) -> str:
    """The setting and what it costs, in a line."""
    if chosen is None:
        return "nothing: no method but dense and random has been tried"
    rate = "" if chosen.keep_rate is None else f" at keep rate {chosen.keep_rate:.6g}"
    return (
        f"{chosen.label}{rate}: top-1 {cell(chosen)} %, {chosen.gflops:.3f} GFLOPs, "
        f"{chosen.vs_dense:.2f} times the images/s of dense"
    )


def _gflops(summary: Summary) -> float:
    """Without the rounding of the mean: settings that cost the same do so exactly."""
    return round(summary.gflops, 9)
