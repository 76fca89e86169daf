"""`--import my_module`: a user's own criteria, reductions, schedules and methods, known before anything names them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import typer

from entropatch.cli.terminal import fail


def import_modules(context: typer.Context, names: Sequence[str] | None) -> Sequence[str] | None:
    """Import each module once; the current folder is searched last. One that cannot be imported ends the command.

    A command that is started again, by `accelerate launch` or as a further worker, imports them again by its own line.
    """
    if names and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in names or ():
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
            fail(_command(context), f"--import takes the name of a module, such as my_module, but got {name!r}.", 2)
        try:
            import_module(name)
        except (Exception, SystemExit) as error:  # whatever a user's module does
            if isinstance(error, ModuleNotFoundError) and str(error.name) in (name, name.partition(".")[0]):
                reason = "there is no module of that name in the current folder or among the installed packages"
            else:
                reason = f"{type(error).__name__}: {error}"
            fail(_command(context), f"--import {name}: {reason}.", 2)
    return names


def _command(context: typer.Context) -> str:
    return context.info_name or ""
