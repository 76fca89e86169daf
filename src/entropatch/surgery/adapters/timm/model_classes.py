"""timm's models: their stems, their loops over the blocks, and dense intermediates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import deit as timm_deit
from timm.models import eva as timm_eva
from timm.models import vision_transformer as timm_vit
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from entropatch.surgery.adapters.torch_modules import Sequential, run_inside
from entropatch.surgery.checkpointing import checkpointed
from entropatch.surgery.dense_maps import dense_maps
from entropatch.surgery.errors import UnsupportedModelError
from entropatch.surgery.loop import Passed, Stream, in_order, run_blocks
from entropatch.surgery.state import ATTRIBUTE, Pruning, undisturbed
from entropatch.surgery.visit import Visit
from entropatch.tokens import Tokens


class RotaryTables:
    """The rotary position tables of one forward pass, narrowed to the tokens that are left.

    Args:
        table: (patches, d), (heads, patches, d) or (batch, heads or 1, patches, d); with `mixed` one for each block.
        mixed: whether each block has its own.
    """

    table: Tensor
    mixed: bool

    def __init__(self, table: Tensor, mixed: bool):
        self.table, self.mixed = table, mixed
        self._narrowed: tuple[Tensor, Tensor] | None = None  # the positions, and the table there

    def at(self, block: int, tokens: Tokens, rows: Tensor | None = None) -> Tensor:
        """The table for the tokens that enter a block; `rows` are the numbers of their images, None for the batch."""
        table = self.table[block] if self.mixed else self.table
        if rows is not None and table.ndim == 4 and table.shape[0] > 1:  # patch dropout left each image other patches
            table = table.index_select(0, rows)
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


class SplitModel:
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
        with undisturbed(self):
            return in_order(streams, [self.forward_head(self.norm(stream.x)) for stream in streams])

    def forward_head(self: Any, *args: Any, **kwargs: Any) -> Any:
        with undisturbed(self):
            return super().forward_head(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

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
        return run_inside(self.blocks, x, lambda x: self.run_blocks(x, rope, grid, given))

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
        last: int | None = None,
        taken: Sequence[int] = (),
    ) -> Passed:
        modules = list(self.blocks)

        def call(i: int, x: Tensor, visit: Visit) -> Tensor:
            table = () if rope is None else (rope.at(i, visit.tokens, visit.rows),)

            def run(visit: Visit, x: Tensor, *table: Tensor) -> Tensor:
                return modules[i](x, *table, **given, visit=visit)

            if self.grad_checkpointing:
                return checkpointed(checkpoint, run, visit, x, *table)
            return run(visit, x, *table)

        left = _left_by_dropout(self, grid[0] * grid[1])
        return run_blocks(self, x, grid, call, patches=left, last=last, taken=taken)

    def join_streams(self: Any, streams: Sequence[Stream]) -> Tensor:
        """The normed tokens of the whole batch, in its order."""
        with undisturbed(self):
            return in_order(streams, [self.norm(stream.x) for stream in streams])

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
        end = last if stop_early else None
        passed = self.run_blocks(tokens, rope, grid, _given(attn_mask, is_causal), end, wanted)
        maps, prefixes = dense_maps(passed, wanted, self.num_prefix_tokens, self.norm if norm else nn.Identity())
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


class VisionTransformer(SplitModel, timm_vit.VisionTransformer):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


class VisionTransformerDistilled(SplitModel, timm_deit.VisionTransformerDistilled):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


class Eva(SplitModel, timm_eva.Eva):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


def _pruning(model: nn.Module) -> Pruning:
    return vars(model)[ATTRIBUTE]


def _grid(model: Any, images: Tensor) -> tuple[int, int]:
    return model.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))


def _left_by_dropout(model: Any, patches: int) -> int | None:
    """How many patches timm's patch dropout leaves; None where there is none."""
    drop = getattr(model, "patch_drop", None)
    prob = getattr(drop, "prob", 0.0) if drop is not None and drop.training else 0.0
    return max(1, int(patches * (1.0 - prob))) if prob else None


def _given(attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
    """The mask arguments in use, as keywords; left out otherwise, since older timm blocks lack `is_causal`."""
    return ({} if attn_mask is None else {"attn_mask": attn_mask}) | ({"is_causal": True} if is_causal else {})
