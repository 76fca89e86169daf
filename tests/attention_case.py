"""One block's attention for the tests of criteria."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from entropatch import BlockAttention

SCALE = 0.7


def block_attention(
    batch: int = 2, heads: int = 3, patches: int = 9, prefix: int = 2, dtype: torch.dtype = torch.float64, **more: Any
) -> BlockAttention:
    q, k, v = torch.randn(3, batch, heads, prefix + patches, 4, dtype=dtype).mul(2)
    given = {"scale": SCALE, "num_prefix_tokens": prefix, "has_class_token": prefix > 0}
    return BlockAttention(q, k, v, **given | more)


def of_each_image(attention: BlockAttention, twin: Callable[..., list[float]], *parts: Any) -> Tensor:
    """`twin(q, k, scale, prefix, *parts)` of each image, as one tensor."""
    rows = [
        twin(q, k, SCALE, attention.num_prefix_tokens, *parts)
        for q, k in zip(attention.q.double().numpy(), attention.k.double().numpy(), strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)
