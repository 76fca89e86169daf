"""Attention entropy in training: the term of the loss that the recipe asks for, and what it is on test images.

Entropies are normalised by log n, n the patches present: 0 where every patch attends to one patch, 1 where all attend
evenly. A head or a block that goes to either end has collapsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig
from entropatch.measure.variants import pruned_copy
from entropatch.regularisation import EntropyPenalty, entropy_penalty
from entropatch.surgery import UnsupportedModelError, watch
from entropatch.train.recipe import Recipe


class EntropyTerm:
    """The entropy penalty of a model's passes, as the recipe says.

    Args:
        model: as it is trained, pruned or not.
        recipe: `entropy_weight` 0 means none.
    """

    model: nn.Module
    recipe: Recipe

    def __init__(self, model: nn.Module, recipe: Recipe):
        self.model, self.recipe = model, recipe

    @contextmanager
    def over_a_run(self) -> Iterator[None]:
        """Around all passes: a stock model is made ready to be looked into once, not at each pass."""
        with watch(self.model, (), lambda attention, tokens: None) if self.recipe.entropy_weight else nullcontext():
            yield

    def of_a_pass(self) -> AbstractContextManager[EntropyPenalty | None]:
        """Around a forward pass and its backward pass; None where the recipe has no such term.

        Raises:
            ValueError, UnsupportedModelError: as of `entropy_penalty`.
        """
        recipe = self.recipe
        if not recipe.entropy_weight:
            return nullcontext()
        assert recipe.entropy_target is not None
        return entropy_penalty(
            self.model,
            target=recipe.entropy_target,
            blocks=recipe.entropy_blocks,
            order=recipe.entropy_order,
            side=recipe.entropy_side,
        )


class HeadEntropies:
    """The mean normalised entropy of each head on a few test images, as the model prunes when it is tested.

    Args:
        model: what is tested; its weights are followed as they change.
        prune: as it is tested; None for dense.
        images: (batch, 3, H, W), on the model's device.
        order: α of the entropy, in (0, ∞].
    """

    images: Tensor
    order: float

    def __init__(self, model: nn.Module, prune: PruneConfig | None, images: Tensor, order: float):
        self.images, self.order = images, order
        self.model: nn.Module | None = None
        try:
            # A copy with the same weights: what is trained may be compiled, and is left alone.
            self.model = pruned_copy(model, prune or PruneConfig(keep_rate=1.0)).eval() if len(images) else None
        except UnsupportedModelError:
            if prune is not None:
                raise

    def measured(self) -> dict[int, Tensor]:
        """By block, (heads,); empty for a dense model that cannot be looked into, or without images."""
        if self.model is None:
            return {}
        with torch.no_grad(), entropy_penalty(self.model, target=0.0, order=self.order) as seen:
            self.model(self.images)
        return seen.means
