"""What the page shows, computed: each thing once, and only when something it depends on changes."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from entropatch.app.answering import Said, compare, output
from entropatch.app.calibrating import MOST_IMAGES, Identity, found_label, goal_of, result_html, views
from entropatch.app.setting import Setting
from entropatch.attention import BlockAttention
from entropatch.calibration import calibrated
from entropatch.config import PruneConfig
from entropatch.criteria.base import show
from entropatch.data.images import ImageError, cropped, load_image, to_tensor
from entropatch.data.views import cropping_note
from entropatch.look.inspection import Stages, pruning_stages
from entropatch.look.observation import observe
from entropatch.measure import count_flops, time_interleaved
from entropatch.measure.variants import pruned_copy
from entropatch.methods import Method, renyi_method
from entropatch.models.card import card_of
from entropatch.models.class_names import class_names
from entropatch.schedule import default_blocks
from entropatch.surgery import block_count, prune_

# Uploaded pictures: how their names here begin, and how many are held in memory.
UPLOAD, MOST_UPLOADS = "upload:/", 16

Load = Callable[[str], "tuple[nn.Module, str]"]


@dataclass(frozen=True)
class Seen:
    """One image under one setting.

    Attributes:
        method: how the patches are scored.
        importance: score of every patch in the unpruned model at each pruning block, (blocks, H, W), float32, larger =
            keep; of an entropy its negative, in nats; None for a method that scores nothing.
        stages: what each stage kept.
        gflops, dense_gflops: 10⁹ multiply-adds per image, pruned and not.
    """

    method: Method
    importance: np.ndarray | None
    stages: Stages
    gflops: float
    dense_gflops: float


@dataclass(frozen=True)
class Latency:
    """Median milliseconds per image, alone in its batch, pruned and dense, measured in turns.

    `spread` is how far the 95th percentile lies above the median, as a share of it; of the two, the larger.
    """

    pruned_ms: float
    dense_ms: float
    spread: float = 0.0


@dataclass
class _Model:
    """A loaded model and pruned copies of it that share its weights; surgery is done once for each."""

    name: str
    dense: nn.Module
    source: str
    copies: list[nn.Module] = field(default_factory=list)

    @cached_property
    def identity(self) -> Identity:
        return Identity.of(self.name, self.dense, self.source)

    def pruned(self, configs: Sequence[PruneConfig]) -> list[nn.Module]:
        """Copies pruned so, one per config; they stay so until the next call."""
        while len(self.copies) < len(configs):
            self.copies.append(pruned_copy(self.dense, PruneConfig(keep_rate=1.0)))
        return [prune_(copy, config) for copy, config in zip(self.copies, configs, strict=False)]


class Explorer:
    """Answers the page's questions about models and images; one at a time, whoever asks.

    A change of the order needs one pruned forward pass; the scores of the unpruned model come from the queries and
    keys of one dense pass per image, multiply-adds are counted once per keep rate, and times measured once per setting.

    Args:
        load: a model by name and where its weights came from, as `entropatch.models.pretrained.load_model`.
        photographs: images that have a name in place of a path, such as `entropatch.data.images.sample_photographs()`.
        repeats: timed calls of each model.

    Errors of `load`, ImageError for a picture that cannot be read, and UnsupportedModelError for a method that a model
    does not allow pass through every method; what was there before stays.
    """

    photographs: dict[str, Image.Image]

    def __init__(self, load: Load, photographs: dict[str, Image.Image], *, repeats: int = 5):
        self.photographs = dict(photographs)
        self.repeats = repeats
        self._lock = threading.RLock()
        self._uploads: dict[str, Image.Image] = {}
        self._numbers = count(1)
        self._model = lru_cache(maxsize=2)(lambda name: _Model(name, *load(name)))
        self._read = lru_cache(maxsize=4)(self._read_picture)
        self._attention = lru_cache(maxsize=8)(self._look)
        self._gflops = lru_cache(maxsize=1024)(self._count)
        self._latencies: dict[tuple[str, Setting], Latency] = {}
        self._output = lru_cache(maxsize=8)(
            lambda model, picture: output(self._model(model).dense, self._images(model, picture))
        )
        # Settings that were calibrated here, by their labels.
        self._found: defaultdict[Identity, dict[str, PruneConfig]] = defaultdict(dict)

    def add(self, image: Image.Image, name: str) -> str:
        """Hold an image in memory, in place of the oldest if there are many; what to call it in place of a path."""
        with self._lock:
            key = f"{UPLOAD}{next(self._numbers)}/{name}"
            self._uploads[key] = image
            while len(self._uploads) > MOST_UPLOADS:
                del self._uploads[next(iter(self._uploads))]
            return key

    def source(self, model: str) -> str:
        """Where the weights of a model came from; loads it if need be."""
        with self._lock:
            return self._model(model).source

    def code(self, model: str) -> str | None:
        """Python that loads the model, where it is of another library than timm; loads it if need be."""
        with self._lock:
            card = card_of(self._model(model).dense)
            return None if card is None else card.code

    def crop(self, model: str, picture: str) -> np.ndarray:
        """The pixels the model sees of a picture, (height, width, 3), uint8."""
        with self._lock:
            return np.asarray(cropped(self._read(picture), self._model(model).dense))

    def remark(self, model: str, picture: str) -> str:
        """A line if the model sees little of a picture, nothing otherwise."""
        with self._lock:
            return cropping_note(self._read(picture), self._model(model).dense) or ""

    def see(self, model: str, picture: str, setting: Setting) -> Seen:
        """What a setting does to a picture: a name of `photographs`, or the path of a file."""
        with self._lock:
            method = setting.shown
            (pruned,) = self._model(model).pruned([setting.pruning()])
            (stages,) = pruning_stages(pruned, self._images(model, picture), setting.pruning())
            if setting.given is None:
                stages = stages.at(_shown(stages.blocks, block_count(pruned)))
            # All that decides the number of tokens, and so the multiply-adds; the order does not.
            counted = Setting(renyi_method(1.0).name, setting.keep_rate) if method.drops_by_entropy else setting
            return Seen(
                method,
                self._importance(model, picture, method, stages.blocks) if method.scores_attention else None,
                stages,
                self._gflops(model, counted),
                self._gflops(model, None),
            )

    def say(self, model: str, picture: str, setting: Setting) -> Said:
        """What the model says of a picture, dense and under a setting."""
        with self._lock:
            loaded, images = self._model(model), self._images(model, picture)
            (pruned,) = loaded.pruned([setting.pruning()])
            dense = self._output(model, picture)
            return compare(loaded.dense, dense, output(pruned, images), class_names(loaded.dense))

    def calibrate(
        self, model: str, kind: str, value: float, *, pictures: Sequence[Image.Image] = (), **settings: Any
    ) -> tuple[str, str]:
        """Calibrate a model on the pictures given and on those at hand, under a budget of the page.

        Args:
            model: its name.
            kind, value: as of `entropatch.app.calibrating.goal_of`.
            pictures: further ones.
            **settings: as of `entropatch.calibration.calibrated`.
        Returns: what the setting is called from now on, in `calibrations`, and what to show of it.
        """
        with self._lock:  # not while it calibrates, or the page would stand still
            loaded = self._model(model)
            copy, identity = pruned_copy(loaded.dense, PruneConfig(keep_rate=1.0)), loaded.identity
            goal = goal_of(kind, value, self._gflops(model, None))
            images = [*pictures, *self._uploads.values(), *self.photographs.values()][:MOST_IMAGES]
        seen = views(images)
        result = calibrated(copy, seen, goal, batch_size=8, **settings)
        label = found_label(kind, value)
        with self._lock:
            self._found[identity][label] = result.config
        return label, result_html(result, identity, len(images), len(seen))

    def calibrations(self, model: str) -> dict[str, PruneConfig]:
        """What was calibrated here for this very model, by label, the earliest first; loads it if need be."""
        with self._lock:
            return dict(self._found[self._model(model).identity])

    def known_latency(self, model: str, setting: Setting) -> Latency | None:
        """What `latency` measured before."""
        return self._latencies.get((model, setting))

    def latency(self, model: str, settings: Sequence[Setting]) -> list[Latency]:
        """How long an image takes under each setting; those not measured yet are, in turns with the dense model."""
        with self._lock:
            loaded = self._model(model)
            new = [one for one in dict.fromkeys(settings) if (model, one) not in self._latencies]
            if new:
                images = self._images(model, None)
                models = [loaded.dense, *loaded.pruned([setting.pruning() for setting in new])]
                runs = {str(i): (lambda module=module: module(images)) for i, module in enumerate(models)}
                dense, *times = time_interleaved(runs, 1, repeats=self.repeats, warmup=1).values()
                for setting, timing in zip(new, times, strict=True):
                    spread = max(one.p95_ms / one.p50_ms for one in (timing, dense)) - 1
                    self._latencies[model, setting] = Latency(timing.p50_ms, dense.p50_ms, spread)
            return [self._latencies[model, setting] for setting in settings]

    def _importance(self, model: str, picture: str, method: Method, blocks: tuple[int, ...]) -> np.ndarray:
        parts = method.parts * (1 if len(method.parts) > 1 else len(blocks))
        criteria = [criterion for criterion, _ in parts]
        follow = any(criterion.followed for criterion in criteria)
        maps, carried = [], {}
        with torch.inference_mode():
            for attention, grid in self._attention(model, picture, tuple(range(blocks[-1] + 1)) if follow else blocks):
                carried = show(criteria, attention, carried)
                if attention.block in blocks:
                    criterion, reduction = parts[blocks.index(attention.block)]
                    # Of a block whose reduction asks for none, a level map.
                    asked = reduction.needs_scores
                    scores = criterion.importance(attention).float().numpy() if asked else np.zeros(grid, np.float32)
                    maps.append(scores.reshape(grid))
        return np.stack(maps)

    def _look(self, model: str, picture: str, blocks: tuple[int, ...]) -> list[tuple[BlockAttention, tuple[int, int]]]:
        """The attention of the unpruned model at those blocks, and the patch grid."""

        def look(attention: BlockAttention, grid: tuple[int, int]) -> tuple[BlockAttention, tuple[int, int]]:
            return attention.without_output(), grid  # asked later and more than once, so not for its output

        (pruned,) = self._model(model).pruned([PruneConfig(keep_rate=1.0)])
        return list(observe(pruned, self._images(model, picture), look, blocks).blocks.values())

    def _count(self, model: str, setting: Setting | None) -> float:
        """10⁹ multiply-adds per image; of the dense model for None."""
        loaded = self._model(model)
        counted = loaded.dense if setting is None else loaded.pruned([setting.pruning()])[0]
        return count_flops(counted, self._images(model, None)).total / 1e9

    def _images(self, model: str, picture: str | None) -> Tensor:
        """A batch of one picture; of any for None, where only its size matters."""
        image = Image.new("RGB", (64, 64)) if picture is None else self._read(picture)
        return to_tensor(image, self._model(model).dense)[None]

    def _read_picture(self, picture: str) -> Image.Image:
        if picture in self.photographs:
            return self.photographs[picture]
        if not picture.startswith(UPLOAD):
            return load_image(Path(picture))
        if picture not in self._uploads:
            raise ImageError(f"{shown_name(picture)}: no longer held, since others came after it; upload it again.")
        return self._uploads[picture]


def _shown(blocks: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """The blocks after which the page shows what is left: the paper's, and the last, of a method that has these too."""
    usual = default_blocks(depth)
    return tuple(sorted({*usual, blocks[-1]})) if set(usual) < set(blocks) else blocks


def shown_name(picture: str) -> str:
    """What to call a picture in front of people: the name of its file, or of the photograph."""
    return picture.removeprefix(UPLOAD).partition("/")[2] if picture.startswith(UPLOAD) else Path(picture).name
