"""What a file format states about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from entropatch.export.subject import Subject


@dataclass(frozen=True)
class Options:
    """How a file is to be made; as in `entropatch.export`."""

    opset: int
    simplify: bool = False
    int8: str | None = None
    kept: bool = False


@dataclass(frozen=True)
class Made:
    """Two files of one computation.

    Attributes:
        file: what is delivered.
        inspected: the same with every decision as a further output, for the check.
        notes: what is to be said of it.
    """

    file: Path
    inspected: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: what `format=` calls it.
        suffix: how its files end.
        runtime: which of `outside.RUNTIMES` runs it.
        options: which `Options` beside `kept` mean anything to it.
        write: makes the files in a folder under a name: (subject, folder, name, options, about) -> Made.
    """

    name: str
    suffix: str
    runtime: str
    options: tuple[str, ...]
    write: Callable[[Subject, Path, str, Options], Made]
