"""Class attention weighted by the length of what it carries: values as they are, or as the projection maps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion
from entropatch.entropy import without_autocast


class _ClassWeighted(Criterion):
    """Class attention times a length."""

    needs_class_token: ClassVar[bool] = True

    def mass(self, scores: Tensor) -> Tensor:
        """Each patch's score, divided by the sum over the patches."""
        return scores.float() / scores.float().sum(1, keepdim=True)


@dataclass(frozen=True)
class ValueAttention(_ClassWeighted):
    """The score of ATS (Fayyaz et al. 2022): the class token's attention times the length of the patch's value.

    With A^h softmaxed over all tokens and V_j^h the value of patch j in head h:

        S_j = (Σ_h A^h[0, j]) · ‖(V_j^1, …, V_j^H)‖

    Divided by its sum over the patches (`mass`) it is what ATS samples from; see `InverseTransform`.
    """

    @property
    def label(self) -> str:
        return "value-weighted class attention"

    def importance(self, attention: BlockAttention) -> Tensor:
        values = attention.v[:, :, attention.num_prefix_tokens :]
        row = attention.class_attention().sum(1)
        return row * values.to(row.dtype).square().sum((1, 3)).sqrt()


@dataclass(frozen=True)
class ValueNormAttention(_ClassWeighted):
    """Norm-based class attention (Kobayashi et al. 2020): how much a patch gives the class token; large = keep.

    With f^h(x) = (x W_V^h + b_V^h) W_O^h, the value of head h through its part of the output projection, and a_j^h the
    class token's attention on patch j, softmaxed over all tokens:

        s_j = (1/H) Σ_h a_j^h ‖f^h(x_j)‖

    The projection's bias belongs to no patch and stays out of it. What a model does to the projected sum, such as
    LayerScale or a norm behind it, is not part of the formula. A model with a norm, a gate or a scale between its heads
    and its projection is refused: there is no f of one value alone.
    """

    needs_projection: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "value-norm attention"

    def importance(self, attention: BlockAttention) -> Tensor:
        row = attention.class_attention()
        return (row * projected_norms(attention, row.dtype)[:, :, attention.num_prefix_tokens :]).mean(1)


def projected_norms(attention: BlockAttention, dtype: torch.dtype) -> Tensor:
    """‖v W_O^h‖ of every value: (batch, heads, tokens).

    By the Gram matrix of each head's part, W_O^h W_O^hᵀ, which is d × d: ‖v W‖² = v W Wᵀ vᵀ.
    """
    values, heads = attention.v.to(dtype), attention.v.shape[1]
    with without_autocast(values):
        # As in nn.Linear, columns of the weight are inputs: head h has the h-th of `heads` equal parts of them.
        parts = attention.output_projection().to(dtype).unflatten(1, (heads, -1))
        gram = torch.einsum("whd,whe->hde", parts, parts)
        return ((values @ gram) * values).sum(3).clamp_min(0).sqrt()
