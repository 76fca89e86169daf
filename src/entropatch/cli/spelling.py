"""Options whose names a user guesses: singular where one value is possible, plural where several are, both understood.

`--keep-rates` where several are tried, `--keep-rate` where there is one setting, whose value may be one per block.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import typer
from typer.core import TyperCommand

from entropatch.cli.terminal import Interruptible


class EitherNumber(Interruptible):
    """A command that takes `--methods` where its option is `--method`, and the other way round; help has only one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        taking = [param for param in self.params if not getattr(param, "is_flag", False)]
        every = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
        known = {name for param in taking for name in param.opts if name.startswith("--")}
        return super().parse_args(ctx, in_known_spelling(args, known, every - known))


class Commands(typer.Typer):
    """The commands, each an `EitherNumber`."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **settings: Any) -> Any:
        return super().command(name, cls=cls or EitherNumber, **settings)


def in_known_spelling(args: list[str], known: Collection[str], others: Collection[str] = ()) -> list[str]:
    """The arguments, with options of the other number by the name that is known.

    Args:
        args: of one command.
        known: its options that take a value, as "--methods".
        others: what else it knows, which stays.
    """
    end = args.index("--") if "--" in args else len(args)
    return [_known(word, known, others) for word in args[:end]] + args[end:]


def _known(word: str, known: Collection[str], others: Collection[str]) -> str:
    name, equals, value = word.partition("=")
    if not name.startswith("--") or name in known or name in others:
        return word
    other = name.removesuffix("s") if name.endswith("s") else f"{name}s"
    return f"{other}{equals}{value}" if other in known else word
