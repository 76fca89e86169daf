"""Training a `Segmenter` on images and masks, with early exits or any other pruning: `segment`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from entropatch.config import PruneConfig
from entropatch.data.batches import TrainingBatches
from entropatch.data.loaders import data_config
from entropatch.data.mask_folders import SegmentationSet, TrainingMasks, masked_listing_hash, segmentation_transform
from entropatch.data.seeding import derived_seed, set_seeds
from entropatch.measure.segmentation import count_pixels
from entropatch.models.checkpoint import load_weights, read_about, save_weights
from entropatch.models.spec import ModelSpec
from entropatch.records.files import write_text
from entropatch.records.mean_iou import mean_iou
from entropatch.segmenter import Segmenter
from entropatch.surgery import is_pruned, prune_
from entropatch.train.checkpoints import Checkpoints
from entropatch.train.divergence import DivergedError
from entropatch.train.progress import OnStep, Progress
from entropatch.train.run_folder import check_or_write, digest, locked, read_json, write_epochs
from entropatch.train.segmentation_recipe import SegmentationRecipe, has_exits, optimizer_of
from entropatch.train.tracking import Reports
from entropatch.version import __version__


@dataclass(frozen=True)
class SegmentationOutcome:
    """What a finished run came to: mean IoU in percent on the test split after the last epoch, pruned as the setting
    says, and its standard error over test images; epochs, seconds, and the folder."""

    miou: float
    miou_se: float
    epochs: int
    seconds: float
    folder: str


def segment(
    segmenter: Segmenter,
    data: SegmentationSet,
    folder: str | Path,
    *,
    prune: PruneConfig | None = None,
    recipe: SegmentationRecipe | None = None,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 0,
    checkpoint_every: int = 200,
    about: Mapping[str, Any] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_text: Callable[[str], None] | None = None,
    on_step: OnStep | None = None,
) -> SegmentationOutcome:
    """Train a segmenter on one device, pruned in training and in testing; or dense.

    The loss is the cross entropy of the map over the pixels that count, and with `EarlyExit` that of each exit's map
    (`Segmenter.losses`). Called again with the same arguments after having been stopped, however abruptly, it continues
    from the last checkpoint, and on a CPU ends with the same weights to the last bit; called again when finished, it
    returns the outcome.

    Args:
        segmenter: of as many classes as the data, not pruned; trained in place, and pruned afterwards as `prune` says.
        data: as `open_mask_folder` gives it.
        folder: of the run: run.json, epochs.jsonl, checkpoints/ until it is complete, final.safetensors, result.json.
        prune: what to prune; None trains dense.
        recipe: what is computed.
        seed: of shuffling, augmentation, dropout.
        device, workers, checkpoint_every: where; loading processes; steps between checkpoints within an epoch.
        about: anything JSON holds, noted in run.json and in the weights file.
        on_epoch: called with the record of each epoch.
        on_text: told in a line from where a run continues, and of damage; by default logged.
        on_step: told how far it is after each batch, as by `finetune`; of the tests nothing.

    Raises:
        ValueError: what does not fit together. RunMismatchError: the folder holds another run.
        CheckpointError: a checkpoint cannot be written or read. DivergedError: the loss is no longer finite.
        ImageError, MaskError: a file that cannot be used; none is skipped.
    """
    recipe, folder = recipe or SegmentationRecipe(), Path(folder)
    say = on_text or logging.getLogger(__name__).info
    if is_pruned(segmenter):
        raise ValueError("the segmenter is pruned already; give the stock one, and the setting as prune=….")
    if segmenter.num_classes != len(data.classes):
        raise ValueError(f"the segmenter has {segmenter.num_classes} classes, but the data {len(data.classes)}.")
    settings = _settings(segmenter, data, prune, recipe, seed, about)
    if recipe.exit_epochs is not None and not has_exits(prune):
        raise ValueError("exit_epochs are those of a setting with EarlyExit, such as method='dtop'; leave them out.")
    if prune is not None:
        prune_(segmenter, prune)
    with locked(folder):
        check_or_write(folder / "run.json", settings, write=True)
        checkpoints = _checkpoints(folder, say)
        if not (folder / "result.json").exists():
            run = _Run(segmenter.to(device), data, folder, prune, recipe, seed, device, workers, checkpoint_every)
            progress = run.train(checkpoints, say, on_epoch or (lambda record: None), on_step)
            last, seconds = progress.history[-1], sum(record["seconds"] for record in progress.history)
            save_weights(segmenter, folder / "final.safetensors", _note(settings))
            outcome = SegmentationOutcome(last["miou"], last["miou_se"], recipe.epochs, seconds, str(folder))
            write_text(folder / "result.json", json.dumps(asdict(outcome), indent=2) + "\n")
        checkpoints.clear()  # there is nothing left to continue
    segmenter.load_state_dict(load_weights(folder / "final.safetensors"))
    return SegmentationOutcome(**read_json(folder / "result.json", "the outcome of a run"))


def load_segmenter(path: str | Path) -> Segmenter:
    """The segmenter in a weights file of `segment` that names its model, pruned as it was trained; evaluation mode.

    Raises:
        WeightsFileError: no such file, or damaged. ValueError: it does not say which model it is of.
    """
    about = read_about(path)
    named, made = about.get("model"), about.get("segmenter")
    if not isinstance(named, dict) or "name" not in named or not isinstance(made, dict):
        raise ValueError(f"{path} does not say which model and head it is of; build them and load the weights there.")
    spec = ModelSpec(named["name"], None, 0.0, named.get("arguments", {}), named.get("library", "timm"))
    backbone = spec.build(0 if spec.library == "timm" else None, about["recipe"]["image_size"])
    segmenter = Segmenter(backbone, made["classes"], made["head"], channels=made["channels"])
    if about.get("prune") is not None:
        prune_(segmenter, PruneConfig.from_dict(about["prune"]))
    segmenter.load_state_dict(load_weights(path))
    return segmenter.eval()


class _Run:
    """One run: what is set up once, and the steps."""

    def __init__(
        self,
        segmenter: Segmenter,
        data: SegmentationSet,
        folder: Path,
        prune: PruneConfig | None,
        recipe: SegmentationRecipe,
        seed: int,
        device: str,
        workers: int,
        checkpoint_every: int,
    ):
        self.model, self.data, self.folder, self.prune = segmenter, data, folder, prune
        self.recipe, self.seed, self.device, self.every = recipe, seed, device, checkpoint_every
        self.batches = TrainingBatches(len(data.train), recipe.batch_size, seed)
        config = data_config(segmenter.backbone, recipe.image_size)
        transform = segmentation_transform(
            recipe.image_size,
            config["mean"],
            config["std"],
            crop_scale=recipe.crop_scale,
            horizontal_flip=recipe.horizontal_flip,
        )
        self.loader = DataLoader(
            TrainingMasks(data.train, transform, seed),
            batch_sampler=self.batches,
            num_workers=workers,
            generator=torch.Generator(),  # else the loader draws from the global random numbers
        )
        self.optimizer = optimizer_of(segmenter, recipe)
        self.total = recipe.epochs * self.batches.steps_per_epoch

    def train(
        self,
        checkpoints: Checkpoints,
        say: Callable[[str], None],
        on_epoch: Callable[[dict[str, Any]], None],
        on_step: OnStep | None,
    ) -> Progress:
        checkpoints.remove_drafts()
        found = checkpoints.resume(self.model, None, self.optimizer, None)
        progress = Progress() if found is None else found[1]
        if found is not None:
            say(f"continuing from {found[0]}: {progress.updates} of {self.total} steps are done")
            write_epochs(self.folder / "epochs.jsonl", progress.history)
        reports = Reports(on_step, progress, self.recipe.epochs, self.batches.steps_per_epoch)
        reports.training()
        while progress.epoch < self.recipe.epochs:
            started = time.monotonic()
            self._epoch(progress, checkpoints, reports)
            record = self._tested(progress)
            record["seconds"] = progress.seconds + time.monotonic() - started
            progress.next_epoch(record)
            checkpoints.save(progress, self.model, None, self.optimizer, None)
            write_epochs(self.folder / "epochs.jsonl", progress.history)
            on_epoch(record)
        return progress

    def _epoch(self, progress: Progress, checkpoints: Checkpoints, reports: Reports) -> None:
        """The rest of the epoch at work."""
        self._set_exits(progress.epoch >= self.recipe.first_exit_epoch)
        self.model.train()
        self.batches.start(progress.epoch, progress.step)
        started, before = time.monotonic(), progress.seconds
        for images, masks in self.loader:
            set_seeds(derived_seed(self.seed, progress.epoch, progress.step))
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * (1 - progress.updates / self.total) ** 0.9
            terms = self.model.losses(images.to(self.device), masks.to(self.device))
            loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
            value = float(loss.detach())
            if not torch.isfinite(norm) or not torch.isfinite(loss):
                raise DivergedError(
                    f"the loss is {value}, and the norm of its gradient {float(norm)}, in epoch {progress.epoch + 1}, "
                    f"step {progress.step + 1}; lower learning_rate or clip_norm."
                )
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            progress.step, progress.updates, progress.loss = (
                progress.step + 1,
                progress.updates + 1,
                progress.loss + value,
            )
            reports.training(value)
            if progress.step % self.every == 0 and progress.step < self.batches.steps_per_epoch:
                progress.seconds = before + time.monotonic() - started
                checkpoints.save(progress, self.model, None, self.optimizer, None)
        progress.seconds = before  # the caller's clock runs over the whole epoch

    def _set_exits(self, leave: bool) -> None:
        """Whether patches leave at the exits; a setting of another kind is what it is."""
        if self.prune is None or not has_exits(self.prune):
            return
        criterion: Any = self.prune.criterion
        all_stay = dataclasses.replace(criterion, threshold=float("inf"))
        prune_(self.model, self.prune if leave else dataclasses.replace(self.prune, criterion=all_stay))

    def _tested(self, progress: Progress) -> dict[str, Any]:
        """The epoch's record; tested as the setting says."""
        self._set_exits(True)
        counts, left = count_pixels({"": self.model}, self.data.test, self.recipe.image_size, self.device)
        found = mean_iou(counts[""])
        return {
            "epoch": progress.epoch + 1,
            "miou": found.value,
            "miou_se": found.standard_error,
            "loss": progress.loss / max(self.batches.steps_per_epoch, 1),
            "patches_left": left[""],
            "leaving": has_exits(self.prune) and progress.epoch >= self.recipe.first_exit_epoch,
            "learning_rate": max(group["lr"] for group in self.optimizer.param_groups),
            "damaged_training": [],
            "damaged_testing": [],
        }


def _checkpoints(folder: Path, say: Callable[[str], None]) -> Checkpoints:
    run = hashlib.sha256((folder / "run.json").read_bytes()).hexdigest()
    return Checkpoints(folder / "checkpoints", on_text=say, run=run)


def _settings(
    segmenter: Segmenter,
    data: SegmentationSet,
    prune: PruneConfig | None,
    recipe: SegmentationRecipe,
    seed: int,
    about: Mapping[str, Any] | None,
) -> dict[str, Any]:
    made = {"classes": segmenter.num_classes, "head": segmenter.head_kind, "channels": segmenter.channels}
    lists = {name: masked_listing_hash(getattr(data, name)) for name in ("train", "test")}
    return {
        "entropatch": __version__,
        "task": "segmentation",
        "segmenter": {**made, "weights": digest(segmenter)},
        "data": {**data.description, **lists},
        "prune": None if prune is None else prune.to_dict(),
        "recipe": json.loads(json.dumps(asdict(recipe))),
        "seed": seed,
        "about": dict(about or {}),
    }


def _note(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights file says of itself."""
    made = {key: value for key, value in settings["segmenter"].items() if key != "weights"}
    note = {key: settings[key] for key in ("entropatch", "task", "data", "prune", "recipe", "seed")}
    return {**note, "segmenter": made, "classes": made["classes"], **settings["about"]}
