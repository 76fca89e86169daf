"""Weights of a method's own: modules of the pruned model, under one prefix, that come and go with its setting.

Those that a setting does not use wait aside, out of the model's modules and its state_dict, and come back with a
setting that uses them; so nothing that was trained is lost by looking at a model under another setting.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.config import Stage
from entropatch.criteria.learned import LearnedCriterion, Making
from entropatch.surgery.adapters.base import Adapter
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.heads import heads_of
from entropatch.surgery.state import PREFIX

logger: logging.Logger = logging.getLogger("entropatch")

ASIDE = "_entropatch_aside"
SEEDS = 0x9E3779B1  # far apart for neighbouring seeds


@dataclass
class Aside:
    """Weights that the present setting does not use.

    Attributes:
        key: `LearnedCriterion.weights_key` of those in use; empty for none.
        modules: made or trained here: by key, then by block.
        loaded: read from a file, by name without the prefix; taken by the first setting that they fit.
    """

    key: str = ""
    modules: dict[str, dict[str, nn.Module]] = field(default_factory=dict)
    loaded: dict[str, Tensor] = field(default_factory=dict)


def fit_weights(model: Any, adapter: Adapter, stages: Sequence[Stage | None], classes: int | None) -> None:
    """Give a model the weights of its setting, and put others aside; in place.

    Raises:
        ValueError, UnsupportedModelError: they cannot be made for this model, or those that were loaded do not fit; the
            model is left as it was.
    """
    wanted = {s.block: s.criterion for s in stages if s is not None and isinstance(s.criterion, LearnedCriterion)}
    wanted = {block: criterion for block, criterion in wanted.items() if criterion.has_weights}
    before: Aside | None = vars(model).get(ASIDE)
    if not wanted and before is None:
        return
    aside = before or Aside()
    key = next(iter(wanted.values())).weights_key if wanted else ""
    _refuse_name(model, before)
    known = aside.modules.get(key, {}) | (dict(_used(model).items()) if key and aside.key == key else {})
    parts = dict(known)
    for block, criterion in wanted.items():
        if str(block) not in parts:
            part = _made(model, adapter, block, criterion, len(stages), classes)
            if part is not None:
                parts[str(block)] = part
    used = {name: part for name, part in parts.items() if int(name) in wanted}
    if wanted:
        _load(used, aside.loaded, key)
    if (new := used.keys() - known.keys()) and not aside.loaded:
        blocks = ", ".join(sorted(new, key=int))
        logger.info("%s: blocks %s have new weights, which know nothing before they are trained.", key, blocks)
    # From here on nothing fails.
    put_aside(model)
    aside = vars(model).setdefault(ASIDE, aside)
    if wanted:
        place = next(p for p in adapter.container_of(model).parameters() if p.is_floating_point())
        others = {name: part for name, part in parts.items() if name not in used}
        aside.modules.pop(key, None)
        if others:
            aside.modules[key] = others
        aside.loaded, aside.key = {}, key
        own = nn.ModuleDict(dict(sorted(used.items(), key=lambda item: int(item[0])))).to(place.device, place.dtype)
        model.add_module(PREFIX, own.train(model.training))


def put_aside(model: nn.Module) -> None:
    """Take a model's own weights out of its modules, to where later settings find them; in place."""
    aside: Aside | None = vars(model).get(ASIDE)
    if aside is None or not aside.key:
        return
    used = dict(_used(model).items())
    aside.modules[aside.key] = aside.modules.get(aside.key, {}) | used
    aside.key = ""
    del model._modules[PREFIX]


def set_loaded(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Keep weights that were read from a file, by name without the prefix, for the next setting that has such."""
    aside: Aside = vars(model).setdefault(ASIDE, Aside())
    aside.loaded = dict(state)


def own_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a method's own in a model, or in one that it holds."""
    return [p for name, p in model.named_parameters() if PREFIX in name.split(".")]


def _used(model: nn.Module) -> Any:
    return model._modules[PREFIX]


def _refuse_name(model: nn.Module, aside: Aside | None) -> None:
    if (aside is None or not aside.key) and hasattr(model, PREFIX):
        raise UnsupportedModelError(
            f"this {type(model).__name__} has an attribute {PREFIX!r} already, where the method's weights would be."
        )


def _made(
    model: Any, adapter: Adapter, block: int, criterion: LearnedCriterion, depth: int, classes: int | None
) -> nn.Module | None:
    x, _ = adapter.check_inputs(model, block, 4)
    heads = heads_of(adapter, adapter.blocks(model)[block])
    # Drawn on the CPU, and the user's random state stays as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed((criterion.seed * SEEDS + block) % 2**63)
        return criterion.make(Making(block, depth, x.shape[-1], heads, classes))


def _load(parts: Mapping[str, nn.Module], loaded: Mapping[str, Tensor], key: str) -> None:
    """Weights from a file into the modules they are of. Raises ValueError where they are of others."""
    if not loaded:
        return
    own = {f"{block}.{name}": value for block, part in parts.items() for name, value in part.state_dict().items()}
    apart = own.keys() ^ loaded.keys()
    other = {name for name in own.keys() & loaded.keys() if own[name].shape != loaded[name].shape}
    if apart or other:
        example = min(apart or other)
        blocks = sorted({int(name.partition(".")[0]) for name in loaded if name.partition(".")[0].isdigit()})
        raise ValueError(
            f"the weights that were loaded with this model, of blocks {', '.join(map(str, blocks))}, do not fit those "
            f"of {key} in blocks {', '.join(parts)}, such as {PREFIX}.{example}; use the setting of their training."
        )
    for block, part in parts.items():
        start = f"{block}."
        part.load_state_dict({name[len(start) :]: value for name, value in loaded.items() if name.startswith(start)})
