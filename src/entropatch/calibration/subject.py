"""The model and images of one calibration, made ready, and as they were afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.calibration.judging import OBJECTIVES, Judge, has_head
from entropatch.calibration.ledger import Ledger
from entropatch.calibration.processes import share_of
from entropatch.config import PruneConfig
from entropatch.surgery import block_count, is_pruned, prune_, pruning_config, trace, unprune_
from entropatch.surgery.state import pruned_part, pruning_of

LEAST_IMAGES = 8

# What is told while it runs: what is done, how much of it is done, and about how much there is.
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How a calibration is done; see `entropatch.calibration.calibrated`."""

    objective: str | None = None
    blocks: tuple[int, ...] | None = None
    most_blocks: int = 4
    batch_size: int = 32
    held_out: float = 1 / 3
    effort: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, or None, but got {self.objective!r}.")
        for name, value in (("most_blocks", self.most_blocks), ("batch_size", self.batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but got {value}.")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be a share of the images in (0, 1), but got {self.held_out}.")
        if not self.effort >= 0:
            raise ValueError(f"effort must be at least 0, 1 being the usual, but got {self.effort}.")


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
        depth, patches, prefix, has_class_token, objective: of the model and what is minimised.
        first: the first batch, on the model's device.
    """

    model: nn.Module
    settings: Settings
    prefix: int
    has_class_token: bool

    def __init__(
        self, model: nn.Module, images: Any, settings: Settings, folder: str | Path | None, on_step: OnStep | None
    ):
        self.model, self.settings, self._tell = model, settings, on_step
        self.depth: int = block_count(model)
        self.blocks: list[int] = _blocks(settings.blocks, self.depth)
        batch = as_batch(images, model)
        if len(batch) < LEAST_IMAGES:
            raise ValueError(f"images must be at least {LEAST_IMAGES}, better 64 to 512, but got {len(batch)}.")
        self.objective: str = settings.objective or ("logits" if has_head(pruned_or_stock(model)) else "features")
        about = {"model": fingerprint(model), "images": digest(batch), "objective": self.objective}
        about |= {"seed": settings.seed, "batch_size": settings.batch_size, "held_out": settings.held_out}
        self.ledger: Ledger = Ledger(folder, about)
        self._before = pruning_config(model) if is_pruned(model) else None
        self._modes = {module: module.training for module in model.modules()}
        prune_(model, PruneConfig(keep_rate=1.0))
        try:
            model.eval()
            self._make_ready(batch)
        except BaseException:
            self.close()
            raise

    def _make_ready(self, batch: Tensor) -> None:
        settings, model = self.settings, self.model
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(settings.seed))
        held = min(max(2, round(settings.held_out * len(batch))), len(batch) - 2)
        chosen, out = (batch[order[part]] for part in (slice(held, None), slice(held)))
        parts = [chosen.split(settings.batch_size), out.split(settings.batch_size)]
        self.images: dict[str, int] = {"chosen by": len(chosen), "held out": len(out)}
        self.choosing: list[int] = list(range(len(parts[0])))
        self.holding: list[int] = list(range(len(parts[0]), len(parts[0]) + len(parts[1])))
        shares = [share_of(part) for part in (*parts[0], *parts[1])]
        self._what, self._done, self._total = "", 0, 0
        self.judge: Judge = Judge(model, shares, self.objective, self.ledger, self._step)
        part: Any = pruned_part(model)
        adapter = pruning_of(model).adapter
        self.prefix, self.has_class_token = adapter.num_prefix_tokens(part), adapter.has_class_token(part)
        self.first: Tensor = shares[0].to(next(model.parameters()).device)
        prune_(model, PruneConfig(keep_rate=0.5, blocks=(0,)))
        with torch.inference_mode(), trace(model) as seen:
            model(self.first[:1])
        self.patches: int = int(seen.counts[0])  # pyright: ignore[reportArgumentType]

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


def pruned_or_stock(model: nn.Module) -> nn.Module:
    return pruned_part(model) if is_pruned(model) else model


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

    Raises:
        ValueError, TypeError: no images, or something else.
    """
    if isinstance(images, Tensor):
        batch = images
    elif isinstance(images, Iterable):
        from PIL import Image

        from entropatch.data.images import to_tensor

        parts = [to_tensor(one, model) if isinstance(one, Image.Image) else one for one in images]
        wrong = next((one for one in parts if not isinstance(one, Tensor)), None)
        if wrong is not None:
            raise TypeError(f"images must be tensors or PIL images, but got {type(wrong).__name__}.")
        batch = torch.cat([one[None] if one.ndim == 3 else one for one in parts]) if parts else torch.empty(0, 3, 1, 1)
    else:
        raise TypeError(f"images must be a tensor, or a sequence of tensors or PIL images, but got {images!r:.80}.")
    if batch.ndim != 4 or not batch.is_floating_point():
        raise ValueError(
            f"images must be floating point (images, channels, H, W), normalised as the model takes them, but got "
            f"{batch.dtype} {tuple(batch.shape)}."
        )
    return batch


def fingerprint(model: nn.Module) -> str:
    """A short name of the weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().reshape(-1)
        found.update(f"{name} {tuple(tensor.shape)} {float(values.double().sum())!r}".encode())
    return found.hexdigest()[:24]


def digest(images: Tensor) -> str:
    """A short name of the images."""
    return hashlib.sha256(images.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:24]
