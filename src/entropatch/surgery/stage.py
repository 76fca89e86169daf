"""One pruning stage inside one block, independent of any model library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.config import exact_rate, kept_count
from entropatch.criteria import Criterion
from entropatch.reduction import REDUCTIONS, select

if TYPE_CHECKING:
    from entropatch.surgery.tracing import Trace


@dataclass
class Stage:
    """What one pruning block does: its setting, and the trace that listens, if any."""

    block: int
    keep_rate: float
    criterion: Criterion
    reduction: str
    num_prefix_tokens: int
    has_class_token: bool
    recorder: Trace | None = None
    rate: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.rate = exact_rate(self.keep_rate)

    def __getstate__(self) -> dict[str, Any]:
        # A trace belongs to the `with` block that opened it, not to a copy or a pickle of the model.
        return self.__dict__ | {"recorder": None}

    def begin(self, x: Tensor) -> Decision | None:
        """The decision to be made on x (batch, tokens, width); None if all stay and nobody listens."""
        n = x.shape[1] - self.num_prefix_tokens
        k = kept_count(self.rate, n)
        if k == n and self.recorder is None:
            return None
        return Decision(self, n, k)


class Decision:
    """One pass through a stage: the attention is scored, then the tokens are reduced."""

    def __init__(self, stage: Stage, n: int, k: int, stock_attention: bool | None = None):
        self.stage, self.n, self.k = stage, n, k
        # When all stay, the block's own attention runs, so that the output is the stock model's to the last bit.
        self.stock_attention = k == n if stock_attention is None else stock_attention
        self.attention: BlockAttention | None = None
        self.scores: Tensor | None = None
        self.kept: Tensor | None = None

    def score(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout: float) -> BlockAttention:
        """Score the patches from this block's queries, keys and values, and choose which stay."""
        stage = self.stage
        attention = BlockAttention(
            q,
            k,
            v,
            scale=scale,
            dropout=dropout,
            num_prefix_tokens=stage.num_prefix_tokens,
            has_class_token=stage.has_class_token,
            block=stage.block,
        )
        with torch.no_grad():
            scores = stage.criterion.importance(attention)
            if scores.shape != (q.shape[0], self.n):
                raise ValueError(
                    f"{type(stage.criterion).__name__}.importance must return (batch, patches) = "
                    f"{(q.shape[0], self.n)}, but got {tuple(scores.shape)}."
                )
            self.scores = scores
            self.kept = select(scores, self.k)
        self.attention = attention
        return attention

    def reduce(self, x: Tensor) -> Tensor:
        """The tokens after the attention residual, without the pruned ones."""
        if self.attention is None or self.kept is None or self.scores is None:
            raise RuntimeError(f"block {self.stage.block} reduced its tokens before its attention was scored.")
        y = x if self.k == self.n else REDUCTIONS[self.stage.reduction](x, self.kept, self.attention)
        if self.stage.recorder is not None:
            self.stage.recorder.record(self.stage, self.scores, self.kept, x[:, self.stage.num_prefix_tokens :])
        return y
