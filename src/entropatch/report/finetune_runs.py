"""Folders of fine-tuning runs: one run, or several that differ in their seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropatch.records.tables import plus_minus
from entropatch.records.uncertainty import binomial
from entropatch.report.cells import MISSING, flat, joined, make_table, shown
from entropatch.report.content import Run, Table, load_json, reading
from entropatch.report.training_files import MOST, check_number, curves_of, data_text, pruning_text, read_epochs, short
from entropatch.train.fine_tuning import Outcome, is_outcome
from entropatch.train.summary import summarise

COLUMNS = ("run", "state", "loss", "top-1 %", "top-5 %", "best top-1 %", "best epoch", "images/s", "minutes", "damaged")
# In run.json, and of no use to a reader: what follows from other entries.
LEFT_OUT = ("about", "entropatch", "seed")


@dataclass(frozen=True)
class _SeedRun:
    """One run folder: its settings, one record per finished epoch, and its outcome once it is complete."""

    name: str
    settings: dict[str, Any]
    history: list[dict[str, Any]]
    result: dict[str, Any] | None
    machine: dict[str, str]


def is_finetune_folder(folder: Path) -> bool:
    """Whether `entropatch finetune` wrote into this folder, with one seed or several."""
    return bool(_run_folders(folder))


def read_finetune(folder: Path) -> Run:
    """The run or runs in a folder. Raises ReportError for a damaged file."""
    runs = [_read(path) for path in _run_folders(folder)]
    settings = runs[0].settings
    facts = flat({key: value for key, value in settings.items() if key not in LEFT_OUT})
    seeds = ", ".join(str(run.settings.get("seed")) for run in runs)
    return Run(
        path=folder,
        kind="finetune",
        title=f"{_model(settings)} on {data_text(settings)}, {pruning_text(settings)}",
        findings=tuple(_findings(runs)),
        tables=(_table(runs),),
        pictures=tuple(curves_of({f"seed {run.settings.get('seed')}": run.history for run in runs})),
        settings={"seed": seeds, **facts},
        machine={"entropatch": shown(settings.get("entropatch"))} | joined({run.name: run.machine for run in runs}),
    )


def _run_folders(folder: Path) -> list[Path]:
    candidates = [folder, *sorted(folder.glob("seed-*"), key=lambda path: (len(path.name), path.name))]
    return [path for path in candidates if (path / "run.json").is_file()]


def _read(folder: Path) -> _SeedRun:
    settings = reading(folder / "run.json", lambda path: _settings(load_json(path)))
    epochs, outcome, machine = folder / "epochs.jsonl", folder / "result.json", folder / "machine.json"
    history = reading(epochs, read_epochs) if epochs.exists() else []
    result = reading(outcome, lambda path: _outcome(load_json(path))) if outcome.exists() else None
    if result is not None:
        result["folder"] = str(folder)  # it may have moved
    known = reading(machine, lambda path: _machine(load_json(path))) if machine.exists() else {}
    return _SeedRun(folder.name, settings, history, result, known)


def _settings(settings: Any) -> dict[str, Any]:
    if not isinstance(settings, dict) or not {"model", "data", "recipe"} <= set(settings):
        raise ValueError("not the settings of a fine-tuning run")
    if not isinstance(settings["recipe"], dict):
        raise ValueError(f"its recipe must be an object, but is {short(settings['recipe'])}")
    pruning_text(settings)  # all that is read of it later
    flat(settings)
    return settings


def _outcome(result: Any) -> dict[str, Any]:
    if not isinstance(result, dict) or not is_outcome(result):
        raise ValueError("not the outcome of a fine-tuning run")
    for key in set(result) - {"folder"}:
        if (key, result[key]) != ("images", None):
            check_number(key, result[key])
    return result


def _machine(machine: Any) -> dict[str, str]:
    if not isinstance(machine, dict):
        raise ValueError("not a description of a machine")
    return {key: shown(value) for key, value in machine.items() if value is not None}


def _table(runs: list[_SeedRun]) -> Table:
    rows = [_row(run) for run in runs]
    finished = [run.result for run in runs if run.result is not None]
    if len(finished) > 1:
        rows.append(_summary(finished))
    return make_table("", COLUMNS, rows)


def _row(run: _SeedRun) -> tuple[str, ...]:
    epochs = run.settings["recipe"].get("epochs")
    state = "finished" if run.result is not None else f"after epoch {len(run.history)} of {epochs}"
    last = run.history[-1] if run.history else {}
    best = max(run.history, key=lambda record: record["top1"], default={})
    minutes = sum(record.get("seconds", 0.0) for record in run.history) / 60
    damaged = len(last.get("damaged_training", ())) + len(last.get("damaged_testing", ()))
    values = (
        (last.get("loss"), ".4f"),
        (_top1(last), ""),
        (last.get("top5"), ".2f"),
        (best.get("top1"), ".2f"),
        (best.get("epoch"), "d"),
        (last.get("images_per_second"), ".0f"),
        (minutes, ".1f"),
        (damaged, "d"),
    )
    return (f"seed {run.settings.get('seed')}", state, *(shown(value, spec) for value, spec in values))


def _top1(record: Mapping[str, Any]) -> str | None:
    """Top-1 with its binomial standard error, where the record says of how many images."""
    top1, images = record.get("top1"), record.get("images_tested")
    if top1 is None or not math.isfinite(top1):
        return None if top1 is None else shown(top1)
    if type(images) is not int or not 0 < images < MOST or not 0 <= top1 <= 100:
        return shown(top1, ".2f")
    return plus_minus(top1, binomial(round(top1 * images / 100), images).standard_error)


def _summary(results: list[dict[str, Any]]) -> tuple[str, ...]:
    """Mean and sample standard deviation over the finished runs, and the best any reached."""
    mean = summarise([Outcome(**result) for result in results])
    cells: dict[str, str] = dict.fromkeys(COLUMNS, MISSING)
    cells |= {"run": f"{mean['runs']} seeds", "state": "mean ± std"}
    for key, head in (("top1", "top-1 %"), ("top5", "top-5 %")):
        cells[head] = f"{mean[f'{key}_mean']:.2f} ± {mean[f'{key}_std']:.2f}"
    cells["best top-1 %"] = f"{mean['top1_best']:.2f}"
    return tuple(cells.values())


def _findings(runs: list[_SeedRun]) -> list[str]:
    unfinished = [f"seed {run.settings.get('seed')}" for run in runs if run.result is None]
    lines = ["The best epoch is chosen on the test set, so it flatters."]
    if any("images_tested" in record for run in runs for record in run.history[-1:]):
        lines.append("± of a seed's top-1 is one standard error over the test images.")
    finished = [Outcome(**run.result) for run in runs if run.result is not None]
    mean = summarise(finished) if len(finished) > 1 else {}
    if mean.get("top1_se") is not None:
        error = plus_minus(mean["top1_mean"], mean["top1_se"])
        lines.insert(0, f"Mean top-1 of {mean['runs']} seeds: {error} %, one standard error over images and seeds.")
    if unfinished:
        lines.insert(0, f"Not finished: {', '.join(unfinished)}.")
    return lines


def _model(settings: Mapping[str, Any]) -> str:
    model = settings["model"]
    return str(model.get("kind", "?")) if isinstance(model, Mapping) else str(model)
