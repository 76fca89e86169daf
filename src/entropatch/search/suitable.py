"""Which methods of a group a search can try: those that the model allows and that suit the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropatch.config import PruneConfig
from entropatch.measure.variants import pruned_copy, takes_keep_rate
from entropatch.methods import DENSE, find_method
from entropatch.search.points import TRAINING_FREE
from entropatch.surgery import UnsupportedModelError

if TYPE_CHECKING:
    from entropatch.search.experiment import Experiment


def suitable(experiment: Experiment) -> tuple[str, ...]:
    """The methods of the search without those it cannot try, each of which is told in a line."""
    found = []
    for name in experiment.settings.methods:
        reason = None if name == DENSE else _reason(experiment, name)
        if reason is None:
            found.append(name)
        else:
            experiment.on_text(f"{name} is left out: {reason}")
    return tuple(found)


def _reason(experiment: Experiment, name: str) -> str | None:
    settings, method = experiment.settings, find_method(name)
    if method.trained and settings.scope == TRAINING_FREE:
        return "it does nothing good before it was trained"
    if settings.has_target and not takes_keep_rate(name):
        return "a target is met by the keep rate, and it takes none"
    try:
        pruned_copy(experiment.dense, PruneConfig(method=name, blocks=settings.blocks))
    except (UnsupportedModelError, ValueError) as error:
        return str(error)
    return None
