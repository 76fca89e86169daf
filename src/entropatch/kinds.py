"""Settings that are saved by kind: criteria, reductions and schedules of this package and of a user's own modules."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC
from typing import Any, ClassVar


class Kind(ABC):  # noqa: B024  # its families have the abstract methods
    """A frozen dataclass that is saved as its kind and its fields, and found again by that kind.

    A direct subclass is a family, such as `Criterion`; what derives from a family is known in it by its `kind`, which
    is the name of the class unless the class says otherwise. A class may be defined anew in its own place, as notebooks
    do. Kinds that begin with an underscore are private: they are neither saved nor loaded.

    Attributes:
        kind: what the class is called in a saved setting.
    """

    kind: ClassVar[str] = ""
    family: ClassVar[str] = ""
    example: ClassVar[str] = '{"name": "…"}'
    _known: ClassVar[dict[str, dict[tuple[str, str], type]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Kind in cls.__bases__:
            cls.family, cls._known = cls.__name__.lower(), {}
            return
        if "kind" not in vars(cls):
            cls.kind = cls.__name__
        known = cls._known.setdefault(cls.kind, {})
        ours = any(module.startswith("entropatch.") for module, _ in known)
        if ours and not cls.__module__.startswith("entropatch."):
            raise TypeError(
                f"a {cls.family} must not be called {cls.kind}, as entropatch's own; choose another name, or another "
                'kind: ClassVar[str] = "…".'
            )
        known[cls.__module__, cls.__qualname__] = cls

    @classmethod
    def kinds(cls) -> list[str]:
        """What may be named in a saved setting, in alphabetical order."""
        return sorted(kind for kind in cls._known if not kind.startswith("_"))

    def to_dict(self) -> dict[str, Any]:
        """The kind as "name" and the fields, as JSON holds them: ∞ becomes the string "inf", a tuple a list.

        Raises:
            TypeError: not a dataclass, a field called "name", or a kind that is private or belongs to two classes.
        """
        if not dataclasses.is_dataclass(self):
            raise TypeError(
                f"{type(self).__name__} must be a dataclass to be saved; decorate it with @dataclass(frozen=True)."
            )
        fields = {field.name: _to_json(getattr(self, field.name)) for field in dataclasses.fields(self) if field.init}
        if "name" in fields:
            raise TypeError(f"{type(self).__name__} cannot be saved: 'name' holds the kind; call its field otherwise.")
        if self.kind.startswith("_"):
            raise TypeError(f"{type(self).__name__} cannot be saved: a kind that begins with an underscore is private.")
        try:
            self._named(self.kind)
        except ValueError as error:
            raise TypeError(str(error)) from None
        return {"name": self.kind} | fields

    @classmethod
    def from_dict(cls, data: Any) -> Any:
        """What `to_dict` described. Raises ValueError for a kind that is not (yet) imported, or for unknown fields."""
        if not isinstance(data, dict):
            raise ValueError(f"{cls.family} must be an object such as {cls.example}, but got {data!r}.")
        kind = cls._named(data.get("name"))
        fields = {key: cls._from_json(value) for key, value in data.items() if key != "name"}
        allowed = [field.name for field in dataclasses.fields(kind) if field.init]
        if unknown := sorted(set(fields) - set(allowed)):
            raise ValueError(
                f"{data['name']} has the fields {', '.join(allowed) or '(none)'}, but got {', '.join(unknown)}."
            )
        return kind(**fields)

    @classmethod
    def _from_json(cls, value: Any) -> Any:
        if isinstance(value, list):  # a frozen dataclass, being hashable, holds tuples
            return tuple(cls._from_json(item) for item in value)
        if isinstance(value, dict):  # one of the same family
            return cls.from_dict(value)
        return float(value) if value in ("inf", "-inf") else value

    @classmethod
    def _named(cls, name: Any) -> Any:
        """The class of that kind in this family."""
        found = cls._known.get(name, {}) if isinstance(name, str) and not name.startswith("_") else {}
        if not found:
            raise ValueError(
                f"{cls.family} must be one of {', '.join(cls.kinds())}, but got {name!r}; import the module that "
                "defines it first (on the command line: --import my_module)."
            )
        if len(found) > 1:
            places = " and ".join(f"{module}.{qualname}" for module, qualname in sorted(found))
            raise ValueError(
                f"the {cls.family} {name} is defined twice, by {places}; give one of them another kind: "
                'ClassVar[str] = "…".'
            )
        (kind,) = found.values()
        if not dataclasses.is_dataclass(kind):
            raise ValueError(f"the {cls.family} {name} must be a dataclass to be loaded; decorate it with @dataclass.")
        return kind


def _to_json(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_to_json(item) for item in value]
    if isinstance(value, Kind):
        return value.to_dict()
    return str(value) if isinstance(value, float) and math.isinf(value) else value
