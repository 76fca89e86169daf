"""What the subcommands show: lines, the one they end with when something fails, in letters a terminal has."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from collections.abc import Callable
from typing import Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperCommand

CONTINUED = ("calibrate", "finetune", "search", "segment")  # commands that go on where they stopped
INTERRUPTED = 130  # the exit status, as shells have it

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


def printer(console: Console) -> Callable[[str], None]:
    """A function that writes a line to the console as it is."""
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


def is_first_process() -> bool:
    """Whether this is the one that writes, of those that `accelerate launch` or torchrun started together."""
    return os.environ.get("RANK", "0") == "0"


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
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        error = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}."  # in place of "[Errno 2] …"
    typer.echo(f"entropatch {command}: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(status)
