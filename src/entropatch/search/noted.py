"""What a study notes for all its workers: keep rates that meet its budget, and settings given as wholes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entropatch.config import PruneConfig
from entropatch.search.study import StudyMismatchError, is_number

if TYPE_CHECKING:
    from optuna import Study

KEPT_RATES, CONFIGS = "keep_rates", "configs"


def note_configs(study: Study, configs: Mapping[str, PruneConfig]) -> None:
    """Note the settings given as wholes, by name.

    Raises:
        StudyMismatchError: the study has another setting of that name.
    """
    noted = study.user_attrs.get(CONFIGS)
    held = {name: text for name, text in (noted if isinstance(noted, dict) else {}).items() if isinstance(text, str)}
    texts = {name: config.to_json() for name, config in configs.items()}
    if other := sorted(name for name, text in texts.items() if held.get(name, text) != text):
        raise StudyMismatchError(
            f"the study {study.study_name!r} has another setting called {', '.join(other)}; a setting is called by its "
            "file's name, so rename the file, or give another study or output folder."
        )
    if texts.keys() - held.keys():
        study.set_user_attr(CONFIGS, held | texts)


def noted_rates(study: Study) -> dict[str, dict[str, Any]]:
    """What was found for a budget, by method: its "keep_rate" and what that was judged by. Damaged entries are none."""
    noted = study.user_attrs.get(KEPT_RATES)
    return {
        method: found
        for method, found in (noted if isinstance(noted, dict) else {}).items()
        if isinstance(found, dict) and is_number(found.get("keep_rate")) and 0 < found["keep_rate"] <= 1
    }
