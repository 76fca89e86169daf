"""Options that several subcommands share, from text to values."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from entropatch.config import PruneConfig

T = TypeVar("T")


def entries(text: str, kind: Callable[[str], T], option: str) -> tuple[T, ...]:
    """The values between commas. Raises ValueError for one that is not of that kind, or none at all."""
    try:
        found = tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{option} takes values with commas between, but got {text!r}.") from None
    if not found:
        raise ValueError(f"{option} takes at least one value, but got {text!r}.")
    return found


def pairs(texts: Sequence[str], option: str) -> dict[str, Any]:
    """NAME=VALUE texts as a dictionary; a value is JSON where it can be read as such, and text otherwise."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"{option} takes NAME=VALUE, but got {text!r}.")
        try:
            found[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            found[name.replace("-", "_")] = value
    return found


def pruning(method: str, keep_rate: str, blocks: str | None, config: Path | None) -> PruneConfig | None:
    """What --method, --keep-rate, --blocks or --config say; None is dense."""
    from entropatch.methods import method_config

    if config is not None:
        return PruneConfig.load(config)
    if method == "dense":
        return None
    rates = entries(keep_rate, float, "--keep-rate")
    places = None if blocks is None else entries(blocks, int, "--blocks")
    return method_config(method, rates[0] if len(rates) == 1 else rates, places)
