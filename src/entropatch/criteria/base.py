"""`Criterion`: what scores the patches of a block."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.kinds import Kind


class Criterion(Kind):
    """Scores the patches of one block. Subclasses are frozen dataclasses, so that they compare, hash and save.

    Attributes:
        needs_class_token: whether a model without a class token is refused.
    """

    example: ClassVar[str] = '{"name": "Renyi", "order": 2.0}'
    needs_class_token: ClassVar[bool] = False

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
