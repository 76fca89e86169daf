"""Passes that share their first blocks: the outputs of passes that share nothing, and the blocks really skipped."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from small_models import create, photographs

import entropatch
from entropatch import ClassAttention, CumulativeImportance, Merge, PruneConfig, Renyi
from entropatch.surgery.sharing import Shared, sharing

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = [
    PruneConfig((0.7, 0.5), blocks=(1, 2)),
    PruneConfig((0.7, 0.5), blocks=(1, 3), order=(2.0, 1.0)),
    PruneConfig((0.7, 0.5, 0.5), blocks=(1, 2, 3)),
    PruneConfig((0.7, 0.5), blocks=(1, 2), coverage=(2, None)),
    PruneConfig((0.7, 0.5), blocks=(1, 2), reduction=("drop", "merge")),
    PruneConfig((0.7, 0.5), blocks=(1, 3), reduction=("merge", "drop")),
    PruneConfig((0.7, 0.5, 0.6), blocks=(1, 2, 3), reduction=("merge", "drop", Merge(proportional=False))),
    PruneConfig((0.7, 0.5), blocks=(1, 3), reduction=(Merge(proportional=False), "drop")),
    PruneConfig((0.7, 0.5), blocks=(1, 3), reduction=(Merge(proportional=False), "merge")),
    PruneConfig((0.7, 0.5), blocks=(1, 2), criterion=(Renyi(2.0), ClassAttention()), reduction="fuse"),
    PruneConfig(schedule=CumulativeImportance(0.5), order=1.0),
    PruneConfig(r=2),
    PruneConfig(r=(2, 2), blocks=(1, 3)),
    PruneConfig(keep_rate=1.0),
]


def restored(model: Any, images: torch.Tensor) -> torch.Tensor:
    with entropatch.trace(model) as trace:
        features = model.forward_features(images)
    return entropatch.restore(features, trace)


@pytest.mark.parametrize("name", ["deit", "dinov2 registers", "rope mixed"])
@pytest.mark.parametrize("recorded", [False, True])
def test_shared_passes_equal_passes_of_their_own(name: str, recorded: bool) -> None:
    model: Any = entropatch.prune_(create(name), keep_rate=1.0)
    images, shared = photographs(model, batch=3), Shared()
    settings = [one for one in SETTINGS if name != "rope mixed" or one.reduction != "fuse"]
    with torch.inference_mode():
        for config in (*settings, *reversed(settings)):
            entropatch.prune_(model, config)
            expected = model(images)
            alone = restored(model, images) if recorded and not config.schedule.per_image else None
            with sharing(model, shared):
                assert torch.equal(model(images), expected)
                assert alone is None or torch.equal(restored(model, images), alone)
    assert shared.blocks_skipped > 10


def test_a_pass_begins_at_the_first_difference() -> None:
    model: Any = entropatch.prune_(create("deit"), keep_rate=1.0)
    images, shared, ran = photographs(model), Shared(), []
    for i, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda module, args, i=i: ran.append(i))
    with torch.inference_mode(), sharing(model, shared):
        for blocks, rates in [((2,), 0.5), ((2,), 0.7), ((2, 3), 0.7), ((3,), 0.7), ((1, 3), 0.5), ((1, 2), 0.5)]:
            entropatch.prune_(model, keep_rate=rates, blocks=blocks)
            ran.clear()
            model(images)
            seen = {(2,): [0, 1, 2, 3], (2, 3): [2, 3], (3,): [2, 3], (1, 3): [0, 1, 2, 3], (1, 2): [1, 2, 3]}
            expected = [2, 3] if (blocks, rates) == ((2,), 0.7) else seen[blocks]
            assert ran == expected, (blocks, rates)


def test_no_more_is_held_than_allowed() -> None:
    model: Any = entropatch.prune_(create("deit"), keep_rate=1.0)
    images = photographs(model)
    one = images.shape[0] * 26 * 32 * 4
    shared = Shared(bytes_held=2 * one)
    with torch.inference_mode(), sharing(model, shared):
        for block, rate in itertools.product((1, 2, 3), (0.5, 0.6)):
            entropatch.prune_(model, keep_rate=rate, blocks=(block,))
            model(images)
            assert sum(size for size, _, _ in shared._held.values()) <= 2 * one
    assert len(shared._held) == 2


def test_passes_with_gradients_or_watches_run_whole() -> None:
    model: Any = entropatch.prune_(create("deit"), keep_rate=0.5, blocks=(2,))
    images, shared, seen = photographs(model), Shared(), []
    with sharing(model, shared):
        with torch.no_grad():
            model(images)
            model(images)
        assert shared.blocks_skipped == 2
        model(images).sum().backward()
        assert model.patch_embed.proj.weight.grad is not None
        with torch.no_grad(), entropatch.watch(model, (0, 1), lambda attention, tokens: seen.append(attention.block)):
            model(images)
        assert seen == [0, 1]
    assert shared.blocks_skipped == 2
