"""`Segmenter`: a plain Vision Transformer with a small head that makes a map of classes, however its blocks prune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropatch.criteria.early_exit import exit_maps
from entropatch.criteria.learned import Note
from entropatch.surgery import Trace, UnsupportedModelError, block_count, is_pruned, trace
from entropatch.surgery.loop import in_order
from entropatch.surgery.registry import adapter_of, tower_of
from entropatch.surgery.state import among, pruned_part, pruning_of, this_thread

IGNORED = 255  # the class number of pixels that do not count
HEADS = ("linear", "conv")
LIBRARIES = ("timm", "torchvision", "transformers")


class Segmenter(nn.Module):
    """A Vision Transformer whose normed patch tokens, as a map, go through a small head; bilinear to the image's size.

        x = backbone tokens behind the final norm, (batch, H·W, width)       "linear": logits = W x + b
                                                                             "conv":   W GELU(norm(conv3×3(x))) + b

    It is pruned as any model, by any method: `prune_(segmenter, keep_rate=0.7)`. The map is dense all the same: a patch
    that was dropped shows the last value it had (`entropatch.restore`), one that was merged the token it is in, and
    those that wait (`SlowFast`, `Park`) are back. By `prune_(segmenter, method="dtop")` patches leave with the class
    that an auxiliary head is sure of (`EarlyExit`); the final map then has each patch's logits of the head at which it
    left. The auxiliary heads are weights of the pruning method, not of this module: they come, go and are saved with
    it, and the model without exits stays as it is.

    Args:
        backbone: a timm model, or a torchvision or transformers model, that `prune_` knows, and that gives its tokens;
            its classifier is not used. Stock or pruned.
        classes: how many; at most 255, since masks mark pixels that do not count by 255.
        head: "linear" or "conv".
        channels: between the two convolutions of "conv"; None for the backbone's width. The norm is over channels and
            places of each image (`GroupNorm` of one group), so an image depends on no other.

    Raises:
        UnsupportedModelError: the backbone is not known, or gives no tokens.
        ValueError: another head or number.

    Example:
        >>> segmenter = entropatch.Segmenter(timm.create_model("deit_small_patch16_224"), classes=21)
        >>> entropatch.prune_(segmenter, method="dtop")
        >>> segmenter(images).argmax(1)  # (batch, 224, 224)
    """

    entropatch_tower: ClassVar[str] = "backbone"
    makes_maps: ClassVar[bool] = True  # so that methods that predict patches are not refused

    def __init__(self, backbone: nn.Module, classes: int, head: str = "linear", *, channels: int | None = None):
        super().__init__()
        if isinstance(classes, bool) or not isinstance(classes, int) or not 2 <= classes <= IGNORED:
            raise ValueError(f"classes must be a whole number in 2 … {IGNORED}, but got {classes!r}.")
        if head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, but got {head!r}.")
        if channels is not None and head != "conv":
            raise ValueError(f'channels are those of head="conv", but got {channels!r} with head={head!r}.')
        if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
            raise ValueError(f"channels must be a whole number of at least 1, but got {channels!r}.")
        width = _width(backbone)
        self.backbone: nn.Module = backbone
        self.num_classes, self.head_kind = classes, head
        self.channels: int | None = (channels or width) if head == "conv" else None
        self.head: nn.Module = _head(width, classes, self.channels)

    def forward(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Logits (batch, classes, H, W) of images (batch, 3, H, W), of their size or of `size`, (H, W)."""
        return enlarged(self.patch_logits(images), images.shape[-2:] if size is None else size)

    def patch_logits(self, images: Tensor) -> Tensor:
        """The same on the grid of the patches."""
        return self.maps(images)[0]

    def maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The final map of logits, and that of each exit, in order: (batch, classes, H, W) on the grid of patches."""
        tokens, exits, left = self._tokens(images)
        final = self.head(tokens.permute(0, 3, 1, 2))
        grid = final.shape[-2:]
        exits = [one.transpose(1, 2).unflatten(2, grid) for one in exits]
        if left is not None:
            final = torch.where(left.unflatten(1, grid)[:, None], exits[-1].to(final.dtype), final)
        return final, exits

    def losses(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The terms of the loss by name, scalars with their weights: the cross entropy over the pixels that count of
        the final map ("map"), and of the map of each exit ("exit 1", …); maps are enlarged to the masks' size.

        Args:
            images: (batch, 3, H, W).
            masks: class numbers, (batch, H', W'), whole; pixels of 255 do not count. Where none does a term is 0.

        Raises:
            ValueError: masks of another shape or with other numbers.
        """
        check_masks(masks, len(images), self.num_classes)
        final, exits = self.maps(images)
        terms = {"map": pixel_loss(final, masks)}
        for number, one in enumerate(exits, 1):
            terms[f"exit {number}"] = self._exit_weight() * pixel_loss(one, masks)
        return terms

    def _exit_weight(self) -> float:
        return getattr(pruning_of(self.backbone).config.parts[0][0], "aux_weight", 1.0)

    def _tokens(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The normed patch tokens on the grid, (batch, H, W, width); the maps of the exits, (batch, H·W, classes); and
        which patches left at one, (batch, H·W), None without exits."""
        if not is_pruned(self.backbone):
            return self._on_grid(_run(self.backbone, images), images), [], None
        ends = _Ends()
        loses = self._loses_tokens()
        with among(pruning_of(self.backbone).observers.learners, ends):
            with _traced(self.backbone) if loses else nullcontext() as recorded:
                tokens = _run(self.backbone, images)
            whole = recorded is None
            dense = self._on_grid(tokens, images) if whole else recorded.restore(tokens, "last", normed=True)
        return dense, *ends.exits()

    def _loses_tokens(self) -> bool:
        """Whether the setting may take tokens away; at a keep rate of 1 the stock model runs."""
        stages = [stage for stage in pruning_of(self.backbone).stages if stage is not None]
        return any(not stage.schedule.uses_keep_rate or stage.share < 1 for stage in stages)

    def _on_grid(self, tokens: Tensor, images: Tensor) -> Tensor:
        grid, prefix = _grid(self.backbone, images), _adapter(self.backbone)[1]
        if tokens.shape[1] != prefix + prod(grid):
            raise ValueError(
                f"the backbone must give {prefix} prefix tokens and {grid[0]} × {grid[1]} patches, but gave "
                f"{tokens.shape[1]} tokens: patch dropout in training mode, or padding, leaves no map; switch it off."
            )
        return tokens[:, prefix:].unflatten(1, grid)


class _Ends:
    """What a forward pass left behind its last block, as `entropatch.surgery.state.Learner`."""

    def __init__(self) -> None:
        self.thread = this_thread()
        self._streams: Sequence[Any] = ()

    def end(self, notes: list[Note], streams: Sequence[Any]) -> None:
        self._streams = list(streams)

    def exits(self) -> tuple[list[Tensor], Tensor | None]:
        """The maps of the exits, and which patches left at one."""
        streams = self._streams
        if not streams or not exit_maps(streams[0].tokens.states):
            return [], None
        maps = in_order(streams, [exit_maps(stream.tokens.states) for stream in streams])
        return maps, in_order(streams, [_left(stream) for stream in streams])


def _left(stream: Any) -> Tensor:
    """Which patches no token stands at: (images, total)."""
    tokens, places = stream.tokens, stream.tokens.original_positions(stream.x)
    canvas = torch.ones(places.shape[0], tokens.total + 1, dtype=torch.bool, device=places.device)
    return canvas.scatter(1, torch.where(places < 0, tokens.total, places), 0)[:, : tokens.total]


@contextmanager
def _traced(model: nn.Module) -> Iterator[Trace]:
    """The trace that somebody has open already, which would see nothing beside a second one; or one for this pass."""
    recorder = pruning_of(model).observers.recorder()
    if isinstance(recorder, Trace):
        yield recorder
        return
    with trace(model) as own:
        yield own


def enlarged(logits: Tensor, size: Sequence[int]) -> Tensor:
    """A map of logits (batch, classes, h, w), bilinear at a size (H, W)."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """The mean cross entropy over the pixels that count, of maps enlarged to the size of the masks; 0 if none does."""
    precise = logits if logits.dtype == torch.float64 else logits.float()
    large = enlarged(precise, masks.shape[-2:])
    total = F.cross_entropy(large, masks.long(), ignore_index=IGNORED, reduction="sum")
    return total / (masks != IGNORED).sum().clamp(min=1)


def check_masks(masks: Tensor, batch: int, classes: int) -> None:
    """Raise ValueError for what are no masks of so many images with class numbers of so many classes."""
    if masks.ndim != 3 or len(masks) != batch or masks.is_floating_point() or masks.is_complex():
        raise ValueError(
            f"masks must be whole class numbers, ({batch}, H, W), but got {masks.dtype} of shape {tuple(masks.shape)}."
        )
    wrong = masks[((masks < 0) | (masks >= classes)) & (masks != IGNORED)]
    if len(wrong):
        raise ValueError(
            f"masks must hold class numbers 0 … {classes - 1}, or {IGNORED} for pixels that do not count, but hold "
            f"{int(wrong[0])}."
        )


def _head(width: int, classes: int, channels: int | None) -> nn.Module:
    if channels is None:
        return nn.Conv2d(width, classes, 1)
    return nn.Sequential(
        nn.Conv2d(width, channels, 3, padding=1, bias=False),
        nn.GroupNorm(1, channels),
        nn.GELU(),
        nn.Conv2d(channels, classes, 1),
    )


def _part(backbone: nn.Module) -> nn.Module:
    """The module whose blocks prune."""
    return pruned_part(backbone) if is_pruned(backbone) else tower_of(backbone).module


def _adapter(backbone: nn.Module) -> tuple[Any, int]:
    """The adapter of a backbone, and its prefix tokens."""
    part: Any = _part(backbone)
    adapter: Any = pruning_of(backbone).adapter if is_pruned(backbone) else adapter_of(part)
    return adapter, adapter.num_prefix_tokens(part)


def _width(backbone: nn.Module) -> int:
    block_count(backbone)  # which refuses by name what is not known
    adapter, _ = _adapter(backbone)
    if adapter.library not in LIBRARIES or _patch_size(backbone) is None:
        raise UnsupportedModelError(
            f"a Segmenter needs a model that gives its patch tokens and says the size of its patches, but this "
            f"{type(backbone).__name__} of {adapter.library} does not; use a model of {', '.join(LIBRARIES)}."
        )
    return adapter.check_inputs(_part(backbone), 0, 4)[0].shape[-1]


def _run(backbone: nn.Module, images: Tensor) -> Tensor:
    """The normed tokens of images; where images keep different numbers rows are filled up."""
    part: Any = _part(backbone)
    if hasattr(part, "forward_features"):  # timm's
        return part.forward_features(images)
    seen: list[Any] = []
    hook = part.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        backbone(images)
    finally:
        hook.remove()
    tokens = getattr(seen[-1], "last_hidden_state", seen[-1])
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        raise UnsupportedModelError(f"this {type(part).__name__} gives no tokens (batch, tokens, width).")
    return tokens


def _patch_size(backbone: Any) -> tuple[int, int] | None:
    """Height and width of a patch in pixels; None where it is not said."""
    part: Any = _part(backbone)
    for holder in (getattr(part, "patch_embed", None), backbone, getattr(part, "config", None)):
        size = getattr(holder, "patch_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, (tuple, list)) and len(size) == 2:
            return size[0], size[1]
    return None


def _grid(backbone: nn.Module, images: Tensor) -> tuple[int, int]:
    """The patch grid of images."""
    embed: Any = getattr(_part(backbone), "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        return embed.dynamic_feat_size(tuple(images.shape[-2:]))
    size = _patch_size(backbone)
    assert size is not None
    return images.shape[-2] // size[0], images.shape[-1] // size[1]
