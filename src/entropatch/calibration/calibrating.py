"""`calibrate`: the setting that changes a model's output least within a budget, from unlabelled images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from entropatch.calibration.comparing import compared, curve, left_out
from entropatch.calibration.finding import Calibration, additivity_of, singles_of
from entropatch.calibration.goals import Finder, Goal, tried
from entropatch.calibration.planning import adding, predicted
from entropatch.calibration.proposal import Choice
from entropatch.calibration.sensitivity import measured, offered_criteria, single_passes
from entropatch.calibration.spending import MultiplyAdds, Time
from entropatch.calibration.subject import OnStep, Settings, Subject
from entropatch.config import PruneConfig

logger: logging.Logger = logging.getLogger("entropatch")

PROBING = 0.25  # of the images chosen by, for single blocks


def calibrate(
    model: nn.Module,
    images: Any,
    *,
    gflops: float | None = None,
    speedup: float | None = None,
    drop: float | None = None,
    folder: str | Path | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> PruneConfig:
    """The pruning setting for this model: blocks, and for each its criterion, coverage, reduction and keep rate.

        config = entropatch.calibrate(model, images, gflops=3.0)
        entropatch.prune_(model, config)

    Arguments and errors are those of `entropatch.calibration.calibrated`, which also gives the trade-off on images held
    out, and what was tried; this is its `config`. That a drop is exceeded on those is logged as a warning.
    """
    goal = Goal(gflops, speedup, drop)
    found = calibrated(model, images, goal, folder=folder, on_step=on_step, **settings)
    if found.missed:
        logger.warning(found.missed)
    return found.config


def calibrated(
    model: nn.Module,
    images: Any,
    goal: Goal,
    *,
    folder: str | Path | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Calibration:
    """Find the setting that changes what the model says least, within one budget, without labels.

    What is minimised is the mean over images of: the KL divergence KL(dense ‖ pruned) of the classes' probabilities for
    a model with a head; 1 - cos of the pooled feature without one; or the error of the dense map
    (`entropatch.calibration.OBJECTIVES`). First each block is pruned alone, at a keep rate of 0.5 by every criterion of
    the registered methods, the best ones mixed, with coverage, merged and fused, and at two more rates, as far as
    `prune_` takes it on this model. Dynamic programming over these losses proposes
    schedules under the budget; they race, judged together on more and more images, against the registered methods at
    the usual blocks, ToMe's merging in every block, and some drawn at random; the best are changed further: a block
    moved, another criterion, a rate shifted, the budget kept. Passes share the blocks before their first difference.
    Part of the images is held out for `Calibration.rows`, by which nothing is chosen.

    Args:
        model: a model `entropatch.prune_` supports, stock or pruned; on whatever device; left as it was found.
        images: 64 to 512 without labels, as the model takes them: a tensor (images, channels, H, W), or a sequence of
            tensors (channels, H, W) or PIL images, or a data set or loader of them, whose labels are left. In several
            processes (`torch.distributed`) the same in each.
        goal: `Goal(gflops=…)`, 10⁹ multiply-adds per image at most; `Goal(speedup=…)`, times the dense model's speed
            at least, as measured on batches of `batch_size`; or `Goal(drop=…)`, the largest mean loss on the images
            chosen by, at least cost (`Calibration.missed` says where those held out lose more).
        folder: where every loss is written down, so that a calibration that was cut off goes on; None for nowhere.
            Times that were measured on another device, or with other threads or software, are measured anew.
        on_step: told what is done, how many batches of it are done, and about how many there are.
        **settings: objective ("logits", what goes into the head or comes out of a model without one as "features", or
            "dense", the map of a model that makes one and the patch features of any other; None for the first the
            model allows), blocks (None for all but the first and the last), most_blocks (None for 4, or a few tokens
            merged in every block), batch_size (32), held_out (⅓), effort (1; more looks
            longer) and seed (0). The same seed and images give the same answer, unless speed is measured.

    Returns:
        A `Calibration`.

    Raises:
        ValueError: a setting out of range, too few images, a budget that no setting meets or that needs none; the
            folder holds another calibration.
        TypeError: images of another kind, an unknown setting.
        UnsupportedModelError: as of `prune_`.
    """
    subject = Subject(model, images, Settings.of(settings), folder, on_step)
    try:
        return _found(subject, goal)
    finally:
        subject.close()


def _found(subject: Subject, goal: Goal) -> Calibration:
    kind = MultiplyAdds if goal.speedup is None else Time
    shape = (subject.depth, subject.patches, subject.prefix)
    spending = kind(subject.model, subject.first, *shape, subject.ledger)
    probing = subject.choosing[: max(1, round(PROBING * len(subject.choosing)))]
    criteria = [one for one in offered_criteria() if subject.takes(Choice(one))]
    subject.phase("single blocks", single_passes(subject.blocks, criteria) * len(probing))
    sensitivities = measured(subject.judge, subject.blocks, criteria, probing, subject.takes)
    finder = Finder(subject, sensitivities, spending)
    cuts, budget = finder.find(goal)
    subject.phase("held out", 12 * len(subject.holding))
    rows = compared(subject, spending, cuts, budget)
    line = curve(subject, spending, cuts, budget)
    joint = tried(finder.search, sensitivities)
    added = {name: {one: predicted(one, step) for one in joint} for name, step in adding(sensitivities).items()}
    return Calibration(
        config=rows[0].config,
        rows=tuple(rows),
        curve=tuple(line),
        singles=singles_of(sensitivities.by),
        additivity={name: additivity_of(joint, sums) for name, sums in added.items()},
        objective=subject.objective,
        unit=spending.unit,
        budget=budget,
        dense=spending.dense,
        counts={**subject.images, "passes": subject.judge.passes, "schedules": len(finder.search.tried)},
        left_out=left_out(subject),
        drop=goal.drop,
    )
