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
        Criterion._known[cls.__name__] = cls

    @abstractmethod
    def importance(self, attention: BlockAttention) -> Tensor:
        """Importance of each patch: (batch, patches), floating point, larger = keep. Runs without gradients."""

    def to_dict(self) -> dict[str, Any]:
        """The class name and the fields, as JSON holds them; an infinite order becomes the string "inf"."""
        if not dataclasses.is_dataclass(self):
            raise TypeError(
                f"{type(self).__name__} must be a dataclass to be saved; decorate it with @dataclass(frozen=True)."
            )
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"name": type(self).__name__} | {
            key: "inf" if isinstance(value, float) and math.isinf(value) else value for key, value in fields.items()
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Criterion:
        """The criterion that `to_dict` described. Raises ValueError for a class that is not (yet) imported."""
        fields = {key: math.inf if value == "inf" else value for key, value in data.items() if key != "name"}
        name = data.get("name")
        if name not in Criterion._known:
            known = ", ".join(sorted(Criterion._known))
            raise ValueError(
                f"criterion must be one of {known}, but got {name!r}; import the module that defines it first."
            )
        return Criterion._known[name](**fields)


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
