"""A pruning setting as a Python expression that makes an equal one."""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import Any

import entropatch
from entropatch.config import PruneConfig

WIDTH = 88  # of a line, as formatters have it


def config_code(config: PruneConfig) -> tuple[str, list[str]]:
    """`entropatch.PruneConfig(…)` that is equal to the setting, and the modules it needs beside entropatch.

    A registered method is called by its name; what cannot be written as an expression is read from JSON.
    """
    modules: dict[str, None] = {}
    fields = _fields(config, modules)
    text = f"entropatch.PruneConfig({', '.join(fields)})"
    if not _is_equal(text, config, modules):
        return f"entropatch.PruneConfig.from_json({config.to_json()!r})", []
    if len(text) > WIDTH - len("config = "):
        text = "entropatch.PruneConfig(\n" + "".join(f"    {_broken(field)},\n" for field in fields) + ")"
    return text, list(modules)


def _fields(config: PruneConfig, modules: dict[str, None]) -> list[str]:
    """Keywords of those fields that are not the default's."""
    usual, found, known = PruneConfig(), [], config.named
    skipped: set[str] = set()
    if known is not None:
        modules.update(dict.fromkeys(known.modules))  # they register it
        if known.drops_by_entropy and known.order is not None:
            found.append(f"order={_literal(known.order, modules)}")
        else:
            found.append(f"method={known.name!r}")
        skipped = {"criterion", "reduction", "schedule"}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        wanted = value != getattr(usual, entry.name) or (entry.name == "keep_rate" and config.schedule.uses_keep_rate)
        if wanted and entry.name not in skipped:
            found.append(f"{entry.name}={_literal(value, modules)}")
    return found


def _broken(field: str) -> str:
    """A keyword whose tuple is too long for a line, with each of its values on a line."""
    name, _, value = field.partition("=")
    if len(field) <= WIDTH - 5 or not value.startswith("("):
        return field
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(value[:-1]):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 1:
            parts.append(value[start:place].strip())
            start = place + 1
    parts.append(value[start:-1].strip())
    return f"{name}=(\n" + "".join(f"        {part},\n" for part in parts if part) + "    )"


def _literal(value: Any, modules: dict[str, None]) -> str:
    if isinstance(value, float) and math.isinf(value):
        modules["math"] = None
        return "math.inf" if value > 0 else "-math.inf"
    if isinstance(value, tuple):
        inner = ", ".join(_literal(one, modules) for one in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        arguments = [
            f"{entry.name}={_literal(getattr(value, entry.name), modules)}"
            for entry in dataclasses.fields(value)
            if entry.init and getattr(value, entry.name) != entry.default
        ]
        where = "entropatch" if getattr(entropatch, kind.__name__, None) is kind else kind.__module__
        if where != "entropatch":
            modules[where] = None
        return f"{where}.{kind.__qualname__}({', '.join(arguments)})"
    return repr(value)


def _is_equal(text: str, config: PruneConfig, modules: dict[str, None]) -> bool:
    """Whether the expression, of our own making, gives that setting."""
    try:
        space: dict[str, Any] = {"entropatch": entropatch}
        for module in modules:
            importlib.import_module(module)
            space[module.partition(".")[0]] = importlib.import_module(module.partition(".")[0])
        return eval(text, space) == config
    except Exception:
        return False
