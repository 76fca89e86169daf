"""The arrays figures are drawn from, against slow twins run on the stock model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import reference
import torch
from PIL import Image
from reference_model import attention_inputs, evit, fused_pass, masked_pass, renyi
from small_models import create, photographs

import entropatch
from entropatch import CumulativeImportance, Drop, Merge, PruneConfig, Reduction, UnsupportedModelError
from entropatch.config import method_config
from entropatch.data.images import cropped, to_tensor
from entropatch.figures.patches import count_text
from entropatch.figures.pixels import remaining
from entropatch.look.inspection import entropy_maps, inspect_image, possible_methods, pruning_stages

BLOCKS, RATE = (1, 2, 3), 0.6


def on_grid(numbers: list[int], values: list[float], shape: tuple[int, int]) -> np.ndarray:
    grid = np.full(shape, np.nan)
    for number, value in zip(numbers, values, strict=True):
        if number != reference.FUSED:
            grid[number // shape[1], number % shape[1]] = value
    return grid


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, math.inf])
def test_entropy_maps_are_those_of_the_stock_model(order):
    model = create("deit")
    images = photographs(model)
    with torch.no_grad(), attention_inputs() as seen:
        model(images)
    maps = entropy_maps(model, images, [order], blocks=(0, 3))
    assert maps.shape == (2, 1, 2, 5, 5)
    assert maps.dtype == np.float32
    for place, block in enumerate((0, 3)):
        for image in range(2):
            q, k = (x[image].double().numpy() for x in seen[block])
            expected = [-score for score in renyi(order)(q, k, 1)]
            assert maps[image, 0, place].ravel() == pytest.approx(expected, abs=1e-4)


def test_entropy_maps_stack_orders_in_the_order_given():
    model = create("deit")
    images = photographs(model)
    both = entropy_maps(model, images, [2.0, 1.0])
    assert both.shape == (2, 2, 3, 5, 5)
    assert np.array_equal(both[:, :1], entropy_maps(model, images, [2.0]))
    assert (both[:, 0] < both[:, 1]).all()  # entropy falls as the order grows
    assert both.max() <= math.log(25) + 1e-5


@pytest.mark.parametrize(("name", "score"), [("evit-drop", evit), ("shannon", renyi(1.0)), ("renyi-2", renyi(2.0))])
@pytest.mark.parametrize("family", ["deit", "deit distilled", "dinov2 registers"])
def test_scores_and_kept_patches_of_every_stage(name, score, family):
    model = create(family)
    images = photographs(model)
    stages = pruning_stages(model, images, method_config(name, RATE, BLOCKS))
    follow = [
        torch.tensor([np.flatnonzero(one.kept[stage]).tolist() for one in stages]) for stage in range(len(BLOCKS))
    ]
    twin = masked_pass(model, images, dict.fromkeys(BLOCKS, RATE), score, follow)
    for image, got in enumerate(stages):
        present = list(range(25))
        for stage in range(len(BLOCKS)):
            expected = on_grid(present, twin.scores[stage][image], (5, 5))
            assert np.array_equal(np.isnan(got.scores[stage]), np.isnan(expected))
            assert got.scores[stage] == pytest.approx(expected, abs=1e-4, nan_ok=True)
            present = twin.kept[stage][image]
            assert np.flatnonzero(got.kept[stage]).tolist() == present
        assert got.blocks == BLOCKS
        assert got.tokens == (25, 15, 9, 6)
        assert got.fused == (0, 0, 0)


def test_fused_tokens_are_counted_but_stand_nowhere_on_the_grid():
    model = create("deit")
    images = photographs(model, batch=8)
    telling = 0
    for image, got in enumerate(pruning_stages(model, images, method_config("evit", RATE, BLOCKS))):
        _, kept = fused_pass(model, images[image : image + 1], dict.fromkeys(BLOCKS, RATE))
        for stage, numbers in enumerate(kept):
            assert np.flatnonzero(got.kept[stage]).tolist() == [n for n in numbers if n != reference.FUSED]
            assert got.fused[stage] == numbers.count(reference.FUSED) + 1
            assert got.tokens[stage + 1] == len(numbers) + 1
            assert got.kept[stage].sum() + got.fused[stage] == got.tokens[stage + 1]
            telling += reference.FUSED in numbers and 0 not in numbers
    assert telling  # a kept fused token must not be taken for the first patch


def test_the_grid_is_in_raster_order_when_it_is_not_square():
    model = create("deit", img_size=(48, 80))
    images = photographs(model)
    (first, _) = pruning_stages(model, images, PruneConfig(keep_rate=0.5, blocks=(1,)))
    assert first.kept.shape == (1, 3, 5)
    with entropatch.trace(entropatch.prune_(model, keep_rate=0.5, blocks=(1,), order=2.0)) as trace, torch.no_grad():
        model(images)
    expected = np.zeros(15, dtype=bool)
    expected[trace.kept[0][0].numpy()] = True
    assert np.array_equal(first.kept[0], expected.reshape(3, 5))
    assert np.array_equal(first.scores[0].ravel(), trace.scores[0][0].numpy())


def test_inspecting_gives_crop_maps_and_stages_of_one_image():
    model = create("deit")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8))
    seen = inspect_image(model, image, ["evit", "shannon", "renyi-2"], RATE, blocks=BLOCKS)
    assert np.array_equal(seen.crop, np.asarray(cropped(image, model)))
    assert seen.crop.shape == (80, 80, 3)
    assert seen.blocks == BLOCKS
    assert list(seen.stages) == ["evit", "shannon", "renyi-2"]
    assert list(seen.entropy) == [1.0, 2.0]
    # Before the first pruning the pruned model is the unpruned one.
    assert seen.entropy[2.0][0] == pytest.approx(-seen.stages["renyi-2"].scores[0], abs=1e-6)
    assert list(inspect_image(model, image, ["random"], RATE).entropy) == [2.0]
    assert list(inspect_image(model, image, ["random"], RATE, orders=[math.inf]).entropy) == [math.inf]


def test_a_stock_model_is_left_as_it_was():
    model = create("deit").train()
    model.blocks[1].eval()
    classes = [type(module) for module in model.modules()]
    inspect_image(model, Image.new("RGB", (30, 30)), ["evit", "shannon"], 0.5)
    assert [type(module) for module in model.modules()] == classes
    assert model.training
    assert not model.blocks[1].attn.training
    with pytest.raises(ValueError, match="not pruned"):
        entropatch.pruning_config(model)


def test_a_pruned_model_keeps_its_setting():
    model = create("deit")
    config = PruneConfig(keep_rate=0.3, blocks=(2,))
    entropatch.prune_(model, config)
    images = photographs(model)
    expected = model(images)
    inspect_image(model, Image.new("RGB", (30, 30)), ["evit", "shannon"], 0.5)
    assert entropatch.pruning_config(model) == config
    assert torch.equal(model(images), expected)


def test_a_model_is_left_as_it_was_after_an_error():
    model = create("deit").train()
    with pytest.raises(ValueError, match="blocks must lie in"):
        entropy_maps(model, photographs(model), [1.0], blocks=(9,))
    with pytest.raises(AssertionError):
        entropy_maps(model, torch.zeros(1, 3, 7, 7), [1.0])
    assert type(model).__module__.startswith("timm")
    assert model.training


def test_one_image_of_a_batch_is_as_it_is_alone():
    model = create("dinov2")
    images = photographs(model, batch=3)
    config = method_config("renyi-2", RATE, BLOCKS)
    alone = pruning_stages(model, images[2:], config)[0]
    together = pruning_stages(model, images, config)[2]
    assert np.array_equal(alone.kept, together.kept)
    assert np.allclose(alone.scores, together.scores, atol=1e-5, equal_nan=True)


def test_half_precision_weights():
    model = create("deit").bfloat16()
    seen = inspect_image(model, Image.new("RGB", (30, 30), (9, 200, 90)), ["shannon"], RATE)
    assert seen.stages["shannon"].tokens == (25, 15, 9, 6)
    assert np.isfinite(seen.entropy[1.0]).all()


def test_methods_a_model_does_not_allow():
    with_class, without = create("deit"), create("siglip")
    names = ["evit", "random", "evit-drop", "renyi-2"]
    assert possible_methods(with_class, names) == (names, {})
    possible, refused = possible_methods(without, names)
    assert possible == ["random", "renyi-2"]
    assert list(refused) == ["evit", "evit-drop"]
    assert all("needs a class token" in reason for reason in refused.values())
    assert type(without).__module__.startswith("timm")
    with pytest.raises(UnsupportedModelError, match="needs a class token"):
        possible_methods(without, ["evit"])
    with pytest.raises(UnsupportedModelError, match="Linear"):
        possible_methods(torch.nn.Linear(2, 2), ["random"])


def test_bad_settings_are_refused():
    model, image = create("deit"), Image.new("RGB", (30, 30))
    with pytest.raises(ValueError, match="a method is one of"):
        inspect_image(model, image, ["nonsense"], 0.5)
    with pytest.raises(ValueError, match="at least one method"):
        inspect_image(model, image, [], 0.5)
    with pytest.raises(ValueError, match="at least one order"):
        inspect_image(model, image, ["random"], 0.5, orders=[])
    with pytest.raises(ValueError, match="keep_rate"):
        inspect_image(model, image, ["random"], 0)


# --------------------------------------------------------------------------------------------------------- merging


def followed(trace: entropatch.Trace, images: int, patches: int) -> list[list[dict[int, set[int]]]]:
    """What is in each token after each stage, {its position: patches}, by carrying out the plans token by token."""
    found = []
    for image in range(images):
        tokens = [(number, {number}) for number in range(patches)]
        stages = []
        for record in trace.stages:
            (plan,) = record.plans
            kept = [tokens[index] for index in plan.kept[image].tolist()]
            after = [(position, set(members)) for position, members in kept]
            for source, target in zip(plan.sources[image].tolist(), plan.targets[image].tolist(), strict=True):
                after[target][1].update(tokens[source][1])
            tokens = after
            stages.append(dict(tokens))
        found.append(stages)
    return found


@pytest.mark.parametrize("method", ["tome", "shannon-merge"])
def test_merged_patches_are_part_of_the_token_that_stands_for_them(method):
    model = create("deit")
    images, config = photographs(model, batch=3), PruneConfig(method=method, keep_rate=0.7)
    with entropatch.trace(entropatch.prune_(model, config)) as trace, torch.no_grad():
        model(images)
    groups = followed(trace, 3, 25)
    merged = 0
    for image, stages in enumerate(pruning_stages(model, images, config)):
        for stage, members in enumerate(groups[image]):
            stands = stages.stands[stage].ravel()
            assert {number: set(np.flatnonzero(stands == number)) for number in members} == members
            assert np.flatnonzero(stages.kept[stage]).tolist() == sorted(members)
            assert stages.tokens[stage + 1] == len(members)
            # Nothing is gone: what is not kept is merged.
            assert np.array_equal(stages.merged[stage], ~stages.kept[stage])
            merged += stages.merged[stage].sum()
        assert np.isnan(stages.scores).all() == (method == "tome")
    assert merged


def test_what_is_dropped_after_it_took_others_in_is_gone_with_them():
    @dataclass(frozen=True)
    class MergeThenDrop(Reduction):
        """Merges in the first stage and drops in the second."""

        kind = "_merge-then-drop"

        def plan(self, attention, tokens, scores, k):
            return (Merge() if tokens.n == tokens.total else Drop()).plan(attention, tokens, scores, k)

    model = create("deit")
    config = PruneConfig(keep_rate=0.5, blocks=(1, 2), reduction=MergeThenDrop())
    (stages,) = pruning_stages(model, photographs(model, batch=1), config)
    assert (stages.stands[0] >= 0).all()
    left = set(np.flatnonzero(stages.kept[1]))
    for number, after in zip(stages.stands[0].ravel(), stages.stands[1].ravel(), strict=True):
        assert after == (number if number in left else -1)
    assert 0 < (stages.stands[1] < 0).sum() < 25
    assert stages.fused == (0, 0)


@pytest.mark.parametrize("method", ["evo-vit", "cropr"])
def test_patches_that_wait_are_not_merged(method: str) -> None:
    """Evo-ViT's go around the blocks, Token Cropr's are joined again before the last; none is part of another's."""
    model = create("deit", depth=6)
    images, config = photographs(model, batch=1), PruneConfig(method=method, keep_rate=0.6)
    (stages,) = pruning_stages(model, images, config)
    assert not stages.merged.any()
    assert np.array_equal(stages.waiting, ~stages.kept)  # nothing is gone
    last = len(stages.blocks) - 1
    assert stages.waiting[0].any()
    text = count_text(stages, 0)
    assert text == f"{stages.kept[0].sum()} of 25, {stages.waiting[0].sum()} waiting"
    crop = np.random.default_rng(0).integers(0, 255, (80, 80, 3)).astype(np.uint8)
    drawn = remaining(crop, stages.kept[0], stages.stands[0])
    assert np.array_equal(drawn, remaining(crop, stages.kept[0]))  # as patches that are gone
    if method == "cropr":
        assert (stages.blocks[last], count_text(stages, last)) == (5, "25 of 25 patches")
        with torch.no_grad(), entropatch.trace(entropatch.prune_(model, config)) as trace:
            model(images)
        there = trace.stages[-1]
        assert there.kept.tolist() == there.patches.tolist() == [list(range(25))]
        assert there.counts_before == there.counts_after == 25
        assert there.dropped.shape == (1, 0)


def test_images_that_keep_different_numbers_have_counts_of_their_own():
    model = create("deit")
    images = photographs(model, batch=6) * torch.linspace(0.1, 4, 6)[:, None, None, None]
    config = PruneConfig(schedule=CumulativeImportance(share=0.55, sizes=(0.4, 0.5, 0.6)))
    together = pruning_stages(model, images, config)
    assert len({stages.tokens for stages in together}) > 1
    for image, stages in enumerate(together):
        (alone,) = pruning_stages(model, images[image : image + 1], config)
        assert (stages.tokens, stages.fused) == (alone.tokens, (0, 0, 0))
        assert np.array_equal(stages.kept, alone.kept)
        assert np.array_equal(stages.stands, alone.stands)
        assert stages.kept.sum((1, 2)).tolist() == list(stages.tokens[1:])


def test_methods_of_different_blocks_are_shown_after_the_same_ones():
    model = create("deit", depth=8)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8))
    seen = inspect_image(model, image, ["tome", "shannon"], 0.7)
    images = to_tensor(image, model)[None]
    tome, shannon = (pruning_stages(model, images, method_config(name, 0.7))[0] for name in ("tome", "shannon"))
    assert tome.blocks == tuple(range(8))
    assert seen.blocks == (2, 4, 6, 7)
    assert seen.entropy[1.0].shape == (4, 5, 5)
    for place, block in enumerate(seen.blocks):
        assert np.array_equal(seen.stages["tome"].stands[place], tome.stands[block])
        assert seen.stages["tome"].tokens[place + 1] == tome.tokens[block + 1]
        last = min(place, 2)  # nothing happens to the paper's method in the last block
        assert np.array_equal(seen.stages["shannon"].kept[place], shannon.kept[last])
        assert seen.stages["shannon"].tokens[place + 1] == shannon.tokens[last + 1]
    assert np.isnan(seen.stages["shannon"].scores[3]).all()
    before = shannon.at((0, 2))
    assert before.kept[0].all()
    assert (before.tokens, before.fused) == ((25, 25, shannon.tokens[1]), (0, 0))
    assert inspect_image(model, image, ["shannon", "evit"], 0.7).blocks == (2, 4, 6)
