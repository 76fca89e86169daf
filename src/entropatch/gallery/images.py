"""The paper's figures of any model and images, one image after the other, with the numbers behind each.

Memory does not grow with the number of images: what belongs to one is written before the next is read, and what belongs
to all is kept as sums.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from entropatch import figures
from entropatch.data.images import cropped, to_tensor
from entropatch.figures.pixels import check_scale
from entropatch.gallery.written import MADE_BY, write_figure
from entropatch.look.inspection import Stages, common_blocks, pruning_stages, stage_config
from entropatch.look.statistics import RunningStatistics, batch_statistics, rank_correlation
from entropatch.methods import pictured_methods, renyi_method
from entropatch.records.tables import write_records

COLUMNS = 8  # methods side by side in one picture, at most
# What the numbers of "entropy-distance" say of all heads; 1: the further a head looks, the higher its entropy.
SPEARMAN = "Spearman's rank correlation of the heads' entropy and attention distance (-1 … 1)"


@dataclass(frozen=True)
class GallerySettings:
    """What is drawn.

    Args:
        orders: of the entropies, each in (0, ∞].
        methods: whose kept patches stand side by side, as `entropatch.methods` names them; None means EViT and others
            that keep a share of the patches (`pictured_methods`), then pruning by the entropy of each order.
        keep_rates: ρ in (0, 1]; each gives a picture of the kept patches per image.
        blocks: 0-based pruning blocks; None means ¼, ½ and ¾ of the depth.
        scale: of the heat maps' colours, "panel" or "shared", as `figures.entropy_in_blocks` takes it.

    Raises:
        ValueError: no order or keep rate, or one out of range; an unknown method or scale; blocks out of order.
    """

    orders: tuple[float, ...] = (1.0, 2.0, math.inf)
    methods: tuple[str, ...] | None = None
    keep_rates: tuple[float, ...] = (0.7,)
    blocks: tuple[int, ...] | None = None
    scale: str = "panel"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        for order in self.orders:
            renyi_method(order)
        if not self.orders or not self.keep_rates:
            raise ValueError(
                f"orders and keep_rates need one entry at least, but got {self.orders}, {self.keep_rates}."
            )
        names = self.methods or pictured_methods(self.orders)
        object.__setattr__(self, "methods", tuple(dict.fromkeys(names)))
        for name in names:
            for rate in self.keep_rates:
                stage_config(name, rate, self.blocks)


class Gallery:
    """Draws the figures of one model into one folder; files of the same names there are replaced.

    Per image NAME: entropy-NAME and, per keep rate, stages-NAME-RATE, each as .png, .svg and .npz; more than eight
    methods are stages-NAME-RATE-part1 and so on, with the same blocks in each. Of all images:
    entropy-histograms (.png, .svg, .npz) and entropy-distance (.png, .svg, and its table as .md, .csv, .json).

    Args:
        model: a timm model that `entropatch.prune_` supports; left as it was found.
        folder: made if missing.
        settings: what is drawn.
        model_name: how the figures call the model.
    """

    model: nn.Module
    folder: Path
    settings: GallerySettings
    statistics: RunningStatistics

    def __init__(self, model: nn.Module, folder: str | Path, settings: GallerySettings, model_name: str = ""):
        self.model, self.folder, self.settings = model, Path(folder), settings
        self.model_name = model_name
        self.statistics = RunningStatistics(settings.orders)
        self._names: set[str] = set()

    def add(self, name: str, image: Image.Image, *, draw: bool = True) -> list[Path]:
        """Look at one image: count it in, and write its own figures unless `draw` is off.

        A second image of the same name is written as NAME-2, and so on.

        Returns:
            What was written.
        """
        images = to_tensor(image, self.model)[None]
        batch = batch_statistics(self.model, images, self.settings.orders)
        self.statistics.add(batch)
        if not draw:
            return []
        crop = np.asarray(cropped(image, self.model))
        stem = self._free(name)
        written = self._entropy(stem, name, crop, batch.maps[0])
        for rate in self.settings.keep_rates:
            stages = {
                method: pruning_stages(self.model, images, stage_config(method, rate, self.settings.blocks))[0]
                for method in self.settings.methods or ()
            }
            at = common_blocks(stages.values())
            stages = {method: one.at(at) for method, one in stages.items()}
            parts = _parts(list(stages))
            self._remove_parts(f"{stem}-{rate:g}", len(parts))
            for number, methods in enumerate(parts, 1):
                part, title = ("", name) if len(parts) == 1 else (f"-part{number}", f"{name}, {number} of {len(parts)}")
                some = {method: stages[method] for method in methods}
                written += self._stages(f"{stem}-{rate:g}{part}", title, crop, some, rate)
        return written

    def finish(self, about: Mapping[str, Any] | None = None) -> list[Path]:
        """Write the figures of all images, and `about` beside the numbers. Raises ValueError if no image was added."""
        seen, orders = self.statistics, self.settings.orders
        entropy, distance = seen.entropy, seen.distance
        assert seen.edges is not None  # there is at least one image, or the line above has raised
        note = f"{self.model_name}, {seen.images} image{'s' * (seen.images != 1)}, unpruned; ".lstrip(", ")
        histograms = figures.entropy_histograms(
            seen.edges, seen.counts, orders, note=note + "entropy of each patch, mean over heads."
        )
        numbers = {"orders": np.array(orders), "edges": seen.edges, "counts": seen.counts}
        written = self._write("entropy-histograms", histograms, numbers)
        correlations = [rank_correlation(values, distance) for values in entropy]
        chart = figures.entropy_against_distance(
            entropy, distance, orders, correlations, note=note + "one dot per head, mean over its patches."
        )
        written += self._write("entropy-distance", chart, None)
        names = {order: f"entropy_{order:g}" for order in orders}
        records = [
            {"block": block, "head": head, "distance_patches": float(distance[block, head])}
            | {names[order]: float(entropy[place, block, head]) for place, order in enumerate(orders)}
            for block, head in np.ndindex(*distance.shape)
        ]
        facts = {"made by": MADE_BY, "images": seen.images}
        for order, value in zip(orders, correlations, strict=True):
            facts[f"{SPEARMAN}, order {order:g}"] = value
        title = f"{self.model_name}: attention entropy (nats) and attention distance of each head".removeprefix(": ")
        return [
            *written,
            *write_records(records, self.folder, "entropy-distance", title=title, about=facts | {**(about or {})}),
        ]

    def _entropy(self, stem: str, name: str, crop: np.ndarray, maps: np.ndarray) -> list[Path]:
        by_order = dict(zip(self.settings.orders, maps, strict=True))
        figure = figures.entropy_in_blocks(crop, by_order, scale=self.settings.scale, title=name, note=self.model_name)
        numbers = {"orders": np.array(self.settings.orders), "entropy": maps, "crop": crop}
        return self._write(f"entropy-{stem}", figure, numbers)

    def _stages(self, stem: str, name: str, crop: np.ndarray, stages: Mapping[str, Stages], rate: float) -> list[Path]:
        note = f"{self.model_name}, keep rate {rate:g} at each stage.".lstrip(", ")
        figure = figures.stages_side_by_side(crop, stages, title=name, note=note)
        numbers = {
            "methods": np.array(list(stages)),
            "blocks": np.array(next(iter(stages.values())).blocks),
            "kept": np.stack([one.kept for one in stages.values()]),
            "scores": np.stack([one.scores for one in stages.values()]),
            "tokens": np.array([one.tokens for one in stages.values()]),
            "fused": np.array([one.fused for one in stages.values()]),
            "stands": np.stack([one.stands for one in stages.values()]),
            "crop": crop,
        }
        return self._write(f"stages-{stem}", figure, numbers)

    def _remove_parts(self, stem: str, parts: int) -> None:
        """What an earlier run in the folder drew of fewer or more methods, which these pictures would not replace."""
        now = {stem} if parts == 1 else {f"{stem}-part{number}" for number in range(1, parts + 1)}
        earlier = re.compile(rf"stages-({re.escape(stem)}(-part[0-9]+)?)\.(png|svg|npz)")
        for path in self.folder.glob("stages-*"):
            if (found := earlier.fullmatch(path.name)) and found[1] not in now:
                path.unlink()

    def _write(self, stem: str, figure: Any, numbers: Mapping[str, np.ndarray] | None) -> list[Path]:
        return write_figure(figure, self.folder, stem, numbers)

    def _free(self, name: str) -> str:
        """The name as part of a file name, with a number where an earlier image had it."""
        clean = "".join(letter if letter.isprintable() and letter not in '/\\:*?"<>|' else "_" for letter in name)[:120]
        stem, number = clean or "image", 1
        while stem in self._names:
            number += 1
            stem = f"{clean or 'image'}-{number}"
        self._names.add(stem)
        return stem


def _parts(methods: list[str]) -> list[list[str]]:
    """The methods in as few pictures as hold them, about as many in each."""
    parts = math.ceil(len(methods) / COLUMNS)
    ends = [round(len(methods) * part / parts) for part in range(parts + 1)]
    return [methods[start:end] for start, end in pairwise(ends)]
