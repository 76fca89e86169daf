"""Pruned tokens back on the dense grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from entropatch.surgery.reduced import Reduced
from entropatch.tokens import gather_tokens


def to_grid(
    tokens: Tensor, reduced: Sequence[Reduced], fill: Tensor | None, norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """Patch tokens put back on all patches: (batch, n, C) -> (batch, H·W, C).

    Each patch shows the token that stands for it. Where none does it shows the last value of the one that did, through
    `norm`, or `fill`.

    Args:
        tokens: as they left the last of the stages in `reduced`, without prefix tokens; rows may be filled up.
        reduced: what the stages did, in order.
        fill: a number or (C,); None for the last value.
        norm: what the last values are put through.

    Raises:
        ValueError: the tokens are not those that left the last stage.
    """
    if not reduced:
        return tokens
    total = reduced[0].before.total
    batch = sum(part.tokens.shape[0] for part in reduced if part.stage.block == reduced[0].stage.block)
    places = torch.arange(total, device=tokens.device).expand(batch, -1)
    canvas = tokens.new_zeros(batch, total, tokens.shape[2])
    if fill is not None:
        canvas = canvas + fill
    for part in reduced:
        before, after = part.before.original_places(part.tokens), part.after.original_places(part.tokens)
        places = after if part.rows is None else places.index_copy(0, part.rows, after)
        if fill is None and part.plan is not None:
            last = gather_tokens(norm(part.tokens), before.clamp_min(0)).to(canvas.dtype)
            gone = ((before >= 0) & (after < 0))[..., None]
            if part.rows is None:
                canvas = torch.where(gone, last, canvas)
            else:
                canvas = canvas.index_copy(0, part.rows, torch.where(gone, last, canvas.index_select(0, part.rows)))
    expected = _tokens_after(reduced)
    if tokens.shape[:2] != (batch, expected):
        raise ValueError(
            f"tokens must be the {expected} patch tokens of {batch} images that the trace saw last, but got shape "
            f"{tuple(tokens.shape)}; restore before the next forward pass."
        )
    if expected == 0:  # no image has a token left, from which nothing could be gathered
        return canvas
    return torch.where((places >= 0)[..., None], gather_tokens(tokens, places.clamp_min(0)), canvas)


def _tokens_after(reduced: Sequence[Reduced]) -> int:
    """Patch tokens of the image that has most of them after the last stage."""
    last = reduced[-1].stage.block
    return max(part.after.n for part in reduced if part.stage.block == last)
