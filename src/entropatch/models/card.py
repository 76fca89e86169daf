"""What is known of a model of another library than timm: whose it is, its name, its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from entropatch.data.preprocessing import Preprocessing, carry

ATTRIBUTE = "_entropatch_card"


@dataclass(frozen=True)
class ModelCard:
    """Carried by a model that `entropatch.models.libraries` loaded.

    Attributes:
        library: such as "torchvision".
        name: as it was asked for.
        code: lines of Python that load the same model; the last one assigns it to `model`.
        labels: names of the classes, in the order of the scores; None where they are not known.
        classifier: names of the layers that depend on the number of classes.
    """

    library: str
    name: str
    code: str
    labels: tuple[str, ...] | None = None
    classifier: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelCard:
        return self


def introduced(model: nn.Module, card: ModelCard, preprocessing: Preprocessing | None) -> nn.Module:
    """The model in evaluation mode, with what is known of it."""
    vars(model)[ATTRIBUTE] = card
    if preprocessing is not None:
        carry(model, preprocessing)
    return model.eval()


def card_of(model: nn.Module) -> ModelCard | None:
    """The card of a model; None for timm's, and for one that somebody else made."""
    return vars(model).get(ATTRIBUTE)
