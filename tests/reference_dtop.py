"""A slow twin of DToP as loops over one image's patches; of the model it uses its stock blocks alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def one_linear(head: Any, x: Tensor) -> Tensor:
    """LayerNorm and linear layer of an auxiliary head, of one patch: (width,) -> (classes,)."""
    norm, linear = head
    centred = x - x.sum() / len(x)
    normed = centred / ((centred * centred).sum() / len(x) + norm.eps).sqrt() * norm.weight + norm.bias
    return torch.stack([(row * normed).sum() + bias for row, bias in zip(linear.weight, linear.bias, strict=True)])


def leaving(logits: Mapping[int, Tensor], threshold: float, context: int) -> list[int]:
    """Which patches leave at an exit: those that are sure, but the surest `context` of each class."""
    sure, classes = {}, {}
    for patch, row in logits.items():
        shares = [float(value) for value in (row - row.max()).detach().exp()]
        shares = [share / sum(shares) for share in shares]
        sure[patch] = max(shares)
        classes[patch] = shares.index(max(shares))
    staying = set()
    for number in set(classes.values()):
        members = [patch for patch in sorted(logits) if classes[patch] == number]
        members.sort(key=lambda patch: -sure[patch])  # stable: the lower number first
        staying |= set(members[:context])
    return [patch for patch in logits if sure[patch] >= threshold and patch not in staying]


def dtop_pass(
    model: Any, heads: Mapping[int, Any], image: Tensor, threshold: float, context: int
) -> tuple[dict[int, Tensor], dict[int, Tensor], list[dict[int, Tensor]], list[list[int]]]:
    """One image (1, 3, H, W) through a stock timm model.

    Returns:
        The normed value of each patch, its last one where it left; the logits it left with, by patch; the map of each
        exit; and the patches that stay behind each.
    """
    x, rope = model._pos_embed(model.patch_embed(image)), None
    if isinstance(x, tuple):
        x, rope = x
    x = model.norm_pre(x)
    prefix = model.num_prefix_tokens
    present, values, gone, maps, kept = list(range(x.shape[1] - prefix)), {}, {}, [], []
    for number, block in enumerate(model.blocks):
        if number in heads:
            logits = {patch: one_linear(heads[number], x[0, prefix + i]) for i, patch in enumerate(present)}
            maps.append({**gone, **logits})
            out = leaving(logits, threshold, context)
            for patch in out:
                gone[patch] = logits[patch]
                values[patch] = model.norm(x[:, prefix + present.index(patch)])[0]
            places = [i for i, patch in enumerate(present) if patch not in out]
            x = torch.cat((x[:, :prefix], x[:, [prefix + i for i in places]]), dim=1)
            present = [present[i] for i in places]
            kept.append(present)
        x = block(x) if rope is None else block(x, rope[present])
    x = model.norm(x)
    values |= {patch: x[0, prefix + i] for i, patch in enumerate(present)}
    return values, gone, maps, kept


def linear_map(head: Any, values: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """A 1 × 1 convolution, patch by patch."""
    return {patch: head.weight[:, :, 0, 0] @ value + head.bias for patch, value in values.items()}


def conv_map(head: Any, values: Mapping[int, Tensor], side: int) -> dict[int, Tensor]:
    """3 × 3 convolution, norm over the whole image, GELU, 1 × 1 convolution, patch by patch."""
    first, norm, _, last = head
    between = {}
    for row in range(side):
        for column in range(side):
            total = torch.zeros(first.weight.shape[0], dtype=first.weight.dtype)
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    if 0 <= row + i < side and 0 <= column + j < side:
                        total = total + first.weight[:, :, i + 1, j + 1] @ values[(row + i) * side + column + j]
            between[row * side + column] = total
    everything = torch.stack(list(between.values()))
    mean = everything.sum() / everything.numel()
    deviation = (((everything - mean) ** 2).sum() / everything.numel() + norm.eps).sqrt()
    found = {}
    for patch, value in between.items():
        normed = (value - mean) / deviation * norm.weight + norm.bias
        found[patch] = last.weight[:, :, 0, 0] @ (normed * 0.5 * (1 + torch.erf(normed / 2**0.5))) + last.bias
    return found


def as_map(logits: Mapping[int, Tensor], side: int) -> Tensor:
    """(1, classes, side, side)."""
    return torch.stack([logits[patch] for patch in range(side * side)]).T.unflatten(1, (side, side))[None]


def pixel_loss(logits: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """Sum of the cross entropies of the pixels that count, of logits (1, classes, H, W), and how many they are."""
    terms = []
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            if mask[i, j] != 255:
                row = logits[0, :, i, j]
                terms.append((row - row.max()).exp().sum().log() + row.max() - row[mask[i, j]])
    return torch.stack(terms).sum(), len(terms)
