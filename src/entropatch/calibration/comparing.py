"""The chosen setting beside random, the default and the registered methods, on images held out, at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from entropatch.calibration.finding import CHOSEN, DEFAULT, RANDOM, Row
from entropatch.calibration.proposal import Choice, Cut, Cuts, config_of, cuts_of
from entropatch.calibration.sensitivity import FLOOR
from entropatch.calibration.spending import Spending
from entropatch.calibration.spreading import EVEN, LABELS, MERGING, spread_within
from entropatch.calibration.subject import Subject
from entropatch.config import PruneConfig
from entropatch.methods import compared_methods, default_method, find_method, method_label, stand_in
from entropatch.schedule import KeepRate, default_blocks

CURVE = (0.35, 0.5, 0.65, 0.8)  # costs of the curve beside the budget, as shares of the dense model's
_ANY = 0.7  # a rate, to be moved so that the budget is met


def usual(subject: Subject) -> dict[str, tuple[str, Cuts]]:
    """Label and cuts, by name, of random, the default and each method that comparisons show, at the usual blocks.

    Without those that the model does not take; a method that drops by the same scores then stands in, if there is one.
    """
    labels: dict[str, str] = {RANDOM: "random", DEFAULT: "the default"}
    default = cuts_of(PruneConfig(method=default_method(subject.has_class_token, subject.knows_places)), subject.depth)
    found: dict[str, Cuts] = {
        RANDOM: _everywhere(subject, FLOOR),
        DEFAULT: tuple(replace(cut, rate=_ANY) for cut in default),
    }
    for name, cuts in _shown(subject).items():
        if subject.refusal(cuts) is not None:
            continue
        if cuts == found[DEFAULT]:
            labels[DEFAULT] = f"the default ({method_label(name)})"
            continue
        found[name], labels[name] = cuts, method_label(name)
    return {name: (labels[name], cuts) for name, cuts in found.items()}


def left_out(subject: Subject) -> dict[str, str]:
    """Of what comparisons show what the model does not take, by its label, and why."""
    found = {method_label(name): subject.refusal(cuts) for name, cuts in _shown(subject).items()}
    found[LABELS[EVEN]] = subject.refusal(_everywhere(subject, MERGING))
    return {label: reason for label, reason in found.items() if reason is not None}


def merging(subject: Subject, spending: Spending, budget: float, blocks: Sequence[int]) -> dict[str, Cuts]:
    """As `spread_within`; nothing if the model does not take it."""
    return spread_within(spending, budget, blocks) if subject.takes(MERGING) else {}


def _shown(subject: Subject) -> dict[str, Cuts]:
    """The methods that comparisons show, without random, which keep a rate in each block in one way; and what stands in
    for those that the model does not take."""
    found: dict[str, Cuts] = {}
    for name in compared_methods():
        method = find_method(name)
        (criterion, reduction), *others = method.parts
        if method.is_random or method.schedule != KeepRate() or others:
            continue
        found[name] = _everywhere(subject, Choice(criterion, reduction, method.coverage))  # pyright: ignore[reportArgumentType]
        other = stand_in(name)
        if other is not None and subject.refusal(found[name]) is not None:
            found[other] = _everywhere(subject, Choice(criterion))
    return found


def _everywhere(subject: Subject, choice: Choice) -> Cuts:
    return tuple(Cut(block, choice, _ANY) for block in default_blocks(subject.depth))


def compared(subject: Subject, spending: Spending, cuts: Cuts, budget: float) -> list[Row]:
    """The chosen cuts, then what `usual` names and ToMe's, each at rates that meet the budget by the cost taken."""
    rows = [row(subject, spending, CHOSEN, "calibrated", cuts)]
    for name, (label, one) in usual(subject).items():
        met = spending.met_exactly(one, budget)
        if met is not None:
            rows.append(row(subject, spending, name, label, met))
    for name, one in merging(subject, spending, budget, range(subject.depth)).items():
        met = spending.met_exactly(one, budget)
        if met is not None:
            rows.append(row(subject, spending, name, LABELS[name], met))
    return rows


def curve(subject: Subject, spending: Spending, cuts: Cuts, budget: float) -> list[Row]:
    """The chosen cuts with all rates moved, random and the default, at other costs."""
    others = usual(subject)
    lines = {CHOSEN: ("calibrated", cuts), RANDOM: others[RANDOM], DEFAULT: others[DEFAULT]}
    rows = []
    for share in CURVE:
        cost = share * spending.dense
        for name, (label, one) in lines.items() if abs(cost / budget - 1) > 0.05 else ():
            met = spending.met(one, cost)
            if met is not None:
                rows.append(row(subject, spending, name, label, met, fitted=True))
    return rows


def row(
    subject: Subject, spending: Spending, name: str, label: str, cuts: Sequence[Cut], *, fitted: bool = False
) -> Row:
    config = config_of(cuts)
    cost = spending.of(cuts) if fitted else spending.exact(cuts)
    return Row(name, label, config, cost, subject.judge.losses(config, subject.holding))
