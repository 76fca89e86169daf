"""The training loop of one process, from the beginning or from where it was stopped."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from entropatch.config import PruneConfig
from entropatch.data.base import listing_hash
from entropatch.data.batches import TrainingBatches
from entropatch.data.seeding import derived_seed, set_seeds
from entropatch.learning import MethodLoss, learned_criterion, method_loss
from entropatch.measure.evaluation import Correct
from entropatch.models.checkpoint import save_weights
from entropatch.records.correct import CorrectImages, write_correct
from entropatch.regularisation import EntropyPenalty
from entropatch.surgery import prune_, pruning_config
from entropatch.train.checkpoints import Checkpoints
from entropatch.train.divergence import Skipped, check_finite
from entropatch.train.entropies import EntropyTerm, HeadEntropies
from entropatch.train.feeding import few_test_images, loaders
from entropatch.train.job import Job
from entropatch.train.loss import TrainingLoss
from entropatch.train.optimisation import hold_backbone, learning_rate, optimizer_of, schedule_of
from entropatch.train.progress import OnStep, Progress
from entropatch.train.recipe import Recipe
from entropatch.train.run_folder import write_epochs
from entropatch.train.runtime import Runtime
from entropatch.train.shell import Shell
from entropatch.train.testing import gathered, tested
from entropatch.train.tracking import Curves, Reports


class Trainer:
    """One run on one process: everything that is set up once, and the steps."""

    job: Job
    folder: Path
    prune: PruneConfig | None
    recipe: Recipe
    seed: int
    runtime: Runtime
    batches: TrainingBatches
    training: DataLoader[Any]
    testing: DataLoader[Any]

    def __init__(self, accelerator: Any, job: Job, on_text: Callable[[str], None], on_step: OnStep | None = None):
        from accelerate.utils import broadcast_object_list

        self.accelerator, self.device, self.main = accelerator, accelerator.device, accelerator.is_main_process
        self.job, self.folder, self.prune = job, job.folder, job.prune
        self.recipe, self.seed, self.runtime = job.recipe, job.seed, job.runtime
        self.batches, self.training, self.testing = loaders(job, accelerator)
        self._set_up_model(job.model.to(self.device))
        teacher = job.teacher if job.learns else None
        if teacher is not None:
            teacher = teacher.to(self.device).eval().requires_grad_(False)
        self.loss: TrainingLoss = TrainingLoss(job.recipe, len(job.data.classes), teacher)
        self.entropy_term: EntropyTerm = EntropyTerm(self.model, job.recipe)
        self.entropies: HeadEntropies | None = None
        if self.main:
            images = few_test_images(job).to(self.device)
            self.entropies = HeadEntropies(self._tested(), self.prune, images, job.recipe.entropy_order)
        self.checkpoints: Checkpoints = Checkpoints(
            job.folder / "checkpoints",
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.wait_for_everyone,
            lambda value: broadcast_object_list([value])[0],
            on_text,
            hashlib.sha256((job.folder / "run.json").read_bytes()).hexdigest(),
        )
        self.own: MethodLoss | None = None
        self.on_text, self.on_step = on_text, on_step
        self.progress: Progress = Progress()
        self.skipped: Skipped = Skipped()

    def _set_up_model(self, model: nn.Module) -> None:
        from timm.utils import ModelEmaV3  # pyright: ignore[reportPrivateImportUsage]

        recipe, runtime = self.recipe, self.runtime
        self.model = model
        if self.prune is not None:
            prune_(model, self.prune)
        if runtime.gradient_checkpointing:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        self.ema: Any = None if recipe.ema_decay is None else ModelEmaV3(model, decay=recipe.ema_decay)
        optimizer = optimizer_of(model, recipe)
        self.schedule: Any = schedule_of(optimizer, recipe, self.batches.steps_per_epoch)
        if runtime.compile:
            model.compile(backend=runtime.compile_backend)
        # Accelerate replaces the forward of the module it is given; inside a shell the model itself stays as it is.
        self.shell, self.optimizer = self.accelerator.prepare(Shell(model), optimizer)
        self.parameters: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]

    def train(self, note: Mapping[str, Any], on_epoch: Callable[[dict[str, Any]], None]) -> Progress:
        """Train from where the run is to its end, and write the weights it ends with.

        Args:
            note: what the weights files say of themselves.
            on_epoch: called with each epoch's record on the main process.
        """
        self._resume()
        progress = self.progress
        curves = Curves(
            self.folder / "tensorboard" if self.runtime.tensorboard and self.main else None, progress.updates
        )
        reports = Reports(
            self.on_step if self.main else None, progress, self.recipe.epochs, self.batches.steps_per_epoch
        )
        reports.training()
        with curves, self.entropy_term.over_a_run(), self._own_loss():
            while progress.epoch < self.recipe.epochs:
                self._steps(curves, reports)
                record, entropies = self._finish_epoch(note, reports)
                if self.main:
                    curves.epoch(record, entropies, progress.updates)
                    on_epoch(record)
        if self.main:
            self._save_weights("final.safetensors", note, progress.history[-1])
        self.accelerator.wait_for_everyone()
        if self.runtime.gradient_checkpointing:
            self.model.set_grad_checkpointing(False)  # type: ignore[operator]
        return progress

    @contextmanager
    def _own_loss(self) -> Iterator[None]:
        """Gather for the method's own loss, where it has one."""
        if learned_criterion(self.prune) is None:
            yield
            return
        with method_loss(self.model, self.loss.teacher) as self.own:
            yield

    def _resume(self) -> None:
        """Continue from the last sound checkpoint, if there is one, and say so."""
        if self.main:
            self.checkpoints.remove_drafts()
        self.accelerator.wait_for_everyone()
        found = self.checkpoints.resume(*self._state())
        if found is None:
            return
        path, self.progress = found
        if self.main:
            self.on_text(
                f"continuing from {path}: {self.progress.place(self.recipe.epochs, self.batches.steps_per_epoch)}"
            )
            write_epochs(self.folder / "epochs.jsonl", self.progress.history)
        else:
            self.progress.damaged = []

    def _state(self) -> tuple[nn.Module, nn.Module | None, Any, Any]:
        return self.model, None if self.ema is None else self.ema.module, self.optimizer, self.accelerator.scaler

    def _steps(self, curves: Curves, reports: Reports) -> None:
        """The rest of the epoch at work."""
        progress, steps = self.progress, self.batches.steps_per_epoch
        self.batches.start(progress.epoch, progress.step)
        self.model.train()
        pieces = iter(self.training)
        while progress.step < steps:
            started = time.monotonic()
            loss, penalties = self._step(pieces)
            progress.step += 1
            progress.updates += 1
            progress.loss += loss
            progress.seconds += time.monotonic() - started
            curves.step(loss, learning_rate(self.optimizer), penalties, progress.updates)
            reports.training(loss)
            if progress.step % self.runtime.checkpoint_every == 0 and progress.step < steps:
                self._gather_damaged()
                self.checkpoints.save(progress, *self._state())

    def _step(self, pieces: Iterator[Any]) -> tuple[float, list[EntropyPenalty]]:
        """One update of the weights; the training loss of the whole batch, and the entropy penalties of this process's
        passes."""
        progress, recipe, accelerator = self.progress, self.recipe, self.accelerator
        self._set_keep_rate()
        self.schedule.step_update(progress.updates)
        hold_backbone(self.optimizer, recipe, progress.epoch)
        set_seeds(derived_seed(self.seed, progress.epoch, progress.step, 1 + accelerator.process_index))
        total, penalties = torch.zeros((), device=self.device), []
        for turn in range(self.runtime.accumulate):
            batch = next(pieces)
            progress.damaged += batch.damaged
            images, targets = self.loss.mix(
                batch.images.to(self.device, non_blocking=True),
                batch.labels.to(self.device, non_blocking=True),
                derived_seed(self.seed, progress.epoch, progress.step, 0),
            )
            last = turn == self.runtime.accumulate - 1
            synchronised = nullcontext() if last else accelerator.no_sync(self.shell)
            with synchronised, self.entropy_term.of_a_pass() as penalty:
                with accelerator.autocast():
                    loss = self.loss(self.shell(images), targets, images)
                    if self.own is not None:
                        loss = loss + self.own.value(targets, recipe.label_smoothing)
                if penalty is not None:
                    loss = loss + recipe.entropy_weight * penalty.value
                    penalties.append(penalty)
                loss = loss / self.runtime.accumulate
                accelerator.backward(loss)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.parameters, math.inf if recipe.clip_norm is None else recipe.clip_norm)
        mean = float(accelerator.reduce(total, "mean"))
        self._check_finite(mean, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count_skipped()
        if self.ema is not None:
            self.ema.update(self.model, step=progress.updates + 1)
        return mean, penalties

    def _set_keep_rate(self) -> None:
        """EViT's keep-rate warm-up, where there is one."""
        recipe, progress = self.recipe, self.progress
        if self.prune is not None and self.job.warms_up:
            share = recipe.keep_rate_share(progress.epoch + progress.step / self.batches.steps_per_epoch)
            prune_(self.model, self.prune.warmed(share))

    def _check_finite(self, loss: float, norm: Tensor | None) -> None:
        progress = self.progress
        check_finite(
            loss,
            norm,
            scaled=self.accelerator.scaler is not None,
            where=f"epoch {progress.epoch + 1}, step {progress.step + 1}",
            advice=f"The last checkpoint is {self.checkpoints.latest() or 'none'}. Lower learning_rate, set clip_norm, "
            f"or use another precision than {self.recipe.precision}.",
        )

    def _count_skipped(self) -> None:
        skipped = bool(self.accelerator.optimizer_step_was_skipped)
        self.progress.skipped += skipped
        self.skipped.step(skipped)

    def _finish_epoch(self, note: Mapping[str, Any], reports: Reports) -> tuple[dict[str, Any], dict[int, Tensor]]:
        """Test, record, save: in an order that loses nothing wherever it is interrupted.

        Returns the epoch's record, and on the main process the entropies of test images by block and head.
        """
        progress, steps = self.progress, self.batches.steps_per_epoch
        started = time.monotonic()
        tested = self._test(reports)
        with self.accelerator.autocast():
            entropies = {} if self.entropies is None else self.entropies.measured()
        self._gather_damaged()
        record = {
            "epoch": progress.epoch + 1,
            "top1": tested.top1_percent,
            "top5": tested.top5_percent,
            "loss": progress.loss / steps,
            "entropy": [round(heads.mean().item(), 4) for heads in entropies.values()] or None,
            "learning_rate": learning_rate(self.optimizer),
            "images_tested": tested.images,
            "damaged_training": sorted(set(progress.damaged)),
            "damaged_testing": sorted(set(tested.damaged)),
            "skipped_steps": progress.skipped,
            "images_per_second": steps * self.recipe.batch_size / max(progress.seconds, 1e-9),
            "seconds": progress.seconds + time.monotonic() - started,
        }
        if self.main and record["epoch"] == self.recipe.epochs:
            listing = listing_hash(self.job.data.test)
            write_correct(self.folder, CorrectImages(listing, tested.tested, {"after the last epoch": tested.right}))
        progress.next_epoch(record)
        if self.main and progress.best() is record:
            # Before the checkpoint: if this process is killed between the two, the epoch is done again, and this too.
            self._save_weights("best.safetensors", note, record)
        self.checkpoints.save(progress, *self._state())
        if self.main:
            write_epochs(self.folder / "epochs.jsonl", progress.history)
        return record, entropies

    def _test(self, reports: Reports) -> Correct:
        """Top-1 and top-5 over all processes, of the averaged weights if there are any, at the target keep rate."""
        if self.prune is not None and pruning_config(self.model) != self.prune:
            prune_(self.model, self.prune)
        set_seeds(derived_seed(self.seed, self.progress.epoch))
        return tested(self._tested(), self.testing, self.accelerator, reports.testing(len(self.testing)))

    def _tested(self) -> nn.Module:
        return self.model if self.ema is None else self.ema.module

    def _gather_damaged(self) -> None:
        """The names known to all processes, to the main one; so a checkpoint of the main process holds them all."""
        names = gathered(sorted(set(self.progress.damaged)))
        self.progress.damaged = sorted(set(names)) if self.main else []

    def _save_weights(self, name: str, note: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        about = {**note, **{key: record[key] for key in ("epoch", "top1", "top5")}}
        save_weights(self._tested(), self.folder / name, about)
