"""The tables of a search: Table 1 of the paper, one of the orders, and all records.

The paper's Table 1 compares methods over keep rates. Its Table 2 is not described where this package could read it; the
layout of `table_2` is this package's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entropatch.methods import DENSE
from entropatch.records.tables import MISSING, markdown_table
from entropatch.search.summaries import Summary

OWN = "own"  # head of the column of methods that take no keep rate


def table_1(summaries: Sequence[Summary], budget: str | None = None) -> str:
    """Top-1 in percent: rows methods, columns keep rates from high to low, mean ± standard deviation over seeds.

    The best mean of each column is bold, as printed. The dense model has no keep rate and is the line above. With a
    budget there is one column for it, and each method's own keep rate is beside its name.
    """
    return _with_dense(summaries, _table(summaries, "method", lambda summary: summary.label, budget))


def table_2(summaries: Sequence[Summary], budget: str | None = None) -> str | None:
    """Top-1 in percent of the entropies alone: rows orders from low to high, columns keep rates; the last row names the
    best order of each. Else as `table_1`. None if there is no entropy among the summaries."""
    entropies = sorted((s for s in summaries if s.drops_by_entropy), key=lambda s: (s.order, -(s.keep_rate or 0)))
    if not entropies:
        return None

    def name(summary: Summary) -> str:
        return f"{_order(summary)} (Shannon)" if summary.order == 1 else _order(summary)

    def best(column: Sequence[Summary]) -> str:
        most = max(printed(summary) for summary in column)
        return ", ".join(_order(summary) for summary in column if printed(summary) == most)

    return _with_dense(summaries, _table(entropies, "order", name, budget, ("best order", best)))


def _with_dense(summaries: Sequence[Summary], table: str) -> str:
    lines = [f"Dense: {cell(s)} at {s.gflops:.3f} GFLOPs.\n\n" for s in summaries if s.method == DENSE]
    return "Top-1 accuracy in percent.\n\n" + "".join(lines) + table


def _table(
    summaries: Sequence[Summary],
    head: str,
    name: Callable[[Summary], str],
    budget: str | None,
    last: tuple[str, Callable[[Sequence[Summary]], str]] | None = None,
) -> str:
    """One row per name, one column per keep rate, or one for the budget; the best mean of a column in bold."""
    pruned = [summary for summary in summaries if summary.method != DENSE]
    rates = sorted({summary.keep_rate for summary in pruned if summary.keep_rate is not None}, reverse=True)
    columns = {f"{rate:.6g}": [s for s in pruned if s.keep_rate == rate] for rate in rates}
    columns |= {OWN: own} if (own := [s for s in pruned if s.keep_rate is None]) else {}
    heads = [head, *columns]
    if budget is not None:
        columns = {budget: pruned}
        heads = [head, "keep rate", budget]
    most = {key: max((printed(s) for s in column), default=math.nan) for key, column in columns.items()}
    rows = []
    for label in dict.fromkeys(map(name, pruned)):
        row: list[Any] = [label]
        for key, column in columns.items():
            mine = [s for s in column if name(s) == label]
            row += [f"{s.keep_rate:.6g}" for s in mine] if budget is not None else []
            row += [cell(s, bold=printed(s) == most[key]) for s in mine] or [MISSING]
        rows.append(row)
    if last is not None:
        spare = [""] if budget is not None else []
        rows.append([last[0], *spare, *(last[1](column) for column in columns.values())])
    return markdown_table(heads, rows)


def printed(summary: Summary) -> float:
    """Top-1 as tables show it: what they show as equal is equal."""
    return round(summary.top1, 2)


def cell(summary: Summary, bold: bool = False) -> str:
    text = f"{summary.top1:.2f}" + ("" if summary.top1_std is None else f" ± {summary.top1_std:.2f}")
    text = f"**{text}**" if bold else text
    return text if summary.runs == summary.expected else f"{text} ({summary.runs} of {summary.expected})"


def _order(summary: Summary) -> str:
    order = summary.order
    assert order is not None
    return "∞" if math.isinf(order) else f"{order:.6g}"


def records_table(records: Sequence[Mapping[str, Any]]) -> str:
    """One row per finished trial."""
    formats = {
        "top1": ".2f",
        "top5": ".2f",
        "gflops": ".3f",
        "images_per_second": ".1f",
        "vs_dense": ".2f",
        "seconds": ".1f",
    }
    heads = {"trial": "trial", "label": "method", "keep_rate": "keep rate", "seed": "seed", "top1": "top-1 %"}
    heads |= {"top5": "top-5 %", "gflops": "GFLOPs", "images_per_second": "images/s", "vs_dense": "× dense"}
    heads |= {"seconds": "seconds"}
    rows = [[_shown(record[key], formats.get(key)) for key in heads] for record in records]
    return markdown_table(list(heads.values()), rows)


def _shown(value: Any, form: str | None) -> Any:
    return format(value, form) if form else value
