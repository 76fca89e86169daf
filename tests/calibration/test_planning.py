"""Dynamic programming over sensitivities against every schedule there is; costs against those really counted."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from small_models import create, photographs

import entropatch
from entropatch import BipartiteMerge, ClassAttention, Fuse, Merge, Mix, PruneConfig, Random, Renyi
from entropatch.calibration import planning
from entropatch.calibration.ledger import Ledger
from entropatch.calibration.planning import adding, planned, predicted
from entropatch.calibration.proposal import Choice, Cut, Cuts, config_of, cuts_of, token_counts
from entropatch.calibration.sensitivity import RATE, RATES, Sensitivities
from entropatch.calibration.spending import MultiplyAdds

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("fvcore")

CHOICES = (Choice(Renyi(1.0)), Choice(ClassAttention(), Merge()), Choice(Random(0)))
LEVELS = (1.0, 0.7, 0.5, 0.3)


class Sums:
    """Costs that add up over the blocks: what enters plus twice what leaves."""

    dense, depth = 15.0, 5

    def of_block(self, before: float | None, after: float | None) -> float:
        return 0.0 if before is None or after is None else before + 2 * after


def sensitivities(seed: int) -> Sensitivities:
    generator, found = torch.Generator().manual_seed(seed), Sensitivities()
    for block in (1, 2, 3):
        for choice in CHOICES:
            found.note(block, choice, RATE, float(torch.rand((), generator=generator)))
        best = found.ranked(block)[0]
        for rate in RATES:
            found.note(block, best, rate, found.by[block, best, RATE] * (RATE / rate) ** 1.5)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("way", ["fresh", "deeper"])
@pytest.mark.parametrize("first", [None, 2])
def test_the_plan_is_the_best_of_all_schedules(
    seed: int, way: str, first: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "LEVELS", LEVELS)
    monkeypatch.setattr(planning, "rounded", lambda rate: rate)
    found, spending, budget, most = sensitivities(seed), Sums(), 9.0 if first is None else 10.5, 2
    step = adding(found)[way]
    best = math.inf
    for levels in itertools.product(LEVELS, repeat=3):
        shares = [1.0, *levels]
        if any(after > before for before, after in itertools.pairwise(shares)):
            continue
        cuts, before, spent = [], 1.0, 3.0  # of block 0
        for block, after in zip((1, 2, 3), levels, strict=True):
            spent += before + 2 * after
            if after < before:
                cuts.append(Cut(block, found.ranked(block)[0], after / before))
            before = after
        spent += 3 * before
        if cuts and len(cuts) <= most and spent <= budget and first in (None, cuts[0].block):
            best = min(best, predicted(cuts, step))
    cuts = planned(found, spending, budget, step, most, first)  # type: ignore[arg-type]
    assert cuts is not None
    assert predicted(cuts, step) == pytest.approx(best)
    assert first in (None, cuts[0].block)
    assert len(cuts) <= most


def test_no_plan_is_none() -> None:
    found = sensitivities(0)
    assert planned(found, Sums(), 3.1, adding(found)["fresh"], 3) is None  # type: ignore[arg-type]
    assert planned(found, Sums(), -1.0, adding(found)["fresh"], 3) is None  # type: ignore[arg-type]


def test_losses_go_through_what_was_measured() -> None:
    found = sensitivities(1)
    for (block, choice, rate), loss in found.by.items():
        assert found.loss(block, choice, rate) == pytest.approx(loss)
    for choice in CHOICES:
        losses = [found.loss(2, choice, share / 100) for share in range(1, 101)]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] == 0


def test_random_is_a_floor_and_no_choice() -> None:
    found = sensitivities(0)
    assert all(not choice.is_random for block in found.blocks for choice in found.ranked(block))
    assert len(found.ranked(2)) == 2


# --- costs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spending() -> MultiplyAdds:
    model: Any = entropatch.prune_(create("deit", depth=5), keep_rate=1.0)
    return MultiplyAdds(model, photographs(model, batch=1), 5, 25, 1, Ledger(None, {}))


SCHEDULES: list[Cuts] = [
    (Cut(0, Choice(Renyi(2.0)), 0.3),),
    (Cut(1, Choice(ClassAttention(), Fuse()), 0.5), Cut(3, Choice(Renyi(1.0), Merge(), 2), 0.4)),
    (Cut(2, Choice(Renyi(), BipartiteMerge()), 0.2), Cut(4, Choice(Mix(Renyi(1.0), Renyi(2.0))), 0.6)),
    tuple(Cut(block, Choice(Renyi(1.0), coverage=2), 0.8) for block in range(5)),
]


@pytest.mark.parametrize("cuts", SCHEDULES)
def test_the_fitted_cost_is_the_counted_one(spending: MultiplyAdds, cuts: Cuts) -> None:
    assert spending.of(cuts) == pytest.approx(spending.exact(cuts), rel=0.004)
    plain = tuple(Cut(cut.block, Choice(Random(1)), cut.rate) for cut in cuts)
    assert spending.of(plain) == pytest.approx(spending.exact(plain), rel=1e-9)


@pytest.mark.parametrize("cuts", SCHEDULES[1:])
@pytest.mark.parametrize("share", [0.8, 0.9])
def test_rates_move_until_the_budget_is_met(spending: MultiplyAdds, cuts: Cuts, share: float) -> None:
    budget = share * spending.dense
    met = spending.met_exactly(cuts, budget)
    assert met is not None
    assert 0.9 * budget < spending.exact(met) <= budget
    assert [cut.choice for cut in met] == [cut.choice for cut in cuts if cut.block in {one.block for one in met}]


def test_a_budget_that_cannot_be_met_is_none(spending: MultiplyAdds) -> None:
    assert spending.met((Cut(4, CHOICES[0], 0.5),), 0.3 * spending.dense) is None


@pytest.mark.parametrize("cuts", SCHEDULES)
def test_token_counts_are_those_of_the_model(cuts: Cuts) -> None:
    model: Any = entropatch.prune_(create("deit", depth=5), config_of(cuts))
    entering: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, args: entering.append(args[0].shape[1] - 1))
    with torch.no_grad():
        left = model.forward_features(photographs(model, batch=1)).shape[1] - 1
    counts = token_counts(cuts, 5, 25)
    assert [n for n, _ in counts] == entering
    assert counts[-1][1] == left


def test_cuts_and_settings_mean_the_same() -> None:
    config = PruneConfig((0.7, 0.5), order=(1.0, 2.0), blocks=(1, 3), reduction=("drop", "merge"), coverage=(2, None))
    assert config_of(cuts_of(config, 5)) == config
    assert config_of(()).keep_rate == 1.0


def test_noise_of_measured_times_makes_no_block_cost_less_than_nothing() -> None:
    """Times of a small model are mostly noise, of which a fit may make weights below 0."""

    class Noisy(MultiplyAdds):
        def _take(self, proposals: Any) -> list[float]:
            return [1.0 + 0.3 * len(cuts) for cuts in proposals]  # the more is cut, the longer it took

    model = entropatch.prune_(create("deit", depth=5), keep_rate=1.0)
    spending = Noisy(model, torch.zeros(1, 3, 32, 32), 5, 4, 1, Ledger(None, {}))
    assert spending.of_block(1.0, 0.5) >= 0
    assert spending.of_block(None, None) >= 0
    planned(sensitivities(0), spending, 0.9, adding(sensitivities(0))["fresh"], 2)
    spending._weights = np.array([-0.1, -0.02, -1e-4, -0.05])
    assert spending.of_block(1.0, 0.5) == spending.of_block(None, None) == 0
    planned(sensitivities(0), spending, 0.9, adding(sensitivities(0))["fresh"], 2)
