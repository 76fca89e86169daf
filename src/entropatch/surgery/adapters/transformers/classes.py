"""The swapped classes, made when they are asked for by name, so that only files of transformers in use are imported.

Copies and pickles of a pruned model find them here by name too. They have the names of transformers' own, so that tools
which know a class by its name, and saved configs, still do.
"""

from __future__ import annotations

import functools
import inspect
from importlib import import_module
from typing import Any

from transformers.utils import output_capturing

from entropatch.surgery.adapters.transformers import attention_classes, layer_classes, tower_classes
from entropatch.surgery.adapters.transformers.families import FAMILIES, Family

_BY_NAME: dict[str, Family] = {
    name: family for family in FAMILIES for name in (*family.towers, family.layer, family.attention)
}


def __getattr__(name: str) -> type:
    if name not in _BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    kind = _made(name, _BY_NAME[name])
    globals()[name] = kind
    return kind


def _made(name: str, family: Family) -> type:
    stock: Any = getattr(import_module(family.path), name)
    own: dict[str, Any] = {"__module__": __name__, "__qualname__": name, "__doc__": stock.__doc__}
    if name == family.layer:
        return type(
            name, (getattr(layer_classes, family.half), stock), {**own, "parts": family.parts, "masked": family.masked}
        )
    if name == family.attention:
        return type(name, (getattr(attention_classes, family.heads), stock), own)
    base = getattr(tower_classes, family.tower)
    # Whoever asks for the names of the arguments, as Trainer does, is told those of the stock tower.
    forward = functools.wraps(stock.forward)(base.forward)
    given = list(inspect.signature(stock.forward).parameters)[1:]
    own["mask_place"] = given.index("attention_mask") if "attention_mask" in given else None
    kind: Any = type(name, (base, stock), {**own, "family": family, "stock": stock, "forward": forward})
    # As transformers does when a model is made: what of it can be recorded is looked up by the name of its class.
    dict.__setitem__(output_capturing._CAN_RECORD_REGISTRY, str(kind), kind._can_record_outputs)
    return kind
