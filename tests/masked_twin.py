"""The slow float64 twin of a pruned transformers tower: all patches run through the stock layers, pruned ones unseen.

Transformers' own attention interface is given an attention that forms the matrix and leaves out what was pruned; which
patches that is, is worked out here from the queries and keys, independently of the package.
"""

from __future__ import annotations

import copy
import math
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "matrix_with_pruned_patches_left_out"
_RUNNING: dict[str, Any] = {}  # the twin whose forward pass runs


def _attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None = None, **given: Any
) -> Any:
    twin: Twin = _RUNNING["twin"]
    logits = q @ k.transpose(-1, -2) * given["scaling"]
    seen = twin.alive[:, None, None]
    if attention_mask is not None:
        seen = seen & attention_mask[..., -1:, :]
    twin.logits = logits
    weights = logits.masked_fill(~seen, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2), weights


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _blip_attention(self: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
    """BLIP's attention, which asks no attention interface."""
    batch, tokens, width = hidden_states.shape
    q, k, v = self.qkv(hidden_states).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    y, weights = _attention(self, q, k, v, scaling=self.scale)
    return self.projection(y.reshape(batch, tokens, width)), weights


class Twin:
    """A stock model whose tower prunes by the book.

    Args:
        model: stock, float64; copied.
        tower, layers: where the tower is in it, and its layers in the tower.
        prefix: how many prefix tokens there are.
        rates: keep rate by block.
        order: α of the entropy.
        dense: whether every patch is handed on, pruned ones as they were last; else only those that are left come out.
        norm2: what the norm behind the attention residual is called.
    """

    def __init__(
        self,
        model: nn.Module,
        tower: str,
        layers: str,
        prefix: int,
        rates: dict[int, float],
        order: float,
        dense: bool,
        norm2: str,
    ):
        self.model: Any = copy.deepcopy(model)
        self.prefix, self.rates, self.order, self.dense = prefix, rates, order, dense
        inner = self.model.get_submodule(tower)
        inner.config._attn_implementation = NAME
        for child in inner.modules():
            if type(child).__name__ == "BlipAttention":
                child.forward = MethodType(_blip_attention, child)
            if hasattr(child, "config"):
                child.config._attn_implementation = NAME
        self.layers = list(inner.get_submodule(layers))
        self.kept: list[Tensor] = []
        self.states: list[Tensor] = []
        self.valid: Tensor | None = None
        for i, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._enter(i), with_kwargs=True)
            getattr(layer, norm2).register_forward_pre_hook(self._middle)
            layer.register_forward_hook(self._leave(i), prepend=True)  # before what records hidden states

    def __call__(self, **inputs: Any) -> Any:
        _RUNNING["twin"] = self
        self.kept, self.states = [], []
        return self.model(**inputs)

    def _enter(self, i: int) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0]
            if i == 0:
                self.alive = torch.ones(x.shape[:2], dtype=torch.bool)
                if self.valid is not None:
                    self.alive[:, self.prefix :] = self.valid
                self.states.append(x)
            self.entered = x

        return hook

    def _middle(self, norm: nn.Module, args: Any) -> None:
        self.mid = args[0]

    def _leave(self, i: int) -> Any:
        def hook(layer: nn.Module, args: Any, y: Tensor) -> Tensor:
            gone_before = ~self.alive
            if i in self.rates:
                self._prune(self.rates[i])
            fresh = ~self.alive & ~gone_before
            y = torch.where(fresh[..., None], self.mid, torch.where(gone_before[..., None], self.entered, y))
            self.states.append(y)
            if self.dense or i + 1 < len(self.layers):
                return y
            return torch.stack([row[alive] for row, alive in zip(y, self.alive, strict=True)])

        return hook

    def _prune(self, rate: float) -> None:
        """In each image the patches with the highest entropy go, but ceil(ρ·n)."""
        kept = []
        for image in range(self.alive.shape[0]):
            patches = [p for p in range(self.prefix, self.alive.shape[1]) if self.alive[image, p]]
            rows = self.logits[image][:, patches][:, :, patches].softmax(-1)
            if self.order == 1:
                entropy = -(rows * rows.log()).sum(-1)
            else:
                entropy = (rows**self.order).sum(-1).log() / (1 - self.order)
            ranked = sorted(range(len(patches)), key=lambda j: (entropy.mean(0)[j].item(), j))
            stays = sorted(patches[j] for j in ranked[: math.ceil(round(rate * len(patches), 9))])
            for p in patches:
                self.alive[image, p] = p in stays
            kept.append([p - self.prefix for p in stays])
        self.kept.append(kept)  # pyright: ignore[reportArgumentType]
