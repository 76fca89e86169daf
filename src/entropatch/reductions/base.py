"""`Reduction`: what becomes of the tokens of a block, as a `Plan`."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.kinds import Kind
from entropatch.tokens import Plan, Tokens


class Reduction(Kind):
    """Decides what becomes of the patch tokens. Subclasses are frozen dataclasses, so that they compare, hash and save.

    Attributes:
        kind: its short name, as `reduction="drop"` takes it.
        outcome: what became of the tokens, for labels: "fused"; empty where they are gone.
        needs_class_token: whether a model without a class token is refused.
        appends: whether it appends tokens, which stand at no place of the grid, so that no rotary embedding fits them.
        proportional: whether later attention counts a token of size s as s tokens, by adding log s to its logits.
        detours: whether it chooses before a block, and the other tokens go around it and those behind it until the next
            reducing block; see `SlowFast`.
        needs_scores: whether it reads the criterion's scores; the criterion is not asked otherwise.
        before: whether it can choose before a block's attention is known, by `planned`.
        parks: whether the tokens that do not stay wait, as they are, and are joined again before the last block.
    """

    example: ClassVar[str] = '"drop" or {"name": "drop"}'
    outcome: ClassVar[str] = ""
    needs_class_token: ClassVar[bool] = False
    appends: ClassVar[bool] = False
    detours: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = True
    before: ClassVar[bool] = False
    parks: ClassVar[bool] = False
    proportional: bool = False

    @abstractmethod
    def plan(self, attention: BlockAttention, tokens: Tokens, scores: Tensor | None, k: int) -> Plan:
        """Which k of the patch tokens stay, and where the others go.

        Args:
            attention: of the block, over all tokens that entered it.
            tokens: what they stand for.
            scores: importance of each patch, (batch, n), larger = keep; None if the reduction needs none.
            k: how many stay, 1 … n - 1.
        """

    def planned(self, priorities: Tensor, shares: Tensor, k: int) -> Plan:
        """As `plan`, before a block's attention is known, of a reduction with `before`.

        Args:
            priorities: (batch, n); the k highest stay.
            shares: the importances as shares, (batch, n), at least 0, of which only the proportions count.
            k: how many stay.
        """
        raise NotImplementedError

    def most_removed(self, n: int) -> int:
        """The most of n patch tokens that can be removed at once."""
        return n - 1
