"""`entropatch report`: the runs of the other commands on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entropatch.cli import app
from entropatch.cli.terminal import fail


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders, or single .json files, of demo, bench, evaluate, check, figures, finetune, segment, "
            "calibrate, search or visualize.",
            metavar="RUN...",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The HTML file; an earlier report there is replaced.")] = Path(
        "report.html"
    ),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "entropatch report",
    pictures: Annotated[int, typer.Option(help="Pictures shown of each run; the rest are counted.", min=0)] = 24,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file even if no report wrote it.")] = False,
) -> None:
    """Gather tables, figures, settings, versions and hardware of runs into one HTML file that opens offline.

    The file needs no other file, no network and no script. A run that is damaged or of an unknown kind is named, the
    exit status is 1, and nothing is written.
    """
    from entropatch.report import ReportError, write_report

    try:
        path = write_report(runs, output, title=title, most_pictures=pictures, force=force)
    except (ReportError, ImportError, OSError) as error:
        fail("report", error, 1)
    count, size = len(dict.fromkeys(runs)), path.stat().st_size
    shown = f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.0f} kB"
    typer.echo(f"{path.resolve()}: {count} run{'s' * (count != 1)}, {shown}")
