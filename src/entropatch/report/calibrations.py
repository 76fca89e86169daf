"""The tables of a calibration: the settings by what they cost and lose, and what each block loses alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropatch.report.cells import make_table, records_table, shown
from entropatch.report.content import Table

# Of a record's "part": what its table is called.
PARTS = {"budget": "at the budget", "curve": "at other costs"}
ALONE = "one block pruned alone"


def is_comparison(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are the settings that a calibration compares, and not the losses of single blocks."""
    return {"part", "cost", "pruning"} <= set(records[0])


def calibration_tables(records: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> tuple[Table, ...]:
    """A table for each part of the comparison, in the order of `PARTS`; one of single blocks otherwise.

    Args:
        records: as `entropatch.calibration.writing.write_calibration` writes them.
        about: what it writes beside them.
    """
    if not is_comparison(records):
        return (records_table(records, ALONE),)
    kinds = dict.fromkeys([*PARTS, *(str(record.get("part")) for record in records)])
    parts = {kind: [record for record in records if str(record.get("part")) == kind] for kind in kinds}
    return tuple(_table(PARTS.get(kind, kind), part, about) for kind, part in parts.items() if part)


def _table(caption: str, records: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> Table:
    unit, dense = about.get("unit"), about.get("dense")
    cost = f"cost ({unit})" if unit else "cost"
    rows = []
    for record in sorted(records, key=lambda record: record["cost"]) if caption == PARTS["curve"] else records:
        error = record.get("standard_error")
        loss = shown(record.get("loss")) + ("" if error is None else f" ± {shown(error, '.2g')}")
        share = f"{record['cost'] / dense:.0%}" if dense else shown(None)
        # Apart by spaces, so that those of many blocks are broken into lines.
        rates = shown(record.get("keep_rate")).replace("/", ", ")
        rows.append([shown(record.get("label")), shown(record["cost"]), share, loss, shown(record["pruning"]), rates])
    return make_table(caption, ["setting", cost, "of dense", "loss", "prunes by", "keep rate"], rows)
