"""Records of measurements as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropatch.records.files import write_text

MISSING = "—"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, padded so that it reads as plain text too.

    None becomes "—". Floats are shown with four significant digits, and large ones without exponent; format a value
    beforehand to show it otherwise. Columns that hold only numbers (or nothing) are right-aligned. A "|" is escaped and
    a line break becomes a space.

    Args:
        columns: the head of each column.
        rows: one sequence of cells per row, each as long as `columns`.

    Returns:
        The table, ending with a line break.

    Raises:
        ValueError: no columns, or a row of another length.
    """
    if not columns:
        raise ValueError("columns must name at least one column, but got none.")
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row must hold {len(columns)} cells, one per column, but got {len(row)}: {row!r}.")
    head = [_cell(column) for column in columns]
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(rows) and all(_is_numeric(row[i]) for row in cells) for i in range(len(columns))]
    widths = [max(3, *(len(row[i]) for row in [head, *cells])) for i in range(len(columns))]
    rule = ["-" * (width - 1) + ":" if flag else "-" * width for width, flag in zip(widths, right, strict=True)]
    lines = []
    for row in (head, rule, *cells):
        padded = [
            cell.rjust(width) if flag else cell.ljust(width)
            for cell, width, flag in zip(row, widths, right, strict=True)
        ]
        lines.append("| " + " | ".join(padded) + " |\n")
    return "".join(lines)


def footnotes(texts: Sequence[str | None], longest: int = 24) -> tuple[list[str | None], str]:
    """What stands in the cells of a column of remarks, and below the table: long ones by number, equal ones by one.

    Args:
        texts: one per row.
        longest: characters of a text that stays in its cell.

    Returns:
        The cells, "[1]" in place of a long text; and the long texts as a Markdown list, "" where there is none.
    """
    numbers: dict[str, int] = {}
    for text in texts:
        if text is not None and len(text) > longest:
            numbers.setdefault(text, len(numbers) + 1)
    cells = [f"[{numbers[text]}]" if text in numbers else text for text in texts]
    return cells, "".join(f"- [{number}] {' '.join(text.split())}\n" for text, number in numbers.items())


def plus_minus(value: float, error: float | None, *, signed: bool = False, bold: bool = False) -> str:
    """ "85.30 ± 0.41", of two decimals; the value alone where there is no error, with its sign if `signed`."""
    text = format(value, "+.2f" if signed else ".2f") + ("" if error is None else f" ± {error:.2f}")
    return f"**{text}**" if bold else text


def write_records(
    records: Sequence[Mapping[str, Any]],
    folder: str | Path,
    stem: str,
    *,
    title: str | None = None,
    about: Mapping[str, Any] | None = None,
    table: str | None = None,
) -> list[Path]:
    """Write records as `stem`.md, `stem`.csv and `stem`.json into `folder`, each whole or not at all.

    The columns are the keys of all records in the order they first appear; a key that a record lacks is an empty cell.

    Args:
        records: one mapping per row, of values JSON can hold.
        folder: made if missing.
        stem: file name without its suffix.
        title: the heading of the Markdown file.
        about: what holds for all rows (hardware, versions, settings): a list under the Markdown table, and the "about"
            object of the JSON file. The JSON file is always {"about": {…}, "records": [{…}, …]}.
        table: the table of the Markdown file, from `markdown_table`, where it should not show every key as it is.

    Returns:
        The three paths: Markdown, CSV, JSON.

    Raises:
        ValueError: no records. TypeError: a value that JSON cannot hold.
    """
    if not records:
        raise ValueError("records must hold at least one row to write, but got none.")
    columns = list(dict.fromkeys(key for record in records for key in record))
    rows = [[record.get(column) for column in columns] for record in records]
    about = dict(about or {})
    data = {"about": _finite(about), "records": [_finite(dict(record)) for record in records]}
    # All three are made before the first is written.
    texts = {
        "md": _markdown(table or markdown_table(columns, rows), title, about),
        "csv": _csv(columns, rows),
        "json": json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    paths = []
    for suffix, text in texts.items():
        path = Path(folder, f"{stem}.{suffix}")
        write_text(path, text)
        paths.append(path)
    return paths


def _markdown(table: str, title: str | None, about: Mapping[str, Any]) -> str:
    head = f"# {title}\n\n" if title else ""
    foot = "".join(f"- {key}: {_cell(value)}\n" for key, value in about.items())
    return head + table + ("\n" + foot if foot else "")


def _csv(columns: list[str], rows: list[list[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float):
        if not math.isfinite(value) or abs(value) >= 1000:
            return f"{value:.0f}"
        return f"{value:.4g}"
    return " ".join(str(value).split("\n")).replace("|", "\\|")


def _is_numeric(cell: str) -> bool:
    """Whether a cell is a number, alone or with a sign, unit or percent after it, or empty."""
    if cell in ("", MISSING):
        return True
    try:
        float(cell.rstrip("×%").replace(",", ""))
    except ValueError:
        return False
    return True


def _finite(value: Any) -> Any:
    """JSON knows no infinity and no NaN; they are written as the strings "inf", "-inf" and "nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
