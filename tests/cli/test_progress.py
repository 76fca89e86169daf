"""How far a command is: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import pytest
from rich.console import Console
from terminal_screen import screen

from entropatch.cli.progress import ProgressLines, phases, progress_bar
from entropatch.cli.terminal import printer


@pytest.fixture
def clock(monkeypatch):
    """Sets the times that the clock shows, one for each look at it; the last one for good."""

    def shows(times: Iterable[float]) -> None:
        ahead = iter(times)
        monkeypatch.setattr("entropatch.cli.progress.monotonic", lambda: float(next(ahead)))

    return shows


def test_a_stream_that_is_no_terminal_has_a_line_every_half_minute(clock):
    stream = io.StringIO()
    clock([0, *range(0, 1000, 10)])  # seconds: at the beginning, and at each step
    with progress_bar("measuring", 8, Console(file=stream, width=30), unit="timed calls") as step:
        for _ in range(8):
            step()
    assert stream.getvalue().splitlines() == [
        "measuring: 3 of 8 timed calls, about 0:00:50 left",
        "measuring: 6 of 8 timed calls, about 0:00:20 left",
    ]
    quick = io.StringIO()
    clock([0] * 9)
    with progress_bar("measuring", 8, Console(file=quick)) as step:
        step()
    assert quick.getvalue() == ""


def test_more_than_planned_has_no_time_left():
    added = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("entropatch.cli.progress.LINE_EVERY", 0.0)
        with progress_bar("measuring", 3, Console(file=added)) as step:
            for _ in range(6):
                step()
    assert added.getvalue().splitlines()[-1] == "measuring: 6 steps"


def test_a_phase_is_timed_from_the_end_of_the_one_before(clock):
    stream = io.StringIO()
    clock([0.0, 20.0, 29.0, 50.0])
    lines = ProgressLines(Console(file=stream, width=80))
    for what, done in (("one", 1), ("one", 2), ("other", 1)):
        lines.tell(what, done, 3, "batches")
    assert stream.getvalue() == "other: 1 of 3 batches, about 0:00:42 left\n"


def test_what_was_done_before_a_run_went_on_is_not_timed(clock):
    stream = io.StringIO()
    clock([0.0, 0.0, 40.0])
    lines = ProgressLines(Console(file=stream, width=80))
    lines.tell("training", 900, 1000, "batches")
    lines.tell("training", 910, 1000, "batches", "epoch 9/10, loss 0.123")
    assert stream.getvalue() == "training: 910 of 1000 batches, about 0:06:00 left; epoch 9/10, loss 0.123\n"


def test_a_phase_that_begins_anew_is_timed_anew(clock):
    stream = io.StringIO()
    clock([0.0, 10.0, 20.0, 1000.0, 1010.0, 1030.0])
    lines = ProgressLines(Console(file=stream, width=80))
    for what, done in (("testing", 1), ("testing", 2), ("training", 1), ("testing", 1), ("testing", 2)):
        lines.tell(what, done, 4, "batches")
    assert stream.getvalue().splitlines() == [
        "training: 1 of 4 batches, about 0:49:00 left",
        "testing: 2 of 4 batches, about 0:00:30 left",
    ]


def test_what_is_said_between_stands_above_the_bar():
    """As a terminal shows it in the end: each line once and whole, and no bar left."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    say = printer(console)
    with phases("batches", console) as tell:
        for epoch in (1, 2, 3):
            tell("training", epoch, 3, f"epoch {epoch}/3, loss 2.345")
            tell("testing", 1, 1, f"epoch {epoch}/3")
            say(f"epoch {epoch}: loss 2.3450")
    assert screen(stream.getvalue()) == [f"epoch {epoch}: loss 2.3450" for epoch in (1, 2, 3)]


def test_a_narrow_terminal_has_the_numbers_before_the_words():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=60, color_system=None)
    with phases("batches", console, stay=True) as tell:
        tell("training", 1234, 56280, "epoch 12/30, loss 0.123")
    assert " 1234/56280 batches, -:--:-- left" in screen(stream.getvalue())[-1]
    assert "epoch" not in stream.getvalue()


@pytest.mark.parametrize("stay", [False, True])
def test_a_terminal_has_one_bar_at_a_time_or_all(stay):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with phases({"training": "batches", "testing": "images"}, console, stay=stay) as tell:
        tell("training", 5, 440, "epoch 1/8, loss 2.345")
        tell("testing", 3, 10)
        tell("testing", 1, 10, "epoch 2/8")
        stream.truncate(stream.seek(0))
    shown = stream.getvalue()
    assert ("5/440" in shown and "loss 2.345" in shown) == stay
    assert re.search(r"testing .* 1/10 +images, .* left; epoch 2/8", shown)


def test_other_processes_than_the_first_show_nothing(monkeypatch):
    monkeypatch.setattr("entropatch.cli.progress.LINE_EVERY", 0.0)
    for terminal in (False, True):
        stream = io.StringIO()
        with phases("batches", Console(file=stream, force_terminal=terminal), shown=False) as tell:
            tell("training", 1, 2)
            tell("training", 2, 2)
        assert stream.getvalue() == ""


def test_progress_says_of_what_and_how_long_within_80_columns():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80, color_system=None)
    with progress_bar("evaluating", 1000, console, unit="batches and timed calls") as step:
        for _ in range(400):
            step()
    lines = [re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", line).rstrip() for line in re.split(r"[\r\n]", shown.getvalue())]
    last = [line for line in lines if "400/1000" in line][-1]
    assert re.search(r"evaluating .* 400/1000 batches and timed calls, \d:\d\d:\d\d left$", last)
    assert "━" in last
    assert len(last) <= 80
