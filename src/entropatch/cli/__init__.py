"""The `entropatch` command: a thin shell over the library, one file per subcommand."""

from __future__ import annotations

from importlib import import_module

import typer

from entropatch.cli.terminal import show_what_can_be_shown

app = typer.Typer(
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
    "check",
    "demo",
    "evaluate",
    "figures",
    "finetune",
    "report",
    "search",
    "visualize",
)


@app.callback()
def _subcommands() -> None:
    # Without a callback typer runs a lone subcommand without its name, as where a program imports one of the files.
    pass


def main() -> None:
    """Entry point of the `entropatch` command."""
    show_what_can_be_shown()
    for name in COMMANDS:
        import_module(f"entropatch.cli.{name}")
    app()
