"""Attention distance against loops in float64, and statistics over many images against all of them at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from reference_model import attention_inputs
from small_models import create, photographs

import entropatch
from entropatch.look import distance as module
from entropatch.look.distance import attention_distance
from entropatch.look.inspection import entropy_maps
from entropatch.look.statistics import RunningStatistics, batch_statistics

ORDERS = (0.5, 1.0, 2.0, math.inf)


def distances(q: np.ndarray, k: np.ndarray, scale: float, grid: tuple[int, int], patch: tuple[float, float]):
    """Slow twin for one head: (n, d), (n, d) -> n distances."""
    centres = [((i // grid[1]) * patch[0], (i % grid[1]) * patch[1]) for i in range(grid[0] * grid[1])]
    rows = [reference.softmax(row) for row in reference.attention_logits(q, k, scale)]
    return [
        math.fsum(p * math.dist(centre, other) for p, other in zip(row, centres, strict=True))
        for row, centre in zip(rows, centres, strict=True)
    ]


@pytest.mark.parametrize("grid", [(3, 5), (6, 2), (1, 1), (7, 7)])
@pytest.mark.parametrize(("size", "patch"), [(1.0, (1.0, 1.0)), (14, (14, 14)), ((8, 32), (8, 32))])
def test_distances_are_those_of_loops(grid, size, patch):
    n = grid[0] * grid[1]
    q, k = (torch.randn(2, 3, n, 4, dtype=torch.float64) * 2 for _ in range(2))
    got = attention_distance(q, k, grid, 0.7, size)
    assert got.dtype == torch.float64
    for image in range(2):
        for head in range(3):
            expected = distances(q[image, head].numpy(), k[image, head].numpy(), 0.7, grid, patch)
            assert got[image, head].tolist() == pytest.approx(expected, abs=1e-10)


def test_a_few_rows_at_a_time_give_the_same(monkeypatch):
    q, k = (torch.randn(2, 2, 30, 4) for _ in range(2))
    whole = attention_distance(q, k, (5, 6))
    monkeypatch.setattr(module, "_AT_ONCE", 2 * 2 * 30 * 7 // 6)
    assert attention_distance(q, k, (5, 6)) == pytest.approx(whole, abs=1e-6)
    exact = attention_distance(q.double(), k.double(), (5, 6))
    assert whole.dtype == torch.float32
    assert (whole - exact).abs().max() < 1e-5


def test_distances_whose_value_is_known():
    # Attention that is even over a row of five patches: mean distance from the first is 2, from the middle 1.2.
    even = attention_distance(torch.zeros(5, 4), torch.zeros(5, 4), (1, 5))
    assert even.tolist() == pytest.approx([2.0, 1.4, 1.2, 1.4, 2.0])
    # Attention on oneself alone reaches nowhere.
    sharp = 100 * torch.eye(5)
    assert attention_distance(sharp, sharp, (1, 5)).tolist() == pytest.approx([0.0] * 5)
    # Where rounding of squared distances would show.
    sharp = 200 * torch.eye(37 * 37)
    assert attention_distance(sharp, sharp, (37, 37), 1.0, 0.1).abs().max() == 0


def test_tokens_that_are_not_the_patches_of_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"n = 2·3.*\(7, 4\) and \(7, 4\); leave out class"):
        attention_distance(torch.zeros(7, 4), torch.zeros(7, 4), (2, 3))
    with pytest.raises(ValueError, match="must both be"):
        attention_distance(torch.zeros(6, 4), torch.zeros(6, 5), (2, 3))


@pytest.mark.parametrize("family", ["deit", "dinov2 registers", "siglip", "eva"])
def test_statistics_of_a_batch_are_those_of_the_stock_model(family):
    model = create(family)
    images = photographs(model, batch=2)
    with torch.no_grad(), attention_inputs() as seen:
        model.forward_features(images)
    prefix = model.num_prefix_tokens
    got = batch_statistics(model, images, ORDERS)
    assert got.maps == pytest.approx(entropy_maps(model, images, ORDERS, range(4)), abs=1e-6)
    assert got.distance.shape == (4, 2)
    assert got.entropy.shape == (4, 4, 2)
    for block in (0, 3):
        q, k = (x.double().numpy()[:, :, prefix:] for x in seen[block])
        scale = q.shape[-1] ** -0.5
        for head in range(2):
            expected = [distances(q[i, head], k[i, head], scale, (5, 5), (1, 1)) for i in range(2)]
            assert got.distance[block, head] == pytest.approx(np.mean(expected), abs=1e-5)
            for place, order in enumerate(ORDERS):
                entropies = [reference.attention_entropies(q[i, head], k[i, head], order, scale) for i in range(2)]
                assert got.entropy[place, block, head] == pytest.approx(np.mean(entropies), abs=1e-5)


def test_the_model_is_left_as_it_was_and_a_pruned_one_is_seen_unpruned():
    model = create("deit").train()
    images = photographs(model)
    stock = batch_statistics(model, images, [1.0])
    assert model.training
    assert type(model).__module__.startswith("timm")
    config = entropatch.pruning_config(entropatch.prune_(model, keep_rate=0.3, blocks=(0,)))
    again = batch_statistics(model, images, [1.0])
    assert entropatch.pruning_config(model) == config
    assert np.array_equal(stock.maps, again.maps)


def test_many_images_one_by_one_are_all_of_them_at_once():
    model = create("deit")
    images = photographs(model, batch=7)
    running = RunningStatistics(ORDERS, bins=11)
    for start, end in ((0, 1), (1, 4), (4, 7)):
        running.add(batch_statistics(model, images[start:end], ORDERS))
    whole = batch_statistics(model, images, ORDERS)
    assert running.images == 7
    assert running.entropy == pytest.approx(whole.entropy, abs=1e-6)
    assert running.distance == pytest.approx(whole.distance, abs=1e-6)
    assert running.edges == pytest.approx(np.linspace(0, math.log(25), 12))
    for order in range(len(ORDERS)):
        for block in range(4):
            expected = np.histogram(whole.maps[:, order, block], running.edges)[0]
            # A value within rounding of an edge may fall on its other side.
            assert np.abs(running.counts[order, block] - expected).sum() <= 2
            assert running.counts[order, block].sum() == 7 * 25


def test_an_even_attention_falls_into_the_last_bin():
    model = create("deit")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:32].zero_()
            block.attn.qkv.bias[:32].zero_()
    running = RunningStatistics([1.0], bins=4)
    running.add(batch_statistics(model, photographs(model), [1.0]))
    assert running.counts[..., :3].sum() == 0
    assert running.counts[..., 3].sum() == 2 * 25 * 4


def test_statistics_refuse_what_does_not_belong_together():
    small, other = create("deit"), create("deit", depth=3)
    running = RunningStatistics([1.0])
    with pytest.raises(ValueError, match="no batch"):
        _ = running.entropy
    running.add(batch_statistics(small, photographs(small), [1.0]))
    with pytest.raises(ValueError, match=r"same orders, blocks, heads \(1, 4, 2\)"):
        running.add(batch_statistics(other, photographs(other), [1.0]))
    with pytest.raises(ValueError, match="at least one order"):
        batch_statistics(small, photographs(small), [])
