"""A pruned model against stock models with masks: the same patches kept, the same output."""

from __future__ import annotations

import math

import pytest
import torch
from reference_model import evit, fused_pass, masked_pass, renyi
from small_models import FAMILIES, create, photographs

import entropatch

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = {1: 0.7, 2: 0.5, 3: 0.6}
EXACT = 1e-4  # on logits of unit size, in float32


def pruned_pass(name, images=None, batch=2, **setting):
    """Logits and trace of a pruned small model, and the stock twin's pass that follows it."""
    model = create(name)
    images = photographs(model, batch) if images is None else images
    setting = {"blocks": tuple(STAGES), "keep_rate": tuple(STAGES.values())} | setting
    entropatch.prune_(model, **setting)
    with torch.no_grad(), entropatch.trace(model) as trace:
        logits = model(images)
    return images, logits, trace


def assert_same_pass(logits, trace, twin):
    assert [kept.tolist() for kept in trace.kept] == twin.kept
    for scores, expected in zip(trace.scores, twin.scores, strict=True):
        torch.testing.assert_close(scores.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, twin.logits, atol=EXACT, rtol=0)
    # Following the model in near ties must stay the exception, or it would prove nothing.
    assert twin.near_ties <= 1


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_dense_model_with_dropped_patches_masked(name):
    images, logits, trace = pruned_pass(name, order=2.0)
    dense = masked_pass(create(name), images, STAGES, renyi(2.0), follow=trace.kept)
    assert_same_pass(logits, trace, dense)
    assert trace.counts == [25, 18, 9, 6]
    with torch.no_grad():
        assert (create(name)(images) - logits).abs().max() > 0.01, "pruning changed nothing, so the test shows nothing"


@pytest.mark.parametrize("order", [0.5, 1.0, 1.0005, 3.0, math.inf])
@pytest.mark.parametrize("name", ["dinov2 registers", "dinov3"])
def test_keeps_the_patches_of_the_loops_at_every_order(name, order):
    images, logits, trace = pruned_pass(name, order=order)
    assert_same_pass(logits, trace, masked_pass(create(name), images, STAGES, renyi(order), follow=trace.kept))


@pytest.mark.parametrize("name", ["deit", "deit distilled", "dinov2 registers", "eva-02 clip", "sapiens2, shared keys"])
def test_class_attention_keeps_the_patches_of_the_loops(name):
    images, logits, trace = pruned_pass(name, criterion=entropatch.ClassAttention())
    assert_same_pass(logits, trace, masked_pass(create(name), images, STAGES, evit, follow=trace.kept))


@pytest.mark.parametrize("name", ["deit", "dinov2 registers"])
def test_unfused_attention_with_a_scale_of_its_own(name):
    """With timm's fused path off the model multiplies by its attention's own scale, and so do the scores."""
    images = photographs(create(name))
    passes = {}
    for factor in (1.0, 2.0):
        model = create(name)
        for block in model.blocks:
            block.attn.fused_attn = False
            block.attn.scale *= factor
        entropatch.prune_(model, keep_rate=tuple(STAGES.values()), blocks=tuple(STAGES), order=2.0)
        with torch.no_grad(), entropatch.trace(model) as trace:
            passes[factor] = model(images), trace
    assert_same_pass(*passes[1.0], masked_pass(create(name), images, STAGES, renyi(2.0), follow=passes[1.0][1].kept))
    twin = create(name)
    with torch.no_grad():
        for block in twin.blocks:  # the scale written into the queries instead
            queries = slice(0, block.attn.qkv.weight.shape[0] // 3)
            block.attn.qkv.weight[queries] *= 2
            block.attn.qkv.bias[queries] *= 2
    assert_same_pass(*passes[2.0], masked_pass(twin, images, STAGES, renyi(2.0), follow=passes[2.0][1].kept))


@pytest.mark.parametrize("name", ["deit", "eva-02", "rope mixed"])
def test_gated_attention(name):
    """timm's attention may gate its output by its input; no released model is built so, but any may be."""
    model, stock = create(name), create(name)
    if not hasattr(stock.blocks[0].attn, "gate"):
        pytest.skip("this timm has no gates")
    for changed in (model, stock):
        torch.manual_seed(0)
        for block in changed.blocks:
            block.attn.gate = torch.nn.Linear(32, 32)
    images = photographs(stock)
    entropatch.prune_(model, keep_rate=tuple(STAGES.values()), blocks=tuple(STAGES), order=2.0)
    with torch.no_grad(), entropatch.trace(model) as trace:
        logits = model(images)
    assert_same_pass(logits, trace, masked_pass(stock, images, STAGES, renyi(2.0), follow=trace.kept))


@pytest.mark.parametrize("name", ["deit", "deit distilled", "deit-iii", "dinov2 registers", "clip", "q/k norm"])
def test_evit_with_its_fused_token_equals_the_loops(name):
    model = create(name).double()
    images = photographs(model).double()
    twin = [fused_pass(model, image[None], STAGES) for image in images]
    entropatch.prune_(
        model,
        keep_rate=tuple(STAGES.values()),
        blocks=tuple(STAGES),
        criterion=entropatch.ClassAttention(),
        reduction="fuse",
    )
    with torch.no_grad(), entropatch.trace(model) as trace:
        logits = model(images)
    for stage, kept in enumerate(trace.kept):
        assert kept.tolist() == [stages[stage] for _, stages in twin]
    torch.testing.assert_close(logits, torch.cat([output for output, _ in twin]), atol=1e-9, rtol=0)
    # ceil of the rate times the patches and the fused token before it, and then the new fused token.
    assert trace.counts == [25, 18 + 1, 10 + 1, 7 + 1]


def test_a_fused_token_is_made_only_where_something_was_dropped():
    model = create("deit").double()
    images = photographs(model).double()
    rates = {1: 0.6, 2: 1.0, 3: 0.5}
    twin = [fused_pass(model, image[None], rates) for image in images]
    setting = {"criterion": entropatch.ClassAttention(), "reduction": "fuse"}
    entropatch.prune_(model, keep_rate=tuple(rates.values()), blocks=tuple(rates), **setting)
    with torch.no_grad(), entropatch.trace(model) as trace:
        torch.testing.assert_close(model(images), torch.cat([y for y, _ in twin]), atol=1e-9, rtol=0)
    assert trace.counts == [25, 15 + 1, 16, 8 + 1]


@pytest.mark.parametrize("name", ["deit distilled", "dinov2 registers", "perception encoder, no class token"])
def test_a_grid_that_is_not_square(name):
    patch = create(name).patch_embed.patch_size[0]
    size = (3 * patch, 6 * patch)
    stock, model = create(name, img_size=size), create(name, img_size=size)
    images = photographs(model)
    entropatch.prune_(model, keep_rate=tuple(STAGES.values()), blocks=tuple(STAGES), order=1.0)
    with torch.no_grad(), entropatch.trace(model) as trace:
        logits = model(images)
    assert trace.grid == (3, 6)
    assert_same_pass(logits, trace, masked_pass(stock, images, STAGES, renyi(1.0), follow=trace.kept))


@pytest.mark.parametrize("name", ["deit", "dinov2 registers", "eva-02", "rope mixed"])
def test_images_of_any_size_where_the_model_takes_them(name):
    stock, model = create(name, dynamic_img_size=True), create(name, dynamic_img_size=True)
    patch = model.patch_embed.patch_size[0]
    entropatch.prune_(model, keep_rate=tuple(STAGES.values()), blocks=tuple(STAGES), order=2.0)
    for grid in ((4, 7), (5, 5), (6, 3)):
        images = photographs(model, size=(grid[0] * patch, grid[1] * patch))
        with torch.no_grad(), entropatch.trace(model) as trace:
            logits = model(images)
        assert trace.grid == grid
        assert_same_pass(logits, trace, masked_pass(stock, images, STAGES, renyi(2.0), follow=trace.kept))


def test_each_image_keeps_its_own_patches():
    images, logits, trace = pruned_pass("dinov3", batch=3)
    assert len({tuple(kept) for kept in trace.kept[-1].tolist()}) == 3
    model = create("dinov3")
    entropatch.prune_(model, keep_rate=tuple(STAGES.values()), blocks=tuple(STAGES))
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(logits, alone, atol=EXACT, rtol=0)
