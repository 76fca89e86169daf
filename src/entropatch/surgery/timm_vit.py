"""timm's `VisionTransformer` and `Eva` families: subclasses that prune, and the adapter surgery drives them by.

Each block class is split once, at its middle: attention residual | reduction | MLP. Each attention class is split into
queries, keys and values | output. Whatever is not listed in the three tables at the end is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models._features import feature_take_indices
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from entropatch.attention import BlockAttention
from entropatch.config import PruneConfig
from entropatch.reduction import gather_tokens
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.prune import ATTRIBUTE, Pruning
from entropatch.surgery.stage import Decision, Stage
from entropatch.surgery.tracing import Trace

# --------------------------------------------------------------------------------------------------- attention


class _PrunedAttention:
    """An attention module that lets a `Decision` score the patches from its queries and keys."""

    def forward(self: Any, x: Tensor, *args: Any, decision: Decision | None = None, **kwargs: Any) -> Tensor:
        if decision is None:
            return super().forward(x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if decision.keeps_all:
            # Scoring leaves no mark on the graph: under gradient checkpointing the block runs again unscored.
            with torch.no_grad():
                decision.score(self.scored(x, kwargs.get("rope"), decision))
            return super().forward(x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        attention = self.scored(x, kwargs.get("rope"), decision)
        decision.score(attention)
        return self.merge_heads(x, self.attend(attention))

    def scored(self: Any, x: Tensor, rope: Tensor | None, decision: Decision) -> BlockAttention:
        """What the criterion sees: the queries, keys and values that this module multiplies."""
        stage = decision.stage
        q, k, v = self.split_heads(x, rope)
        return BlockAttention(
            q,
            k,
            v,
            # timm's fused path leaves the scale to PyTorch, which takes 1/√d; its other path multiplies by self.scale.
            scale=None if self.fused_attn else self.scale,
            dropout=self.attn_drop.p if self.training else 0.0,
            num_prefix_tokens=stage.num_prefix_tokens,
            has_class_token=stage.has_class_token,
            block=stage.block,
            backend=stage.backend,
            output_wanted=self.fused_attn and not decision.keeps_all,
        )

    def attend(self: Any, attention: BlockAttention) -> Tensor:
        """Attention output (batch, heads, tokens, head width), fused or not as the model was told."""
        if self.fused_attn:
            return attention.output()
        weights = (attention.q * self.scale) @ attention.k.transpose(-2, -1)
        return self.attn_drop(weights.softmax(dim=-1)) @ attention.v

    def merge_heads(self: Any, x: Tensor, y: Tensor) -> Tensor:
        """(batch, heads, tokens, head width) -> (batch, tokens, width): normed, gated and projected as in the stock."""
        y = self.norm(y.transpose(1, 2).flatten(2))
        if getattr(self, "gate", None) is not None:
            y = y * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(y))


class PrunedAttention(_PrunedAttention, Attention):
    def split_heads(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _unbind_qkv(self.qkv(x), self.num_heads)
        return self.q_norm(q), self.k_norm(k), v


class PrunedAttentionRope(_PrunedAttention, AttentionRope):
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


class PrunedEvaAttention(_PrunedAttention, EvaAttention):
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
    batch, tokens, _ = qkv.shape
    q, k, v = qkv.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _separate_qkv(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    # Keys and values may have fewer heads than queries; all heads are equally wide.
    heads = (-1, q.shape[2] // attention.num_heads)
    return (
        q.unflatten(2, heads).transpose(1, 2),
        k.unflatten(2, heads).transpose(1, 2),
        v.unflatten(2, heads).transpose(1, 2),
    )


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


class _PrunedVitBlock:
    """A `VisionTransformer` block that prunes at its middle if it carries a `Stage`."""

    def forward(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        stage: Stage | None = self.__dict__.get(ATTRIBUTE)
        decision = None if stage is None else stage.begin(x)
        if decision is None:
            return super().forward(x, **_given(attn_mask, is_causal))  # pyright: ignore[reportAttributeAccessIssue]
        _refuse_mask(attn_mask, is_causal)
        return self.split(x, decision)


class PrunedBlock(_PrunedVitBlock, Block):
    def split(self, x: Tensor, decision: Decision) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), decision=decision)))
        x = decision.reduce(x)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class PrunedResPostBlock(_PrunedVitBlock, ResPostBlock):
    def split(self, x: Tensor, decision: Decision) -> Tensor:
        x = x + self.drop_path1(self.norm1(self.attn(x, decision=decision)))
        x = decision.reduce(x)
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class RotaryTable:
    """A rotary position table on its way through the blocks of one forward pass, together with the patches kept so far.

    `Eva` hands the same table to every block. This object takes its place, so that each forward pass carries its own
    record: nothing is shared between passes, threads or recomputations under gradient checkpointing.

    Shapes: table (patches, d), (heads, patches, d), or batched (batch, heads or 1, patches, d).
    """

    def __init__(self, table: Tensor, kept: dict[int, Tensor] | None = None):
        self.table = table
        self.kept = {} if kept is None else kept
        self._narrowed: dict[int, Tensor] = {}

    def __getitem__(self, block: int) -> RotaryTable:
        """The table of one block, where each block has its own (mixed rotary embeddings)."""
        return RotaryTable(self.table[block], self.kept)

    def narrow(self, block: int, places: Tensor) -> None:
        """Note that `block` kept the tokens at `places` (batch, k) of those it was given."""
        earlier = self._last_before(block)
        self.kept[block] = places if earlier is None else gather_tokens(self.kept[earlier], places)

    def before(self, block: int) -> Tensor:
        """The table for the tokens that enter `block`."""
        earlier = self._last_before(block)
        if earlier is None:
            return self.table
        if earlier in self._narrowed:
            return self._narrowed[earlier]
        kept, table = self.kept[earlier], self.table
        batch, d = kept.shape[0], table.shape[-1]
        table = table.expand(batch, 1, -1, -1) if table.ndim == 2 else table.expand(batch, -1, -1, -1)
        narrowed = table.gather(2, kept[:, None, :, None].expand(-1, table.shape[1], -1, d))
        # A learnt table is gathered anew: recomputation under gradient checkpointing must save the same tensors.
        if not narrowed.requires_grad:
            self._narrowed[earlier] = narrowed
        return narrowed

    def _last_before(self, block: int) -> int | None:
        earlier = [number for number in self.kept if number < block]
        return max(earlier) if earlier else None


class _PrunedEvaBlock:
    """An `Eva` block: prunes if it carries a `Stage`; its rotary table follows the tokens in any case."""

    def forward(
        self: Any,
        x: Tensor,
        rope: RotaryTable | Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        table = rope.before(self.__dict__[INDEX]) if isinstance(rope, RotaryTable) else rope
        stage: Stage | None = self.__dict__.get(ATTRIBUTE)
        decision = None if stage is None else stage.begin(x)
        if decision is None:
            return super().forward(x, rope=table, **_given(attn_mask, is_causal))  # pyright: ignore[reportAttributeAccessIssue]
        _refuse_mask(attn_mask, is_causal)
        y = self.split(x, decision, table)
        if isinstance(rope, RotaryTable) and decision.kept is not None and decision.k < decision.n:
            rope.narrow(decision.stage.block, decision.kept)
        return y


class PrunedEvaBlock(_PrunedEvaBlock, EvaBlock):
    def split(self, x: Tensor, decision: Decision, rope: Tensor | None) -> Tensor:
        attended = self.attn(self.norm1(x), rope=rope, decision=decision)
        x = x + self.drop_path1(attended if self.gamma_1 is None else self.gamma_1 * attended)
        x = decision.reduce(x)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.gamma_2 is None else self.gamma_2 * y)


class PrunedEvaBlockPostNorm(_PrunedEvaBlock, EvaBlockPostNorm):
    def split(self, x: Tensor, decision: Decision, rope: Tensor | None) -> Tensor:
        x = x + self.drop_path1(self.norm1(self.attn(x, rope=rope, decision=decision)))
        x = decision.reduce(x)
        return x + self.drop_path2(self.norm2(self.mlp(x)))


def _given(attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
    """The mask arguments in use, as keywords; left out otherwise, since older timm blocks lack `is_causal`."""
    return ({} if attn_mask is None else {"attn_mask": attn_mask}) | ({"is_causal": True} if is_causal else {})


def _refuse_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError(
            "a pruning block takes no attn_mask and no is_causal: the paper's attention distribution runs over all "
            "patches, and a mask would not fit the tokens that remain. Call the model without one, or unprune_ it."
        )


# ------------------------------------------------------------------------------------------------------ models


class _PrunedModel:
    """A model that tells the trace its patch grid, and gives dense intermediates although blocks prune."""

    def forward_features(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._heard(super().forward_features, x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _heard(self: Any, forward: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`forward(x, …)`, heard by the trace that is open, if any."""
        pruning: Pruning = self.__dict__[ATTRIBUTE]
        trace = pruning.listeners.current()
        if trace is None:
            return forward(x, *args, **kwargs)
        with trace.forward_pass(pruning.config, self._grid(x)):
            return forward(x, *args, **kwargs)

    def _grid(self: Any, x: Tensor) -> tuple[int, int]:
        return self.patch_embed.dynamic_feat_size(tuple(x.shape[-2:]))

    def forward_intermediates(
        self: Any,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        """timm's `forward_intermediates`; every map is dense, a pruned patch showing the last value it had.

        The final features, where returned, hold the kept tokens only, as those of `forward_features`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, but got {output_fmt!r}.")
        output_dict = kwargs.pop("output_dict", False)
        pruning: Pruning = self.__dict__[ATTRIBUTE]
        trace = pruning.listeners.current() or Trace(pruning.config, self.num_prefix_tokens, self.norm)
        with pruning.listeners.listen(trace):
            final, taken = self._heard(
                super().forward_intermediates,  # pyright: ignore[reportAttributeAccessIssue]
                x,
                indices=indices,
                # timm's Eva fails when asked for prefix tokens it does not have.
                return_prefix_tokens=self.num_prefix_tokens > 0,
                stop_early=stop_early,
                output_fmt="NLC",
                **kwargs,
            )
        grid = self._grid(x)
        blocks = sorted(set(feature_take_indices(len(self.blocks), indices)[0]))
        maps, prefixes = _dense_maps(trace, blocks, taken, grid, self.norm if norm else nn.Identity())
        if output_fmt == "NCHW":
            maps = [y.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() for y in maps]
        with_prefix = return_prefix_tokens and self.num_prefix_tokens > 0
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": maps}
            result |= {"image_intermediates_prefix": prefixes} if with_prefix else {}
            return result if intermediates_only else result | {"image_features": final}
        intermediates = list(zip(maps, prefixes, strict=True)) if with_prefix else maps
        return intermediates if intermediates_only else (final, intermediates)


def _dense_maps(
    trace: Trace, blocks: list[int], taken: list[Any], grid: tuple[int, int], norm: nn.Module
) -> tuple[list[Tensor], list[Tensor]]:
    """Patch maps (batch, H·W, width) and prefix tokens of each block, from its kept tokens in NLC; both normed."""
    pairs = [tokens if isinstance(tokens, tuple) else (tokens, None) for tokens in taken]
    maps = [
        norm(trace.to_grid(patches, block, None, nn.Identity()))
        for block, (patches, _) in zip(blocks, pairs, strict=True)
    ]
    return maps, [norm(prefix) for _, prefix in pairs if prefix is not None]


class PrunedVisionTransformer(_PrunedModel, VisionTransformer):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


class PrunedVisionTransformerDistilled(_PrunedModel, VisionTransformerDistilled):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


class PrunedEva(_PrunedModel, Eva):  # pyright: ignore[reportIncompatibleMethodOverride]
    def _pos_embed(self, x: Tensor) -> tuple[Tensor, Any]:
        x, table = super()._pos_embed(x)
        return x, None if table is None else RotaryTable(table)


# ----------------------------------------------------------------------------------------------------- adapter

MODELS: dict[type, type] = {
    VisionTransformer: PrunedVisionTransformer,
    VisionTransformerDistilled: PrunedVisionTransformerDistilled,
    Eva: PrunedEva,
}
BLOCKS: dict[type, type] = {
    Block: PrunedBlock,
    ResPostBlock: PrunedResPostBlock,
    EvaBlock: PrunedEvaBlock,
    EvaBlockPostNorm: PrunedEvaBlockPostNorm,
}
ATTENTION: dict[type, type] = {
    Attention: PrunedAttention,
    AttentionRope: PrunedAttentionRope,
    EvaAttention: PrunedEvaAttention,
}
INDEX = "_entropatch_index"


class TimmAdapter:
    """What surgery needs to know about timm."""

    supported = (
        "timm " + ", ".join(kind.__name__ for kind in MODELS) + " with blocks " + ", ".join(b.__name__ for b in BLOCKS)
    )

    def recognises(self, model: nn.Module) -> bool:
        return type(model) in MODELS or type(model) in MODELS.values()

    def blocks(self, model: Any) -> list[nn.Module]:
        return list(model.blocks)

    def refuse_parts(self, model: nn.Module) -> None:
        """Raise UnsupportedModelError for a block or attention that cannot be split, or whose forward was replaced."""
        _refuse_replaced(model, "the model")
        blocks = self.blocks(model)
        if len({id(block) for block in blocks}) < len(blocks):
            raise UnsupportedModelError(
                "the model runs one block several times; each block must be a module of its own."
            )
        for i, block in enumerate(blocks):
            _refuse_part(block, BLOCKS, f"block {i}", "cannot be split after its attention residual")
            _refuse_part(
                getattr(block, "attn", None),
                ATTENTION,
                f"the attention of block {i}",
                "has no single softmax over its patches",
            )

    def refuse_setting(self, model: Any, config: PruneConfig) -> None:
        """Raise ValueError / UnsupportedModelError for a criterion or reduction that makes no sense on this model."""
        needs_class = config.criterion.needs_class_token or config.reduction == "fuse"
        if needs_class and not self.has_class_token(model):
            raise UnsupportedModelError(
                f"{type(config.criterion).__name__} with reduction={config.reduction!r} needs a class token, but this "
                f'{type(model).__name__} has none; use criterion=Renyi(order=…) with reduction="drop".'
            )
        if config.reduction == "fuse" and getattr(model, "rope", None) is not None:
            raise UnsupportedModelError(
                "a fused token stands at no place of the grid, so a rotary position embedding cannot be given to it; "
                'use reduction="drop" with this model.'
            )

    def swap(self, model: Any) -> None:
        for i, block in enumerate(model.blocks):
            block.__dict__[INDEX] = i
            block.attn.__class__ = ATTENTION.get(type(block.attn), type(block.attn))
            block.__class__ = BLOCKS.get(type(block), type(block))
        model.__class__ = MODELS.get(type(model), type(model))

    def unswap(self, model: Any) -> None:
        for block in model.blocks:
            block.__dict__.pop(INDEX, None)
            block.attn.__class__ = _stock(type(block.attn), ATTENTION)
            block.__class__ = _stock(type(block), BLOCKS)
        model.__class__ = _stock(type(model), MODELS)

    def check_inputs(self, model: Any) -> tuple[Tensor, dict[str, Any]]:
        """Random tokens for one image of the model's own size, and what else its blocks are given."""
        parameter = next(p for p in model.blocks.parameters() if p.is_floating_point())
        height, width = model.patch_embed.grid_size
        if isinstance(model, Eva):
            shape = (1, height, width) if model.dynamic_img_size else (1, height * width)
            _, rope = Eva._pos_embed(
                model, torch.zeros(*shape, model.embed_dim, dtype=parameter.dtype, device=parameter.device)
            )
            inputs = {"rope": rope[0] if getattr(model, "rope_mixed", False) and rope is not None else rope}
        else:
            inputs = {}
        # Drawn on the CPU from a generator of its own: the user's random state stays as it was.
        tokens = model.num_prefix_tokens + height * width
        x = torch.randn(1, tokens, model.embed_dim, generator=torch.Generator().manual_seed(0), device="cpu")
        return x.to(parameter.device, parameter.dtype), inputs

    def stock_block(self, block: nn.Module) -> type:
        return _stock(type(block), BLOCKS)

    def stock_forward(self, block: nn.Module, x: Tensor, **inputs: Any) -> Tensor:
        return self.stock_block(block).forward(block, x, **inputs)  # pyright: ignore[reportAttributeAccessIssue]

    def split_forward(self, block: Any, decision: Decision, x: Tensor, **inputs: Any) -> Tensor:
        return block.split(x, decision, **inputs)

    def num_prefix_tokens(self, model: Any) -> int:
        return model.num_prefix_tokens

    def has_class_token(self, model: Any) -> bool:
        return model.cls_token is not None

    def norm(self, model: Any) -> nn.Module:
        return model.norm


def _stock(kind: type, table: dict[type, type]) -> type:
    """The class that `kind` was before the swap; itself if it was not swapped."""
    return next((stock for stock, swapped in table.items() if swapped is kind), kind)


def _refuse_part(part: nn.Module | None, table: dict[type, type], what: str, why: str) -> None:
    kind = type(part)
    if kind not in table and kind not in table.values():
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
