"""`LearnedCriterion`: scores patches by their values as they enter a block, by weights of its own that are trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion
from entropatch.schedule import number


@dataclass(frozen=True)
class Entering:
    """The tokens of some images as they enter a block, before its attention.

    Attributes:
        x: (images, prefix + n, width).
        num_prefix_tokens: class, distillation and register tokens; never scored.
        positions: the original patch at which each patch token stands, (images, n), -1 for an appended one; None while
            all stand where they stood.
        mask: how much each token counts so far, (images, prefix + n), 0 or 1; None: all do.
        carried, states: what the method handed on, of each patch (images, n, …) and of each image (images, …).
        total: patches that entered the first block; while a model trains by masks these are the first.
        block, depth: 0-based index of the block, and how many there are; block = depth behind the last.
        weights: those of this block; None for a criterion that has none.
        training: whether the model trains.
    """

    x: Tensor
    num_prefix_tokens: int
    positions: Tensor | None
    mask: Tensor | None
    carried: Mapping[str, Tensor]
    states: Mapping[str, Tensor]
    total: int
    block: int
    depth: int
    weights: nn.Module | None
    training: bool

    @property
    def patches(self) -> Tensor:
        """(images, n, width)."""
        return self.x[:, self.num_prefix_tokens :]

    @property
    def kept(self) -> Tensor:
        """Which patches count so far, (images, n), 0 or 1, with gradients where the mask has them."""
        if self.mask is None:
            return self.x.new_ones(self.patches.shape[:2])
        return self.mask[:, self.num_prefix_tokens :].to(self.x.dtype)

    def masked(self, kept: Tensor, prefix: Tensor | None = None) -> Tensor:
        """A mask of all tokens from one of the patches, (images, n); prefix tokens count unless `prefix` says else."""
        if prefix is None:
            prefix = kept.new_ones(kept.shape[0], self.num_prefix_tokens)
        return torch.cat((prefix, kept), dim=1)


@dataclass(frozen=True)
class Decision:
    """What a criterion decides before a block.

    Attributes:
        scores: importance of the patches present, (images, n), larger = keep.
        mask: while a model trains, how much each token counts from here on, (images, prefix + n), 0 or 1 with
            gradients; then no token leaves. None: the schedule and the reduction have their way.
        mask_epsilon: as in `entropatch.attention.masked_softmax`.
        appended, appended_mask: weights of tokens that are appended while a mask is there, (images, e, n), and how much
            each counts, (images, e).
        prefix_mask: how much each prefix token counts as a key from here on, (images, prefix), 0 or 1, where tokens
            leave; None: all do.
        carried, states: handed on, as in `Entering`.
        shares: what reductions weigh tokens by, (images, n), at least 0; None: `Criterion.mass` of the scores.
        note: what the loss reads, by name.
    """

    scores: Tensor
    mask: Tensor | None = None
    mask_epsilon: float = 0.0
    appended: Tensor | None = None
    appended_mask: Tensor | None = None
    prefix_mask: Tensor | None = None
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    states: Mapping[str, Tensor] = field(default_factory=dict)
    note: Mapping[str, Tensor] = field(default_factory=dict)
    shares: Tensor | None = None


@dataclass(frozen=True)
class Note:
    """What one block decided in a forward pass, for the loss.

    Attributes:
        block: 0-based; the depth of the model for what was found behind its last block.
        share: of the patches that are to be left behind this block, the keep rates multiplied.
        values: `Decision.note`.
    """

    block: int
    share: float
    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """A forward pass in training, as the method's own loss sees it.

    Attributes:
        notes: of its blocks, in order.
        tokens: what left the last block, normed, (batch, prefix + n, width), without tokens that were appended.
        mask: which tokens count at the end, (batch, prefix + n); None: all do.
        num_prefix_tokens: of them.
        depth: how many blocks there are.
        taught: the same tokens of the teacher, without gradients; None without a teacher.
        targets: class numbers (batch,), or probabilities (batch, classes); None if not given.
        smoothing: of the labels, where targets are numbers.
    """

    notes: Sequence[Note]
    tokens: Tensor
    mask: Tensor | None
    num_prefix_tokens: int
    depth: int
    taught: Tensor | None = None
    targets: Tensor | None = None
    smoothing: float = 0.0


@dataclass(frozen=True)
class Making:
    """What the weights of one block are made for.

    Attributes:
        block, depth: 0-based index of the block, and how many there are.
        width: of the tokens.
        heads: of the block's attention; None if not known.
        classes: of the model; None if not known.
    """

    block: int
    depth: int
    width: int
    heads: int | None
    classes: int | None


class LearnedCriterion(Criterion):
    """Scores patches as they enter a block, before its attention, by weights of its own.

    The weights of its blocks are modules of the model, under the prefix "entropatch": `prune_` makes them, and an
    optimiser, state_dict and `to` find them there. They are drawn from `seed` and the block alone.

    Attributes:
        teaches: whether its loss asks for a teacher, a dense model.
        has_weights: whether it has any.
        masks: whether tokens stay in training and are masked, which a head that reads patches would not see.
        closes: whether it changes the tokens once the last block ran; see `close`.
        every: whether it must look before every block but the first.
        recipe: what `entropatch finetune` starts from; a name of `entropatch.train.RECIPES`, None for the usual one.
    """

    kind: ClassVar[str] = "_LearnedCriterion"
    before: ClassVar[bool] = True
    has_weights: ClassVar[bool] = True
    teaches: ClassVar[bool] = False
    masks: ClassVar[bool] = True
    closes: ClassVar[bool] = False
    every: ClassVar[bool] = False
    recipe: ClassVar[str | None] = None
    seed: int = 0

    @property
    def weights_key(self) -> str:
        """What its weights are called: settings of the same have weights of the same shapes and meaning."""
        return self.kind

    def make(self, making: Making) -> nn.Module | None:
        """New weights for one block, float32 on the CPU; what is drawn comes from PyTorch's generator, already seeded.

        None for a block that needs none.
        """
        return None

    @abstractmethod
    def decide(self, entering: Entering) -> Decision:
        """Score the patches; with gradients where the model trains."""

    def close(self, entering: Entering) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The tokens behind the last block, changed, and a note for the loss."""
        raise NotImplementedError

    def losses(self, seen: Seen) -> dict[str, Tensor]:
        """The terms of its own loss by name, scalars with their weights, beside the cross entropy."""
        return {}

    def importance(self, attention: BlockAttention) -> Tensor:
        raise ValueError(
            f"{type(self).__name__} scores patches before a block's attention, by their values, so it cannot be asked "
            "of an attention; use entropatch.trace."
        )


def drawn_(module: nn.Module) -> nn.Module:
    """Weights of its linear layers drawn from a normal distribution of 0.02, truncated at ±2; biases 0. In place."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module


def weight(name: str, value: Any) -> float:
    """The weight of a term of a loss. Raises TypeError, ValueError for what is none."""
    value = number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a weight of at least 0, but got {value!r}.")
    return value
