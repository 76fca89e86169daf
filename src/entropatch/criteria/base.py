"""`Criterion`: what scores the patches of a block, and how it is saved by name."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from entropatch.attention import BlockAttention


class Criterion(ABC):
    """Scores the patches of one block. Subclasses are frozen dataclasses, so that they compare, hash and save."""

    needs_class_token: ClassVar[bool] = False
    _known: ClassVar[dict[str, type[Criterion]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = Criterion._known.get(cls.__name__)
        # A class may be defined anew, as notebooks do; but a saved config that names one of ours must stay ours.
        if known is not None and known.__module__.startswith("entropatch.") and known.__module__ != cls.__module__:
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
