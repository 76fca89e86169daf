"""What a calibration found, as text, records, pictures and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from entropatch.calibration.answers import OBJECTIVES, SHORT
from entropatch.calibration.finding import CHOSEN, Calibration, Row
from entropatch.config_fields import setting_label
from entropatch.look.naming import pruning_label, rates_text
from entropatch.records.tables import markdown_table, write_records

CONFIG, GOAL = "calibrated.json", "goal"
# What is added up, by the names of `entropatch.calibration.planning.adding`.
SUMMED = {
    "fresh": "what each block loses alone at its own rate",
    "deeper": "what each loses alone at the share of all patches that it leaves, less that at the share it is given",
}


def setting_text(found: Calibration) -> str:
    """The setting, a row for each block."""
    config, blocks = found.config, found.config.blocks or ()
    rates = config.keep_rate if isinstance(config.keep_rate, tuple) else (config.keep_rate,) * len(blocks)
    parts = config.parts if len(config.parts) > 1 else config.parts * len(blocks)
    rows = [
        [block, setting_label(*part, config.schedule), f"{rate:g}"]
        for block, part, rate in zip(blocks, parts, rates, strict=True)
    ]
    return markdown_table(["block", "keeps", "keep rate"], rows)


def trade_off_table(found: Calibration) -> str:
    """Loss ± standard error on the images held out, at the budget and at other costs."""
    rows = [*found.rows, *sorted(found.curve, key=lambda row: (row.cost, row.name != CHOSEN))]
    head = [f"cost ({found.unit})", "of dense", "setting", "loss", "± standard error"]
    cells = [
        [f"{row.cost:.4g}", f"{row.cost / found.dense:.0%}", row.label, f"{row.loss:.4g}", f"{row.error:.2g}"]
        for row in rows
    ]
    return markdown_table(head, cells)


def summary(found: Calibration) -> str:
    """The whole as plain text."""
    counts = found.counts
    lines = [
        f"{found.counts['schedules']} schedules judged on {counts['chosen by']} images; loss: "
        f"{OBJECTIVES[found.objective]}.",
        setting_text(found),
        f"On {counts['held out']} images held out:",
        trade_off_table(found),
        found.verdict,
        left_out_text(found),
        additivity_text(found),
    ]
    return "\n".join(line for line in lines if line)


def left_out_text(found: Calibration) -> str:
    """What the comparison usually has and the model does not take, a line each."""
    return "\n".join(f"{label} is left out: {reason}" for label, reason in found.left_out.items())


def additivity_text(found: Calibration) -> str:
    """How the losses of single blocks add up in schedules judged together."""
    parts = [
        f"{value['joint over sum']:.2f} times the sum of {SUMMED.get(name, name)} (rank correlation "
        f"{value['rank correlation']:.2f})"
        for name, value in found.additivity.items()
        if value
    ]
    return f"Losses of single blocks do not simply add up: a schedule loses {', and '.join(parts)}." if parts else ""


def refuse_other_goal(folder: str | Path, goal: str) -> None:
    """Raise ValueError where the folder holds what was found for another goal, which would be lost."""
    file = Path(folder) / "calibration.json"
    if not file.exists():
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["about"].get(GOAL)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"{file} is damaged, or not a calibration's; give a folder of its own (--output), or remove that file."
        ) from None
    if before is not None and before != goal:
        raise ValueError(
            f"{folder} holds the calibration for {before}, but got {goal}; give it a folder of its own (--output). "
            "Copies of losses.jsonl and calibrating.json in it spare what was measured already."
        )


def write_calibration(
    found: Calibration, folder: str | Path, title: str = "", about: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write `calibrated.json`, which `PruneConfig.load` reads, calibration and single-blocks as .md, .csv and .json.

    A picture of the trade-off is added where matplotlib is there.

    Args:
        found: by `entropatch.calibration.calibrated`.
        folder: made if missing.
        title: of the tables and the picture.
        about: what else is to be said beside the numbers.

    Returns:
        The paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found.config.save(folder / CONFIG)
    facts: dict[str, Any] = {"made by": "entropatch calibrate", "verdict": found.verdict}
    facts |= {"left out": left_out_text(found)} if found.left_out else {}
    facts |= {"loss": OBJECTIVES[found.objective], "budget": found.budget, "unit": found.unit, "dense": found.dense}
    facts |= {"additivity": additivity_text(found), **found.counts, **(about or {})}
    title = title or "Calibrated"
    records = [_record(row, "budget") for row in found.rows] + [_record(row, "curve") for row in found.curve]
    paths = [folder / CONFIG]
    paths += write_records(records, folder, "calibration", title=title, about=facts, table=trade_off_table(found))
    singles = f"{title}: one block pruned alone"
    paths += write_records(found.singles, folder, "single-blocks", title=singles, about=facts)
    if find_spec("matplotlib") is None:
        return paths
    from entropatch.figures import save_figure, trade_off

    note = f"{found.counts['held out']} images held out; a bar is one standard error."
    figure = trade_off(records, found.unit, SHORT[found.objective], title=title, note=note)
    return [*paths, *(save_figure(figure, folder / f"calibration.{kind}") for kind in ("png", "svg"))]


def _record(row: Row, part: str) -> dict[str, Any]:
    config = row.config
    return {
        "label": row.label,
        "name": row.name,
        "part": part,
        "cost": row.cost,
        "loss": row.loss,
        "standard_error": row.error,
        "pruning": pruning_label(config),
        "keep_rate": rates_text(config.keep_rate),
    }
