"""The `entropatch` command: a thin shell over the library, one file per subcommand."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from entropatch.cli.spelling import Commands
from entropatch.cli.terminal import show_what_can_be_shown

app: typer.Typer = Commands(
    name="entropatch",
    help="Prune, compare and inspect Vision Transformers by attention entropy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Each file of this package that holds a subcommand registers it on `app` when imported.
COMMANDS: tuple[str, ...] = (
    "app_command",
    "bench",
    "calibrate",
    "check",
    "demo",
    "evaluate",
    "export",
    "figures",
    "finetune",
    "report",
    "search",
    "segment",
    "visualize",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from entropatch.version import __version__

        typer.echo(f"entropatch {__version__}")
        raise typer.Exit


# Without a callback typer runs a lone subcommand without its name, as where a program imports one of the files.
@app.callback()
def _subcommands(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    del version


def main() -> None:
    """Entry point of the `entropatch` command."""
    show_what_can_be_shown()
    for name in COMMANDS:
        import_module(f"entropatch.cli.{name}")
    app()
