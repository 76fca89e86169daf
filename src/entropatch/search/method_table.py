"""The methods and blocks of a study: the tables that number them for Optuna, and what is not known here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from entropatch.config import PruneConfig
from entropatch.methods import DENSE, is_known

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

METHODS, BLOCKS = "methods", "block_sets"  # the tables' names among the study's attributes


def number_of(study: Study, table: str, entry: Any) -> int:
    """The place of a method or family of them, or of blocks, in that table of the study, which only grows.

    Should two workers lengthen it at the same moment, the last one counts and the other looks again. What a trial tries
    is known by the name in its own attributes; the number is for Optuna's plots.
    """
    while entry not in (found := _table(study, table)):
        study.set_user_attr(table, [*found, entry])
    return found.index(entry)


def _table(study: Study, table: str) -> list[Any]:
    found = study.user_attrs.get(table)
    return found if isinstance(found, list) else []


def refuse_unknown(study: Study, trials: Iterable[FrozenTrial]) -> None:
    """Raise ValueError, in a line, where the study has methods of a module that was not imported."""
    ours = [trial.user_attrs for trial in trials if "seed" in trial.user_attrs]
    for about in ours:
        _refuse_unreadable(study, about)
    names = dict.fromkeys(about.get("method") for about in ours if "setting" not in about)
    if unknown := [name for name in names if isinstance(name, str) and name != DENSE and not is_known(name)]:
        raise ValueError(
            f"the study {study.study_name!r} has the method{'s' * (len(unknown) > 1)} {', '.join(unknown)}, which no "
            "imported module registers; import the one that does first (on the command line: --import my_module)."
        )


def _refuse_unreadable(study: Study, about: Mapping[str, Any]) -> None:
    """Raise ValueError where a setting given as a whole has a criterion, say, of a module that was not imported."""
    if isinstance(text := about.get("setting"), str):
        try:
            PruneConfig.from_json(text)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"the study {study.study_name!r} has the setting {about.get('method')}, which cannot be read here: "
                f"{error} If a module of yours brings it, import that first (on the command line: --import my_module)."
            ) from None
