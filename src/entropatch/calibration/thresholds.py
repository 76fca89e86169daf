"""`calibrate_threshold`: schedules with a number of patches for each image, made to meet a budget in the mean."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.attention import BlockAttention
from entropatch.calibration.goals import BudgetError
from entropatch.calibration.subject import as_batch
from entropatch.config import PruneConfig
from entropatch.image_schedules import Threshold
from entropatch.measure.flops import count_flops
from entropatch.measure.variants import pruned_copy
from entropatch.schedule import CumulativeImportance, Schedule, Site
from entropatch.surgery import block_count, prune_, trace, watch
from entropatch.tokens import Tokens

STEPS = 10  # of the search at most: a thousandth of the share
NEAR = 2e-3  # of the budget, below which nothing is left to find


def calibrate_threshold(
    model: nn.Module,
    images: Any,
    *,
    keep_rate: float | None = None,
    gflops: float | None = None,
    schedule: Threshold | CumulativeImportance | None = None,
    batch_size: int = 64,
    **fields: Any,
) -> PruneConfig:
    """A setting in which each image keeps as many patches as its attention says, and the mean cost meets a budget.

        config = entropatch.calibrate_threshold(model, images, keep_rate=0.7, order=2.0)
        entropatch.prune_(model, config)

    Without labels. For a `Threshold` one is found for each reducing block, so that of all patches of these images that
    reach the block a share q has that level or more; for `CumulativeImportance` its share q. Numbers are rounded up to
    the schedule's sizes, so more stay than that, and q is searched by bisection for the highest mean cost within the
    budget. The cost is the mean of the multiply-adds of these images (`entropatch.measure.count_flops`); other images
    have another mean, by about their spread over √(images).

    Args:
        model: as `entropatch.prune_` takes it, stock or pruned; on whatever device; left as it was found.
        images: without labels, as the model takes them: a tensor (images, channels, H, W), or a sequence of tensors
            (channels, H, W) or PIL images. From the training set, 64 or more.
        keep_rate: the budget is what this fixed rate costs, all else equal.
        gflops: the budget, 10⁹ multiply-adds per image. One of the two is given.
        schedule: `Threshold()`, or `CumulativeImportance()`; its `sizes` are kept, its threshold is found.
        batch_size: images per pass.
        **fields: others of `PruneConfig`: order, criterion, blocks, reduction, coverage, backend.

    Returns:
        The setting, with the schedule whose mean cost is at most the budget.

    Raises:
        BudgetError: no threshold meets the budget, or the cost without pruning does.
        ValueError, TypeError: not one budget; no images; a field out of range, or of another schedule.
        UnsupportedModelError: as of `prune_`.
    """
    if (keep_rate is None) == (gflops is None):
        raise ValueError(f"give keep_rate or gflops as the budget, but got {keep_rate!r} and {gflops!r}.")
    kind = Threshold() if schedule is None else schedule
    if not isinstance(kind, (Threshold, CumulativeImportance)):
        raise TypeError(f"schedule must be a Threshold or a CumulativeImportance, but got {schedule!r}.")
    if "method" in fields or "r" in fields or "schedule" in fields:
        raise TypeError("a threshold has its own schedule; give criterion, reduction and coverage, or order.")
    batch = as_batch(images, model)
    if not len(batch):
        raise ValueError("images must hold at least one, better 64 or more, but got none.")
    search = _Search(model, batch, batch_size, PruneConfig(schedule=kind, **fields))
    if keep_rate is not None:
        gflops = search.cost(PruneConfig(keep_rate=keep_rate, **fields))
    assert gflops is not None
    return search.config_within(gflops)


@dataclass(frozen=True)
class _Exactly(Schedule):
    """So many patches after each stage, whatever the image."""

    counts: tuple[int, ...] = ()

    @property
    def uses_keep_rate(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return False

    def count(self, site: Site, mass: Tensor | None) -> int:
        return self.counts[site.stage]


class _Search:
    """What all settings tried share: a copy of the model with its weights, and the images."""

    def __init__(self, model: nn.Module, images: Tensor, batch_size: int, config: PruneConfig):
        self.model, self.config = pruned_copy(model, config).eval(), config
        parameter = next(self.model.parameters())
        self.batches = images.to(parameter.device, parameter.dtype).split(batch_size)
        self.images = len(images)
        self.blocks = [stage.block for stage in config.stages(block_count(self.model))]
        self._first: Tensor | None = None  # levels at the first reducing block, which no threshold changes
        self._costs: dict[tuple[int, ...], float] = {}  # by how many patches stay in each reducing block

    def config_within(self, budget: float) -> PruneConfig:
        """The setting of the highest mean cost that is at most the budget."""
        whole, least = self.cost(PruneConfig(keep_rate=1.0)), self.at(0.0)
        if (cost := self.cost(least)) > budget or budget >= whole:
            raise BudgetError(
                f"the mean cost must lie between {cost:.4g} GFLOPs, that of the fewest patches, and {whole:.4g}, that "
                f"of all, but the budget is {budget:.4g}; raise it or give a schedule of smaller sizes, or lower it."
            )
        found, low, high = least, 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            config = self.at(middle)
            cost = self.cost(config)
            if cost > budget:
                high = middle
                continue
            found, low = config, middle
            if cost >= (1 - NEAR) * budget:
                break
        return found

    def cost(self, config: PruneConfig) -> float:
        """10⁹ multiply-adds per image, mean over the images."""
        prune_(self.model, config)
        if not config.schedule.per_image:
            return self._counted()
        counts = []
        for batch in self.batches:
            with torch.inference_mode(), trace(self.model) as seen:
                self.model(batch)
            sizes = [each if isinstance(each, list) else [each] * len(batch) for each in seen.counts]
            counts += zip(*sizes, strict=True)
        return sum(map(self._cost_of, counts)) / self.images

    def _cost_of(self, counts: tuple[int, ...]) -> float:
        """That of an image with so many tokens at first and after each stage."""
        if counts not in self._costs:
            stages = self.config.stages(block_count(self.model))
            appended = [stage.reduction.appends for stage in stages]
            kept = [
                after - more if after < before else before
                for before, after, more in zip(counts, counts[1:], appended, strict=False)
            ]
            prune_(self.model, dataclasses.replace(self.config, schedule=_Exactly(tuple(kept))))
            self._costs[counts] = self._counted()
        return self._costs[counts]

    def _counted(self) -> float:
        return count_flops(self.model, self.batches[0][:1]).total / 1e9

    def at(self, q: float) -> PruneConfig:
        """The setting of a share q in [0, 1]."""
        schedule = self.config.schedule
        if isinstance(schedule, CumulativeImportance):
            return self._with(dataclasses.replace(schedule, share=max(q, 1e-6)))
        assert isinstance(schedule, Threshold)
        found: tuple[float, ...] = ()
        while len(found) < len(self.blocks):
            levels = self._levels(found)
            kept = min(max(round(q * len(levels)), 1), len(levels))
            found = (*found, float(levels[kept - 1]))
        return self._with(dataclasses.replace(schedule, least=found))

    def _with(self, schedule: Threshold | CumulativeImportance) -> PruneConfig:
        return dataclasses.replace(self.config, schedule=schedule)

    def _levels(self, before: tuple[float, ...]) -> Tensor:
        """The levels of all patches of all images at the next reducing block, highest first: (levels,).

        `before` are the thresholds of the reducing blocks before it.
        """
        if not before and self._first is not None:
            return self._first
        stage, seen = len(before), []
        criterion = self.config.stages(block_count(self.model))[stage].criterion

        def look(attention: BlockAttention, tokens: Tokens) -> None:
            seen.append(criterion.level(criterion.importance(attention)).flatten().float())

        prune_(self.model, self._only(before))
        with torch.inference_mode(), watch(self.model, self.blocks[stage : stage + 1], look):
            for batch in self.batches:
                self.model(batch)
        levels = torch.cat(seen).sort(descending=True).values
        if not before:
            self._first = levels
        return levels

    def _only(self, before: tuple[float, ...]) -> PruneConfig:
        """The setting in the first blocks alone."""
        count = len(before)
        if not count:
            return PruneConfig(keep_rate=1.0)
        schedule = dataclasses.replace(self.config.schedule, least=before)  # pyright: ignore
        parts = {
            name: value[:count] if isinstance(value := getattr(self.config, name), tuple) else value
            for name in ("criterion", "reduction", "coverage")
        }
        return dataclasses.replace(self.config, blocks=tuple(self.blocks[:count]), schedule=schedule, **parts)
