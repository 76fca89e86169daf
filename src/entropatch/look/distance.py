"""How far attention reaches over the image."""

from __future__ import annotations

import torch
from torch import Tensor

from entropatch.entropy import attention_logits, working_dtype

# Values of the attention matrix that exist at a time.
_AT_ONCE = 1 << 22


def attention_distance(
    q: Tensor,
    k: Tensor,
    grid: tuple[int, int],
    scale: float | None = None,
    patch_size: float | tuple[float, float] = 1.0,
) -> Tensor:
    """Attention distance of each patch: the mean distance to the patches it attends to, weighted by its attention.

    d_i = Σ_j p_ij · ‖c_i - c_j‖ with p_i = softmax_j(scale · q_i·k_j) over the patches and c_i the centre of patch i
    (Raghu et al. 2021, arXiv 2108.08810, who average it over i, here left to the caller). Like the entropy it is taken
    over patch tokens only: pass queries and keys without class or register tokens.

    Args:
        q, k: queries and keys of the patches in raster order, (…, n, d), any floating dtype.
        grid: (H, W) with H·W = n.
        scale: factor of the logits; 1/√d when None.
        patch_size: side of a patch, or its (height, width), in the unit the distance shall have; 1 gives patches, the
            model's patch size gives pixels.

    Returns:
        (…, n), from 0 to the diagonal between the outermost centres; float32, or float64 for float64 input. The
        attention matrix is formed a few rows at a time.

    Raises:
        ValueError: shapes that do not fit each other or the grid.
    """
    height, width = grid
    if q.ndim < 2 or q.shape != k.shape or q.shape[-2] != height * width:
        raise ValueError(
            f"q and k must both be (…, n, d) with n = {height}·{width}, one token per patch of the grid, but got "
            f"{tuple(q.shape)} and {tuple(k.shape)}; leave out class and register tokens."
        )
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    centres = _centres(grid, patch_size).to(q.device, working_dtype(q))
    rows = max(1, _AT_ONCE // max(1, q.shape[:-1].numel()))
    parts = []
    for start in range(0, height * width, rows):
        some = slice(start, start + rows)
        weights = attention_logits(q[..., some, :], k, factor).softmax(-1)
        # Not by matrix products, which round where the patch size is no integer.
        distances = torch.cdist(centres[some], centres, compute_mode="donot_use_mm_for_euclid_dist")
        parts.append((weights * distances).sum(-1))
    return torch.cat(parts, dim=-1)


def _centres(grid: tuple[int, int], patch_size: float | tuple[float, float]) -> Tensor:
    """Centres of the patches in raster order, (H·W, 2), float64."""
    high, wide = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    y = torch.arange(grid[0], dtype=torch.float64) * high
    x = torch.arange(grid[1], dtype=torch.float64) * wide
    return torch.cartesian_prod(y, x)
