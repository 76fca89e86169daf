"""The folder of a run of `entropatch segment`: how it was trained, and what it was tested at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropatch.records.tables import plus_minus
from entropatch.report.cells import flat, make_table, shown
from entropatch.report.content import Run, Table, load_json, reading
from entropatch.report.records import read_records
from entropatch.report.training_files import check_number, curves_of, data_text, pruning_text, read_epochs

TASK = "segmentation"  # as run.json says
COLUMNS = ("run", "state", "loss", "mIoU %", "patches left", "minutes")
LEFT_OUT = ("about", "entropatch", "task")
TESTED = "segment.json"


def is_segment_folder(folder: Path) -> bool:
    """Whether `entropatch segment` wrote into this folder. Raises ReportError where its run.json is damaged."""
    path = folder / "run.json"
    if not path.is_file():
        return False
    settings = load_json(path)
    return isinstance(settings, Mapping) and settings.get("task") == TASK


def read_segment(folder: Path) -> Run:
    """The run in a folder, finished or not. Raises ReportError for a damaged file."""
    settings = reading(folder / "run.json", lambda path: _settings(load_json(path)))
    epochs, tested = folder / "epochs.jsonl", folder / TESTED
    history = reading(epochs, _history) if epochs.exists() else []
    found = read_records(tested) if tested.exists() else None
    finished = (folder / "result.json").exists()
    tables = (_training(settings, history, finished), *(() if found is None else found.tables))
    findings = () if finished else (f"Not finished: {len(history)} epochs are done.",)
    return Run(
        path=folder,
        kind="segment",
        title=f"{_model(settings)} on {data_text(settings)}, {pruning_text(settings)}",
        findings=findings + (() if found is None else found.findings),
        tables=tables,
        pictures=tuple(curves_of({f"seed {settings.get('seed')}": history}, "miou")),
        settings=flat({key: value for key, value in settings.items() if key not in LEFT_OUT}),
        machine={"entropatch": shown(settings.get("entropatch"))} | ({} if found is None else found.machine),
    )


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    for key in ("data", "recipe", "segmenter"):
        if not isinstance(settings.get(key), dict):
            raise ValueError(f"not the settings of a run of segment: {key} must be an object")
    pruning_text(settings)  # all that is read of it later
    return settings


def _history(path: Path) -> list[dict[str, Any]]:
    history = read_epochs(path, "miou")
    for record in history:
        for key in {"miou_se", "patches_left"} & {key for key, value in record.items() if value is not None}:
            check_number(key, record[key])
    return history


def _training(settings: Mapping[str, Any], history: list[dict[str, Any]], finished: bool) -> Table:
    last = history[-1] if history else {}
    state = "finished" if finished else f"after epoch {len(history)} of {shown(settings['recipe'].get('epochs'))}"
    miou = plus_minus(last["miou"], last.get("miou_se")) if last else shown(None)
    minutes = sum(record.get("seconds", 0.0) for record in history) / 60
    cells = (shown(last.get("loss"), ".4f"), miou, shown(last.get("patches_left"), ".1f"), shown(minutes, ".1f"))
    return make_table("training", COLUMNS, [(f"seed {settings.get('seed')}", state, *cells)])


def _model(settings: Mapping[str, Any]) -> str:
    about = settings.get("about")
    model = about.get("model") if isinstance(about, Mapping) else None
    return str(model.get("name", "?")) if isinstance(model, Mapping) else "a segmenter"
