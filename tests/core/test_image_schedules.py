"""Thresholds, budgets that a batch shares, and orders by image, against loops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import GRID, create, photographs
from torch import Tensor

import entropatch
from entropatch import BlockAttention, ClassAttention, KeepRate, PerImageOrder, PruneConfig, Renyi, SharedBudget
from entropatch import Threshold as LevelThreshold
from entropatch.calibration.goals import BudgetError
from entropatch.calibration.thresholds import calibrate_threshold
from entropatch.criteria.image_order import separability
from entropatch.measure import count_flops
from entropatch.schedule import Site, exact_rate, kept_count

pytestmark = pytest.mark.usefixtures("one_thread")


def varied(batch: int) -> Tensor:
    """Images of contrasts that differ, so that their attention does."""
    noise = torch.randn(batch, 3, GRID * 16, GRID * 16, generator=torch.Generator().manual_seed(0))
    return 3 * noise * torch.logspace(-1, 1, batch)[:, None, None, None]


def site(n: int, rate: float = 0.5, stage: int = 0) -> Site:
    return Site(3, stage, 3, exact_rate(rate), n, n)


# --- thresholds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, math.inf])
def test_a_patch_stays_where_its_normalised_entropy_is_low_enough(order: float) -> None:
    model = create("deit")
    images = varied(6)
    seen: list[BlockAttention] = []
    with torch.no_grad(), entropatch.watch(model, (1,), lambda attention, tokens: seen.append(attention)):
        model(images)
    (attention,) = seen
    normalised = []
    for q, k in zip(attention.q.numpy(), attention.k.numpy(), strict=True):
        heads = [
            [reference.renyi_entropy(row, order) / math.log(25) for row in rows]
            for rows in reference.patch_attention(q, k, attention.scale, 1)
        ]
        normalised.append([sum(head[patch] for head in heads) / len(heads) for patch in range(25)])
    levels = sorted(value for image in normalised for value in image)
    border = (levels[70] + levels[71]) / 2
    expected = []
    for image in normalised:
        wanted = max(sum(value <= border for value in image), 1)
        expected.append(min(size for size in (7, 13, 19, 25) if size >= wanted))
    entropatch.prune_(model, order=order, blocks=(1,), schedule=LevelThreshold(1 - border))
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(images)
    assert trace.stages[0].counts_after == (expected if len(set(expected)) > 1 else expected[0])


def test_each_block_has_its_own_threshold_and_one_patch_stays_at_least() -> None:
    levels = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.9, 0.9, 0.1, math.nan]])
    schedule = LevelThreshold((0.3, 2.0))
    assert schedule.count(site(4, stage=0), levels).tolist() == [2, 3]  # what is no number stays
    assert schedule.count(site(4, stage=1), levels).tolist() == [1, 1]
    with pytest.raises(ValueError, match="one for each of the 3 blocks, but got 2"):
        PruneConfig(schedule=schedule).stages(12)


def test_levels_of_criteria() -> None:
    entropy = torch.tensor([[0.0, math.log(4), 0.5 * math.log(4), math.log(2)]])
    torch.testing.assert_close(Renyi(2.0).level(-entropy), torch.tensor([[1.0, 0.0, 0.5, 0.5]]))
    row = torch.tensor([[0.1, 0.1, 0.2, 0.4]])
    torch.testing.assert_close(ClassAttention().level(row), torch.tensor([[0.5, 0.5, 1.0, 2.0]]))
    assert Renyi(1.0).level(torch.zeros(1, 1)).tolist() == [[1.0]]


# --- a budget shared in the batch ----------------------------------------------------------------------------------


def best_sharing(levels: list[list[float]], k: int, d: int) -> float:
    """The highest sum of levels that keeping k - d, k or k + d of each image, k of each in the mean, can have."""
    best = -math.inf
    for steps in itertools.product((-1, 0, 1), repeat=len(levels)):
        if sum(steps) == 0:
            kept = (sorted(row, reverse=True)[: k + step * d] for row, step in zip(levels, steps, strict=True))
            best = max(best, math.fsum(math.fsum(row) for row in kept))
    return best


@given(
    st.lists(st.lists(st.floats(-1, 1), min_size=9, max_size=9), min_size=1, max_size=5),
    st.sampled_from([0.3, 0.5, 0.7]),
    st.sampled_from([0.25, 0.5, 0.9]),
)
def test_the_best_of_the_whole_batch_stay(levels: list[list[float]], rate: float, spread: float) -> None:
    counts = SharedBudget(spread).count(site(9, rate), torch.tensor(levels, dtype=torch.float64)).tolist()
    k = kept_count(exact_rate(rate), 9)
    d = min(math.floor(spread * k), 9 - k)
    assert set(counts) <= {k - d, k, k + d}
    assert sum(counts) == k * len(levels)
    got = math.fsum(math.fsum(sorted(row, reverse=True)[:count]) for row, count in zip(levels, counts, strict=True))
    assert got == pytest.approx(best_sharing(levels, k, d), abs=1e-9)


def test_one_image_alone_is_the_fixed_rate_and_later_blocks_keep_their_share() -> None:
    model = create("deit")
    images = varied(6)
    entropatch.prune_(model, keep_rate=0.5, order=2.0, blocks=(0, 1, 2))
    with torch.no_grad():
        fixed = torch.cat([model(image[None]) for image in images])
    entropatch.prune_(model, schedule=SharedBudget(), keep_rate=0.5, blocks=(0, 1, 2))
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(images)
        together = trace.counts
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, fixed, atol=1e-6, rtol=1e-6)
    first = together[1]
    assert isinstance(first, list)
    assert set(first) <= {7, 13, 19}
    assert sum(first) == 6 * 13
    assert together[2] == [(n + 1) // 2 for n in first]
    assert together[3] == [((n + 1) // 2 + 1) // 2 for n in first]


def test_a_keep_rate_of_one_is_the_stock_model_to_the_last_bit() -> None:
    model = create("deit")
    images = photographs(model, batch=3)
    with torch.no_grad():
        stock = model(images)
        entropatch.prune_(model, keep_rate=1.0, method="shared-renyi-2")
        assert torch.equal(model(images), stock)
        with entropatch.trace(model) as trace:
            assert torch.equal(model(images), stock)
    assert set(map(str, trace.counts)) == {"25"}


def test_scores_that_are_no_numbers_ask_for_nothing() -> None:
    levels = torch.tensor([[math.nan] * 8, [0.1] * 8])
    assert SharedBudget(0.5).count(site(8), levels).tolist() == [2, 6]
    assert SharedBudget(0.5).count(site(8), levels[:0]).tolist() == []


# --- an order for each image ---------------------------------------------------------------------------------------


def slow_separability(scores: list[float]) -> float:
    """Of every split of the sorted scores the share of the variance between its groups."""
    ordered, n = sorted(scores), len(scores)
    mean = math.fsum(ordered) / n
    variance = math.fsum((score - mean) ** 2 for score in ordered) / n
    best = 0.0
    for j in range(1, n):
        low, high = ordered[:j], ordered[j:]
        gap = math.fsum(high) / len(high) - math.fsum(low) / len(low)
        best = max(best, len(low) / n * len(high) / n * gap**2)
    return best / variance if variance else 0.0


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12))
def test_separability_is_that_of_the_loops(scores: list[int]) -> None:
    values = [score / 7 for score in scores]
    found = separability(torch.tensor([values], dtype=torch.float64)).item()
    if len(set(scores)) > 1:
        assert found == pytest.approx(slow_separability(values), rel=1e-9)


def test_separability_at_its_ends() -> None:
    found = separability(torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.3] * 4, [math.nan, 0.0, 1.0, 2.0]]))
    assert found[0] == pytest.approx(1.0)
    assert found[2] == 0
    assert separability(torch.arange(2000.0)[None]).item() == pytest.approx(0.75, abs=1e-3)
    assert separability(torch.rand(3, 1)).tolist() == [0.0] * 3


def test_each_image_is_scored_by_the_order_that_splits_it_best() -> None:
    model, orders = create("deit"), (0.5, 2.0, math.inf)
    images = varied(12)
    found: dict[str, Tensor] = {}

    def look(attention: BlockAttention, tokens: entropatch.Tokens) -> None:
        found.update({str(order): Renyi(order).importance(attention) for order in orders})
        found["by image"] = PerImageOrder(orders).importance(attention)

    with torch.no_grad(), entropatch.watch(model, (1,), look):
        model(images)
    chosen = []
    for image in range(12):
        by_order = [found[str(order)][image].tolist() for order in orders]
        best = max(range(3), key=lambda i: slow_separability(by_order[i]))
        assert found["by image"][image].tolist() == by_order[best]
        chosen.append(best)
    assert len(set(chosen)) > 1, "one order for all: nothing was tested"


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LevelThreshold("0.5"), TypeError, "least must be a number"),
        (lambda: LevelThreshold(()), ValueError, "or one for each reducing block"),
        (lambda: LevelThreshold(math.nan), ValueError, "least must be a number"),
        (lambda: LevelThreshold(0.5, (0.0,)), ValueError, r"sizes must be rates in \(0, 1\]"),
        (lambda: SharedBudget(1.0), ValueError, r"spread must be a number in \[0, 1\)"),
        (lambda: PerImageOrder((2.0,)), ValueError, "two or more different ones"),
        (lambda: PerImageOrder((2.0, 2.0)), ValueError, "two or more different ones"),
        (lambda: PerImageOrder(2.0), TypeError, "must be a sequence of orders"),
        (lambda: PruneConfig(keep_rate=0.5, schedule=LevelThreshold()), ValueError, "says by itself"),
        (lambda: PruneConfig(reduction="bipartite", schedule=SharedBudget()), ValueError, "reads the scores"),
    ],
)
def test_what_is_out_of_range_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": LevelThreshold((0.1, 0.2), (0.5,))},
        {"schedule": SharedBudget(0.25), "keep_rate": 0.5},
        {"criterion": PerImageOrder((1.0, math.inf)), "coverage": 2},
        {"method": "shared-renyi-2"},
        {"method": "order-by-image"},
    ],
)
def test_settings_survive_json(fields: dict[str, Any]) -> None:
    config = PruneConfig(**fields)
    assert PruneConfig.from_json(config.to_json()) == config
    assert config.label


# --- thresholds that meet a budget ---------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LevelThreshold(), entropatch.CumulativeImportance()], ids=["level", "share"])
def test_the_mean_cost_meets_the_budget(schedule: Any) -> None:
    pytest.importorskip("fvcore")
    model = create("deit")
    images = varied(8)
    config = calibrate_threshold(model, images, keep_rate=0.6, order=2.0, blocks=(0, 1, 2), schedule=schedule)
    assert type(config.schedule) is type(schedule)
    assert not entropatch.surgery.is_pruned(model)
    fixed = count_flops(entropatch.prune_(model, keep_rate=0.6, order=2.0, blocks=(0, 1, 2)), images[:1]).total
    entropatch.prune_(model, config)
    alone = [count_flops(model, image[None]).total for image in images]
    assert 0.93 * fixed < sum(alone) / 8 <= fixed
    assert len(set(alone)) > 1


def test_a_budget_that_cannot_be_met_is_refused() -> None:
    pytest.importorskip("fvcore")
    model = create("deit")
    images = varied(4)
    for gflops in (1e-6, 1e6):
        with pytest.raises(BudgetError, match="the mean cost must lie between"):
            calibrate_threshold(model, images, gflops=gflops)
    with pytest.raises(ValueError, match="give keep_rate or gflops"):
        calibrate_threshold(model, images)
    with pytest.raises(TypeError, match="must be a Threshold or a CumulativeImportance"):
        calibrate_threshold(model, images, keep_rate=0.5, schedule=KeepRate())  # pyright: ignore
