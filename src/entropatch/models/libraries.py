"""The model libraries besides timm whose models the commands take. A new one is its file and one line here."""

from __future__ import annotations

import difflib
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

from entropatch.models.encoder import HUB_DEADLINE, yes_within
from entropatch.models.pretrained import ModelError
from entropatch.models.words import PRETRAINED

TIMM = "timm"
# Each module has load(request) -> (model, where its weights came from).
LOADERS: dict[str, str] = {
    "transformers": "entropatch.models.from_transformers",
    "torchvision": "entropatch.models.from_torchvision",
    "open_clip": "entropatch.models.from_open_clip",
}
LIBRARIES = (TIMM, *LOADERS)


@dataclass(frozen=True)
class Request:
    """A model of a library.

    Attributes:
        name: as the library knows it, or a folder or hub name where it takes those.
        weights: "pretrained" for the library's own; "none" for random ones; else the name of one of several that it
            has, or a file.
        image_size: side of the square input in pixels; None for the model's own.
        num_classes: of a new classifier, which starts at random unless the weights have one for as many; None for the
            model's own.
        classes: names of the classes to tell apart by their names, where the model can do that.
        arguments: further arguments of the architecture.
        seed: of what starts at random.
        strict: refuse weights whose classifier is for another number of classes.
        images: whether images will be shown to it; without, it needs no preprocessing.
        say: told in a line what is being tried, for a terminal.
    """

    name: str
    weights: str = PRETRAINED
    image_size: int | None = None
    num_classes: int | None = None
    classes: Sequence[str] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    strict: bool = False
    images: bool = True
    say: Callable[[str], None] = lambda _: None

    @property
    def new_head(self) -> bool:
        """Whether a classifier of another shape may be left out."""
        return self.num_classes is not None and not self.strict


def load_from(library: str, request: Request) -> tuple[nn.Module, str]:
    """A model of another library than timm: images (batch, 3, H, W) -> one tensor, with its card and preprocessing.

    Float32, on the CPU, in evaluation mode; refused before any download if entropatch cannot prune it.

    Raises:
        ModelError: an unknown library or name; a size, a file or arguments that the model cannot take.
        UnsupportedModelError: a model that `prune_` cannot prune.
        WeightsError: weights that are in no reach; the message says what to do.
        ImportError: the library is not installed; the message names the extra.
    """
    check_library(library)
    if request.image_size is not None and request.image_size <= 0:
        raise ModelError(f"an image size must be a positive number of pixels, but got {request.image_size}.")
    return import_module(LOADERS[library]).load(request)


def check_library(name: str) -> None:
    """Raise ModelError for a library that is not known."""
    if name not in LIBRARIES:
        raise ModelError(f"the library must be one of {', '.join(LIBRARIES)}, but got {name!r}.")


def similar(name: str, known: Sequence[str]) -> str:
    """Known names like this one, as the end of a sentence; empty if none is."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; similar: {', '.join(near)}" if near else ""


def answers(url: str, deadline: float = HUB_DEADLINE) -> bool:
    """Whether a server offers a file, decided within `deadline` seconds in total, as `hub_answers` decides it."""

    def ask() -> bool:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=deadline) as reply:
            return reply.status == 200

    return yes_within(deadline, ask)
