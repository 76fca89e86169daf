"""The paper's figures of any model and images, one image after the other, with the numbers behind each.

Memory does not grow with the number of images: what belongs to one is written before the next is read, and what belongs
to all is kept as sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from entropatch import figures
from entropatch.data.images import cropped, to_tensor
from entropatch.figures.accuracy import bars_note
from entropatch.figures.pixels import check_scale
from entropatch.look.inspection import Stages, common_blocks, pruning_stages, stage_config
from entropatch.look.naming import rates_text
from entropatch.look.statistics import RunningStatistics, batch_statistics, rank_correlation
from entropatch.methods import pictured_methods, renyi_method
from entropatch.records.files import replacing
from entropatch.records.tables import write_records

MADE_BY = "entropatch figures"
MOST = 10**15  # that a number of a record may be
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

    Per image NAME: entropy-NAME and, per keep rate, stages-NAME-RATE, each as .png, .svg and .npz. Of all images:
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
            written += self._stages(f"{stem}-{rate:g}", name, crop, stages, rate)
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


def write_figure(figure: Any, folder: str | Path, stem: str, numbers: Mapping[str, np.ndarray] | None) -> list[Path]:
    """A figure as .png and .svg, and the arrays behind it as .npz, each whole or not at all; the paths written."""
    paths = [Path(folder, f"{stem}{suffix}") for suffix in (".png", ".svg", ".npz")]
    figures.save_figure(figure, paths[0], {"Software": MADE_BY})
    figures.save_figure(figure, paths[1])
    if numbers is None:
        return paths[:2]
    with replacing(paths[2]) as temporary:
        np.savez_compressed(temporary, **numbers)  # pyright: ignore[reportArgumentType]
    return paths


def draw_accuracy(
    records: Sequence[Mapping[str, Any]],
    folder: str | Path,
    *,
    title: str = "",
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Accuracy against GFLOPs and against images/s, as accuracy-gflops and accuracy-images-per-second.

    Args:
        records: as `accuracy_records` gives them.
        folder: made if missing; the points are written beside the figures as accuracy.md, .csv and .json.
        title: a line above.
        about: to be written beside the numbers, such as `measured_on` gives it.

    Returns:
        What was written; an axis that no record was measured for has no figure.

    Raises:
        ValueError: no record holds an accuracy and either cost.
    """
    note = f"The number beside a point is its keep rate. {bars_note(records)}".strip()
    written = []
    for x, stem in (("gflops", "accuracy-gflops"), ("images_per_second", "accuracy-images-per-second")):
        if any(record.get(x) is not None and record.get("top1") is not None for record in records):
            written += write_figure(figures.accuracy_against(records, x, title=title, note=note), folder, stem, None)
    if not written:
        raise ValueError(f"a record must hold top1 and gflops or images_per_second, but none of {len(records)} does.")
    return [
        *written,
        *write_records(records, folder, "accuracy", title="Accuracy", about={"made by": MADE_BY, **(about or {})}),
    ]


def measured_on(sources: Mapping[str, Any]) -> dict[str, str]:
    """On which machines, with what and when records were measured, from the JSON of their files by the files' names."""
    found: dict[str, dict[str, str]] = {}
    for name, data in sources.items():
        about = data.get("about") if isinstance(data, Mapping) else None
        for key in ("hardware", "device", "torch", "timm", "entropatch", "date"):
            if isinstance(about, Mapping) and isinstance(about.get(key), str):
                found.setdefault(key, {})[name] = about[key]

    def text(values: dict[str, str]) -> str:
        agree = len(values) == len(sources) and len(set(values.values())) == 1
        return next(iter(values.values())) if agree else "; ".join(f"{name}: {one}" for name, one in values.items())

    return {"measured in": ", ".join(sources)} | {key: text(values) for key, values in found.items()}


def accuracy_records(data: Any, source: str = "the file") -> list[dict[str, Any]]:
    """The points of an accuracy figure from the JSON that evaluate, search and the demo write.

    Args:
        data: {"records": […]}, or the list itself. Each record has keep_rate, gflops or images_per_second, an accuracy
            in percent called top1 or accuracy, and a label or name; a name that ends in its keep rate loses it.
        source: how an error calls the file.

    Raises:
        ValueError: another layout, or no record with an accuracy.
    """
    records = data.get("records") if isinstance(data, Mapping) else data
    if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
        raise ValueError(f'{source} must hold {{"records": [{{…}}, …]}} as entropatch evaluate writes it.')
    for record in records:
        _check_point(record, source)
    points = [_point(record) for record in records if record.get("top1", record.get("accuracy")) is not None]
    if not points:
        raise ValueError(f"{source} must hold records with top1 or accuracy, but none of {len(records)} has either.")
    return points


def _point(record: Mapping[str, Any]) -> dict[str, Any]:
    rate = record.get("keep_rate")
    label = str(record.get("label") or record.get("name") or record.get("method") or "unnamed")
    if rate is not None:
        label = label.removesuffix(f", {rates_text(rate)}")
    kept = {"label": label, "keep_rate": rate, "top1": record.get("top1", record.get("accuracy"))}
    if "accuracy_error" in record:  # of the demo
        kept["top1_se"] = record["accuracy_error"]
    return kept | {key: record[key] for key in ("top1_se", "top1_std", "gflops", "images_per_second") if key in record}


def _check_point(record: Mapping[str, Any], source: str) -> None:
    """Raise ValueError for what is no number where one is drawn, or one too long for any arithmetic."""
    for key in (
        *("keep_rate", "top1", "accuracy", "accuracy_error", "top1_se", "top1_std"),
        *("gflops", "images_per_second"),
    ):
        value = record.get(key)
        for one in value if key == "keep_rate" and isinstance(value, list) else [value]:
            # The records write infinity and NaN as text; such a point is left out.
            if one is None or (isinstance(one, str) and one in ("inf", "-inf", "nan") and key != "keep_rate"):
                continue
            if isinstance(one, bool) or not isinstance(one, (int, float)) or abs(one) > MOST:
                raise ValueError(f"{source}: {key} must be a number, but one is {repr(one)[:40]}.")
