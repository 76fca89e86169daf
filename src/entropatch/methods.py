"""The pruning methods by name: the one registry that commands, tables, menus and help texts ask.

A method is a criterion, a reduction and a schedule with a name. One of your own is offered everywhere once its module
is imported (on the command line: --import my_module):

    entropatch.register_method(Method("key-norm", "Key norm", "Keeps the patches with long keys.", KeyNorm()))
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping

from entropatch.criteria import ClassAttention, Criterion, PerImageOrder, Product, Random, Renyi
from entropatch.image_schedules import SharedBudget
from entropatch.literature import FOR_MAPS, LITERATURE
from entropatch.named_method import Method, composed, is_composed
from entropatch.reductions import BipartiteMerge, Drop, Fuse, Merge, Reduction
from entropatch.schedule import KeepRate, RemovePerBlock, Schedule

DENSE = "dense"  # how comparisons call the model without pruning; no method
RANDOM = "random"  # the method that others are set beside
ALL, TRAINING_FREE = "all", "training-free"  # groups of methods, where several may be named

_LOW_ENTROPY = "Keeps the patches whose own attention has the lowest {}."


def renyi_method(order: float) -> Method:
    """Pruning by Rényi entropy of the given order in (0, ∞]; "shannon" for order 1. Raises ValueError for any other."""
    criterion = Renyi(order)
    # Orders stand between the methods ranked 40 and 50, low ones first; order 1 by its own name.
    rank = 40 + 10 * criterion.order / (1 + criterion.order) if math.isfinite(criterion.order) else 50.0
    if criterion.order == 1:
        return Method("shannon", "Shannon", _LOW_ENTROPY.format("Shannon entropy"), criterion, rank=rank)
    if math.isinf(criterion.order):
        description = _LOW_ENTROPY.format("min-entropy (order ∞)")
        return Method("renyi-inf", "Rényi, order ∞", description, criterion, rank=rank)
    # repr is the shortest text that gives the same number back, so different orders never share a name.
    name = f"renyi-{criterion.order!r}".removesuffix(".0")
    shown = f"order {criterion.order:.6g}"
    return Method(name, f"Rényi, {shown}", _LOW_ENTROPY.format(f"Rényi entropy of {shown}"), criterion, rank=rank)


class _Methods(Mapping[str, Method]):
    """The registered methods by name, in the order of their ranks."""

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}

    def __getitem__(self, name: str) -> Method:
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._methods, key=lambda name: self._methods[name].sort_key))

    def __len__(self) -> int:
        return len(self._methods)

    def add(self, method: Method) -> None:
        self._methods[method.name] = method


METHODS = _Methods()


def register_method(method: Method) -> Method:
    """Offer a method everywhere by its name; returns it. Registering an equal one again, as notebooks do, is harmless.

    Raises:
        ValueError: another method has the name or the label, or the name means an order of "renyi-<order>", or dense.
        TypeError: not a `Method`.
    """
    if not isinstance(method, Method):
        raise TypeError(f"method must be a Method, but got {method!r}.")
    known = METHODS.get(method.name)
    if known is not None and known != method and _OWN.get(method.name) is not None:
        raise ValueError(f"a method must not be called {method.name}, as entropatch's own; choose another name.")
    if is_composed(method.name):
        raise ValueError(f'"@" and "_" join the parts of a name, so no method has them in its own: {method.name!r}.')
    if method.name in (DENSE, ALL, TRAINING_FREE) or (re.match(r"renyi-", method.name) and method.name not in _OWN):
        raise ValueError(f"{method.name!r} has a meaning already; choose another name.")
    labels = {DENSE: method_label(DENSE)} | {name: one.label for name, one in METHODS.items()}
    if same := [name for name, label in labels.items() if label == method.label and name != method.name]:
        raise ValueError(
            f"a method's label must be its own, since tables know it by that, but {same[0]} is called "
            f"{method.label!r} too; choose another."
        )
    METHODS.add(method)
    return method


_OWN: dict[str, Method] = {
    method.name: method
    for method in (
        Method(RANDOM, "Random", "Keeps patches at random.", Random(seed=0), rank=10),
        Method(
            "evit",
            "EViT",
            "Keeps the patches the class token attends to most, and fuses the others into one token.",
            ClassAttention(),
            Fuse(),
            rank=20,
        ),
        Method(
            "evit-drop",
            "EViT, no fused token",
            "Keeps the patches the class token attends to most.",
            ClassAttention(),
            rank=21,
            compared=False,  # it stands in for EViT on models that cannot have its fused token
        ),
        Method(
            "tome",
            "ToMe",
            "Merges the most similar of every second patch into others, a few in every block.",
            reduction=BipartiteMerge(),
            schedule=RemovePerBlock(),
            rank=30,
        ),
        renyi_method(1.0),
        renyi_method(2.0),
        renyi_method(math.inf),
        Method(
            "shannon-merge",
            "Shannon, merging",
            "Keeps the patches of the lowest Shannon entropy, and merges every other into the one most like it.",
            Renyi(1.0),
            Merge(),
            rank=60,
            compared=False,
        ),
        Method(
            "class-renyi-2",
            "Class attention × Rényi, order 2",
            "Keeps the patches of the most class attention over the perplexity, of order 2, of their own attention.",
            Product(ClassAttention(), Renyi(2.0)),
            rank=61,
            compared=False,
        ),
        Method(
            "order-by-image",
            "Rényi, order by image",
            "Keeps the patches of the lowest entropy, of the order that splits the image's patches most clearly.",
            PerImageOrder(),
            rank=62,
            compared=False,
        ),
        Method(
            "shared-renyi-2",
            "Rényi, order 2, shared out",
            "Keeps the patches of the lowest entropy of order 2, more of one image and fewer of another in a batch.",
            Renyi(2.0),
            schedule=SharedBudget(),
            rank=63,
            compared=False,  # what an image gives depends on its batch
        ),
        *LITERATURE,
        *FOR_MAPS,
    )
}
for _method in _OWN.values():
    METHODS.add(_method)


def find_method(name: str) -> Method:
    """The method of that name: one of `METHODS`, or "renyi-<order>" for any order in (0, ∞], such as "renyi-0.5".

    "NAME@2" covers 2 × 2 cells, and "NAME_NAME" is one for each pruning block (`entropatch.named_method`).

    Raises:
        ValueError: no such method, or an order that is no number in (0, ∞].
    """
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    if is_composed(name):
        return composed(name, find_method)
    kind, _, order = name.partition("-") if isinstance(name, str) else ("", "", "")
    if kind != "renyi" or not order:
        known = ", ".join(METHODS)
        raise ValueError(
            f"a method is one of {known}, or renyi-<order> such as renyi-0.5, but got {name!r}; import the module that "
            "registers it first (on the command line: --import my_module)."
        )
    return renyi_method(parse_order(order))


def default_method(class_token: bool, places: bool = True) -> str:
    """The method that `prune_` takes where nothing says how to prune: measured best of those that only drop patches.

    Args:
        class_token: whether the model has a class token.
        places: whether each of its patches stands at a known place of a grid of two dimensions.
    """
    if not places:
        return PAPER_METHOD
    return "class-renyi-2@2" if class_token else "renyi-2@2"


def is_known(name: str) -> bool:
    """Whether `find_method` finds a method of that name."""
    try:
        find_method(name)
    except ValueError:
        return False
    return True


def parse_order(text: str) -> float:
    """An order in (0, ∞] from text such as "2", "0.5" or "inf". Raises ValueError for anything else."""
    try:
        order = float(text)
    except ValueError:
        raise ValueError(f'an order must be a number greater than 0, or "inf", but got {text!r}.') from None
    return Renyi(order).order


PAPER_METHOD = renyi_method(Renyi().order).name  # what `PruneConfig` says when told nothing


def methods_text() -> str:
    """What may be named where the dense model may be too, for help texts: "dense, random, …, renyi-<order>"."""
    named = [name for name, method in METHODS.items() if not name.startswith("renyi-")]
    return ", ".join((DENSE, *named, "renyi-<order>"))


def needs_text() -> str:
    """What methods ask for, in sentences that follow `methods_text`: training, a class token, a model that makes maps.

    Empty where none asks for anything.
    """
    needs = {
        "Need training": [name for name, method in METHODS.items() if method.trained],
        "Need a class token": [name for name, method in METHODS.items() if method.needs_class_token],
        "In a Segmenter only": [name for name, method in METHODS.items() if method.predicts],
    }
    return " ".join(f"{what}: {', '.join(names)}." for what, names in needs.items() if names)


def expanded_methods(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once; "all" is dense and every registered method, "training-free" those that need no training.

    Neither group has methods that only models that make maps can have.
    """
    found: list[str] = []
    for name in names:
        ours = {one: method for one, method in METHODS.items() if not method.predicts}
        group = [one for one, method in ours.items() if name == ALL or not method.trained]
        found += [DENSE, *group] if name in (ALL, TRAINING_FREE) else [name]
    return tuple(dict.fromkeys(found))


def compared_methods(orders: Iterable[float] = ()) -> list[str]:
    """The methods that a comparison shows when it is not told which, with these orders, in the order of their ranks."""
    methods = {name: method for name, method in METHODS.items() if method.compared}
    methods |= {method.name: method for method in map(renyi_method, orders)}
    return sorted(methods, key=lambda name: methods[name].sort_key)


def pictured_methods(orders: Iterable[float]) -> list[str]:
    """The methods that pictures show side by side when they are not told which: one stage beside the same of others.

    The compared ones that keep a share of the patches by neither chance nor entropy, then entropies of these orders.
    """
    others = [
        name
        for name, method in METHODS.items()
        if method.compared and method.schedule == KeepRate() and not (method.is_random or method.drops_by_entropy)
    ]
    return list(dict.fromkeys((*others, *(renyi_method(order).name for order in orders))))


def stand_in(name: str) -> str | None:
    """The method that scores alike but drops, for a model that another reduction does not fit; None without one."""
    method = find_method(name)
    if not method.needs_scores or method.reduction == Drop() or isinstance(method.criterion, tuple):
        return None
    other = method_of(method.criterion, Drop(), method.schedule)
    return None if other is None else other.name


def method_label(name: str) -> str:
    """How tables and figures call the method, "Dense" for "dense". Raises ValueError for an unknown name."""
    return "Dense" if name == DENSE else find_method(name).label


def method_of(criterion: Criterion, reduction: Reduction, schedule: Schedule) -> Method | None:
    """The registered method, or Rényi order, that these three make up; None if they have no name."""
    same = (criterion if reduction.needs_scores else None, reduction, schedule)
    methods = list(METHODS.values()) + ([renyi_method(criterion.order)] if isinstance(criterion, Renyi) else [])
    for method in methods:
        own = (method.criterion if method.needs_scores else None, method.reduction, method.schedule)
        if own == same:
            return method
    return None
