"""A search from beginning to end: `search`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from entropatch.data.base import DataSet
from entropatch.extras import require
from entropatch.measure import environment
from entropatch.search.experiment import Experiment
from entropatch.search.findings import write_report
from entropatch.search.meeting import all_points
from entropatch.search.method_table import refuse_unknown
from entropatch.search.noted import note_configs
from entropatch.search.points import FINETUNED
from entropatch.search.recommendation import TOLERANCE
from entropatch.search.settings import SearchSettings
from entropatch.search.study import (
    check_settings,
    damaged_trials,
    enqueue,
    open_storage,
    open_study,
    quiet,
    sqlite_address,
    to_enqueue,
)
from entropatch.search.suitable import suitable
from entropatch.search.worker import Standing, Worker, standing
from entropatch.train import Runtime


@dataclass(frozen=True)
class Teamwork:
    """How a worker gets along with others, and with failures.

    Attributes:
        trials: try so many settings and leave; None stays until none is left.
        wait: stay while others still work, to take over what they leave behind should they die.
        heartbeat: a worker says every so many seconds that it lives.
        grace: one that has not for so many seconds is taken for dead, and its setting is tried again. Workers that died
            on the same machine are found at once.
        retries: a setting is given up after so many failures beyond the first.
        poll: seconds between looks at the study while waiting.
    """

    trials: int | None = None
    wait: bool = True
    heartbeat: int = 20
    grace: int = 120
    retries: int = 10
    poll: float = 2.0

    def __post_init__(self) -> None:
        for name, least in (("trials", 0), ("heartbeat", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, but got {value}.")
        if self.grace <= self.heartbeat:
            raise ValueError(f"grace must be longer than the heartbeat of {self.heartbeat} s, but got {self.grace}.")


@dataclass(frozen=True)
class Found:
    """What a search came to, as far as it is.

    Attributes:
        standing: settings, and how many are finished, running and given up.
        tried: by this worker.
        files: written.
    """

    standing: Standing
    tried: int
    files: list[Path]


def search(
    settings: SearchSettings,
    data: DataSet,
    output: str | Path,
    *,
    storage: str | None = None,
    study: str = "search",
    runtime: Runtime | None = None,
    teamwork: Teamwork | None = None,
    tolerance: float = TOLERANCE,
    on_text: Callable[[str], None] = lambda text: None,
    on_standing: Callable[[Standing], None] = lambda standing: None,
) -> Found:
    """Try every method at every keep rate with every seed, as trials of an Optuna study, and report.

    Called again with the same settings, after having been killed or while it runs elsewhere, it works on the same
    study: finished settings are not tried again, and those of dead workers are. Methods, keep rates, seeds, blocks and
    configs may be added. Fine-tuning runs are continued from their checkpoints.

    Args:
        settings: what to try.
        data: as `entropatch.data.open_data` gives it.
        output: folder of the report and of the fine-tuning runs. Workers on several machines should share it, or a run
            whose machine is lost begins anew.
        storage: address of the study's database; a file search.db in `output` when None.
        study: its name.
        runtime: device, loading processes and the like.
        teamwork: with other workers.
        tolerance: of the recommended setting; see `entropatch.search.recommendation.recommend`.
        on_text: told in a few words what is going on.
        on_standing: told how far the study is.

    Raises:
        ImportError: the extra `search`, or the driver of the database, is not installed.
        StudyMismatchError: the study has other settings; the message names each that differs.
        BudgetError: no keep rate meets the target.
        StudyUnreachableError: the database was locked or away for ten minutes.
        ValueError, OSError, RuntimeError: as of `entropatch.train.finetune` and of
            `entropatch.measure.evaluation.evaluate`. The report of what is finished is written before.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "each worker of a search is a process of its own, but this is one of several of `accelerate launch`; start "
            "`entropatch search` once per GPU, with CUDA_VISIBLE_DEVICES, instead."
        )
    output, runtime, teamwork = Path(output), runtime or Runtime(), teamwork or Teamwork()
    require_extras(settings.scope)
    with quiet():
        experiment = Experiment(settings, data, output, runtime, on_text)
        if settings.leave_out:
            settings = experiment.settings = replace(settings, methods=suitable(experiment))
        compared = experiment.compared()
        output.mkdir(parents=True, exist_ok=True)
        address = storage or sqlite_address(output / "search.db")
        opened = open_study(
            open_storage(address, teamwork.heartbeat, teamwork.grace, on_text), study, compared, _about(experiment)
        )
        check_settings(opened)
        refuse_unknown(opened, opened.get_trials(deepcopy=False))
        note_configs(opened, settings.configs)
        points = all_points(settings, experiment, opened)
        trials = opened.get_trials(deepcopy=False)
        _tell(damaged_trials(trials), on_text)
        if teamwork.trials != 0:
            enqueue(opened, to_enqueue(trials, points, teamwork.retries))
        worker = Worker(
            opened,
            points,
            experiment.measure,
            retries=teamwork.retries,
            grace=teamwork.grace,
            wait=teamwork.wait,
            poll=teamwork.poll,
            on_standing=on_standing,
        )
        try:
            tried = worker.run(teamwork.trials)
        finally:
            files = write_report(opened, output, tolerance)
        return Found(standing(opened.get_trials(deepcopy=False), points, teamwork.retries), tried, files)


def require_extras(scope: str) -> None:
    """Raise ImportError, before anything is fetched or tried, if a package that a search needs is not installed."""
    packages = ("optuna", "fvcore", "matplotlib", *(("accelerate",) if scope == FINETUNED else ()))
    for package in packages:
        require(package, "search")


def report(
    output: str | Path,
    *,
    storage: str | None = None,
    study: str = "search",
    tolerance: float = TOLERANCE,
    on_text: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write the report of a study again, without model, data or training.

    Trials whose record is damaged are left out, and told of by `on_text`.

    Raises:
        ValueError: there is no such study, it is no search, or it has a method of a module that was not imported.
        StudyUnreachableError: the database was locked or away for ten minutes.
    """
    if storage is None and not Path(output, "search.db").is_file():
        raise ValueError(f"{output} holds no search.db; give the output folder of a search, or its storage.")
    with quiet():
        import optuna

        opened = open_storage(storage or sqlite_address(Path(output, "search.db")), on_text=on_text)
        try:
            found = optuna.load_study(study_name=study, storage=opened)
        except KeyError as error:
            names = ", ".join(optuna.get_all_study_names(opened)) or "none"
            raise ValueError(f"there is no study {study!r}; there are: {names}.") from error
        check_settings(found)
        _tell(damaged_trials(found.get_trials(deepcopy=False)), on_text)
        return write_report(found, output, tolerance)


def _tell(lines: list[str], on_text: Callable[[str], None]) -> None:
    for line in lines:
        on_text(line)


def _about(experiment: Experiment) -> dict[str, Any]:
    """What the report says of the study beside its settings."""
    settings, data = experiment.settings, experiment.data
    about = {
        "model": settings.spec.name,
        "weights": settings.spec.weights,
        "data": str(data.description.get("name", "")),
        "images": f"{len(data.train)} for training, {len(data.test)} for testing, {len(data.classes)} classes",
        "scope": settings.scope,
        "blocks": settings.blocks,
        "image size": settings.recipe.image_size,
        "speed": f"batches of {settings.speed.batch_size}, each setting timed in turns with dense in its own trial",
    }
    return about | environment(experiment.device)
