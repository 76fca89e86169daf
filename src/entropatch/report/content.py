"""What a report shows of a run, and reading files such that whatever is wrong with one is told in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from entropatch.data.images import printable

T = TypeVar("T")


class ReportError(ValueError):
    """A run that cannot be reported; the message is one line and names the file."""


@dataclass(frozen=True)
class Table:
    """Cells as they are read. `numeric` tells for each column whether it holds numbers, which are right-aligned."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]


@dataclass(frozen=True)
class Picture:
    """A picture ready to stand inside a page.

    Attributes:
        name: to write below it.
        data, media_type: an image file's bytes, of as many pixels as are shown.
        size: on the page in pixels (None: it does not say).
        original: the file it was made from, where that stays where it is.
    """

    name: str
    data: bytes
    media_type: str
    size: tuple[int, int] | None = None
    original: Path | None = None


@dataclass(frozen=True)
class Run:
    """What a report shows of one run.

    Attributes:
        path: the folder or file as it was given.
        kind: the command that made it: "demo", "bench", …; "records" for records of another origin.
        title: a line.
        findings: sentences that say what came out.
        tables: of results.
        texts: further tables as Markdown, and settings files, by their file's name.
        pictures: to be shown, and how many more there are in `pictures_left_out`.
        settings: what was run, flat.
        machine: hardware and versions.
    """

    path: Path
    kind: str
    title: str
    findings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    pictures_left_out: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)


def reading(path: Path, read: Callable[[Path], T]) -> T:
    """`read(path)`, with any way in which that can fail as a `ReportError` that names the file.

    Whatever a file holds, nothing but this error comes of it: a number of 400 digits overflows, a text where an object
    should be has no keys, and each such way of failing has an exception of its own.
    """
    try:
        return read(path)
    except (ReportError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ReportError(f"{printable(path)}: cannot be read: {error.strerror or error}.") from error
        text = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        reason = " ".join(text.split()).removesuffix(".") or type(error).__name__
        raise ReportError(f"{printable(path)}: damaged: {reason[:200]}.") from error


def load_json(path: Path) -> Any:
    """What a JSON file holds. Raises ReportError for a file that cannot be read or is no JSON."""
    return reading(path, lambda file: json.loads(file.read_text(encoding="utf-8")))
