"""What surgery knows of timm: the tables of what is understood."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.layers import attention as timm_attention
from timm.models import deit as timm_deit
from timm.models import eva as timm_eva
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn

from entropatch.surgery.adapters import torch_modules
from entropatch.surgery.adapters.base import Adapter, linear_weight
from entropatch.surgery.adapters.timm import attention_classes, block_classes, model_classes
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.tokens import Tokens


class TimmAdapter(Adapter):
    library = "timm"
    models: ClassVar[dict[type, type]] = {
        timm_vit.VisionTransformer: model_classes.VisionTransformer,
        timm_deit.VisionTransformerDistilled: model_classes.VisionTransformerDistilled,
        timm_eva.Eva: model_classes.Eva,
    }
    blocks_table: ClassVar[dict[type, type]] = {
        timm_vit.Block: block_classes.Block,
        timm_vit.ResPostBlock: block_classes.ResPostBlock,
        timm_eva.EvaBlock: block_classes.EvaBlock,
        timm_eva.EvaBlockPostNorm: block_classes.EvaBlockPostNorm,
    }
    attention: ClassVar[dict[type, type]] = {
        timm_attention.Attention: attention_classes.Attention,
        timm_attention.AttentionRope: attention_classes.AttentionRope,
        timm_eva.EvaAttention: attention_classes.EvaAttention,
    }
    others: ClassVar[dict[type, type]] = {nn.Sequential: torch_modules.Sequential}
    entry: ClassVar[str | None] = "forward_features"
    replaceable: ClassVar[tuple[str, ...]] = ("forward", "forward_features", "forward_intermediates", "_pos_embed")

    def example(self, model: Any) -> Tensor:
        first = next(p for p in model.patch_embed.parameters() if p.ndim == 4)
        image = torch.randn(1, first.shape[1], *model.patch_embed.img_size, generator=torch.Generator().manual_seed(0))
        return image.to(first.device, first.dtype)

    def check_inputs(self, model: Any, block: int, patches: int) -> tuple[Tensor, dict[str, Any]]:
        x = self.random_tokens(model, patches, model.embed_dim)
        if not isinstance(model, timm_eva.Eva):
            return x, {}
        height, width = model.patch_embed.grid_size
        shape = (1, height, width) if model.dynamic_img_size else (1, height * width)
        empty = torch.zeros(*shape, model.embed_dim, dtype=x.dtype, device=x.device)
        _, table = timm_eva.Eva._pos_embed(model, empty)
        if table is None:
            return x, {"rope": None}
        positions = torch.arange(patches, device=x.device)[None] % (height * width)
        known = Tokens(model.num_prefix_tokens, patches, height * width, positions=positions)
        return x, {"rope": model_classes.RotaryTables(table, getattr(model, "rope_mixed", False)).at(block, known)}

    def knows_places(self, model: Any) -> bool:
        dropout = getattr(model, "patch_drop", None)
        return dropout is None or isinstance(dropout, nn.Identity)

    def is_rotary(self, model: Any) -> bool:
        return getattr(model, "rope", None) is not None

    def output_projection(self, block: Any) -> Tensor:
        attention: Any = self.attention_of(self.unwrapped(block))
        between = {
            "a norm": not isinstance(attention.norm, nn.Identity),
            "a gate": getattr(attention, "gate", None) is not None,
        }
        return linear_weight(attention.proj, [name for name, there in between.items() if there])

    def refuse_model(self, model: Any) -> None:
        part = model.patch_embed
        lacking = [name for name in ("dynamic_feat_size", "grid_size", "img_size") if getattr(part, name, None) is None]
        if lacking:
            raise UnsupportedModelError(
                f"the patch embedding is a {type(part).__module__}.{type(part).__qualname__}, which does not say where "
                f"its patches stand (it has no {', '.join(lacking)}); derive it from timm.layers.PatchEmbed."
            )
