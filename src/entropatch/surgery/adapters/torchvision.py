"""torchvision's `VisionTransformer`: its `Encoder` is what is pruned, between the patch embedding and the heads.

The encoder adds the position embedding and norms what leaves its blocks; the model around it reads token 0 only, and
stays as it is.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models import vision_transformer as torchvision_vit

from entropatch.surgery.adapters.base import Adapter, linear_weight
from entropatch.surgery.adapters.torch_modules import (
    MultiheadAttention,
    Sequential,
    refuse_odd_attention,
    run_inside,
)
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.loop import in_order, run_blocks
from entropatch.surgery.split_block import SplitBlock
from entropatch.surgery.state import undisturbed
from entropatch.surgery.visit import Visit


class EncoderBlock(SplitBlock, torchvision_vit.EncoderBlock):
    def attention_half(self, x: Tensor, visit: Visit) -> Tensor:
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False, visit=visit)
        return self.dropout(y) + x

    def mlp_half(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln_2(x))


class Encoder(torchvision_vit.Encoder):
    def forward(self, input: Tensor) -> Tensor:
        """Tokens (batch, 1 + H·W, width), class token first, to the tokens that are left, normed.

        Where images keep different numbers of them, rows end in NaN.
        """
        if isinstance(input, torch.fx.Proxy):
            raise UnsupportedModelError(
                "a pruned model cannot be traced by torch.fx, which create_feature_extractor does, since what it "
                "computes depends on its input; use hooks, or entropatch.unprune_ it first."
            )
        torch._assert(input.dim() == 3, f"Expected (batch_size, seq_length, hidden_dim) got {input.shape}")
        x = self.dropout(input + self.pos_embedding)
        side = math.isqrt(input.shape[1] - 1)
        streams = run_inside(self.layers, x, lambda x: run_blocks(self, x, (side, side)))
        with undisturbed(self):
            return in_order(streams, [self.ln(stream.x) for stream in streams])


class TorchvisionAdapter(Adapter):
    library = "torchvision"
    models: ClassVar[dict[type, type]] = {torchvision_vit.Encoder: Encoder}
    blocks_table: ClassVar[dict[type, type]] = {torchvision_vit.EncoderBlock: EncoderBlock}
    attention: ClassVar[dict[type, type]] = {nn.MultiheadAttention: MultiheadAttention}
    others: ClassVar[dict[type, type]] = {nn.Sequential: Sequential}
    towers: ClassVar[dict[type, str]] = {torchvision_vit.VisionTransformer: "encoder"}
    container = "layers"
    attention_name = "self_attention"

    def example(self, model: Any) -> Tensor:
        """Tokens, as the patch embedding of the model around the encoder gives them."""
        shape = model.pos_embedding.shape
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.pos_embedding)

    def check_inputs(self, model: Any, block: int, patches: int) -> tuple[Tensor, dict[str, Any]]:
        return self.random_tokens(model, patches, model.pos_embedding.shape[-1]), {}

    def num_prefix_tokens(self, model: Any) -> int:
        return 1

    def has_class_token(self, model: Any) -> bool:
        return True

    def norm(self, model: Any) -> nn.Module:
        return model.ln

    def output_projection(self, block: Any) -> Tensor:
        attention: Any = self.attention_of(self.unwrapped(block))
        return linear_weight(attention.out_proj, ())

    def refuse_model(self, model: Any) -> None:
        tokens = model.pos_embedding.shape[1]
        if math.isqrt(tokens - 1) ** 2 != tokens - 1:
            raise UnsupportedModelError(
                f"the Encoder takes {tokens} tokens, which are not one class token and a square grid of patches, as in "
                "torchvision's VisionTransformer; prune such a model."
            )
        if type(model.layers) is not nn.Sequential:
            raise UnsupportedModelError(
                f"the layers of the Encoder are a {type(model.layers).__name__}, but torchvision's are an "
                "nn.Sequential; prune the stock model."
            )

    def refuse_block(self, block: Any, what: str) -> None:
        refuse_odd_attention(block.self_attention, f"the attention of {what}")
        if not block.self_attention.batch_first:
            raise UnsupportedModelError(
                f"the attention of {what} has batch_first=False, so it would attend across the images of a batch; "
                "torchvision's has batch_first=True."
            )
