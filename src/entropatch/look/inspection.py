"""What a model's pruning does to given images, as plain arrays on the patch grid: entropy maps, scores, kept patches.

Figures are drawn from these arrays. A model is left as it was found, stock or pruned, in training mode or not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from entropatch.attention import BlockAttention
from entropatch.config import PruneConfig, method_config
from entropatch.data.images import cropped, to_tensor
from entropatch.entropy import check_order
from entropatch.look.observation import grid_of, left_as_found, observe, run
from entropatch.methods import Method, find_method
from entropatch.schedule import default_blocks
from entropatch.surgery import StageRecord, UnsupportedModelError, block_count, prune_


@dataclass(frozen=True)
class Stages:
    """What each pruning stage saw and kept of one image.

    Attributes:
        blocks: 0-based pruning blocks, one per stage.
        scores: importance of the patches present, (stages, H, W), float32, larger = keep; NaN where a patch was gone,
            and everywhere where nothing was scored.
        kept: whether the patch's own token is left after the stage, (stages, H, W), bool.
        tokens: patch tokens at the input and after each stage, fused tokens included, such as (196, 138, 97, 68).
        fused: fused tokens among those after each stage; a stage that fuses adds one and may drop earlier ones.
        stands: number of the patch whose token stands for the patch after the stage, (stages, H, W), int64: its own,
            which may wait beside the blocks, or that of the one it was merged into; -1 where none does. Where nothing
            merges or waits it may be left out.
    """

    blocks: tuple[int, ...]
    scores: np.ndarray
    kept: np.ndarray
    tokens: tuple[int, ...]
    fused: tuple[int, ...]
    stands: np.ndarray = None  # pyright: ignore[reportAssignmentType]  # filled in below

    def __post_init__(self) -> None:
        if self.stands is None:
            object.__setattr__(self, "stands", np.where(self.kept, self._own, -1))

    @property
    def _own(self) -> np.ndarray:
        """The number of each patch, (H, W)."""
        return np.arange(self.kept[0].size).reshape(self.kept.shape[1:])

    @property
    def merged(self) -> np.ndarray:
        """Whether the patch is part of another one's token after the stage, (stages, H, W), bool."""
        return (self.stands >= 0) & (self.stands != self._own)

    @property
    def waiting(self) -> np.ndarray:
        """Whether the patch's token goes around the blocks that follow, and is joined later, (stages, H, W), bool."""
        return (self.stands == self._own) & ~self.kept

    def at(self, blocks: Sequence[int]) -> Stages:
        """How things stand after each of those blocks: as the last stage up to there left them.

        The scores are those of a stage in that very block, and NaN elsewhere. Before the first stage all patches are
        there.
        """
        blocks = tuple(blocks)
        if blocks == self.blocks:
            return self
        last = [bisect_right(self.blocks, block) - 1 for block in blocks]  # -1 before the first stage
        whole, numbers = np.ones_like(self.kept[:1]), self._own[None]
        unscored = np.full_like(self.scores[:1], np.nan)
        scored = [self.blocks.index(block) if block in self.blocks else -1 for block in blocks]
        return Stages(
            blocks=blocks,
            scores=np.concatenate((self.scores, unscored))[scored],
            kept=np.concatenate((self.kept, whole))[last],
            tokens=(self.tokens[0], *(self.tokens[stage + 1] for stage in last)),
            fused=tuple(0 if stage < 0 else self.fused[stage] for stage in last),
            stands=np.concatenate((self.stands, numbers))[last],
        )


def common_blocks(stages: Iterable[Stages]) -> tuple[int, ...]:
    """The blocks after which methods are shown side by side: those where all of them have a stage, and the last of any.

    Where no block is common to all, every block in which one of them has a stage.
    """
    blocks = [set(one.blocks) for one in stages]
    common = set.intersection(*blocks)
    return tuple(sorted(common | {max(set.union(*blocks))} if common else set.union(*blocks)))


@dataclass(frozen=True)
class Inspection:
    """One image under several methods.

    Attributes:
        crop: the pixels the model saw, (height, width, 3), uint8.
        blocks: 0-based blocks after which all methods are shown: the pruning blocks; see `common_blocks`.
        entropy: attention entropy in nats of every patch in the unpruned model, {order: (stages, H, W)}, float32.
        stages: what each method kept, {method name: Stages}, after those blocks.
    """

    crop: np.ndarray
    blocks: tuple[int, ...]
    entropy: dict[float, np.ndarray]
    stages: dict[str, Stages]


def inspect_image(
    model: nn.Module,
    image: Image.Image,
    methods: Sequence[str],
    keep_rate: float | Sequence[float],
    *,
    orders: Sequence[float] | None = None,
    blocks: Sequence[int] | None = None,
) -> Inspection:
    """Prune one image by each method in turn, and measure the entropies the unpruned model has at the same blocks.

    Args:
        model: a timm model that `entropatch.prune_` supports; left as it was found.
        image: a photograph of any size, as `entropatch.data.images.load_image` gives it.
        methods: names as `entropatch.methods` knows them, such as ("evit", "shannon", "renyi-2").
        keep_rate: ρ in (0, 1], or one per block; not for methods that take none.
        orders: orders of the entropy maps, one or more; None means those of the methods that use an entropy, or 2 if
            none does.
        blocks: 0-based pruning blocks; None means ¼, ½ and ¾ of the depth.

    Raises:
        ValueError: an unknown method, a keep rate or block out of range.
        UnsupportedModelError: the model cannot be pruned, or not by one of the methods.
    """
    chosen = [find_method(name) for name in methods]
    if not chosen:
        raise ValueError("methods must name at least one method, but got none.")
    images = to_tensor(image, model)[None]
    stages = {
        method.name: pruning_stages(model, images, stage_config(method.name, keep_rate, blocks))[0] for method in chosen
    }
    at = common_blocks(stages.values())
    wanted = (entropy_orders(chosen) or (2.0,)) if orders is None else tuple(orders)
    maps = entropy_maps(model, images, wanted, at)[0]
    return Inspection(
        crop=np.asarray(cropped(image, model)),
        blocks=at,
        entropy=dict(zip(wanted, maps, strict=True)),
        stages={name: one.at(at) for name, one in stages.items()},
    )


def stage_config(name: str, keep_rate: float | Sequence[float], blocks: Sequence[int] | None = None) -> PruneConfig:
    """The setting of a named method at a keep rate, or one per block; without it for a method that takes none.

    Errors as of `PruneConfig`.
    """
    if find_method(name).takes_keep_rate:
        return method_config(name, keep_rate, blocks)
    return PruneConfig(method=name, blocks=None if blocks is None else tuple(blocks))


def possible_methods(model: nn.Module, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Which of the named methods this model can be pruned by: their names, and the others with the reason why not.

    A model without a class token, for example, cannot be pruned by EViT.

    Raises:
        ValueError: an unknown method.
        UnsupportedModelError: the model cannot be pruned by any of them.
    """
    with left_as_found(model):
        outcomes = {name: _refusal(model, find_method(name)) for name in names}
    refused = {name: error for name, error in outcomes.items() if error is not None}
    if refused and len(refused) == len(outcomes):
        raise next(iter(refused.values()))
    return [name for name in outcomes if name not in refused], {name: str(error) for name, error in refused.items()}


def _refusal(model: nn.Module, method: Method) -> UnsupportedModelError | None:
    try:
        prune_(model, stage_config(method.name, 1.0))
    except UnsupportedModelError as error:
        return error
    return None


def entropy_orders(methods: Sequence[Method]) -> tuple[float, ...]:
    """The different orders of those methods that score by an entropy, in the order given."""
    return tuple(dict.fromkeys(method.order for method in methods if method.order is not None))


def entropy_maps(
    model: nn.Module, images: Tensor, orders: Sequence[float], blocks: Sequence[int] | None = None
) -> np.ndarray:
    """Attention entropy of every patch in the unpruned model, mean over heads, in nats.

    Args:
        model: as `inspect_image` takes it.
        images: (batch, 3, height, width), prepared as the model wants them.
        orders: each in (0, ∞].
        blocks: 0-based blocks to look at, ascending, any of the model's; None means ¼, ½ and ¾ of the depth.

    Returns:
        (batch, orders, blocks, H, W), float32; 0 ≤ entropy ≤ log(H·W).

    Raises:
        ValueError: no order, an order or block out of range.
        UnsupportedModelError: the model cannot be pruned.
    """
    if not orders:
        raise ValueError("orders must name at least one order of the entropy, such as 2.0, but got none.")
    orders = [check_order(order) for order in orders]

    def look(attention: BlockAttention, grid: tuple[int, int]) -> np.ndarray:
        maps = torch.stack([attention.entropy(order).mean(1) for order in orders], dim=1)  # (batch, orders, patches)
        return maps.float().cpu().numpy().reshape(*maps.shape[:2], *grid)

    wanted = default_blocks(block_count(model)) if blocks is None else blocks
    return np.stack(list(observe(model, images, look, wanted).blocks.values()), axis=2)


def pruning_stages(model: nn.Module, images: Tensor, config: PruneConfig) -> list[Stages]:
    """What each stage scored and kept under `config`, one `Stages` per image.

    Args:
        model: as `inspect_image` takes it.
        images: (batch, 3, height, width), prepared as the model wants them.
        config: the pruning setting.
    """
    seen = run(model, images, config)
    records = seen.stages
    scores = np.stack([_on_grid(_scores(record), record.patches, grid_of(seen)) for record in records], axis=1)
    kept = np.stack(
        [~np.isnan(_on_grid(torch.ones(record.kept.shape), record.kept, grid_of(seen))) for record in records], axis=1
    )
    standing = [_standing(record, grid_of(seen)) for record in records]
    stands, fused = (np.stack(values, axis=1) for values in zip(*standing, strict=True))
    return [
        Stages(
            blocks=tuple(record.block for record in records),
            scores=scores[i],
            kept=kept[i],
            tokens=tuple(count if isinstance(count, int) else count[i] for count in seen.counts),
            fused=tuple(int(count) for count in fused[i]),
            stands=stands[i],
        )
        for i in range(len(images))
    ]


def _standing(record: StageRecord, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """After a stage, the patch whose token stands for each, (batch, H, W), and how many tokens stand for none (batch,).

    The latter are the fused ones: one is new in a stage that fuses, or an older one that was kept.
    """
    batch = sum(part.tokens.shape[0] for part in record.parts)
    stands, fused = np.empty((batch, grid[0] * grid[1]), np.int64), np.empty(batch, np.int64)
    for part in record.parts:
        positions, places = part.after.original_positions(part.tokens), part.after.original_places(part.tokens)
        of_place = torch.where(places < 0, -1, positions.gather(1, places.clamp_min(0)))
        if part.after.parked is not None:
            of_place = of_place.scatter(1, part.after.parked[1], part.after.parked[1])
        rows = slice(None) if part.rows is None else part.rows.cpu().numpy()
        stands[rows], fused[rows] = of_place.cpu().numpy(), (positions < 0).sum(1).cpu().numpy()
    return stands.reshape(batch, *grid), fused


def _scores(record: StageRecord) -> Tensor:
    """Scores of the patches present, (batch, n); NaN where the stage asked no criterion."""
    return torch.full(record.patches.shape, torch.nan) if record.scores is None else record.scores


def _on_grid(values: Tensor, patches: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Values (batch, n) of the patches numbered (batch, n) on the grid: (batch, H, W), float32, NaN elsewhere."""
    height, width = grid
    values = values.detach().float().cpu()
    # One place more than there are patches takes the fused tokens, numbered -1, which stand for no single patch.
    places = torch.where(patches < 0, height * width, patches).cpu()
    canvas = torch.full((len(values), height * width + 1), float("nan")).scatter(1, places, values)
    return canvas[:, :-1].reshape(-1, height, width).numpy()
