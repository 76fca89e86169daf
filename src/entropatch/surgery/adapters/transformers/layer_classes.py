"""The layers of transformers' towers, split at their middle: attention residual | reduction | MLP."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from entropatch.surgery.adapters.transformers.families import Parts
from entropatch.surgery.checkpointing import checkpointed
from entropatch.surgery.split_block import SplitBlock
from entropatch.surgery.stepwise import Stepwise
from entropatch.surgery.visit import Visit


class SplitLayer(SplitBlock):
    """A layer that hands itself to the `Stepwise` of the forward pass.

    A family's class derives from this and from the stock layer, and says what its parts are called.
    """

    parts: ClassVar[Parts]
    masked: ClassVar[bool]

    def __init_subclass__(cls, **kwargs: Any) -> None:
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
            given = self.given(x, visit, run.masked, *args, **inputs)

            def whole(visit: Visit, x: Tensor) -> Tensor:
                return SplitBlock.forward(self, x, visit=visit, **given)

            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                return checkpointed(self._gradient_checkpointing_func, whole, visit, x)
            return whole(visit, x)

        return run.block(self, hidden_states, half)

    def given(
        self: Any, x: Tensor, visit: Visit, masked: bool, attention_mask: Any = None, **inputs: Any
    ) -> dict[str, Any]:
        """What the layer is given beside its tokens, for those that are left."""
        tokens = visit.tokens
        if masked and tokens.valid is None and not visit.is_idle:
            raise ValueError(
                "a pruning block takes no attention_mask: the paper's attention distribution runs over all patches, "
                "and a mask would not fit the tokens that remain. Call the model without one, or unprune_ it."
            )
        if tokens.valid is None and not (visit.keeps_all and tokens.positions is None):
            attention_mask = None  # torch.export and flex attention are handed one of all patches though none was given
        if tokens.positions is not None:
            if (tables := inputs.get("position_embeddings")) is not None:
                cos, sin = (table[tokens.positions][:, None] for table in tables)
                inputs["position_embeddings"] = (cos, sin)
            if tokens.valid is not None:
                config = getattr(self, self.parts.attention).config
                attention_mask = create_bidirectional_mask(config, inputs_embeds=x, attention_mask=tokens.valid)
        return {"attention_mask": attention_mask, **inputs} if self.masked else inputs

    def attention_half(
        self: Any, x: Tensor, visit: Visit, attention_mask: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        parts = self.parts
        if self.masked:
            inputs["attention_mask"] = attention_mask
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


class Video(SplitLayer):
    """VideoMAE: the second residual is added inside the layer's `output`."""

    def mlp_half(self: Any, x: Tensor) -> Tensor:
        return self.output(self.intermediate(self.layernorm_after(x)), x)

    def attention_half(
        self: Any, x: Tensor, visit: Visit, attention_mask: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        return x + self.attention(self.layernorm_before(x), visit=visit)
