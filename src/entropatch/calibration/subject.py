"""The model and images of one calibration, made ready, and as they were afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.calibration.answers import ASKED, objective_of
from entropatch.calibration.identity import digest, fingerprint
from entropatch.calibration.judging import Judge
from entropatch.calibration.ledger import Ledger
from entropatch.calibration.processes import share_of
from entropatch.calibration.proposal import Choice, Cut, config_of
from entropatch.config import PruneConfig
from entropatch.config_fields import check_blocks
from entropatch.surgery import UnsupportedModelError, block_count, is_pruned, prune_, pruning_config, trace, unprune_
from entropatch.surgery.state import pruned_part, pruning_of

LEAST_IMAGES = 8
MOST = 4

# What is told while it runs: what is done, how much of it is done, and about how much there is.
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How a calibration is done; see `entropatch.calibration.calibrated`."""

    objective: str | None = None
    blocks: tuple[int, ...] | None = None
    most_blocks: int | None = None
    batch_size: int = 32
    held_out: float = 1 / 3
    effort: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective is not None and self.objective not in ASKED:
            raise ValueError(f"objective must be one of {', '.join(ASKED)}, or None, but got {self.objective!r}.")
        for name, least in (("most_blocks", 1), ("batch_size", 1), ("seed", None)):
            value = getattr(self, name)
            if value is None and name == "most_blocks":
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name} must be a whole number, but got {value!r}.")
            if least is not None and value < least:  # pyright: ignore[reportOperatorIssue]
                raise ValueError(f"{name} must be at least {least}, but got {value}.")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be a share of the images in (0, 1), but got {self.held_out}.")
        if not 0 <= self.effort < math.inf:
            raise ValueError(f"effort must be a number of at least 0, 1 being the usual, but got {self.effort}.")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", check_blocks(sorted(set(_listed(self.blocks)))))

    @property
    def most(self) -> int:
        """Blocks at most, of schedules that are put together."""
        return MOST if self.most_blocks is None else self.most_blocks

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Settings:
        """Those given by name. Raises TypeError for one that there is not."""
        known = [entry.name for entry in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise TypeError(f"a calibration's settings are {', '.join(known)}, but got {', '.join(unknown)}.")
        return cls(**settings)


class Subject:
    """The model, pruned for the time being and in evaluation mode, and batches of images.

    Args:
        model: a model `entropatch.prune_` supports, stock or pruned.
        images: as `entropatch.calibration.calibrated` takes them.
        settings: how it is done.
        folder: where what is found is written down; None for nowhere.
        on_step: told of the progress.

    Attributes:
        judge: tells the losses.
        choosing, holding: numbers of its batches to choose by, and of those held out.
        blocks: those that may reduce.
        depth, patches, prefix, has_class_token, knows_places, objective: of the model and what is minimised.
        first: the first batch, on the model's device.
    """

    model: nn.Module
    settings: Settings
    prefix: int
    has_class_token: bool
    knows_places: bool

    def __init__(
        self, model: nn.Module, images: Any, settings: Settings, folder: str | Path | None, on_step: OnStep | None
    ):
        self.model, self.settings, self._tell = model, settings, on_step
        self._taken: dict[Choice, bool] = {}
        self.depth: int = block_count(model)
        self.blocks: list[int] = _blocks(settings.blocks, self.depth)
        batch = as_batch(images, model)
        if len(batch) < LEAST_IMAGES:
            raise ValueError(f"images must be at least {LEAST_IMAGES}, better 64 to 512, but got {len(batch)}.")
        if bad := int((~batch.isfinite()).flatten(1).any(1).sum()):
            raise ValueError(f"images must be finite, but {bad} of {len(batch)} hold NaN or infinity.")
        self._before = pruning_config(model) if is_pruned(model) else None
        self._modes = {module: module.training for module in model.modules()}
        prune_(model, PruneConfig(keep_rate=1.0))
        try:
            model.eval()
            self._make_ready(batch, folder)
        except BaseException:
            self.close()
            raise

    def _make_ready(self, batch: Tensor, folder: str | Path | None) -> None:
        settings, model = self.settings, self.model
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(settings.seed))
        held = min(max(2, round(settings.held_out * len(batch))), len(batch) - 2)
        chosen, out = (batch[order[part]] for part in (slice(held, None), slice(held)))
        parts = [chosen.split(settings.batch_size), out.split(settings.batch_size)]
        self.images: dict[str, int] = {"chosen by": len(chosen), "held out": len(out)}
        self.choosing: list[int] = list(range(len(parts[0])))
        self.holding: list[int] = list(range(len(parts[0]), len(parts[0]) + len(parts[1])))
        parameter = next(model.parameters())
        shares = [share_of(part).to(parameter.dtype) for part in (*parts[0], *parts[1])]
        self._what, self._done, self._total = "", 0, 0
        part: Any = pruned_part(model)
        adapter = pruning_of(model).adapter
        self.prefix, self.has_class_token = adapter.num_prefix_tokens(part), adapter.has_class_token(part)
        self.knows_places = adapter.knows_places(part)
        self.first: Tensor = shares[0].to(parameter.device)
        self.patches: int = self._count_patches()
        prune_(model, PruneConfig(keep_rate=1.0))
        with torch.inference_mode():
            self.objective: str = objective_of(model, settings.objective, self.first[:1])
        about = {"model": fingerprint(model), "images": digest(batch), "objective": self.objective}
        about |= {"seed": settings.seed, "batch_size": settings.batch_size, "held_out": settings.held_out}
        self.ledger: Ledger = Ledger(folder, about)
        self.judge: Judge = Judge(model, shares, self.objective, self.ledger, self._step)

    def _count_patches(self) -> int:
        prune_(self.model, PruneConfig(keep_rate=0.5, blocks=(0,)))
        try:
            with torch.inference_mode(), trace(self.model) as seen:
                self.model(self.first[:1])
        except Exception as error:  # whatever a model says to images of another size, or as its first argument
            raise ValueError(
                "images must be such as the model takes, which must take images alone (else calibrate the part that "
                f"does), but it fails on {tuple(self.first.shape[1:])}: {error}"
            ) from error
        return int(seen.counts[0])  # pyright: ignore[reportArgumentType]

    def refusal(self, cuts: Sequence[Cut]) -> str | None:
        """Why the model does not take a schedule, as `prune_` says it; None if it does."""
        try:
            prune_(self.model, config_of(cuts))
        except (UnsupportedModelError, ValueError) as error:
            return str(error)
        return None

    def takes(self, choice: Choice) -> bool:
        """Whether the model takes a choice, in whichever blocks."""
        if choice not in self._taken:
            self._taken[choice] = self.refusal([Cut(block, choice, 0.5) for block in range(self.depth)]) is None
        return self._taken[choice]

    def close(self) -> None:
        """Leave the model as it was found."""
        for module, training in self._modes.items():
            module.training = training
        if self._before is None:
            unprune_(self.model)
        else:
            prune_(self.model, self._before)

    def phase(self, what: str, total: int) -> None:
        """What is done next, and about how many batches it takes."""
        self._what, self._done, self._total = what, 0, total
        if self._tell is not None:
            self._tell(what, 0, total)

    def _step(self) -> None:
        self._done += 1
        if self._tell is not None:
            self._tell(self._what, self._done, max(self._total, self._done))


def _listed(blocks: Any) -> Sequence[Any]:
    if isinstance(blocks, str) or not isinstance(blocks, Sequence):
        raise TypeError(f"blocks must be a sequence of block indices such as (1, 2, 3), but got {blocks!r}.")
    return blocks


def _blocks(blocks: Sequence[int] | None, depth: int) -> list[int]:
    """All but the first, whose attention has seen nothing yet, and the last, after which there is nothing to save."""
    if blocks is None:
        return list(range(1, depth - 1)) or [0]
    chosen = sorted(set(blocks))
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
        raise ValueError(f"blocks must lie in 0 … {depth - 1} for this model, but got {tuple(blocks)}.")
    return chosen


def as_batch(images: Any, model: nn.Module) -> Tensor:
    """Images as one batch (images, channels, H, W), on the CPU or wherever they are.

    Of a data set's or a loader's pairs the images are taken, and their labels left.

    Raises:
        ValueError, TypeError: no images, or something else.
    """
    if isinstance(images, Tensor):
        batch = images
    elif isinstance(images, Iterable) or (hasattr(images, "__getitem__") and hasattr(images, "__len__")):
        parts = [_part(one, model) for one in (images if isinstance(images, Iterable) else _entries(images))]
        shapes = {tuple(one.shape[-3:]) if one.ndim in (3, 4) else tuple(one.shape) for one in parts}
        if len(shapes) > 1 or any(one.ndim not in (3, 4) for one in parts):
            raise ValueError(
                f"images must be tensors (channels, H, W), or batches of them, of one size, but got {sorted(shapes)}; "
                "labels are not asked for."
            )
        batch = torch.cat([one[None] if one.ndim == 3 else one for one in parts]) if parts else torch.empty(0, 3, 1, 1)
    else:
        raise TypeError(f"images must be a tensor, or a sequence of tensors or PIL images, but got {images!r:.80}.")
    if batch.ndim != 4 or not batch.is_floating_point():
        raise ValueError(
            f"images must be floating point (images, channels, H, W), normalised as the model takes them, but got "
            f"{batch.dtype} {tuple(batch.shape)}."
        )
    return batch


def _entries(images: Any) -> Iterator[Any]:
    """Those of a data set, which knows its length but not its end."""
    return (images[i] for i in range(len(images)))


def _part(one: Any, model: nn.Module) -> Tensor:
    """An image, or a batch of them, of a data set or a loader."""
    from PIL import Image

    from entropatch.data.images import to_tensor

    if isinstance(one, (tuple, list)) and one and isinstance(one[0], (Tensor, Image.Image)):
        one = one[0]
    elif isinstance(one, Mapping):
        one = one.get("pixel_values", one.get("image", one))
    if isinstance(one, Image.Image):
        return to_tensor(one, model)
    if not isinstance(one, Tensor):
        raise TypeError(f"images must be tensors or PIL images, but got {type(one).__name__}.")
    return one
