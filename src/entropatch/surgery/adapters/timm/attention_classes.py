"""timm's attention modules, each split into queries, keys and values | output."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import attention as timm_attention
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models import eva as timm_eva
from torch import Tensor
from torch.nn import functional as F

from entropatch.attention import BlockAttention
from entropatch.surgery.visit import Visit


class _SplitAttention:
    """An attention module that shows a `Visit` its queries, keys and values."""

    def forward(self: Any, x: Tensor, *args: Any, visit: Visit | None = None, **kwargs: Any) -> Tensor:
        if visit is None:
            return super().forward(x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        attention = self.shown(x, kwargs.get("rope"), visit)
        visit.see(attention)
        if visit.keeps_all:
            return super().forward(x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
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
        if self.fused_attn or attention.mask is not None:
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
