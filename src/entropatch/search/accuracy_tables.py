"""The tables of a search: Table 1 of the paper, one of the orders, and all records.

The paper's Table 1 compares methods over keep rates. Its Table 2 is not described where this package could read it; the
layout of `table_2` is this package's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entropatch.methods import DENSE, RANDOM
from entropatch.records.tables import MISSING, markdown_table, plus_minus
from entropatch.records.uncertainty import MULTIPLE
from entropatch.search.points import blocks_text
from entropatch.search.summaries import OWN, Summary


def table_1(summaries: Sequence[Summary], budget: str | None = None) -> str:
    """Top-1 in percent: rows methods, columns keep rates from high to low, each with its standard error.

    Bold is what is ahead of all else in its column (by more than 2 standard errors of the paired difference); the last
    row names it, or the best mean and all that is not told apart from it. The dense model has no keep rate and is the
    line above. With a budget there is one column for it, and each method's own keep rate is beside its name. Below
    stand the differences to random at the same keep rate and blocks, and to dense. Without a budget there are such
    tables for each set of blocks.
    """
    dense = [summary for summary in summaries if summary.method == DENSE]
    texts: list[str] = []
    for head, some in _by_blocks(summaries, budget):
        name = _full_name if budget is not None else _short_name
        texts.append(head + _table(some, "method", name, budget, ("best", name)))
        for reference in (RANDOM, DENSE):
            table = _differences([*dense, *some], reference, budget, name)
            if table is not None:
                texts.append(f"Top-1 less that of {reference}, in points, on the same images:\n\n{table}")
    return _with_dense(summaries, "\n".join(texts))


def _full_name(summary: Summary) -> str:
    return summary.label


def _short_name(summary: Summary) -> str:
    return summary.setting_label


def _by_blocks(summaries: Sequence[Summary], budget: str | None) -> list[tuple[str, list[Summary]]]:
    """What stands in one table, since it costs about the same at the same keep rate, each with a line above."""
    pruned = [summary for summary in summaries if summary.method != DENSE]
    sets = dict.fromkeys(summary.blocks for summary in pruned)
    if budget is not None or len(sets) < 2:
        return [("", pruned)]
    return [
        (
            "At the study's own blocks:\n\n" if blocks is None else f"At blocks {blocks_text(blocks)}:\n\n",
            [summary for summary in pruned if summary.blocks == blocks],
        )
        for blocks in sorted(sets, key=lambda one: one or ())
    ]


def table_2(summaries: Sequence[Summary], budget: str | None = None) -> str | None:
    """Top-1 in percent of the entropies alone: rows orders from low to high, columns keep rates; the last row names the
    best order of each, or all that are not told apart from it. Else as `table_1`. None if there is no entropy among the
    summaries."""
    entropies = sorted((s for s in summaries if s.drops_by_entropy), key=lambda s: (s.order, -(s.keep_rate or 0)))
    if not entropies:
        return None

    def place(summary: Summary) -> str:
        return "" if budget is None or summary.blocks is None else f" at {blocks_text(summary.blocks)}"

    def name(summary: Summary) -> str:
        return _order(summary) + (" (Shannon)" if summary.order == 1 else "") + place(summary)

    def short(summary: Summary) -> str:
        return _order(summary) + place(summary)

    tables = [
        head + _table(some, "order", name, budget, ("best order", short))
        for head, some in _by_blocks(entropies, budget)
    ]
    return _with_dense(summaries, "\n".join(tables))


def _with_dense(summaries: Sequence[Summary], table: str) -> str:
    lines = [f"Dense: {cell(s)} at {s.gflops:.3f} GFLOPs.\n\n" for s in summaries if s.method == DENSE]
    return f"Top-1 accuracy in percent. {errors_text(summaries)}\n\n" + "".join(lines) + table


def errors_text(summaries: Sequence[Summary]) -> str:
    """What ± and bold mean in the tables of these summaries, and what they cannot say."""
    if all(s.correct for s in summaries):
        what = "images and seeds" if any(s.runs > 1 for s in summaries) else "images"
        return (
            f"± is one standard error over {what}. Bold is ahead of all in its column by more than {MULTIPLE:g} "
            "standard errors of the difference on the same images, without allowance for how many are compared; "
            "several best are not told apart."
        )
    unknown = (
        "It is not known of every setting which images came out right, so differences have no error and none is best"
    )
    if all(s.estimate is not None for s in summaries):
        return f"± is one binomial standard error of a single run. {unknown}."
    return f"± is one standard deviation over the seeds. {unknown}."


def _table(
    summaries: Sequence[Summary],
    head: str,
    name: Callable[[Summary], str],
    budget: str | None,
    last: tuple[str, Callable[[Summary], str]],
) -> str:
    """One row per name, one column per keep rate, or one for the budget; what is ahead of its column in bold."""
    columns = _columns(summaries, budget)
    best = {key: not_told_apart(column) for key, column in columns.items()}
    rows = []
    for label in dict.fromkeys(name(s) for s in summaries if s.method != DENSE):
        row: list[Any] = [label]
        for key, column in columns.items():
            mine = [s for s in column if name(s) == label]
            row += [s.rates_text for s in mine] if budget is not None else []
            row += [cell(s, bold=[s] == best[key]) + _own_cost(s, budget) for s in mine] or [MISSING]
        rows.append(row)
    spare = [""] if budget is not None else []
    named = [", ".join(map(last[1], group)) or MISSING for group in best.values()]
    rows.append([last[0], *spare, *named])
    return markdown_table([head, *(["keep rate"] if budget is not None else []), *columns], rows)


def _own_cost(summary: Summary, budget: str | None) -> str:
    """What a setting given as a whole costs, which its column does not say."""
    return f" at {summary.gflops:.3f} GFLOPs" if summary.setting is not None and budget is None else ""


def _columns(summaries: Sequence[Summary], budget: str | None) -> dict[str, list[Summary]]:
    pruned = [summary for summary in summaries if summary.method != DENSE]
    if budget is not None:
        return {budget: pruned}
    rates = sorted({summary.keep_rate for summary in pruned if summary.keep_rate is not None}, reverse=True)
    columns = {f"{rate:.6g}": [s for s in pruned if s.keep_rate == rate] for rate in rates}
    return columns | ({OWN: own} if (own := [s for s in pruned if s.keep_rate is None]) else {})


def not_told_apart(column: Sequence[Summary]) -> list[Summary]:
    """The highest mean of a column and, in the order of the table, all that it is not ahead of; the former alone if it
    is ahead of all. None where that is not known, or nothing is beside it."""
    if len(column) < 2:
        return []
    first = max(column, key=printed)
    found = []
    for summary in column:
        difference = None if summary is first else first.less(summary)
        if summary is not first and difference is None:
            return []
        if difference is None or not difference.is_ahead:
            found.append(summary)
    return found


def _differences(
    summaries: Sequence[Summary], reference: str, budget: str | None, name: Callable[[Summary], str]
) -> str | None:
    """Each cell less random in the same column and at the same blocks, or less dense, ± the paired standard error; None
    if none is known."""
    rows: dict[str, list[str]] = {}
    columns = _columns(summaries, budget)
    for key, column in columns.items():
        among = [s for s in (column if reference == RANDOM else summaries) if s.setting is None]
        others = [s for s in among if (s.is_random if reference == RANDOM else s.method == DENSE)]
        for summary in column:
            other = next((s for s in others if reference == DENSE or s.blocks == summary.blocks), None)
            difference = None if other is None or summary is other else summary.less(other)
            if difference is not None:
                row = rows.setdefault(name(summary), [MISSING] * len(columns))
                text = plus_minus(difference.value, difference.standard_error, signed=True, bold=difference.is_ahead)
                row[list(columns).index(key)] = text
    order = [label for label in dict.fromkeys(map(name, summaries)) if label in rows]
    return markdown_table(["method", *columns], [[label, *rows[label]] for label in order]) if rows else None


def printed(summary: Summary) -> float:
    """Top-1 as tables show it: what they show as equal is equal."""
    return round(summary.top1, 2)


def cell(summary: Summary, bold: bool = False) -> str:
    """Top-1 with its standard error, or the standard deviation over seeds where no error is known."""
    error = summary.top1_std if summary.estimate is None else summary.estimate.standard_error
    text = plus_minus(summary.top1, error, bold=bold)
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
    if any("blocks" in record for record in records):
        heads |= {"blocks": "blocks"}
    heads |= {"top5": "top-5 %", "gflops": "GFLOPs", "images_per_second": "images/s", "vs_dense": "× dense"}
    heads |= {"seconds": "seconds"}
    rows = [[_shown(record.get(key), formats.get(key)) for key in heads] for record in records]
    return markdown_table(list(heads.values()), rows)


def _shown(value: Any, form: str | None) -> Any:
    return format(value, form) if form else value
