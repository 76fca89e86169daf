"""timm's `VisionTransformer` and `Eva` families: the two halves of their blocks, and their loops over them.

The swapped classes have the names of timm's, so that tools which know a block by the name of its class still do.
Whatever is not listed in the tables at the end is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import attention as timm_attention
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models import deit as timm_deit
from timm.models import eva as timm_eva
from timm.models import vision_transformer as timm_vit
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from entropatch.attention import BlockAttention
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.halves import Halfway
from entropatch.surgery.loop import Passed, Stream, in_order, padded, run_blocks
from entropatch.surgery.state import ATTRIBUTE, Pruning
from entropatch.surgery.tracing import to_grid
from entropatch.surgery.visit import SplitBlock, Visit, checkpointed
from entropatch.surgery.wrappers import inside, rebased
from entropatch.tokens import Tokens

# --------------------------------------------------------------------------------------------------- attention


class _SplitAttention:
    """An attention module that shows a `Visit` its queries, keys and values."""

    def forward(self: Any, x: Tensor, *args: Any, visit: Visit | None = None, **kwargs: Any) -> Tensor:
        if visit is None:
            return super().forward(x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if visit.keeps_all:
            visit.see(self.shown(x, kwargs.get("rope"), visit))
            return super().forward(x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        attention = self.shown(x, kwargs.get("rope"), visit)
        visit.see(attention)
        return self.merge_heads(x, self.attend(attention))

    def shown(self: Any, x: Tensor, rope: Tensor | None, visit: Visit) -> BlockAttention:
        """What a criterion sees: the queries, keys and values that this module multiplies."""
        # Where nothing is reduced and nobody asks for gradients, looking leaves no mark on the graph.
        traced = not visit.keeps_all or any(watch.gradients for watch in visit.watches)
        with torch.set_grad_enabled(traced and torch.is_grad_enabled()):
            q, k, v = self.split_heads(x, rope)
        # timm's fused path leaves the scale to PyTorch, which takes 1/√d; its other path multiplies by self.scale.
        scale = None if self.fused_attn else self.scale
        dropout = self.attn_drop.p if self.training else 0.0
        return visit.attention(q, k, v, scale=scale, dropout=dropout, fused=self.fused_attn)

    def attend(self: Any, attention: BlockAttention) -> Tensor:
        """Attention output (batch, heads, tokens, head width), fused or not as the model was told."""
        if self.fused_attn:
            return attention.output()
        weights = (attention.q * self.scale) @ attention.k.transpose(-2, -1)
        if attention.key_bias is not None:
            weights = weights + attention.key_bias[:, None, None].to(weights.dtype)
        return self.attn_drop(weights.softmax(dim=-1)) @ attention.v

    def merge_heads(self: Any, x: Tensor, y: Tensor) -> Tensor:
        """(batch, heads, tokens, head width) -> (batch, tokens, width): normed, gated and projected as in the stock."""
        y = self.norm(y.transpose(1, 2).flatten(2))
        if getattr(self, "gate", None) is not None:
            y = y * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(y))


class Attention(_SplitAttention, timm_attention.Attention):
    def split_heads(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _unbind_qkv(self.qkv(x), self.num_heads)
        return self.q_norm(q), self.k_norm(k), v


class AttentionRope(_SplitAttention, timm_attention.AttentionRope):
    def split_heads(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if self.qkv is not None:
            q, k, v = _unbind_qkv(self.qkv(x), self.num_heads)
        else:
            q, k, v = _separate_qkv(self, x)
        q, k = _rotate(self, self.q_norm(q), self.k_norm(k), v, rope)
        groups = getattr(self, "num_kv_groups", 1)
        if groups > 1:  # grouped-query attention: expand keys and values to the query heads
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return q, k, v


class EvaAttention(_SplitAttention, timm_eva.EvaAttention):
    def split_heads(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if self.qkv is None:
            q, k, v = _separate_qkv(self, x)
        elif self.q_bias is None or self.k_bias is None or self.v_bias is None:
            q, k, v = _unbind_qkv(self.qkv(x), self.num_heads)
        else:
            bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
            separate = self.qkv_bias_separate
            qkv = self.qkv(x) + bias if separate else F.linear(x, self.qkv.weight, bias)
            q, k, v = _unbind_qkv(qkv, self.num_heads)
        q, k = _rotate(self, self.q_norm(q), self.k_norm(k), v, rope)
        return q, k, v


def _unbind_qkv(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = qkv.shape
    q, k, v = qkv.reshape(batch, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _separate_qkv(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    width = q.shape[2] // attention.num_heads  # keys and values may have fewer heads than queries, equally wide ones

    def heads(y: Tensor) -> Tensor:
        return y.unflatten(2, (y.shape[2] // width, width)).transpose(1, 2)

    return heads(q), heads(k), heads(v)


def _rotate(attention: Any, q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries and keys with the rotary embedding on all but the prefix tokens."""
    if rope is None:
        return q, k
    prefix, half = attention.num_prefix_tokens, getattr(attention, "rotate_half", False)

    def rotate(y: Tensor) -> Tensor:
        rotated = apply_rot_embed_cat(y[:, :, prefix:], rope, half=half)
        return torch.cat((y[:, :, :prefix], rotated), dim=2).type_as(v)

    return rotate(q), rotate(k)


# ------------------------------------------------------------------------------------------------------ blocks


class _SplitVitBlock(SplitBlock):
    def attention_half(
        self: Any, x: Tensor, visit: Visit, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        _refuse_mask(attn_mask, is_causal)
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
        _refuse_mask(attn_mask, is_causal)
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


class Sequential(nn.Sequential):
    """The container of a `VisionTransformer`'s blocks: called as in the stock model, it runs the loop it is given."""

    def forward(self, input: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        return super().forward(input) if run is None else run(input)


def _refuse_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError(
            "a pruning block takes no attn_mask and no is_causal: the paper's attention distribution runs over all "
            "patches, and a mask would not fit the tokens that remain. Call the model without one, or unprune_ it."
        )


# ------------------------------------------------------------------------------------------------------ models


class RotaryTables:
    """The rotary position tables of one forward pass, narrowed to the tokens that are left.

    Args:
        table: (patches, d), (heads, patches, d) or (batch, heads or 1, patches, d); with `mixed` one for each block.
        mixed: whether each block has its own.
    """

    def __init__(self, table: Tensor, mixed: bool):
        self.table, self.mixed = table, mixed
        self._narrowed: tuple[Tensor, Tensor] | None = None  # the positions, and the table there

    def at(self, block: int, tokens: Tokens) -> Tensor:
        """The table for the tokens that enter a block."""
        table = self.table[block] if self.mixed else self.table
        positions = tokens.positions
        if positions is None:
            return table
        if self._narrowed is not None and self._narrowed[0] is positions:
            return self._narrowed[1]
        batch, d = positions.shape[0], table.shape[-1]
        table = table.expand(batch, 1, -1, -1) if table.ndim == 2 else table.expand(batch, -1, -1, -1)
        narrowed = table.gather(2, positions[:, None, :, None].expand(-1, table.shape[1], -1, d))
        if not self.mixed:
            self._narrowed = (positions, narrowed)
        return narrowed


class _SplitModel:
    """A model that runs its blocks through `run_blocks`, and gives dense intermediates although blocks reduce."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, torch.fx.Proxy):
            raise UnsupportedModelError(
                "a pruned model cannot be traced by torch.fx, since what it computes depends on its input; "
                "entropatch.unprune_ it first, or use hooks (timm's AttentionExtract(model, method='hook'))."
            )
        if not _pruning(self).config.schedule.per_image:
            return super().forward(x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        streams = self.run_streams(x, *args, **kwargs)
        return in_order(streams, [self.forward_head(self.norm(stream.x)) for stream in streams])

    def forward_features(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """timm's `forward_features`. Where images keep different numbers of tokens, rows end in NaN."""
        return self.join_streams(self.run_streams(x, attn_mask, is_causal))

    def run_streams(
        self: Any, images: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> list[Stream]:
        """What leaves the last block: the whole batch, or a group of images for each size; not yet normed."""
        x, rope = self.enter(images)
        grid, given = _grid(self, images), _given(attn_mask, is_causal)
        if self.grad_checkpointing or given or not isinstance(self.blocks, Sequential):
            return self.run_blocks(x, rope, grid, given).streams
        passed: list[Passed] = []

        def run(x: Tensor) -> Any:
            passed.append(self.run_blocks(x, rope, grid, given))
            streams = passed[0].streams
            return streams[0].x if len(streams) == 1 else [stream.x for stream in streams]

        y = self.blocks(x, run=run)
        streams = passed[0].streams
        return [replace(stream, x=part) for stream, part in zip(streams, [y] if len(streams) == 1 else y, strict=True)]

    def enter(self: Any, images: Tensor) -> tuple[Tensor, RotaryTables | None]:
        """The tokens that enter the first block, and the rotary tables."""
        x = self.patch_embed(images)
        if isinstance(self, timm_eva.Eva):
            x, table = self._pos_embed(x)
            rope = None if table is None else RotaryTables(table, getattr(self, "rope_mixed", False))
            return self.norm_pre(x), rope
        return self.norm_pre(self.patch_drop(self._pos_embed(x))), None

    def run_blocks(
        self: Any,
        x: Tensor,
        rope: RotaryTables | None,
        grid: tuple[int, int],
        given: dict[str, Any],
        blocks: range | None = None,
        taken: Sequence[int] = (),
    ) -> Passed:
        modules = list(self.blocks)

        def call(i: int, x: Tensor, visit: Visit) -> Tensor:
            table = () if rope is None else (rope.at(i, visit.tokens),)

            def run(visit: Visit, x: Tensor, *table: Tensor) -> Tensor:
                return modules[i](x, *table, **given, visit=visit)

            if self.grad_checkpointing:
                return checkpointed(checkpoint, run, visit, x, *table)
            return run(visit, x, *table)

        loses_patches = self.training and getattr(self, "patch_drop", None) is not None
        return run_blocks(self, x, grid, call, complete=not loses_patches, blocks=blocks, taken=taken)

    def join_streams(self: Any, streams: Sequence[Stream]) -> Tensor:
        """The normed tokens of the whole batch, in its order."""
        normed = [replace(stream, x=self.norm(stream.x)) for stream in streams]
        return in_order(normed, padded(normed))

    def run_first(self: Any, images: Tensor, block: int) -> Halfway:
        x, rope = self.enter(images)
        grid = _grid(self, images)
        (stream,) = self.run_blocks(x, rope, grid, {}, range(block)).streams
        return Halfway(stream.x, rope, grid, block)

    def run_last(self: Any, halfway: Halfway) -> Tensor:
        blocks = range(halfway.block, len(self.blocks))
        return self.join_streams(self.run_blocks(halfway.x, halfway.inputs, halfway.grid, {}, blocks).streams)

    def forward_intermediates(
        self: Any,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """timm's `forward_intermediates`; every map is dense, a pruned patch showing the last value it had.

        The final features, where returned, hold the kept tokens only, as those of `forward_features`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, but got {output_fmt!r}.")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        wanted = sorted(set(wanted))
        grid, (tokens, rope) = _grid(self, x), self.enter(x)
        blocks = range(last + 1) if stop_early else None
        passed = self.run_blocks(tokens, rope, grid, _given(attn_mask, is_causal), blocks, wanted)
        maps, prefixes = _dense_maps(passed, wanted, self.num_prefix_tokens, self.norm if norm else nn.Identity())
        if output_fmt == "NCHW":
            maps = [y.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() for y in maps]
        with_prefix = return_prefix_tokens and self.num_prefix_tokens > 0
        final = None if intermediates_only else self.join_streams(passed.streams)
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": maps}
            result |= {"image_intermediates_prefix": prefixes} if with_prefix else {}
            return result if intermediates_only else result | {"image_features": final}
        intermediates = list(zip(maps, prefixes, strict=True)) if with_prefix else maps
        return intermediates if intermediates_only else (final, intermediates)


class VisionTransformer(_SplitModel, timm_vit.VisionTransformer):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


class VisionTransformerDistilled(_SplitModel, timm_deit.VisionTransformerDistilled):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


class Eva(_SplitModel, timm_eva.Eva):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


def _pruning(model: nn.Module) -> Pruning:
    return vars(model)[ATTRIBUTE]


def _grid(model: Any, images: Tensor) -> tuple[int, int]:
    return model.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))


def _given(attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
    """The mask arguments in use, as keywords; left out otherwise, since older timm blocks lack `is_causal`."""
    return ({} if attn_mask is None else {"attn_mask": attn_mask}) | ({"is_causal": True} if is_causal else {})


def _dense_maps(passed: Passed, wanted: list[int], prefix: int, norm: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Patch maps (batch, H·W, width) and prefix tokens of each block wanted, both normed."""
    maps, prefixes = [], []
    for block in wanted:
        streams = passed.taken[block]
        tokens = in_order(streams, padded(streams))
        reduced = [part for part in passed.reduced if part.stage.block <= block]
        maps.append(norm(to_grid(tokens[:, prefix:], reduced, None, nn.Identity())))
        prefixes.append(norm(tokens[:, :prefix]))
    return maps, prefixes


# ----------------------------------------------------------------------------------------------------- adapter

MODELS: dict[type, type] = {
    timm_vit.VisionTransformer: VisionTransformer,
    timm_deit.VisionTransformerDistilled: VisionTransformerDistilled,
    timm_eva.Eva: Eva,
}
BLOCKS: dict[type, type] = {
    timm_vit.Block: Block,
    timm_vit.ResPostBlock: ResPostBlock,
    timm_eva.EvaBlock: EvaBlock,
    timm_eva.EvaBlockPostNorm: EvaBlockPostNorm,
}
ATTENTION: dict[type, type] = {
    timm_attention.Attention: Attention,
    timm_attention.AttentionRope: AttentionRope,
    timm_eva.EvaAttention: EvaAttention,
}
SWAPPED: dict[type, type] = MODELS | BLOCKS | ATTENTION | {nn.Sequential: Sequential}
STOCK: dict[type, type] = {swapped: stock for stock, swapped in SWAPPED.items()}


class TimmAdapter:
    """What surgery needs to know about timm; see `Adapter`."""

    supported = (
        "timm " + ", ".join(kind.__name__ for kind in MODELS) + " with blocks " + ", ".join(b.__name__ for b in BLOCKS)
    )

    def recognises(self, model: nn.Module) -> bool:
        return type(model) in MODELS or isinstance(model, _SplitModel)

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
        return x, {"rope": RotaryTables(table, getattr(model, "rope_mixed", False)).at(block, known)}

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
        return lambda: alone(stock), lambda: model.norm(_SplitModel.enter(model, image)[0])

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
