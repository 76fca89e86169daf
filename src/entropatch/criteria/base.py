"""`Criterion`: what scores the patches of a block."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from entropatch.attention import BlockAttention
from entropatch.kinds import Kind


class Criterion(Kind):
    """Scores the patches of one block. Subclasses are frozen dataclasses, so that they compare, hash and save.

    Attributes:
        needs_class_token: whether a model without a class token is refused.
        remembers: whether it can score before a block's attention, by what it handed on from the blocks before.
        needs_projection: whether it asks for the attention's output projection, without which a model is refused.
        before: whether it scores the tokens as they enter a block, before its attention (`LearnedCriterion`).
        decides: whether its `level` is above 0 for the patches that stay and for no others, as `AboveZero` reads it.
        predicts: whether it predicts a class for each patch, which becomes part of what a model that makes maps
            returns; any other model is refused.
        knows_padding: whether padding beside an image's patches leaves their scores as they are; without, a model that
            fills up its images is refused.
    """

    example: ClassVar[str] = '{"name": "Renyi", "order": 2.0}'
    needs_class_token: ClassVar[bool] = False
    needs_projection: ClassVar[bool] = False
    knows_padding: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    before: ClassVar[bool] = False
    decides: ClassVar[bool] = False
    predicts: ClassVar[bool] = False

    @property
    def lacks(self) -> str | None:
        """What it must be given before it can score, as an error says it; None where nothing."""
        return None

    def calibrate(self, model: nn.Module, images: Tensor) -> Criterion:
        """This criterion with what it has to know of a model, from images without labels; itself if that is nothing."""
        return self

    @property
    def followed(self) -> tuple[Criterion, ...]:
        """The criteria, itself or parts of it, that look at every block up to the one that is scored; none here."""
        return ()

    @property
    def state_key(self) -> str:
        """What the state of a criterion that follows is called in `BlockAttention.carried`; different ones differ."""
        return self.kind

    def follow(self, attention: BlockAttention) -> Tensor:
        """What a criterion among its own `followed` hands on from this block: (batch, patches, …).

        Asked in every block, from the first to the last that is scored by it, before `importance`. What it handed on
        from the block before, of the tokens that are left, is `attention.carried[self.state_key]`; in block 0 nothing.
        Runs without gradients.
        """
        raise NotImplementedError

    def remembered(self, state: Tensor) -> Tensor:
        """Importance before a block's attention is known, of what it handed on from the block before: (batch, patches).

        Only of a criterion that `remembers`, which is the one among its own `followed`.
        """
        raise NotImplementedError

    @property
    def label(self) -> str:
        """For tables and figures, where no method's name says it: the class and its fields."""
        fields = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        text = ", ".join(
            f"{key} {value.label if isinstance(value, Criterion) else value}" for key, value in fields.items()
        )
        return type(self).__name__ + (f" ({text})" if text else "")

    @abstractmethod
    def importance(self, attention: BlockAttention) -> Tensor:
        """Importance of each patch: (batch, patches), floating point, larger = keep. Runs without gradients."""

    def mass(self, scores: Tensor) -> Tensor:
        """The importances as shares that sum to one over the patches: (batch, n) -> (batch, n), float32.

        What a schedule that asks for a share of the importance adds up. Softmax unless the criterion says otherwise;
        for `Renyi`, whose scores are negated entropies, that weighs a patch by exp(-H), one over its perplexity.
        Patches of infinite score share everything.
        """
        scores = scores.float()
        above = scores == math.inf
        limit = torch.where(above, 0.0, -math.inf)
        return torch.where(above.any(1, keepdim=True), limit, scores).softmax(dim=1)

    def level(self, scores: Tensor) -> Tensor:
        """The importances on a scale that images have in common, whatever n: (batch, n) -> (batch, n), float32.

        What a schedule that compares with a threshold, or image with image, reads. n times the patch's share (`mass`)
        unless the criterion says otherwise: 1 where all patches are equally important.
        """
        return self.mass(scores) * scores.shape[1]


def show(criteria: Iterable[Criterion], attention: BlockAttention, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let criteria that follow see a block of a model that keeps all patches, so that they can be asked about it.

    Args:
        criteria: any.
        attention: of the block; what they hand on is there afterwards.
        before: what they handed on from the block before, as this function returned it; empty for block 0.
    """
    attention.carried = dict(before)
    for one in dict.fromkeys(one for criterion in criteria for one in criterion.followed):
        with torch.no_grad():
            attention.carried = {**attention.carried, one.state_key: one.follow(attention)}
    return dict(attention.carried)
