"""Settings of every method at one cost, for grid.py: the multiply-adds of Shannon at blocks 3, 6 and 9.

    python benchmarks/evidence/equal_cost.py --data imagenette --root FOLDER --weights CLASSIFIER --output FOLDER

Writes FOLDER/METHOD-ρ.json at the largest keep rate whose multiply-adds are at most those; of ToMe as many tokens in
every block and, as tome-falling, linearly fewer down to none; STAR's criterion, as star, with the relevance of places
over training images. Where an image's own scores say how many of its patches stay, the mean over training images
counts. Methods that cannot reach a cost, or whose weights say what they cost, are named and have no file, but for the
ones trained for a share of patches: they have one with that share.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import torch
import typer
from pixels import packed
from torch import Tensor, nn

from entropatch import PruneConfig
from entropatch.bench.targets import meeting
from entropatch.calibration.proposal import token_counts
from entropatch.calibration.spreading import spread
from entropatch.criteria import Synergistic
from entropatch.data.loaders import data_config
from entropatch.measure import count_flops
from entropatch.measure.budget import BudgetError, largest, rate_for_gflops
from entropatch.measure.variants import Variant, pruned_copy, takes_keep_rate
from entropatch.methods import ALL, DENSE, METHODS, expanded_methods
from entropatch.models.spec import ModelSpec
from entropatch.reductions import BipartiteMerge
from entropatch.schedule import RemovePerBlock

FALLING, STAR = "tome-falling", "star"
COUNTED = 16  # training images, where each costs something of its own
LEARNT = 192  # training images, of which STAR learns what each place is worth


def falling(model: nn.Module, images: Tensor, target: float) -> PruneConfig:
    """ToMe with linearly fewer tokens from block to block, the fewest in all whose multiply-adds are at most `target`.

    Raises:
        BudgetError: more than half of what is there would have to go somewhere.
    """
    depth, patches = len(model.blocks), model.patch_embed.num_patches  # pyright: ignore

    def setting(removed: int) -> PruneConfig:
        counts = token_counts(spread(patches, range(depth), removed, True), depth, patches)
        gone = tuple(before - after for before, after in counts)
        return PruneConfig(reduction=BipartiteMerge(), schedule=RemovePerBlock(r=gone))

    steps = 2 * patches
    kept = largest(lambda share: cost(model, images, setting(round((1 - share) * steps))) <= target, steps)
    if not kept:
        raise BudgetError(f"ToMe cannot reach {target:g} GFLOPs.")
    return setting(steps - kept)


def star(
    model: nn.Module, images: Tensor, criterion: Synergistic, target: float, full: float, near: float
) -> PruneConfig:
    """STAR's criterion, learnt already, at the largest keep rate whose multiply-adds are at most `target`."""

    def setting(rate: float) -> PruneConfig:
        return PruneConfig(rate, criterion=criterion)

    return setting(rate_for_gflops(lambda rate: cost(model, images, setting(rate)), full, target, near))


def cost(model: nn.Module, images: Tensor, config: PruneConfig | None) -> float:
    return count_flops(pruned_copy(model, config), images).total / 1e9


def main(
    data: Annotated[str, typer.Option(help="Name of the data set.")],
    root: Annotated[Path, typer.Option(help="Its folder.")],
    weights: Annotated[Path, typer.Option(help="The classifier.")],
    output: Annotated[Path, typer.Option(help="Folder of the settings.")],
    size: int = 196,
    model: str = "vit_small_patch14_dinov2",
    keep_rates: str = "0.7,0.5,0.3",
    cache: Path = Path("/tmp/entropatch-pixels"),
) -> None:
    """Write the settings that are not there yet."""
    dense = ModelSpec(model, str(weights), 0.0).build(None, size, strict=True).eval()
    config = data_config(dense, size)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    bytes_ = packed(cache, data, root, size, dense)["train"]
    margin = (bytes_.shape[-1] - size) // 2

    def training(number: int) -> Tensor:
        evenly = bytes_[:: len(bytes_) // number][:number, :, margin : margin + size, margin : margin + size]
        return (evenly / 255 - mean) / std

    images = training(COUNTED)
    learnt = functools.cache(lambda: Synergistic().calibrate(dense, training(LEARNT)))
    full = cost(dense, images[:1], None)
    output.mkdir(parents=True, exist_ok=True)
    for rate in map(float, keep_rates.split(",")):
        target = cost(dense, images[:1], PruneConfig(rate, method="shannon"))
        for name in (*expanded_methods([ALL]), FALLING, STAR):
            file = output / f"{name}-{rate}.json"
            if name == DENSE or file.exists():
                continue
            try:
                if name == STAR:
                    found = star(dense, images[:1], learnt(), target, full, rate)
                else:
                    found = _setting(name, rate, target, full, dense, images)
            except BudgetError as error:
                typer.echo(f"{name} at {target:.3f} GFLOPs: {error}")
                continue
            found.save(file)
            typer.echo(f"{name} at {target:.3f} GFLOPs: {found.keep_rate}")


def _setting(name: str, rate: float, target: float, full: float, dense: nn.Module, images: Tensor) -> PruneConfig:
    if name == FALLING:
        return falling(dense, images[:1], target)
    method = METHODS[name]
    if method.trained and method.schedule.per_image:  # new weights say nothing about the cost of trained ones
        return PruneConfig(rate, method=name) if takes_keep_rate(name) else PruneConfig(method=name)
    counted = images if method.schedule.per_image else images[:1]
    found = meeting(Variant(name, target=target), dense, counted, full, near=rate).config()
    assert found is not None
    return found


if __name__ == "__main__":
    typer.run(main)
