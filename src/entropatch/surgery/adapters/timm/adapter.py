"""What surgery needs to know about timm: the tables of what is understood, and the refusals of what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import attention as timm_attention
from timm.models import deit as timm_deit
from timm.models import eva as timm_eva
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn

from entropatch.surgery.adapters.timm import attention, blocks, models
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.wrappers import inside, rebased
from entropatch.tokens import Tokens

MODELS: dict[type, type] = {
    timm_vit.VisionTransformer: models.VisionTransformer,
    timm_deit.VisionTransformerDistilled: models.VisionTransformerDistilled,
    timm_eva.Eva: models.Eva,
}
BLOCKS: dict[type, type] = {
    timm_vit.Block: blocks.Block,
    timm_vit.ResPostBlock: blocks.ResPostBlock,
    timm_eva.EvaBlock: blocks.EvaBlock,
    timm_eva.EvaBlockPostNorm: blocks.EvaBlockPostNorm,
}
ATTENTION: dict[type, type] = {
    timm_attention.Attention: attention.Attention,
    timm_attention.AttentionRope: attention.AttentionRope,
    timm_eva.EvaAttention: attention.EvaAttention,
}
SWAPPED: dict[type, type] = MODELS | BLOCKS | ATTENTION | {nn.Sequential: blocks.Sequential}
STOCK: dict[type, type] = {swapped: stock for stock, swapped in SWAPPED.items()}


class TimmAdapter:
    """What surgery needs to know about timm; see `Adapter`."""

    supported = (
        "timm " + ", ".join(kind.__name__ for kind in MODELS) + " with blocks " + ", ".join(b.__name__ for b in BLOCKS)
    )

    def recognises(self, model: nn.Module) -> bool:
        return type(model) in MODELS or isinstance(model, models.SplitModel)

    def is_swapped(self, part: nn.Module) -> bool:
        return inside(part, _is_swapped) is not None

    def blocks(self, model: Any) -> list[nn.Module]:
        return list(model.blocks)

    def refuse_parts(self, model: Any) -> None:
        """Raise UnsupportedModelError for a part that cannot be split, or whose forward was replaced."""
        if not self.is_swapped(model):
            _refuse_replaced(model, "the model")
            _refuse_replaced(model.blocks, "the container of the blocks")
            _refuse_patch_embedding(model.patch_embed)
        blocks = self.blocks(model)
        if len({id(block) for block in blocks}) < len(blocks):
            raise UnsupportedModelError(
                "the model runs one block several times; each block must be a module of its own."
            )
        for i, block in enumerate(blocks):
            if self.is_swapped(block):
                continue
            _refuse_part(block, BLOCKS, f"block {i}", "cannot be split after its attention residual")
            _refuse_part(
                getattr(block, "attn", None),
                ATTENTION,
                f"the attention of block {i}",
                "has no single softmax over its patches",
            )

    def swap(self, model: Any) -> list[tuple[nn.Module, type]]:
        parts = [part for block in model.blocks if not self.is_swapped(block) for part in (block.attn, block)]
        changed = [(part, type(part)) for part in (*parts, model.blocks, model) if type(part) in SWAPPED]
        for part, kind in changed:
            part.__class__ = SWAPPED[kind]
        return changed

    def unswap(self, model: Any) -> None:
        changed = [(part, rebased(type(part), STOCK)) for part in _swapped_parts(model)]
        for part, kind in changed:
            own = vars(part).get("forward")
            if own is not None and getattr(own, "__func__", None) is not type(part).forward:
                raise UnsupportedModelError(
                    f"the forward of this {kind.__name__} was replaced on the instance by one that calls the pruned "
                    "forward; undo that first (Accelerate's mixed precision: "
                    "accelerator.unwrap_model(model, keep_fp32_wrapper=False))."
                )
            if issubclass(kind, tuple(STOCK)):
                raise UnsupportedModelError(
                    f"{type(part).__module__}.{type(part).__qualname__} was derived from a pruned class in a way that "
                    "cannot be undone; undo what derived it (FSDP, parametrize) first."
                )
        for part, kind in changed:
            vars(part).pop("forward", None)  # which, if there, is that of the swapped class
            part.__class__ = kind

    def check_inputs(self, model: Any, block: int, patches: int) -> tuple[Tensor, dict[str, Any]]:
        parameter = next(p for p in model.blocks.parameters() if p.is_floating_point())
        # Drawn on the CPU from a generator of its own: the user's random state stays as it was.
        tokens = model.num_prefix_tokens + patches
        x = torch.randn(1, tokens, model.embed_dim, generator=torch.Generator().manual_seed(0), device="cpu")
        x = x.to(parameter.device, parameter.dtype)
        if not isinstance(model, timm_eva.Eva):
            return x, {}
        height, width = model.patch_embed.grid_size
        shape = (1, height, width) if model.dynamic_img_size else (1, height * width)
        empty = torch.zeros(*shape, model.embed_dim, dtype=parameter.dtype, device=parameter.device)
        _, table = timm_eva.Eva._pos_embed(model, empty)
        if table is None:
            return x, {"rope": None}
        positions = torch.arange(patches, device=x.device)[None]
        known = Tokens(model.num_prefix_tokens, patches, height * width, positions=positions)
        return x, {"rope": models.RotaryTables(table, getattr(model, "rope_mixed", False)).at(block, known)}

    def surroundings(self, model: Any) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        first = next(p for p in model.patch_embed.parameters() if p.ndim == 4)
        image = torch.randn(1, first.shape[1], *model.patch_embed.img_size, generator=torch.Generator().manual_seed(0))
        image = image.to(first.device, first.dtype)
        kind = STOCK[type(model)] if type(model) in STOCK else type(model)

        def alone(forward: Callable[[], Tensor]) -> Tensor:
            blocks, model._modules["blocks"] = model.blocks, nn.Sequential()
            checkpointing, model.grad_checkpointing = model.grad_checkpointing, False
            try:
                return forward()
            finally:
                model._modules["blocks"], model.grad_checkpointing = blocks, checkpointing

        stock: Callable[[], Tensor] = lambda: kind.forward_features(model, image)  # noqa: E731
        return lambda: alone(stock), lambda: model.norm(models.SplitModel.enter(model, image)[0])

    def stock_block(self, block: nn.Module) -> type:
        return rebased(type(inside(block, _is_swapped) or block), STOCK)

    def num_prefix_tokens(self, model: Any) -> int:
        return model.num_prefix_tokens

    def has_class_token(self, model: Any) -> bool:
        return model.cls_token is not None

    def is_rotary(self, model: Any) -> bool:
        return getattr(model, "rope", None) is not None

    def norm(self, model: Any) -> nn.Module:
        return model.norm


def _is_swapped(part: nn.Module) -> bool:
    return isinstance(part, tuple(STOCK))


def _swapped_parts(model: Any) -> list[nn.Module]:
    """The model and those of its parts that are of a swapped class, past their wrappers."""
    return [part for part in model.modules() if _is_swapped(part)]


def _refuse_part(part: nn.Module | None, table: dict[type, type], what: str, why: str) -> None:
    kind = type(part)
    if kind not in table:
        known = ", ".join(stock.__name__ for stock in table)
        raise UnsupportedModelError(
            f"{what} is a {kind.__module__}.{kind.__qualname__}, which {why}. Supported: {known}."
        )
    _refuse_replaced(part, what)


def _refuse_replaced(part: nn.Module | None, what: str) -> None:
    for method in ("forward", "forward_features", "forward_intermediates", "_pos_embed"):
        if method in vars(part):
            raise UnsupportedModelError(
                f"{what} ({type(part).__name__}) had its {method} replaced on the instance; prune the stock model."
            )
    if getattr(part, "_compiled_call_impl", None) is not None:
        raise UnsupportedModelError(
            f"{what} ({type(part).__name__}) is compiled already; prune it first, then compile."
        )


def _refuse_patch_embedding(part: nn.Module) -> None:
    lacking = [name for name in ("dynamic_feat_size", "grid_size", "img_size") if getattr(part, name, None) is None]
    if lacking:
        raise UnsupportedModelError(
            f"the patch embedding is a {type(part).__module__}.{type(part).__qualname__}, which does not say where its "
            f"patches stand (it has no {', '.join(lacking)}); derive it from timm.layers.PatchEmbed."
        )
