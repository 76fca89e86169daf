"""The files of a training run, whatever it trains: its epochs, its setting in words, its curves."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from entropatch.config import PruneConfig
from entropatch.figures import save_figure
from entropatch.figures.curves import training_curves
from entropatch.look.naming import data_label, pruning_label, rates_text
from entropatch.report.cells import shown
from entropatch.report.content import Picture
from entropatch.report.pictures import read_picture

MOST = 10**15  # that a number of a run may be


def read_epochs(path: Path, accuracy: str = "top1") -> list[dict[str, Any]]:
    """The record of each epoch. Raises ValueError for a line that is none.

    Args:
        path: epochs.jsonl.
        accuracy: the key of what it was tested for.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_record(number, line, accuracy) for number, line in enumerate(lines, 1)]


def _record(number: int, line: str, accuracy: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not {"epoch", "loss", accuracy} <= set(record):
            raise ValueError("not the record of an epoch")
        for key in ("epoch", "loss", accuracy, *({"top5", "seconds", "images_per_second"} & set(record))):
            check_number(key, record[key])
        for key in {"damaged_training", "damaged_testing"} & set(record):
            if not isinstance(record[key], list):
                raise ValueError(f"{key} must be a list, but is {short(record[key])}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: {error}") from error
    return record


def check_number(key: str, value: Any) -> None:
    """JSON has numbers too long for any arithmetic, and knows no type; NaN and infinity pass, as a run may diverge."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{key} must be a number, but is {short(value)}")
    if abs(value) > MOST and math.isfinite(value):
        raise ValueError(f"{key} is out of range")


def short(value: Any) -> str:
    """A value in an error's message."""
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def data_text(settings: Mapping[str, Any]) -> str:
    """What a run is trained on."""
    data = settings["data"]
    return data_label(data) if isinstance(data, Mapping) else str(data)


def pruning_text(settings: Mapping[str, Any]) -> str:
    """The method and keep rate; a criterion that is not known here by its own words."""
    prune = settings.get("prune")
    if not isinstance(prune, Mapping):
        return "dense"
    try:
        config = PruneConfig.from_dict(prune)
        rate = f", keep rate {rates_text(config.keep_rate)}" if config.schedule.uses_keep_rate else ""
        return pruning_label(config) + rate
    except (ValueError, TypeError):
        given = prune.get("criterion") or {}
        named = " → ".join(_criterion(dict(one)) for one in (given if isinstance(given, list) else [given]))
        fused = ", fused" if prune.get("reduction") == "fuse" else ""
        return f"{named}{fused}, keep rate {shown(prune.get('keep_rate'))}"


def _criterion(fields: dict[str, Any]) -> str:
    name = fields.pop("name", "?")
    arguments = ", ".join(f"{key} {shown(value)}" for key, value in fields.items())
    return f"{name} ({arguments})" if arguments else f"{name}"


def curves_of(histories: Mapping[str, Sequence[Mapping[str, Any]]], accuracy: str = "top1") -> list[Picture]:
    """The training curves of runs by their names, as one picture; none before the first epoch."""
    histories = {name: history for name, history in histories.items() if history}
    if not histories:
        return []
    with tempfile.TemporaryDirectory() as folder:
        figure = training_curves(histories, accuracy=accuracy)
        drawn = read_picture(save_figure(figure, Path(folder) / "training curves.svg"))
    return [replace(drawn, original=None)]
