"""The setting that a search recommends, and the rule it was chosen by; or that none is worth it, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropatch.config import PruneConfig
from entropatch.methods import DENSE
from entropatch.search.accuracy_tables import cell, printed
from entropatch.search.summaries import Summary

TOLERANCE = 1.0
WITHIN, ALIKE = "within the budget", "at the same cost"  # where random pruning is a setting's rival
SAME_COST = (
    1.02  # random pruning with at most so many times a setting's multiply-adds costs the same: EViT fuses a token
)


def recommend(
    summaries: Sequence[Summary], settings: Mapping[str, Any], tolerance: float = TOLERANCE
) -> tuple[Summary | None, str]:
    """The setting to use, and the rule it was chosen by. Random pruning is never chosen.

    With a budget: the highest mean top-1 among the settings that meet it. Without: the fewest multiply-adds among those
    whose mean top-1 is at most `tolerance` below the dense model's; if there is none, or dense was not tried, the
    highest mean top-1. Of equals, the one of fewer multiply-adds, then of higher top-1, then the first in the table.

    Settings that were timed no faster than dense, or that are not ahead of random pruning at the same cost, or within
    the budget (by more than 2 standard errors of the difference, where they are known), are passed over. If nothing
    else is left, none is recommended; with a budget the rule's choice is, and the rule says what is wrong with it.

    Args:
        summaries: as `summaries_of` gives them.
        settings: of the study, as `SearchSettings.compared` gives them.
        tolerance: in percent of the test images.

    Returns:
        The setting, None for none, and the rule or the reason.
    """
    tried = [s for s in summaries if s.method != DENSE and not s.is_random]
    if not tried:
        return None, "no method but dense and random has been tried"
    if budget := budget_text(settings):
        most = settings["target_gflops"]
        met = [s for s in tried if most is None or _gflops(s) <= most]
        rival = _highest([s for s in summaries if s.is_random and (most is None or _gflops(s) <= most)])
        chosen = _highest([s for s in met if not _objections(s, rival, WITHIN)]) or _highest(met)
        if chosen is None:
            return None, f"no setting meets the budget ({budget})"
        rule = f"the highest mean top-1 that meets the budget ({budget})"
        alone = "; random pruning within it was not tried" if rival is None else ""
        return chosen, "; but ".join([rule + alone + _close(chosen, met), *_objections(chosen, rival, WITHIN)])
    faster = [s for s in tried if s.vs_dense > 1]
    if not faster:
        return None, "no setting is faster than dense"
    dense = next((s for s in summaries if s.method == DENSE), None)
    near = [s for s in faster if dense is not None and printed(s) >= round(printed(dense) - tolerance, 6)]
    within = f"no more than {tolerance:g} % (absolute) below dense"
    worthwhile = _worthwhile(near or faster, summaries)
    if not worthwhile:
        which = f" with a mean top-1 {within}" if near else ""
        return None, f"no setting faster than dense{which} is better than random pruning at the same cost"
    if near:
        chosen = min(worthwhile, key=lambda s: (_gflops(s), -printed(s)))
        return chosen, f"the fewest multiply-adds with a mean top-1 {within}{_lead(chosen, summaries)}"
    why = (
        "dense was not tried" if dense is None else f"none faster than dense is within {tolerance:g} % (absolute) of it"
    )
    chosen = _highest(worthwhile)
    assert chosen is not None
    return chosen, f"the highest mean top-1, since {why}{_lead(chosen, summaries)}{_close(chosen, faster)}"


def _highest(summaries: Sequence[Summary]) -> Summary | None:
    return max(summaries, key=lambda s: (printed(s), -_gflops(s)), default=None)


def _worthwhile(summaries: Sequence[Summary], among: Sequence[Summary]) -> list[Summary]:
    return [s for s in summaries if not _objections(s, _rival(s, among), ALIKE)]


def _objections(summary: Summary, rival: Summary | None, where: str) -> list[str]:
    """What speaks against a setting: it is not faster than dense, or no better than random pruning, the rival there."""
    found = [] if summary.vs_dense > 1 else ["it is not faster than dense"]
    if rival is not None and not _is_ahead(summary, rival):
        found.append(f"it is no better than random pruning {where} ({cell(rival)} %)")
    return found


def _rival(summary: Summary, among: Sequence[Summary]) -> Summary | None:
    """The best random pruning of the same cost, or of less."""
    return _highest([s for s in among if s.is_random and s.gflops <= SAME_COST * summary.gflops])


def _is_ahead(one: Summary, other: Summary) -> bool:
    """By more than the error of the difference; by the means as printed where no error is known."""
    difference = one.less(other) or one.less_unpaired(other)
    return printed(one) > printed(other) if difference is None else difference.is_ahead


def _lead(chosen: Summary, summaries: Sequence[Summary]) -> str:
    """By how much it is ahead of random, or that this is not known."""
    rival = _rival(chosen, summaries)
    if rival is None:
        return "; random pruning at the same cost was not tried"
    difference = chosen.less(rival) or chosen.less_unpaired(rival)
    if difference is None:
        return "; better than random pruning at the same cost by its mean, of which no error is known"
    return f"; {difference.value:.2f} ± {difference.standard_error:.2f} ahead of random pruning at the same cost"


def _close(chosen: Summary, pool: Sequence[Summary]) -> str:
    """The others that are not told apart from it."""
    others = [s for s in pool if s is not chosen and (one := chosen.less(s)) is not None and not one.is_distinct]
    return f"; not told apart from {', '.join(map(_named, others))}" if others else ""


def budget_text(settings: Mapping[str, Any]) -> str | None:
    """The budget of a study in a few words; None without one."""
    if settings["target_gflops"] is not None:
        return f"at most {settings['target_gflops']:g} GFLOPs"
    if settings["target_speedup"] is not None:
        return f"at least {settings['target_speedup']:g}× the images/s of dense"
    return None


def recommended_config(chosen: Summary, settings: Mapping[str, Any]) -> PruneConfig:
    """The setting as `prune_` takes it."""
    config = chosen.point.pruning(settings["blocks"], settings["scope"])
    assert config is not None
    return config


def recommended_text(chosen: Summary | None, rule: str) -> dict[str, str]:
    """What the report says: the setting, what it costs, and the rule; or that there is none, and why."""
    if chosen is None:
        return {"recommended": f"nothing: {rule}"}
    about = (
        f"{_named(chosen)}: top-1 {cell(chosen)} %, {chosen.gflops:.3f} GFLOPs, "
        f"{chosen.vs_dense:.2f} times the images/s of dense"
    )
    return {"recommended by": rule, "recommended": about}


def _named(summary: Summary) -> str:
    return summary.label + ("" if summary.keep_rate is None else f" at keep rate {summary.keep_rate:.6g}")


def _gflops(summary: Summary) -> float:
    """Without the rounding of the mean: settings that cost the same do so exactly."""
    return round(summary.gflops, 9)
