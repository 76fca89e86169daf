"""The attention modules of transformers, each split into queries, keys and values | output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from entropatch.surgery.visit import Visit


class SplitAttention:
    """An attention module that shows a `Visit` its queries, keys and values; it returns output and weights.

    A library's class derives from one of the classes below and from the stock attention.
    """

    def forward(self: Any, hidden_states: Tensor, *args: Any, visit: Visit | None = None, **kwargs: Any) -> Any:
        if visit is None:
            return super().forward(hidden_states, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        # Where nothing is reduced and nobody asks for gradients, looking leaves no mark on the graph.
        traced = not visit.keeps_all or any(watch.gradients for watch in visit.watches)
        with torch.set_grad_enabled(traced and torch.is_grad_enabled()):
            q, k, v = self.split_heads(hidden_states, **kwargs)
        dropout = self.attention_drop() if self.training else 0.0
        eager = self.is_eager()
        attention = visit.attention(q, k, v, scale=self.factor(), dropout=dropout, fused=not eager)
        visit.see(attention)
        if visit.keeps_all:
            return super().forward(hidden_states, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if not eager:
            return self.merge_heads(attention.output().transpose(1, 2).flatten(2)), None
        weights = nn.functional.dropout(attention.matrix().to(v.dtype), dropout)
        return self.merge_heads((weights @ v).transpose(1, 2).flatten(2)), weights

    def is_eager(self: Any) -> bool:
        """Whether the attention matrix is formed, and returned, as the model was told."""
        return self.config._attn_implementation == "eager"

    def factor(self: Any) -> float:
        """What the logits are multiplied by."""
        return self.scaling if hasattr(self, "scaling") else self.scale

    def attention_drop(self: Any) -> float:
        """Dropout of the attention weights."""
        return self.attention_dropout if hasattr(self, "attention_dropout") else self.dropout

    def split_heads(self: Any, x: Tensor, **inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (batch, heads, tokens, head width), as the attention multiplies them."""
        raise NotImplementedError

    def merge_heads(self: Any, y: Tensor) -> Tensor:
        """What the attention makes of its heads' outputs, (batch, tokens, width)."""
        raise NotImplementedError


class Separate(SplitAttention):
    """One projection each for queries, keys and values."""

    def split_heads(self: Any, x: Tensor, **inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (heads(projection(x), self.head_dim) for projection in (self.q_proj, self.k_proj, self.v_proj))
        return q, k, v

    def merge_heads(self: Any, y: Tensor) -> Tensor:
        return self.o_proj(y) if hasattr(self, "o_proj") else self.out_proj(y)


class Rotary(Separate):
    """DINOv3: the patches' queries and keys are turned by (cos, sin), each (patches, d) or (batch, 1, patches, d)."""

    def split_heads(self: Any, x: Tensor, *, position_embeddings: Any, **inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().split_heads(x)
        cos, sin = position_embeddings
        return _turned(q, cos, sin), _turned(k, cos, sin), v


class Joint(SplitAttention):
    """BLIP-2: one projection for queries, keys and values."""

    def split_heads(self: Any, x: Tensor, **inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (heads(part, self.head_dim) for part in self.qkv(x).chunk(3, dim=2))
        return q, k, v

    def merge_heads(self: Any, y: Tensor) -> Tensor:
        return self.projection(y)


class Matrix(Joint):
    """BLIP, which forms the attention matrix whatever it is told."""

    def is_eager(self: Any) -> bool:
        return True

    def attention_drop(self: Any) -> float:
        return self.dropout.p


class Normed(SplitAttention):
    """InternVL: queries and keys are normed over their full width."""

    def split_heads(self: Any, x: Tensor, **inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k = self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x))
        return heads(q, self.head_dim), heads(k, self.head_dim), heads(self.v_proj(x), self.head_dim)

    def merge_heads(self: Any, y: Tensor) -> Tensor:
        return self.projection_dropout(self.projection_layer(y))


class Video(SplitAttention):
    """VideoMAE: the module around this one projects its output."""

    def split_heads(self: Any, x: Tensor, **inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (heads(part(x), self.attention_head_size) for part in (self.query, self.key, self.value))
        return q, k, v

    def merge_heads(self: Any, y: Tensor) -> Tensor:
        return y

    def attention_drop(self: Any) -> float:
        return self.dropout_prob


def heads(x: Tensor, width: int) -> Tensor:
    """(batch, tokens, heads · width) -> (batch, heads, tokens, width)."""
    return x.unflatten(2, (-1, width)).transpose(1, 2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    prefix, patches = x.split((x.shape[2] - cos.shape[-2], cos.shape[-2]), dim=2)
    first, second = patches.chunk(2, dim=-1)
    return torch.cat((prefix, patches * cos + torch.cat((-second, first), dim=-1) * sin), dim=2)
