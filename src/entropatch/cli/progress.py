"""How far a command is: bars where the error stream is a terminal, else a line every half a minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from entropatch.cli.terminal import printer

LINE_EVERY = 30.0  # seconds
WIDE = 80  # letters, from which on a bar has room for where it stands
SLOW = 600.0  # seconds, over which the speed is estimated

# What is done, how much of it in which unit, the time it will still take, and where it stands; the bar takes what they
# leave of the line.
COLUMNS = (
    TextColumn("{task.description:<9}"),
    BarColumn(bar_width=None),
    MofNCompleteColumn(),
    TextColumn("{task.fields[unit]},"),
    TimeRemainingColumn(),
    TextColumn("left{task.fields[note]}"),
)


class Tell(Protocol):
    """Says what is done, how much of it, how much there is, and in words where it stands."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def phases(
    unit: str | Mapping[str, str], console: Console | None = None, *, shown: bool = True, stay: bool = False
) -> Iterator[Tell]:
    """Show a job that has phases, one bar at a time; as the function that the job tells how far it is.

    A phase that begins anew, as the test of each epoch, counts and is timed anew.

    Args:
        unit: what is counted, such as "images"; of each phase where it is a mapping.
        console: where else something is written meanwhile; it must be of the error stream.
        shown: False shows nothing: other processes than the first.
        stay: leave the bars of earlier phases, and all when done.
    """
    console = console or Console(stderr=True)
    hidden = not shown or not console.is_terminal
    with Progress(
        *COLUMNS, console=console, transient=not stay, disable=hidden, expand=True, speed_estimate_period=SLOW
    ) as progress:
        tasks: dict[str, TaskID] = {}
        lines = ProgressLines(console)

        def tell(what: str, done: int, total: int, note: str = "") -> None:
            counted = unit if isinstance(unit, str) else unit[what]
            for name, task in tasks.items():  # before another is added, which is drawn at once
                progress.update(task, visible=stay or name == what)
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, unit=counted, note="")
            elif done < progress.tasks[tasks[what]].completed:
                progress.reset(tasks[what])
            shown_note = f"; {note}" if note and console.width >= WIDE else ""
            progress.update(tasks[what], completed=done, total=total, note=shown_note)
            if shown:
                lines.tell(what, done, total, counted, note)

        yield tell


@contextmanager
def progress_bar(
    what: str, steps: int, console: Console | None = None, unit: str = "steps"
) -> Iterator[Callable[[], None]]:
    """Show a job of one phase; as the function that moves it by one.

    Args:
        what: a word for what is done, such as "drawing".
        steps: how many there are.
        console: where else something is written meanwhile; it must be of the error stream.
        unit: what is counted, such as "images".
    """
    done = count(1)
    with phases(unit, console) as tell:
        tell(what, 0, steps)
        yield lambda: tell(what, next(done), steps)


@dataclass
class _Begun:
    """When a phase began, with how much of it done before, and how much was done when last told."""

    at: float
    before: int
    done: int


class ProgressLines:
    """How far it is, as a line every half a minute, where the stream is no terminal: a log, or a notebook's cell."""

    def __init__(self, console: Console):
        self._console = console
        self._last = self._told = monotonic()
        self._begun: dict[str, _Begun] = {}

    def tell(self, what: str, done: int, total: int, unit: str, note: str = "") -> None:
        """So many of the total are done, or more than that where some were added.

        What was done when a phase is first told of is not timed, such as the steps before a run was continued; but for
        the first step, which has run since the last thing told.
        """
        now = monotonic()
        begun = self._begun.get(what)
        if begun is None or done < begun.done:
            begun = self._begun[what] = _Begun(self._told, 0, 0) if done <= 1 else _Begun(now, done, done)
        begun.done, self._told = done, now
        early = now - self._last < LINE_EVERY or done <= begun.before
        if self._console.is_terminal or early or done == total:
            return
        self._last = now
        left = timedelta(seconds=round((now - begun.at) / (done - begun.before) * (total - done)))
        far = f"{done} of {total} {unit}, about {left} left" if done < total else f"{done} {unit}"
        printer(self._console)(f"{what}: {far}" + (f"; {note}" if note else ""))
