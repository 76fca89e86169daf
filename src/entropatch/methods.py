"""The pruning methods compared everywhere in this package, by name.

A name stands for a criterion and a reduction; keep rate and blocks are the same for all, so that rows compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from entropatch.config import PruneConfig
from entropatch.criteria import ClassAttention, Criterion, Random, Renyi


@dataclass(frozen=True)
class Method:
    """A named way to prune.

    Attributes:
        name: short and plain, for command lines, file names and records: "renyi-2".
        label: for tables and figures: "Rényi, order 2".
        description: what it keeps, in a sentence, for the margin of a figure.
        criterion: how patches are scored.
        reduction: what becomes of the others, "drop" or "fuse".
    """

    name: str
    label: str
    description: str
    criterion: Criterion
    reduction: str = "drop"

    @property
    def order(self) -> float | None:
        """The order of the entropy that scores the patches; None for a method that uses no entropy."""
        return self.criterion.order if isinstance(self.criterion, Renyi) else None

    def config(self, keep_rate: float | Sequence[float], blocks: Sequence[int] | None = None) -> PruneConfig:
        """This method at a keep rate ρ in (0, 1], or one per block. Errors as of `PruneConfig`."""
        return PruneConfig(
            keep_rate=keep_rate,  # pyright: ignore[reportArgumentType]  # PruneConfig makes it a tuple, or refuses it
            criterion=self.criterion,
            blocks=None if blocks is None else tuple(blocks),
            reduction=self.reduction,
        )


_LOW_ENTROPY = "Keeps the patches whose own attention has the lowest {}."


def renyi_method(order: float) -> Method:
    """Pruning by Rényi entropy of the given order in (0, ∞]. Raises ValueError for any other."""
    criterion = Renyi(order)
    if math.isinf(criterion.order):
        return Method("renyi-inf", "Rényi, order ∞", _LOW_ENTROPY.format("min-entropy (order ∞)"), criterion)
    # repr is the shortest text that gives the same number back, so different orders never share a name.
    name = f"renyi-{criterion.order!r}".removesuffix(".0")
    shown = f"order {criterion.order:.6g}"
    return Method(name, f"Rényi, {shown}", _LOW_ENTROPY.format(f"Rényi entropy of {shown}"), criterion)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("random", "Random", "Keeps patches at random.", Random(seed=0)),
        Method(
            "evit",
            "EViT",
            "Keeps the patches the class token attends to most, and fuses the others into one token.",
            ClassAttention(),
            "fuse",
        ),
        Method(
            "evit-drop",
            "EViT, no fused token",
            "Keeps the patches the class token attends to most.",
            ClassAttention(),
        ),
        Method("shannon", "Shannon", _LOW_ENTROPY.format("Shannon entropy"), Renyi(order=1.0)),
        renyi_method(2.0),
        renyi_method(math.inf),
    )
}


def find_method(name: str) -> Method:
    """The method of that name: one of `METHODS`, or "renyi-<order>" for any order in (0, ∞], such as "renyi-0.5".

    Raises:
        ValueError: no such method, or an order that is no number in (0, ∞].
    """
    if name in METHODS:
        return METHODS[name]
    kind, _, order = name.partition("-")
    if kind != "renyi" or not order:
        known = ", ".join(METHODS)
        raise ValueError(f"a method is one of {known}, or renyi-<order> such as renyi-0.5, but got {name!r}.")
    return renyi_method(parse_order(order))


def parse_order(text: str) -> float:
    """An order in (0, ∞] from text such as "2", "0.5" or "inf". Raises ValueError for anything else."""
    try:
        order = float(text)
    except ValueError:
        raise ValueError(f'an order must be a number greater than 0, or "inf", but got {text!r}.') from None
    return Renyi(order).order


def method_config(name: str, keep_rate: float | Sequence[float], blocks: Sequence[int] | None = None) -> PruneConfig:
    """The `PruneConfig` of a named method.

    Args:
        name: as `find_method` takes it.
        keep_rate: ρ in (0, 1], or one per block.
        blocks: 0-based pruning blocks; None means ¼, ½ and ¾ of the depth.

    Raises:
        ValueError, TypeError: an unknown name, a bad order, or a field that `PruneConfig` refuses.
    """
    return find_method(name).config(keep_rate, blocks)


def method_label(name: str) -> str:
    """How tables and figures call the method. Raises ValueError for an unknown name."""
    return find_method(name).label
