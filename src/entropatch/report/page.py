"""The page: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from entropatch.data.images import printable
from entropatch.extras import require
from entropatch.records.files import write_text
from entropatch.report.cells import MISSING
from entropatch.report.content import Picture, ReportError, Run
from entropatch.report.runs import read_run

if TYPE_CHECKING:
    from jinja2 import Environment

# How a report is told from other files; never change it, or earlier reports can no longer be replaced.
MARK = '<meta name="generator" content="entropatch report'
MARK_WITHIN = 2048  # bytes


def write_report(
    runs: Sequence[str | Path],
    output: str | Path = "report.html",
    *,
    title: str = "entropatch report",
    most_pictures: int = 24,
    force: bool = False,
    on_run: Callable[[], None] = lambda: None,
) -> Path:
    """Gather runs into one HTML file that needs no other file, no network and no script.

    Args:
        runs: folders, or single .json files, that the other commands wrote; each once.
        output: the file; an earlier report there is replaced.
        title: the heading.
        most_pictures: so many pictures of each run are shown; the number of the others is told.
        force: replace `output` whatever it is.
        on_run: called after each run that was read, for a progress bar.

    Returns:
        The path of the file.

    Raises:
        ReportError: no runs; a run that does not exist, is damaged or of an unknown kind; the message is one line.
        FileExistsError: `output` is there and no report.
        OSError: it cannot be written.
        ImportError: a package of the extra `report` is missing.
    """
    require("jinja2", "report")
    if not runs:
        raise ReportError("a report needs at least one run, but got none.")
    output = Path(output)
    check_output(output, force)
    read = []
    for path in dict.fromkeys(Path(run) for run in runs):
        read.append(read_run(path, most_pictures))
        on_run()
    write_text(output, render(read, title, output.parent))
    return output


def check_output(path: Path, force: bool) -> None:
    """Raise FileExistsError if the file is there and no report wrote it, unless `force` says to replace it."""
    if path.is_dir():
        raise FileExistsError(f"{printable(path)} is a folder; name a file such as report.html.")
    if force or not path.exists():
        return
    with path.open("rb") as file:
        if MARK.encode() not in file.read(MARK_WITHIN):
            raise FileExistsError(f"{printable(path)} is no report; name another file, or give --force to replace it.")


def render(runs: Sequence[Run], title: str, folder: Path) -> str:
    """The page as text, to lie in `folder`. Everything that came from a file is escaped."""
    from entropatch.version import __version__

    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    page = _environment().get_template("page.html")
    text = page.render(title=title, runs=runs, version=__version__, now=now, overview=_overview(runs), folder=folder)
    # A file name may hold bytes that are no text.
    return text.encode("utf-8", "replace").decode("utf-8")


def _overview(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row per run, of what tells them apart."""
    rows = []
    for run in runs:
        row = {key: run.machine.get(key, MISSING) for key in ("hardware", "torch", "entropatch")}
        days = sorted(set(re.findall(r"\d{4}-\d\d-\d\d", run.machine.get("date", ""))))
        rows.append({"kind": run.kind, "title": run.title, "day": ", ".join(days) or MISSING, **row})
    return rows


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("entropatch", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "data_uri": data_uri,
        "markdown": markdown,
        "path": printable,
        "link": link,
    }
    environment.filters.update(filters)
    return environment


def data_uri(picture: Picture) -> str:
    """The picture as an address that holds it. Inside <img> no script of an SVG runs and nothing is fetched for it."""
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode('ascii')}"


def link(file: Path, folder: Path) -> str:
    """The address of a file from a page in `folder`; nothing is fetched from there unless a reader asks for it."""
    try:
        return quote(os.fsencode(Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()))
    except ValueError:  # another drive
        return file.resolve().as_uri()


def markdown(text: str) -> Any:
    """Markdown with tables as HTML; raw HTML, links and images in it stay text."""
    from markupsafe import Markup

    parser = require("markdown_it", "report").MarkdownIt("js-default")
    parser.disable(["link", "image", "autolink", "linkify", "reference"])
    return Markup(parser.render(text))
