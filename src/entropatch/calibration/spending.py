"""What schedules cost: multiply-adds, counted, or time, measured; each by a model fitted to a few of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from entropatch.calibration.identity import machine
from entropatch.calibration.ledger import Ledger
from entropatch.calibration.processes import from_first
from entropatch.calibration.proposal import Choice, Cut, Cuts, config_of, powered, token_counts
from entropatch.criteria import Criterion, Random
from entropatch.surgery import prune_


class Spending(ABC):
    """The cost of schedules on one model and image size.

    A block costs a + b·N + c·N² for the N tokens that enter its attention and d·M for the M that leave its middle, all
    blocks alike; a, b, c and d are fitted to a few schedules whose cost is taken exactly. A choice may add a share of
    its own, found on one schedule.

    Args:
        model: pruned already.
        images: a batch as it is run, on the model's device.
        depth, patches, prefix: blocks, patches and prefix tokens of the model.
        ledger: what was taken before.
    """

    model: nn.Module
    images: Tensor
    ledger: Ledger
    depth: int
    patches: int
    prefix: int
    dense: float

    unit = ""
    whole: float | None = None  # the dense model's cost, where it needs no taking

    def __init__(self, model: nn.Module, images: Tensor, depth: int, patches: int, prefix: int, ledger: Ledger):
        self.model, self.images, self.ledger = model, images, ledger
        self.depth, self.patches, self.prefix = depth, patches, prefix
        self._extra: dict[Hashable, float] = {}
        self._where = self._place()
        probes: list[Cuts] = [()]
        for block, rate in ((0, 0.5), (1, 0.25), (depth // 3, 0.5), (depth // 2, 0.25), (2 * depth // 3, 0.5)):
            probes.append((Cut(min(block, depth - 1), _PLAIN, rate),))
        probes.append(tuple(Cut(block, _PLAIN, 0.5) for block in sorted({depth // 4, depth // 2, 3 * depth // 4})))
        probes = list(dict.fromkeys(probes))
        costs = self.exact_all(probes)
        self.dense = self.whole or costs[0]
        x = np.array([self._features(cuts) for cuts in probes])
        scale = np.abs(x).max(0).clip(min=1e-12)
        self._weights = np.linalg.lstsq(x / scale, np.array(costs), rcond=None)[0] / scale

    def text(self, cost: float) -> str:
        """A cost in words."""
        return f"{cost:.4g} {self.unit}"

    def of(self, cuts: Sequence[Cut]) -> float:
        """The cost by the fitted model."""
        extra = sum(self._extra_of(cut.choice) * _share(cut, cuts, self.depth, self.patches) for cut in cuts)
        return float(self._features(cuts) @ self._weights) + extra

    def of_block(self, before: float | None, after: float | None) -> float:
        """The cost of one block that a share of the patches enters and one leaves; of all else for None.

        Never below 0, where noise of measured times could bring a fitted weight.
        """
        base, entering, squared, leaving = self._weights
        if before is None or after is None:
            return max(float(base), 0.0)
        n, m = (share * self.patches + self.prefix for share in (before, after))
        return max(float(entering * n + squared * n * n + leaving * m), 0.0)

    def exact(self, cuts: Sequence[Cut]) -> float:
        """The cost, taken."""
        return self.exact_all([tuple(cuts)])[0]

    def exact_all(self, proposals: Sequence[Cuts]) -> list[float]:
        """The costs of several schedules, taken side by side; each once."""
        keys = [self._key(cuts) for cuts in proposals]
        new = [cuts for key, cuts in zip(keys, proposals, strict=True) if self.ledger.cost(key) is None]
        if new:
            for cuts, cost in zip(new, from_first(self._take(new)), strict=True):
                self.ledger.add_cost(self._key(cuts), cost)
        return [float(self.ledger.cost(key) or 0.0) for key in keys]

    def _key(self, cuts: Sequence[Cut]) -> str:
        return f"{self._where}:{self.ledger.key(config_of(cuts))}"

    def _place(self) -> str:
        """What the costs are of, beside the model, its images and the setting: those of another are taken anew."""
        return self.unit

    @abstractmethod
    def _take(self, proposals: Sequence[Cuts]) -> list[float]: ...

    def met(self, cuts: Sequence[Cut], budget: float) -> Cuts | None:
        """The same cuts with rates ρ^t for the least t whose cost is at most the budget; None if there is none.

        t may be below 1, so that a schedule that spends too little spends what it may.
        """
        low, high = 0.0, 1.0
        while self.of(powered(cuts, high)) > budget:
            low, high = high, 2 * high
            if high > 64:
                return None
        for _ in range(14):
            middle = (low + high) / 2
            low, high = (low, middle) if self.of(powered(cuts, middle)) <= budget else (middle, high)
        return powered(cuts, high) or None

    def met_exactly(self, cuts: Sequence[Cut], budget: float) -> Cuts | None:
        """As `met`, by the cost that was taken: the fitted budget is lowered until it is."""
        allowed = budget
        for _ in range(6):
            found = self.met(cuts, allowed)
            if found is None:
                return None
            taken = self.exact(found)
            if taken <= budget:
                return found
            allowed -= 1.2 * max(taken - budget, 1e-4 * budget)
        return None

    def _extra_of(self, choice: Choice) -> float:
        kind = _kinds(choice.criterion), choice.reduction
        if kind not in self._extra:
            cuts = (Cut(self.depth // 2, choice, 0.5),)
            self._extra[kind] = 0.0
            self._extra[kind] = max(self.exact(cuts) - self.of(cuts), 0.0)
        return self._extra[kind]

    def _features(self, cuts: Sequence[Cut]) -> np.ndarray:
        counts = token_counts(cuts, self.depth, self.patches)
        entering = np.array([n + self.prefix for n, _ in counts], dtype=np.float64)
        leaving = np.array([n + self.prefix for _, n in counts], dtype=np.float64)
        return np.array([1.0, entering.sum(), (entering**2).sum(), leaving.sum()])


_PLAIN = Choice(Random(0))


def _kinds(criterion: Criterion) -> Hashable:
    """What decides a criterion's cost: its kind, and those of what it is made of; neither order nor weight."""
    return criterion.kind, *(_kinds(part) for part in vars(criterion).values() if isinstance(part, Criterion))


def _share(cut: Cut, cuts: Sequence[Cut], depth: int, patches: int) -> float:
    """The share of the patches that enters a cut's block."""
    return token_counts(cuts, depth, patches)[cut.block][0] / patches


class MultiplyAdds(Spending):
    """10⁹ multiply-adds per image, by fvcore's rules (`entropatch.measure.flops`)."""

    unit = "GFLOPs"

    def _take(self, proposals: Sequence[Cuts]) -> list[float]:
        from entropatch.measure.flops import count_flops

        found = []
        for cuts in proposals:
            prune_(self.model, config_of(cuts))
            found.append(count_flops(self.model, self.images[:1]).total / 1e9)
        return found


class Time(Spending):
    """The time of a batch over that of the dense model, both measured in turns: one over the speed-up."""

    unit = "time"
    whole: float | None = 1.0
    repeats = 7

    def _place(self) -> str:
        return f"{self.unit} on {from_first(machine(self.model, self.images))}"  # every process looks for the same

    def text(self, cost: float) -> str:
        return f"{1 / cost:.3g} times the dense model's speed"

    def _take(self, proposals: Sequence[Cuts]) -> list[float]:
        from entropatch.measure.timing import time_interleaved

        def run(cuts: Cuts) -> object:
            prune_(self.model, config_of(cuts))
            return self.model(self.images)

        runs = {"dense": lambda: run(())} | {str(i): (lambda cuts=cuts: run(cuts)) for i, cuts in enumerate(proposals)}
        device = next(self.model.parameters()).device
        times = time_interleaved(runs, len(self.images), repeats=self.repeats, warmup=1, device=device)
        with torch.no_grad():
            return [times[str(i)].p50_ms / times["dense"].p50_ms for i in range(len(proposals))]
