"""The methods of a study: the table that numbers them for Optuna, and those that are not known here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from entropatch.methods import DENSE, is_known

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

METHODS = "methods"  # the table's name among the study's attributes


def method_number(study: Study, family: str) -> int:
    """The place of a method, or family of them, in the study's table of methods, which only grows.

    Should two workers lengthen it at the same moment, the last one counts and the other looks again. What a trial tries
    is known by the name in its own attributes; the number is for Optuna's plots.
    """
    while family not in (table := _table(study)):
        study.set_user_attr(METHODS, [*table, family])
    return table.index(family)


def _table(study: Study) -> list[str]:
    table = study.user_attrs.get(METHODS)
    return table if isinstance(table, list) else []


def refuse_unknown(study: Study, trials: Iterable[FrozenTrial]) -> None:
    """Raise ValueError, in a line, where the study has methods of a module that was not imported."""
    names = dict.fromkeys(trial.user_attrs.get("method") for trial in trials if "seed" in trial.user_attrs)
    if unknown := [name for name in names if isinstance(name, str) and name != DENSE and not is_known(name)]:
        raise ValueError(
            f"the study {study.study_name!r} has the method{'s' * (len(unknown) > 1)} {', '.join(unknown)}, which no "
            "imported module registers; import the one that does first (on the command line: --import my_module)."
        )
