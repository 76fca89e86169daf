"""timm's blocks, each split at its middle: attention residual | reduction | MLP.

The swapped classes have the names of timm's, so that tools which know a block by the name of its class still do.
"""

from __future__ import annotations

from typing import Any

from timm.models import eva as timm_eva
from timm.models import vision_transformer as timm_vit
from torch import Tensor

from entropatch.surgery.split_block import SplitBlock
from entropatch.surgery.visit import Visit


def refuse_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError(
            "a pruning block takes no attn_mask and no is_causal: the paper's attention distribution runs over all "
            "patches, and a mask would not fit the tokens that remain. Call the model without one, or unprune_ it."
        )


class _SplitVitBlock(SplitBlock):
    def attention_half(
        self: Any, x: Tensor, visit: Visit, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask(attn_mask, is_causal)
        return self.attended(x, visit)


class Block(_SplitVitBlock, timm_vit.Block):
    def attended(self, x: Tensor, visit: Visit) -> Tensor:
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x), visit=visit)))

    def mlp_half(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ResPostBlock(_SplitVitBlock, timm_vit.ResPostBlock):
    def attended(self, x: Tensor, visit: Visit) -> Tensor:
        return x + self.drop_path1(self.norm1(self.attn(x, visit=visit)))

    def mlp_half(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class _SplitEvaBlock(SplitBlock):
    def attention_half(
        self: Any,
        x: Tensor,
        visit: Visit,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        refuse_mask(attn_mask, is_causal)
        return self.attended(x, visit, rope)


class EvaBlock(_SplitEvaBlock, timm_eva.EvaBlock):
    def attended(self, x: Tensor, visit: Visit, rope: Tensor | None) -> Tensor:
        y = self.attn(self.norm1(x), rope=rope, visit=visit)
        return x + self.drop_path1(y if self.gamma_1 is None else self.gamma_1 * y)

    def mlp_half(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.gamma_2 is None else self.gamma_2 * y)


class EvaBlockPostNorm(_SplitEvaBlock, timm_eva.EvaBlockPostNorm):
    def attended(self, x: Tensor, visit: Visit, rope: Tensor | None) -> Tensor:
        return x + self.drop_path1(self.norm1(self.attn(x, rope=rope, visit=visit)))

    def mlp_half(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.norm2(self.mlp(x)))
