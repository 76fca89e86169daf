"""Records as tables for reading: which columns, under which heads, with how many digits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from entropatch.report.content import Table

# Key of a record -> head of its column and format of its numbers. Keys that are not here are shown by their own name.
KNOWN: dict[str, tuple[str, str]] = {
    "label": ("method", ""),
    "name": ("setting", ""),
    "keep_rate": ("keep rate", "g"),
    "batch_size": ("batch", "d"),
    "accuracy": ("accuracy %", ".1f"),
    "top1": ("top-1 %", ".2f"),
    "top1_less_dense": ("− dense", "+.2f"),
    "top1_less_random": ("− random", "+.2f"),
    "top5": ("top-5 %", ".2f"),
    "best_top1": ("best top-1 %", ".2f"),
    "best_top5": ("best top-5 %", ".2f"),
    "miou": ("mIoU %", ".2f"),
    "to_dense": ("− dense", "+.2f"),
    "patches_left": ("patches left", ".1f"),
    "gflops": ("GFLOPs", ".2f"),
    "images_per_second": ("images/s", ".1f"),
    "dense_images_per_second": ("dense images/s", ".1f"),
    "vs_dense": ("× dense", ".2f"),
    "vs_random": ("× random", ".3f"),
    "vs_torch": ("× PyTorch", ".2f"),
    "p50_ms": ("p50 ms", ".1f"),
    "p95_ms": ("p95 ms", ".1f"),
    "peak_memory_mib": ("peak MiB", ".1f"),
    "seconds": ("seconds", ".0f"),
    "auroc": ("AUROC", ".2f"),
}
# Shown after the value it belongs to, value ± spread: the first that a record has.
SPREADS: dict[str, tuple[str, ...]] = {
    "accuracy": ("accuracy_error",),
    "top1": ("top1_se", "top1_std"),
    "top1_less_dense": ("top1_less_dense_se",),
    "top1_less_random": ("top1_less_random_se",),
    "top5": ("top5_std",),
    "miou": ("miou_se",),
    "to_dense": ("to_dense_se",),
    "auroc": ("standard_error",),
}
# Shown so too, value (low … high); of the others the error is enough.
INTERVALS = ("vs_dense", "vs_random", "vs_torch")
MISSING = "—"


def records_table(records: Sequence[Mapping[str, Any]], caption: str = "") -> Table:
    """The records as a table; columns in which nothing stands, and names that a label stands for, are left out."""
    keys = [key for key in dict.fromkeys(key for record in records for key in record) if _worth(key, records)]
    merged = {spread for key in keys for spread in SPREADS.get(key, ())}
    merged |= {f"{key}_{end}" for key in keys for end in ("low", "high")}
    keys = [key for key in keys if key not in merged and not (key == "method" and "label" in keys)]
    rows = tuple(tuple(_cell(key, record) for key in keys) for record in records)
    heads = tuple(KNOWN[key][0] if key in KNOWN else key.replace("_", " ") for key in keys)
    return make_table(caption, heads, rows)


def pivot(records: Sequence[Mapping[str, Any]], row: str, column: str, value: str) -> Table:
    """One row per value of `row`, one column per value of `column`; a record without the former is of all of them."""

    def name(record: Mapping[str, Any]) -> str:
        return "all" if record.get(row) is None else shown(record[row])

    heads = list(dict.fromkeys(shown(record[column]) for record in records))
    cells = {(name(record), shown(record[column])): _cell(value, record) for record in records}
    names = dict.fromkeys(place for place, _ in cells)
    rows = [[place, *(cells.get((place, head), "") for head in heads)] for place in names]
    return make_table(KNOWN[value][0], (row, *heads), rows)


def make_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of finished cells; columns of numbers alone are marked as such."""
    numeric = tuple(all(_is_numeric(row[i]) for row in rows) for i in range(len(columns)))
    return Table(caption, tuple(columns), tuple(tuple(row) for row in rows), numeric)


def shown(value: Any, spec: str = "") -> str:
    """A value for reading: None is —, floats have four significant digits unless `spec` says otherwise."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value in ("inf", "-inf", "nan"):  # as entropatch.records.tables writes them into JSON
        value = float(value)
    if isinstance(value, float) and math.isnan(value):
        return MISSING
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, (int, float)) and spec:
        text = format(value, spec if spec != "d" or isinstance(value, int) else "g")
        return f"{value:.2g}" if value and not float(text) else text
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value) or MISSING
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested settings as one list, keys joined by dots; a text that is a JSON object is taken apart too."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {name: value}
    if not isinstance(value, Mapping):
        return {name: shown(value)}
    parts = (flat(item, f"{name}.{key}" if name else str(key)) for key, item in value.items())
    return {key: leaf for part in parts for key, leaf in part.items()}


def _cell(key: str, record: Mapping[str, Any]) -> str:
    spec = KNOWN[key][1] if key in KNOWN else ""
    text = shown(record.get(key), spec)
    low, high = (record.get(f"{key}_{end}") for end in ("low", "high"))
    if key in INTERVALS and low is not None and high is not None:
        return f"{text} ({shown(low, spec)} … {shown(high, spec)})"
    spread = next((record[name] for name in SPREADS.get(key, ()) if record.get(name) is not None), None)
    return text if spread is None else f"{text} ± {shown(spread, spec.removeprefix('+'))}"


def _worth(key: str, records: Sequence[Mapping[str, Any]]) -> bool:
    return any(record.get(key) not in (None, "", [], {}) for record in records)


def _is_numeric(cell: str) -> bool:
    for part in cell.partition(" (")[0].split(" ± "):
        if part in ("", MISSING, "∞"):
            continue
        try:
            float(part.rstrip("%"))
        except ValueError:
            return False
    return True


def joined(facts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The facts of several sources: once where they agree, otherwise with the name of the source."""
    found: dict[str, str] = {}
    for key in dict.fromkeys(key for one in facts.values() for key in one):
        values = {name: one[key] for name, one in facts.items() if key in one}
        agree = len(values) == len(facts) and len(set(values.values())) == 1
        apart = "; ".join(f"{name}: {value}" for name, value in values.items())
        found[key] = next(iter(values.values())) if agree else apart
    return found
