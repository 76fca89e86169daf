"""One fine-tuning run from beginning to end: `finetune`."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from entropatch.config import PruneConfig
from entropatch.data.base import DataSet
from entropatch.learning import learned_criterion
from entropatch.measure import environment
from entropatch.models.checkpoint import load_weights
from entropatch.models.pretrained import architecture
from entropatch.records.files import write_text
from entropatch.records.uncertainty import binomial
from entropatch.surgery import is_pruned, prune_
from entropatch.train.checkpoints import Checkpoints
from entropatch.train.job import Job
from entropatch.train.progress import OnStep, Progress
from entropatch.train.recipe import Recipe
from entropatch.train.run_folder import RunMismatchError, check_or_write, digest, locked, read_json
from entropatch.train.runtime import Runtime, accelerator_for
from entropatch.train.trainer import Trainer
from entropatch.version import __version__


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to. Accuracies in percent, on the whole test set but its damaged images.

    Attributes:
        top1, top5: after the last epoch.
        best_top1, best_top5, best_epoch: of the epoch with the highest top-1, the first being 1. Chosen on the test
            set, so it flatters.
        epochs: how many.
        seconds: of training and testing, interruptions left out.
        damaged: damaged images met in the last epoch, in training and in testing.
        folder: of the run; which images came out right after the last epoch is in its correct.json.
        images: tested after the last epoch; None in outcomes of versions that did not note it.
    """

    top1: float
    top5: float
    best_top1: float
    best_top5: float
    best_epoch: int
    epochs: int
    seconds: float
    damaged: int
    folder: str
    images: int | None = None

    @property
    def top1_se(self) -> float | None:
        """The binomial standard error of top1 over the test images, in points; None where their number is unknown."""
        if not self.images:
            return None
        return binomial(round(self.top1 * self.images / 100), self.images).standard_error


def finetune(
    model: nn.Module,
    data: DataSet,
    folder: str | Path,
    *,
    prune: PruneConfig | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    teacher: nn.Module | None = None,
    runtime: Runtime | None = None,
    about: Mapping[str, Any] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_text: Callable[[str], None] | None = None,
    on_step: OnStep | None = None,
) -> Outcome:
    """Fine-tune a timm model on a data set, pruned in training and in testing; or dense.

    Called again with the same arguments after having been stopped, however abruptly, it continues from the last
    checkpoint, and on a CPU ends with the same weights to the last bit. Called again when finished, it returns the
    outcome. Under `accelerate launch` every process makes the same call; the batch is the global one, and the result
    is that of one process but for rounding (and but for dropout, stochastic depth and random pruning, which draw
    numbers per process).

    Args:
        model: a stock timm model with as many classes as the data, built for `recipe.image_size`; it is trained in
            place, and pruned afterwards as `prune` says.
        data: as `entropatch.data.open_data` gives it.
        folder: of the run; see `entropatch.train.run_folder`.
        prune: what to prune; None trains the dense baseline.
        recipe: what is computed; the paper's protocol when None.
        seed: of shuffling, augmentation, dropout and random pruning.
        teacher: a dense model of the same classes, for `recipe.distillation`; where the method learns from one
            (DynamicViT) and none is given, the model as it starts.
        runtime: how it is carried out.
        about: anything JSON holds, noted in run.json and in the weights files.
        on_epoch: called with the record of each epoch as it ends, on the main process.
        on_text: told in a line, on the main process, which learning rates are used, from where the run continues, and
            what was damaged or is left; by default these lines are logged, the first as information.
        on_step: told on the main process, at the beginning and after each batch, what is done ("training" or
            "testing"), how many batches of it are, of the whole run or of this epoch's test, how many there are, and in
            words the epoch and the last loss.

    Returns:
        The `Outcome`; the same is in result.json.

    Raises:
        ImportError: the extra `train` is not installed.
        ValueError: a setting that does not fit model, data or machine.
        RunMismatchError: the folder holds another run.
        CheckpointError: a checkpoint cannot be written or read.
        DivergedError: the loss is no longer finite. The last checkpoint is from before.
        DataError, OSError: the data cannot be read. A damaged training image is replaced by the next sound one of the
            list and counted; but ten damaged ones next to each other end the run, since then the folder is at fault.
    """
    recipe, runtime, folder = recipe or Recipe(), runtime or Runtime(), Path(folder)
    criterion, said = learned_criterion(prune), []
    if teacher is None and criterion is not None and criterion.teaches:
        teacher = copy.deepcopy(model)
        said.append("the teacher is the model as it starts, dense, so its classifier should be trained already")
    job = Job(
        model=model,
        data=data,
        folder=folder,
        prune=prune,
        recipe=recipe,
        seed=seed,
        teacher=teacher,
        runtime=runtime,
    )
    job.check()
    logger = logging.getLogger(__name__)
    inform, say = on_text or logger.info, on_text or logger.warning
    settings = {
        "entropatch": __version__,
        "model": {"kind": architecture(model), "classes": len(data.classes), "weights": digest(model)},
        "data": dict(data.description),
        "prune": None if prune is None else prune.to_dict(),
        "recipe": recipe.to_dict(),
        "learning_rates": recipe.learning_rates,
        "seed": seed,
        "teacher": None if teacher is None or not job.learns else digest(teacher),
        "about": dict(about or {}),
    }
    with accelerator_for(recipe, runtime) as accelerator:
        main = accelerator.is_main_process
        with locked(folder) if main else nullcontext():
            check_or_write(folder / "run.json", settings, write=main)
            accelerator.wait_for_everyone()
            if not (folder / "run.json").exists():
                raise RunMismatchError(f"{folder} must be on a disk that all machines share, but is empty on this one.")
            if (folder / "result.json").exists():
                if main:
                    inform(f"{folder} is complete: nothing is left to train")
            else:
                if main:
                    for line in (recipe.learning_rates_text(), *said):
                        inform(line)
                    write_text(folder / "machine.json", json.dumps(environment(accelerator.device), indent=2) + "\n")
                trainer = Trainer(accelerator, job, say, on_step)
                progress = trainer.train(_note(settings), on_epoch or (lambda record: None))
                if main:
                    text = json.dumps(asdict(_outcome(progress, folder)), indent=2)
                    write_text(folder / "result.json", text + "\n")
                accelerator.wait_for_everyone()
            if main and not runtime.keep_checkpoints:
                Checkpoints(folder / "checkpoints", on_text=say).clear()  # there is nothing left to continue
    return _finished(folder, model, prune)


def _note(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights files of a run say of themselves."""
    model = {"name": settings["model"]["kind"], "arguments": {}}
    note = {key: settings[key] for key in ("entropatch", "data", "prune", "recipe", "seed")}
    return {"model": model, **note, **settings["about"], "classes": settings["model"]["classes"]}


def _outcome(progress: Progress, folder: Path) -> Outcome:
    last, best = progress.history[-1], progress.best()
    return Outcome(
        top1=last["top1"],
        top5=last["top5"],
        best_top1=best["top1"],
        best_top5=best["top5"],
        best_epoch=best["epoch"],
        epochs=len(progress.history),
        seconds=sum(record["seconds"] for record in progress.history),
        damaged=len(last["damaged_training"]) + len(last["damaged_testing"]),
        folder=str(folder),
        images=last.get("images_tested"),
    )


def is_outcome(found: Mapping[str, Any]) -> bool:
    """Whether these are the fields of an `Outcome`, of this version or an older one."""
    named = {entry.name for entry in fields(Outcome)}
    return named - {"images"} <= found.keys() <= named


def _finished(folder: Path, model: nn.Module, prune: PruneConfig | None) -> Outcome:
    """The outcome of a finished run, and the model with the weights it ended with."""
    if prune is not None and not is_pruned(model):
        prune_(model, prune)
    model.load_state_dict(load_weights(folder / "final.safetensors"))
    path = folder / "result.json"
    found = read_json(path, "the outcome of a run")
    if not is_outcome(found):
        raise RunMismatchError(f"{path} is not the outcome of a run: it has {', '.join(found) or 'no fields'}.")
    return Outcome(**found)
