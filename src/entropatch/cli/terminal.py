"""What the subcommands show on the error stream: progress, lines, and the one they end with when something fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(what: str, steps: int, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """A progress bar where the error stream is a terminal, as the function that moves it by one.

    Args:
        what: a word for what is done, such as "drawing".
        steps: how many there are.
        console: where else something is written meanwhile; it must be of the error stream.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=steps)
        yield lambda: progress.advance(task)


def printer(console: Console) -> Callable[[str], None]:
    """A function that writes a line to the console as it is."""
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


def fail(command: str, error: Exception | str, status: int) -> NoReturn:
    """Say why in one line, and leave with that exit status."""
    typer.echo(f"entropatch {command}: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(status)
