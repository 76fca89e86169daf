"""Records as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import json
import math

import pytest

from entropatch.records.tables import footnotes, markdown_table, write_records


def cells(table: str) -> list[list[str]]:
    """A Markdown table read back: the head and the rows, without the rule."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return [[cell.strip() for cell in line] for i, line in enumerate(lines) if i != 1]


def test_the_whole_of_a_small_table():
    table = markdown_table(["method", "images/s"], [["dense", 12.5], ["Rényi", 1730.4], ["EViT", None]])
    assert table == (
        "| method | images/s |\n"
        "| ------ | -------: |\n"
        "| dense  |     12.5 |\n"
        "| Rényi  |     1730 |\n"
        "| EViT   |        — |\n"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "—"),
        (0.12345, "0.1235"),
        (123456.7, "123457"),
        (999.96, "1000"),
        (7, "7"),
        (1234567, "1234567"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (True, "True"),
        ("4.610", "4.610"),
        ("two\nlines", "two lines"),
        ("a|b", "a\\|b"),
    ],
)
def test_cells(value, shown):
    assert cells(markdown_table(["x", "y"], [[value, "text"]]))[1] == [shown, "text"]


def test_only_columns_of_numbers_are_right_aligned():
    rule = markdown_table(["a", "b", "c"], [[1, "x", "95 %"], ["2.5", 3, None]]).splitlines()[1]
    assert [part.strip().endswith(":") for part in rule.strip("|").split("|")] == [True, False, True]


def test_ragged_rows_and_empty_heads_are_refused():
    with pytest.raises(ValueError, match="a row must hold 2 cells, one per column, but got 1"):
        markdown_table(["a", "b"], [["x"]])
    with pytest.raises(ValueError, match="at least one column"):
        markdown_table([], [])


RECORDS = [{"method": "dense", "rate": None, "speed": 1.25}, {"method": "Rényi", "order": math.inf, "speed": 2.0}]


def test_three_files_hold_the_same_records(tmp_path):
    about = {"hardware": "some | processor", "threads": 2}
    paths = write_records(RECORDS, tmp_path / "new" / "folder", "run", title="A title", about=about)
    assert [path.name for path in paths] == ["run.md", "run.csv", "run.json"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["run.csv", "run.json", "run.md"]

    markdown, text, data = (path.read_text(encoding="utf-8") for path in paths)
    assert markdown.startswith("# A title\n\n| method")
    assert "- hardware: some \\| processor\n- threads: 2\n" in markdown
    assert list(csv.DictReader(text.splitlines())) == [
        {"method": "dense", "rate": "", "speed": "1.25", "order": ""},
        {"method": "Rényi", "rate": "", "speed": "2.0", "order": "inf"},
    ]
    records = [RECORDS[0], RECORDS[1] | {"order": "inf"}]
    assert json.loads(data) == {"about": about, "records": records}
    assert "Infinity" not in data
    assert "Rényi" in data


def test_another_table_for_markdown(tmp_path):
    table = markdown_table(["only"], [["this"]])
    markdown = write_records(RECORDS, tmp_path, "run", table=table)[0].read_text(encoding="utf-8")
    assert cells(markdown) == [["only"], ["this"]]


def test_no_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        write_records([], tmp_path, "run")


def test_nothing_is_written_when_a_value_cannot_be(tmp_path):
    with pytest.raises(TypeError):
        write_records([{"value": object()}], tmp_path, "run")
    assert list(tmp_path.iterdir()) == []


def test_long_texts_become_footnotes():
    cells, below = footnotes(["", None, "a" * 24, "b" * 25, "c\n" * 15, "b" * 25])
    assert cells == ["", None, "a" * 24, "[1]", "[2]", "[1]"]
    assert below == f"- [1] {'b' * 25}\n- [2] {' '.join('c' * 15)}\n"
    assert footnotes(["short"]) == (["short"], "")
    assert footnotes(["short"], longest=4) == (["[1]"], "- [1] short\n")
