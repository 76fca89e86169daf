"""Importance of each patch, from one block's attention. Larger means keep.

To add a criterion, subclass `Criterion` as a frozen dataclass and write `importance`; nothing else is needed:

    @dataclass(frozen=True)
    class KeyNorm(Criterion):
        def importance(self, attention):
            keys = attention.k[:, :, attention.num_prefix_tokens :]
            return keys.float().norm(dim=-1).mean(1)  # (batch, patches)

    entropatch.prune_(model, keep_rate=0.7, criterion=KeyNorm())
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.entropy import check_order


class Criterion(ABC):
    """Scores the patches of one block. Subclasses are frozen dataclasses, so that they compare, hash and save."""

    needs_class_token: ClassVar[bool] = False
    _known: ClassVar[dict[str, type[Criterion]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = Criterion._known.get(cls.__name__)
        # A class may be defined anew, as notebooks do; but a saved config that names one of ours must stay ours.
        if known is not None and known.__module__ == __name__ != cls.__module__:
            raise TypeError(f"a criterion must not be called {cls.__name__}, as entropatch's own; choose another name.")
        Criterion._known[cls.__name__] = cls

    @abstractmethod
    def importance(self, attention: BlockAttention) -> Tensor:
        """Importance of each patch: (batch, patches), floating point, larger = keep. Runs without gradients."""

    def to_dict(self) -> dict[str, Any]:
        """The class name and the fields, as JSON holds them: ∞ becomes the string "inf", a tuple a list."""
        if not dataclasses.is_dataclass(self):
            raise TypeError(
                f"{type(self).__name__} must be a dataclass to be saved; decorate it with @dataclass(frozen=True)."
            )
        fields = {field.name: _to_json(getattr(self, field.name)) for field in dataclasses.fields(self) if field.init}
        if "name" in fields:
            raise TypeError(f"{type(self).__name__} cannot be saved: 'name' holds the class; call its field otherwise.")
        return {"name": type(self).__name__} | fields

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Criterion:
        """The criterion that `to_dict` described. Raises ValueError for a class that is not (yet) imported."""
        if not isinstance(data, dict):
            raise ValueError(
                f'criterion must be an object such as {{"name": "Renyi", "order": 2.0}}, but got {data!r}.'
            )
        name = data.get("name")
        kind = Criterion._known.get(name) if isinstance(name, str) else None
        if kind is None:
            known = ", ".join(sorted(known for known in Criterion._known if not known.startswith("_")))
            raise ValueError(
                f"criterion must be one of {known}, but got {name!r}; import the module that defines it first."
            )
        fields = {key: _from_json(value) for key, value in data.items() if key != "name"}
        allowed = (
            [field.name for field in dataclasses.fields(kind) if field.init] if dataclasses.is_dataclass(kind) else []
        )
        if unknown := sorted(set(fields) - set(allowed)):
            raise ValueError(f"{name} has the fields {', '.join(allowed) or '(none)'}, but got {', '.join(unknown)}.")
        return kind(**fields)


def _to_json(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_to_json(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):  # a frozen dataclass, being hashable, holds tuples
        return tuple(_from_json(item) for item in value)
    return float(value) if value in ("inf", "-inf") else value


@dataclass(frozen=True)
class Renyi(Criterion):
    """Low attention entropy = keep: -mean over heads of H_α (arXiv 2604.03803). Order 1 is Shannon, inf min-entropy.

    Each head's entropy is taken first and the plain mean over heads after, in nats.
    """

    order: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", check_order(self.order))

    def importance(self, attention: BlockAttention) -> Tensor:
        return -attention.entropy(self.order).mean(1)


@dataclass(frozen=True)
class ClassAttention(Criterion):
    """EViT's score (Liang et al. 2022): the class token's attention on each patch, mean over heads.

    With `reduction="fuse"` this is EViT; with `reduction="drop"` EViT without its fused token.
    """

    needs_class_token: ClassVar[bool] = True

    def importance(self, attention: BlockAttention) -> Tensor:
        return attention.class_attention().mean(1)


@dataclass(frozen=True)
class Random(Criterion):
    """Uniformly random scores: the honest lower bound for accuracy and upper bound for speed.

    With a seed, the scores depend only on (seed, block, place in the batch, patch): every forward pass, device and
    recomputation under gradient checkpointing drops the same patches. With `seed=None` every call draws anew from
    PyTorch's global generator, as one wants while training.
    """

    seed: int | None = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, (Integral, type(None))):
            raise TypeError(f"seed must be an integer, or None for PyTorch's generator, but got {self.seed!r}.")
        if self.seed is not None:
            object.__setattr__(self, "seed", int(self.seed))

    def importance(self, attention: BlockAttention) -> Tensor:
        batch, n, device = attention.q.shape[0], attention.num_patches, attention.q.device
        if self.seed is None:
            return torch.rand(batch, n, device=device)
        rows = torch.arange(batch, device=device)[:, None]
        key = (self.seed * 0x9E3779B1 + attention.block) & 0x7FFFFFFF
        patches = torch.arange(n, device=device)[None]
        return _hash(_hash(_hash(patches) ^ rows) ^ key).float()


def _hash(x: Tensor) -> Tensor:
    """A 31-bit integer hash (multiply and xor-shift rounds), the same on every device."""
    for multiplier in (0x45D9F3B, 0x119DE1F3):
        x = ((x ^ (x >> 16)) * multiplier) & 0x7FFFFFFF
    return x ^ (x >> 15)
