"""One setting tried: accuracy by testing or by training, multiply-adds, and images/s beside the dense model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig
from entropatch.data.base import DataSet
from entropatch.data.loaders import evaluation_loader, evaluation_transform_of
from entropatch.extras import require
from entropatch.measure import Timing, count_flops, environment, time_interleaved
from entropatch.measure.environment import load_average
from entropatch.measure.evaluation import AUTOCAST, class_places, evaluate, first_sound
from entropatch.measure.timing import speed_ratio
from entropatch.measure.variants import pruned_copy
from entropatch.methods import DENSE
from entropatch.records.correct import CorrectImages, read_correct
from entropatch.search.points import FINETUNED, Point
from entropatch.search.settings import SearchSettings
from entropatch.search.study import CORRECT
from entropatch.train import Runtime, finetune
from entropatch.train.run_folder import digest


class Experiment:
    """Tries points of a search, one after another, on one process.

    Args:
        settings: of the search.
        data: as `entropatch.data.open_data` gives it.
        folder: the fine-tuning runs go to runs/<point> in it, so that a point tried again continues its run.
        runtime: device, loading processes and the like.
        on_text: told in a few words what is going on.

    Raises:
        ImportError: an extra is missing.
        ValueError: model, data and settings do not go together.
    """

    settings: SearchSettings
    data: DataSet
    runtime: Runtime
    on_text: Callable[[str], None]
    folder: Path
    device: torch.device

    def __init__(
        self,
        settings: SearchSettings,
        data: DataSet,
        folder: str | Path,
        runtime: Runtime,
        on_text: Callable[[str], None] = lambda text: None,
    ):
        require("fvcore", "search")
        self.settings, self.data, self.runtime, self.on_text = settings, data, runtime, on_text
        self.folder = Path(folder)
        # `current_accelerator` alone names what PyTorch was built for, whether or not the machine has one.
        found = runtime.device == "auto" and torch.accelerator.is_available()
        self.device = (torch.accelerator.current_accelerator() if found else None) or torch.device("cpu")
        if settings.recipe.precision == "float16" and self.device.type == "cpu" and settings.scope == FINETUNED:
            raise ValueError("precision float16 needs an accelerator; use bfloat16 or float32 on a CPU.")
        # Refused before anything is written: a model that cannot be pruned, or is for other classes.
        for blocks in (settings.blocks, *settings.more_blocks):
            pruned_copy(self.dense, PruneConfig(blocks=blocks))
        for name, config in settings.configs.items():
            self._check(name, config)
        class_places(self.dense, data.classes)

    def _check(self, name: str, config: PruneConfig) -> None:
        try:
            pruned_copy(self.dense, config)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    @cached_property
    def dense(self) -> nn.Module:
        """The stock model, in eval mode on the device; tested as it is without training, and timed in both scopes."""
        size = self.settings.recipe.image_size
        if self.settings.scope == FINETUNED:
            model = self.settings.spec.build(len(self.data.classes), size)
        else:
            model = self.settings.spec.build(None, size, strict=True, classes=self.data.classes)
        return model.to(self.device).eval()

    @cached_property
    def photographs(self) -> Tensor:
        """The first sound test images, for settings under which each image keeps its own number of patches."""
        transform = evaluation_transform_of(self.dense, self.settings.recipe.image_size)
        images = first_sound(evaluation_loader(self.data.test, transform, self.settings.batch_size))
        if images is None:
            raise ValueError(
                "no test image could be read, so that multiply-adds that depend on them cannot be counted."
            )
        return images.to(self.device)

    @cached_property
    def dense_gflops(self) -> float:
        """10⁹ multiply-adds per image of the dense model."""
        return self.gflops(None)

    def compared(self) -> dict[str, Any]:
        """What must be equal for results to be of one study: the settings, the weights, the data."""
        about = self.settings.compared() | {"data": dict(self.data.description)}
        return about | {"weights": digest(self.dense)}

    def measure(self, point: Point) -> dict[str, Any]:
        """Everything that is recorded of a point. Errors as of `evaluate` and `finetune`.

        Returns:
            top1, top5 (percent; after the last epoch), damaged; with training also best_top1, best_top5 (of any epoch)
            and epochs; correct, which images came out right; gflops (10⁹ multiply-adds per image); images_per_second,
            p50_ms and p95_ms, those of the dense model timed in turns with it as dense_images_per_second; vs_dense, the
            median of the rounds' ratios, with its 95 % interval vs_dense_low and _high; how busy the machine was: load
            (average of the last minute), own_load (at most this process and its workers of it), spread (of dense's
            rounds, see `Timing`); seconds of training and testing; hardware.
        """
        config = point.pruning(self.settings.blocks, self.settings.scope)
        found = self._trained(point, config) if self.settings.scope == FINETUNED else self._tested(point, config)
        self.on_text(f"{point.name}: timing")
        load = load_average()
        timings = self.time(config)
        timing, dense = timings["this"], timings[DENSE]
        ratio = speed_ratio(timing, dense)
        return {
            **found,
            "gflops": self.gflops(config),
            "images_per_second": timing.images_per_second,
            "dense_images_per_second": dense.images_per_second,
            "vs_dense": ratio.median,
            "vs_dense_low": ratio.low,
            "vs_dense_high": ratio.high,
            "load": load,
            "own_load": torch.get_num_threads() + self.runtime.workers,
            "spread": dense.spread,
            "p50_ms": timing.p50_ms,
            "p95_ms": timing.p95_ms,
            "hardware": environment(self.device)["hardware"],
        }

    def gflops(self, config: PruneConfig | None) -> float:
        """10⁹ multiply-adds per image, by `count_flops`."""
        size = self.settings.recipe.image_size
        images = torch.zeros(1, 3, size, size, device=self.device)
        if config is not None and config.schedule.per_image:
            images = self.photographs
        return count_flops(pruned_copy(self.dense, config), images).total / 1e9

    def time(self, config: PruneConfig | None) -> dict[str, Timing]:
        """The setting and the dense model, timed in turns: {"dense": …, "this": …}; the same one for dense."""
        size, speed = self.settings.recipe.image_size, self.settings.speed
        images = torch.randn(speed.batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
        if config is not None and config.schedule.per_image:
            images = self.photographs.repeat(-(-speed.batch_size // len(self.photographs)), 1, 1, 1)[: speed.batch_size]
        images = images.to(self.device)
        variants = {DENSE: self.dense} | ({} if config is None else {"this": pruned_copy(self.dense, config)})
        runs = {name: (lambda model=model: model(images)) for name, model in variants.items()}
        dtype = AUTOCAST[self.settings.recipe.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            timings = time_interleaved(
                runs, speed.batch_size, repeats=speed.repeats, warmup=speed.warmup, device=self.device
            )
        return {"this": timings[DENSE]} | timings

    def _tested(self, point: Point, config: PruneConfig | None) -> dict[str, Any]:
        self.on_text(f"{point.name}: testing")
        started = time.monotonic()
        correct: list[CorrectImages] = []
        (record,) = evaluate(
            self.dense,
            self.data,
            {point.name: config},
            image_size=self.settings.recipe.image_size,
            device=self.device,
            precision=self.settings.recipe.precision,
            batch_size=self.settings.batch_size,
            workers=self.runtime.workers,
            on_correct=correct.append,
        )
        kept = {key: record[key] for key in ("top1", "top5", "damaged")} | {CORRECT: correct[0].to_dict()}
        return kept | {"seconds": time.monotonic() - started}

    def _trained(self, point: Point, config: PruneConfig | None) -> dict[str, Any]:
        """A run of its own folder; one that was stopped is continued, and one that is finished is not trained again."""
        settings, recipe = self.settings, self.settings.recipe

        def show(record: dict[str, Any]) -> None:
            self.on_text(f"{point.name}: epoch {record['epoch']} of {recipe.epochs}, top-1 {record['top1']:.2f} %")

        self.on_text(f"{point.name}: training")
        outcome = finetune(
            settings.spec.build(len(self.data.classes), recipe.image_size, point.seed),
            self.data,
            self.folder / "runs" / point.name,
            prune=config,
            recipe=recipe,
            seed=point.seed,
            runtime=self.runtime,
            about={
                "model": settings.spec.to_dict(),
                "image_size": recipe.image_size,
                "data": dict(self.data.description),
            },
            on_epoch=show,
            on_text=lambda text: self.on_text(f"{point.name}: {text}"),
        )
        kept = ("top1", "top5", "best_top1", "best_top5", "epochs", "damaged", "seconds")
        record = dataclasses.asdict(outcome)
        correct = read_correct(outcome.folder)  # None in a run of an older version
        return {key: record[key] for key in kept} | {CORRECT: None if correct is None else correct.to_dict()}
