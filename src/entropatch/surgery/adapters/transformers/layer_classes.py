"""The layers of transformers' towers, split at their middle: attention residual | reduction | MLP."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from entropatch.surgery.adapters.transformers.families import Parts
from entropatch.surgery.checkpointing import checkpointed
from entropatch.surgery.split_block import SplitBlock
from entropatch.surgery.stepwise import Stepwise
from entropatch.surgery.visit import Visit
from entropatch.tokens import Tokens


class SplitLayer(SplitBlock):
    """A layer that hands itself to the `Stepwise` of the forward pass.

    A family's class derives from this and from the stock layer, and says what its parts are called.
    """

    parts: ClassVar[Parts]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # The stock layer's class wraps `forward` in checkpointing; here what each visit finds out must outlive it.
        cls.forward = SplitLayer.forward

    def forward(
        self: Any,
        hidden_states: Tensor,
        *args: Any,
        run: Stepwise | None = None,
        visit: Visit | None = None,
        **inputs: Any,
    ) -> Tensor:
        if run is None:
            return SplitBlock.forward(self, hidden_states, *args, visit=visit, **inputs)

        def half(x: Tensor, visit: Visit) -> Tensor:
            tables = inputs.get("position_embeddings")
            given = inputs if tables is None else {**inputs, "position_embeddings": _narrowed(tables, visit.tokens)}

            def whole(visit: Visit, x: Tensor) -> Tensor:
                return SplitBlock.forward(self, x, *args, visit=visit, **given)

            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                return checkpointed(self._gradient_checkpointing_func, whole, visit, x)
            return whole(visit, x)

        return run.block(self, hidden_states, half)

    def attention_half(
        self: Any, x: Tensor, visit: Visit, attention_mask: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        if attention_mask is not None:
            raise ValueError(
                "a pruning block takes no attention_mask: the paper's attention distribution runs over all patches, "
                "and a mask would not fit the tokens that remain. Call the model without one, or unprune_ it."
            )
        parts = self.parts
        y = getattr(self, parts.attention)(getattr(self, parts.norm1)(x), visit=visit, **inputs)
        return x + self._scaled(y[0] if isinstance(y, tuple) else y, parts.scaled1)

    def mlp_half(self: Any, x: Tensor) -> Tensor:
        parts = self.parts
        return x + self._scaled(getattr(self, parts.mlp)(getattr(self, parts.norm2)(x)), parts.scaled2)

    def _scaled(self: Any, y: Tensor, names: tuple[str, ...]) -> Tensor:
        for name in names:
            part = getattr(self, name)
            y = part(y) if isinstance(part, nn.Module) else part * y
        return y


def _narrowed(tables: tuple[Tensor, Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Rotary tables (cos, sin), (patches, d) each, of the tokens that are left: (batch, 1, n, d) each."""
    if tokens.positions is None:
        return tables
    cos, sin = (table[tokens.positions][:, None] for table in tables)
    return cos, sin
