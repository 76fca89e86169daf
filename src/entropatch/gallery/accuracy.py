"""Accuracy against cost, from what other commands measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropatch import figures
from entropatch.figures.accuracy import bars_note
from entropatch.gallery.written import MADE_BY, write_figure
from entropatch.look.naming import rates_text
from entropatch.records.tables import write_records

MOST = 10**15  # that a number of a record may be


def draw_accuracy(
    records: Sequence[Mapping[str, Any]],
    folder: str | Path,
    *,
    title: str = "",
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Accuracy against GFLOPs and against images/s, as accuracy-gflops and accuracy-images-per-second.

    Args:
        records: as `accuracy_records` gives them.
        folder: made if missing; the points are written beside the figures as accuracy.md, .csv and .json.
        title: a line above.
        about: to be written beside the numbers, such as `measured_on` gives it.

    Returns:
        What was written; an axis that no record was measured for has no figure.

    Raises:
        ValueError: no record holds an accuracy and either cost.
    """
    note = f"The number beside a point is its keep rate. {bars_note(records)}".strip()
    written = []
    for x, stem in (("gflops", "accuracy-gflops"), ("images_per_second", "accuracy-images-per-second")):
        if any(record.get(x) is not None and record.get("top1") is not None for record in records):
            written += write_figure(figures.accuracy_against(records, x, title=title, note=note), folder, stem, None)
    if not written:
        raise ValueError(f"a record must hold top1 and gflops or images_per_second, but none of {len(records)} does.")
    return [
        *written,
        *write_records(records, folder, "accuracy", title="Accuracy", about={"made by": MADE_BY, **(about or {})}),
    ]


def measured_on(sources: Mapping[str, Any]) -> dict[str, str]:
    """On which machines, with what and when records were measured, from the JSON of their files by the files' names."""
    found: dict[str, dict[str, str]] = {}
    for name, data in sources.items():
        about = data.get("about") if isinstance(data, Mapping) else None
        for key in ("hardware", "device", "torch", "timm", "entropatch", "date"):
            if isinstance(about, Mapping) and isinstance(about.get(key), str):
                found.setdefault(key, {})[name] = about[key]

    def text(values: dict[str, str]) -> str:
        agree = len(values) == len(sources) and len(set(values.values())) == 1
        return next(iter(values.values())) if agree else "; ".join(f"{name}: {one}" for name, one in values.items())

    return {"measured in": ", ".join(sources)} | {key: text(values) for key, values in found.items()}


def accuracy_records(data: Any, source: str = "the file") -> list[dict[str, Any]]:
    """The points of an accuracy figure from the JSON that evaluate, search and the demo write.

    Args:
        data: {"records": […]}, or the list itself. Each record has keep_rate, gflops or images_per_second, an accuracy
            in percent called top1 or accuracy, and a label or name; a name that ends in its keep rate loses it.
        source: how an error calls the file.

    Raises:
        ValueError: another layout, or no record with an accuracy.
    """
    records = data.get("records") if isinstance(data, Mapping) else data
    if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
        raise ValueError(f'{source} must hold {{"records": [{{…}}, …]}} as entropatch evaluate writes it.')
    for record in records:
        _check_point(record, source)
    points = [_point(record) for record in records if record.get("top1", record.get("accuracy")) is not None]
    if not points:
        raise ValueError(f"{source} must hold records with top1 or accuracy, but none of {len(records)} has either.")
    return points


def _point(record: Mapping[str, Any]) -> dict[str, Any]:
    rate = record.get("keep_rate")
    label = str(record.get("label") or record.get("name") or record.get("method") or "unnamed")
    if rate is not None:
        label = label.removesuffix(f", {rates_text(rate)}")
    kept = {"label": label, "keep_rate": rate, "top1": record.get("top1", record.get("accuracy"))}
    if "accuracy_error" in record:  # of the demo
        kept["top1_se"] = record["accuracy_error"]
    return kept | {key: record[key] for key in ("top1_se", "top1_std", "gflops", "images_per_second") if key in record}


def _check_point(record: Mapping[str, Any], source: str) -> None:
    """Raise ValueError for what is no number where one is drawn, or one too long for any arithmetic."""
    for key in (
        *("keep_rate", "top1", "accuracy", "accuracy_error", "top1_se", "top1_std"),
        *("gflops", "images_per_second"),
    ):
        value = record.get(key)
        for one in value if key == "keep_rate" and isinstance(value, list) else [value]:
            # The records write infinity and NaN as text; such a point is left out.
            if one is None or (isinstance(one, str) and one in ("inf", "-inf", "nan") and key != "keep_rate"):
                continue
            if isinstance(one, bool) or not isinstance(one, (int, float)) or abs(one) > MOST:
                raise ValueError(f"{source}: {key} must be a number, but one is {repr(one)[:40]}.")
