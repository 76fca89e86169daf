"""What the subcommands show: progress, lines, the one they end with when something fails, in letters a terminal has."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from time import monotonic
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperCommand

CONTINUED = ("calibrate", "finetune", "search", "segment")  # commands that go on where they stopped
INTERRUPTED = 130  # the exit status, as shells have it
LINE_EVERY = 30.0  # seconds

# What to write for letters an encoding lacks, where their decomposition does not say it.
_PLAIN = {"∞": "inf", "→": "->", "←": "<-", "×": "x", "−": "-", "–": "-", "—": "-", "±": "+-", "·": "*", "•": "*"}
_PLAIN |= {
    "≥": ">=",
    "≤": "<=",
    "≠": "!=",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "⁄": "/",
    "\u202f": " ",
    "α": "alpha",
}
_PLAIN |= {"ρ": "rho", "Σ": "sum", "√": "sqrt"}


def show_what_can_be_shown() -> None:
    """From here on the process's streams write letters that their encoding lacks in other ones, instead of failing.

    "∞" becomes "inf", "é" becomes "e"; what has no such reading becomes its escape, "\\u5199".
    """
    codecs.register_error("entropatch.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="entropatch.plain")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of `codecs`: replacements in ASCII, which every encoding of a terminal has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_in_ascii, text)), error.end


def _in_ascii(letter: str) -> str:
    parts = unicodedata.normalize("NFKD", letter)
    plain = "".join(_PLAIN.get(part, part) for part in parts if not unicodedata.combining(part))
    return plain if plain and plain.isascii() else letter.encode("ascii", "backslashreplace").decode("ascii")


# What is done, how much of it in which unit, and the time it will still take; within 80 letters.
PROGRESS = (
    TextColumn("{task.description:<9}"),
    BarColumn(bar_width=18),
    MofNCompleteColumn(),
    TextColumn("{task.fields[unit]},"),
    TimeRemainingColumn(),
    TextColumn("left"),
)


@contextmanager
def progress_bar(
    what: str, steps: int, console: Console | None = None, unit: str = "steps"
) -> Iterator[Callable[[], None]]:
    """A progress bar where the error stream is a terminal, else lines; as the function that moves it by one.

    Args:
        what: a word for what is done, such as "drawing".
        steps: how many there are.
        console: where else something is written meanwhile; it must be of the error stream.
        unit: what is counted, such as "images".
    """
    console = console or Console(stderr=True)
    with Progress(*PROGRESS, console=console, transient=True, disable=not console.is_terminal) as progress:
        task, lines, done = progress.add_task(what, total=steps, unit=unit), ProgressLines(console), count(1)

        def step() -> None:
            progress.advance(task)
            lines.tell(what, next(done), steps, unit)

        yield step


class ProgressLines:
    """How far it is, as a line every half a minute, where the stream is no terminal: a log, or a notebook's cell."""

    def __init__(self, console: Console):
        self._console = console
        self._last = self._told = monotonic()
        self._begun: dict[str, float] = {}

    def tell(self, what: str, done: int, total: int, unit: str) -> None:
        """So many of the total are done, or more than that where some were added."""
        now = monotonic()
        began, self._told = self._begun.setdefault(what, self._told), now
        if self._console.is_terminal or now - self._last < LINE_EVERY or not done:
            return
        self._last, left = now, timedelta(seconds=round((now - began) / done * (total - done)))
        far = f"{done} of {total} {unit}, about {left} left" if done < total else f"{done} {unit}"
        printer(self._console)(f"{what}: {far}")


def printer(console: Console) -> Callable[[str], None]:
    """A function that writes a line to the console as it is."""
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


class Interruptible(TyperCommand):
    """A command that says so when it is interrupted, and whether it can be continued."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            goes_on = "; the same command continues" if self.name in CONTINUED else ""
            fail(str(self.name), f"interrupted{goes_on}.", INTERRUPTED)


def fail(command: str, error: Exception | str, status: int) -> NoReturn:
    """Say why in one line, and leave with that exit status."""
    typer.echo(f"entropatch {command}: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(status)
