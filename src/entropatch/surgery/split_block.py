"""`SplitBlock`: a block of any library, split at its middle."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from entropatch.surgery.visit import Visit


class SplitBlock:
    """A block of any library, split at its middle: attention residual | reduction | MLP.

    A library's subclass derives from this and from the stock block, and gives the two halves. The model's loop hands
    each block its `Visit`; without one the block was called from elsewhere, where no pruning would happen.
    """

    def forward(self: Any, x: Tensor, *args: Any, visit: Visit | None = None, **inputs: Any) -> Tensor:
        if visit is None:
            raise RuntimeError(
                f"a block of a pruned model ({type(self).__name__}) was called outside the model's own loop, where "
                "nothing would be pruned; call the model, its forward_features or its forward_intermediates, or "
                "entropatch.unprune_ it first."
            )
        expected = visit.tokens.num_prefix_tokens + visit.tokens.n
        if x.shape[1] != expected:
            raise ValueError(
                f"block {visit.block} was given {x.shape[1]} tokens, but {visit.tokens.num_prefix_tokens} prefix "
                f"tokens and {visit.tokens.n} patches are known: a hook adds or removes tokens, which cannot be told "
                "from patches. Remove it, or entropatch.unprune_ the model."
            )
        if visit.is_idle:
            return self.whole(x, *args, **inputs)
        x = self.attention_half(x, visit, *args, **inputs)
        return visit.reduce(x, self.mlp_half)

    def whole(self, x: Tensor, *args: Any, **inputs: Any) -> Tensor:
        """What the stock block gives."""
        return super().forward(x, *args, **inputs)  # pyright: ignore[reportAttributeAccessIssue]

    def attention_half(self, x: Tensor, visit: Visit, *args: Any, **inputs: Any) -> Tensor:
        """The tokens after the attention residual; its attention is shown to `visit.see`."""
        raise NotImplementedError

    def mlp_half(self, x: Tensor) -> Tensor:
        """What follows on the attention residual."""
        raise NotImplementedError
