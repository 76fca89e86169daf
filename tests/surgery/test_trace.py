"""trace, restore, and dense feature maps: what was kept, and where it stood on the grid."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import reference
import timm
import torch
from small_models import FAMILIES, GRID, awaken, create, patch_size, photographs
from torch import Tensor, nn

import entropatch
from entropatch import ClassAttention

pytestmark = pytest.mark.usefixtures("one_thread")

FUSE = {"criterion": ClassAttention(), "reduction": "fuse"}


def run(model: Any, images: Tensor) -> tuple[Tensor, entropatch.Trace]:
    with torch.no_grad(), entropatch.trace(model) as trace:
        features = model.forward_features(images)
    return features, trace


def patches_at_middle(model: Any, block: int, images: Tensor) -> Tensor:
    """Patch tokens after the attention residual of a pre-norm block: what its second norm is given."""
    seen = []
    handle = model.blocks[block].norm2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0][:, model.num_prefix_tokens :]


# -------------------------------------------------------------------------------------------------------------- trace


def test_records_of_every_stage():
    model = entropatch.prune_(create("dinov2 registers"), keep_rate=0.5, order=1.0, blocks=(0, 2))
    images = photographs(model)
    _, trace = run(model, images)
    assert trace.grid == (GRID, GRID)
    assert trace.config == entropatch.pruning_config(model)
    assert trace.num_prefix_tokens == 5
    assert trace.counts == [25, 13, 7]
    first, second = trace.stages
    assert (first.block, second.block) == (0, 2)
    assert not first.fused
    assert not second.fused
    assert first.patches.tolist() == [list(range(25))] * 2
    assert second.patches.tolist() == first.kept.tolist()
    for stage in (first, second):
        assert stage.scores.shape == stage.patches.shape
        for row in range(2):
            order = stage.patches[row, stage.scores[row].argsort(descending=True)].tolist()
            kept, dropped = stage.kept[row].tolist(), stage.dropped[row].tolist()
            assert kept == sorted(order[: len(kept)])
            assert dropped == sorted(order[len(kept) :])
    # The last values of the dropped are those of the unpruned first block: nothing was pruned before.
    stock = patches_at_middle(create("dinov2 registers"), 0, images)
    torch.testing.assert_close(first.dropped_tokens, stock.gather(1, first.dropped[..., None].expand(-1, -1, 32)))


def test_records_of_fused_tokens():
    model = entropatch.prune_(create("deit"), keep_rate=0.5, **FUSE)
    _, trace = run(model, photographs(model))
    assert trace.counts == [25, 14, 8, 5]
    first, second, _ = trace.stages
    assert first.fused
    assert first.kept.shape == (2, 13)
    assert second.patches[:, -1].tolist() == [reference.FUSED] * 2
    assert second.patches[:, :-1].tolist() == first.kept.tolist()
    for stage in trace.stages:
        everything = torch.cat((stage.kept, stage.dropped), dim=1).sort(1).values
        assert everything.tolist() == stage.patches.sort(1).values.tolist()


def test_the_trace_holds_the_last_forward_pass_and_stays_readable():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    images = photographs(model, batch=3)
    with torch.no_grad(), entropatch.trace(model) as trace:
        assert trace.counts == []
        assert trace.stages == []
        assert trace.grid is None
        model(images[:1])
        model(images[1:])
    expected = run(model, images[1:])[1]
    model(images)  # after the trace was closed
    assert [kept.tolist() for kept in trace.kept] == [kept.tolist() for kept in expected.kept]


def test_traces_nest():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    images = photographs(model, batch=3)
    with torch.no_grad(), entropatch.trace(model) as outer:
        model(images[:1])
        with entropatch.trace(model) as inner:
            model(images[1:])
        assert outer.kept[0].shape[0] == 1
        assert inner.kept[0].shape[0] == 2
        model(images)
    assert outer.kept[0].shape[0] == 3
    assert inner.kept[0].shape[0] == 2


def test_a_trace_closes_when_the_model_fails():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    with pytest.raises(AssertionError), entropatch.trace(model) as trace:
        model(torch.zeros(1, 3, 7, 7))
    model(photographs(model))
    assert trace.stages == []


def test_changing_the_setting_while_a_trace_is_open():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(photographs(model))
        entropatch.prune_(model, keep_rate=0.8, blocks=(1,))
        model(photographs(model))
        assert trace.counts == [25, 20]
        assert trace.config == entropatch.pruning_config(model)


def test_listening_changes_nothing():
    for keep_rate in (0.5, 1.0):
        model = entropatch.prune_(create("eva-02"), keep_rate=keep_rate)
        images = photographs(model)
        with torch.no_grad():
            silent = model.forward_features(images)
        assert torch.equal(run(model, images)[0], silent)


# ------------------------------------------------------------------------------------------------------------ restore


@pytest.mark.parametrize("name", ["dinov2 registers", "siglip", "average", "eva-02", "dinov3"])
def test_restore_puts_every_patch_where_it_stood(name):
    model = entropatch.prune_(create(name), keep_rate=0.5)
    images = photographs(model)
    features, trace = run(model, images)
    dense = entropatch.restore(features, trace)
    assert dense.shape == (2, GRID, GRID, 32)
    flat, prefix = dense.flatten(1, 2), model.num_prefix_tokens
    middles = {stage.block: patches_at_middle(model, stage.block, images) for stage in trace.stages}
    for row in range(2):
        left = trace.kept[-1][row].tolist()
        for place, patch in enumerate(left):
            assert torch.equal(flat[row, patch], features[row, prefix + place])
        for stage in trace.stages:  # each pruned patch shows the last value it had, through the model's final norm
            present = stage.patches[row].tolist()
            for patch in set(present) - set(stage.kept[row].tolist()):
                # The hook sees the tokens after the reduction, so a dropped one is looked up in the record.
                last = stage.tokens[row, present.index(patch)]
                torch.testing.assert_close(flat[row, patch], model.norm(last).detach())
    assert middles[1].shape[1] == 13
    assert torch.equal(entropatch.restore(features[:, prefix:], trace), dense)


def test_restored_values_of_the_first_stage_are_the_stock_models():
    """The record itself against the stock model: at the first stage nothing was pruned before."""
    model, stock = create("deit"), create("deit")
    entropatch.prune_(model, keep_rate=0.5, blocks=(2,))
    images = photographs(model)
    features, trace = run(model, images)
    middle = patches_at_middle(stock, 2, images)
    raw = entropatch.restore(features, trace, normed=False).flatten(1, 2)
    normed = entropatch.restore(features, trace).flatten(1, 2)
    gone = torch.ones(2, 25, dtype=torch.bool).scatter(1, trace.kept[-1], False)
    torch.testing.assert_close(raw[gone], middle[gone])
    torch.testing.assert_close(normed[gone], stock.norm(middle)[gone])
    assert torch.equal(raw[~gone], normed[~gone])


def test_restore_fills_with_a_number_or_a_vector():
    model = entropatch.prune_(create("dinov3"), keep_rate=0.5)
    features, trace = run(model, photographs(model))
    gone = torch.ones(2, 25, dtype=torch.bool).scatter(1, trace.kept[-1], False)
    dense = entropatch.restore(features, trace)
    for fill in (0.0, -2, torch.tensor(3.0), torch.arange(32.0)):
        filled = entropatch.restore(features, trace, fill=fill).flatten(1, 2)
        assert torch.equal(filled[gone], torch.as_tensor(fill, dtype=torch.float32).expand(int(gone.sum()), 32))
        assert torch.equal(filled[~gone], dense.flatten(1, 2)[~gone])


def test_restore_leaves_fused_tokens_out():
    model = entropatch.prune_(create("deit"), keep_rate=0.5, **FUSE)
    images = photographs(model)
    features, trace = run(model, images)
    filled = entropatch.restore(features, trace, fill=float("nan")).flatten(1, 2)
    kept = [[patch for patch in row if patch != reference.FUSED] for row in trace.kept[-1].tolist()]
    for row in range(2):
        shown = (~filled[row].isnan()).all(-1).nonzero().flatten().tolist()
        assert shown == kept[row]
    dense = entropatch.restore(features, trace)
    assert dense.isfinite().all()
    assert len(dense.flatten(1, 2)[0].unique(dim=0)) == 25  # one value of its own for every patch


def test_restore_keeps_the_type_and_the_gradient():
    model = entropatch.prune_(create("deit"), keep_rate=0.5).bfloat16()
    features, trace = run(model, photographs(model).bfloat16())
    assert entropatch.restore(features, trace).dtype == torch.bfloat16
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    with entropatch.trace(model) as trace:
        features = model.forward_features(photographs(model))
    entropatch.restore(features, trace).sum().backward()
    assert model.patch_embed.proj.weight.grad.abs().sum() > 0


def test_restore_at_keep_rate_one_is_a_reshape():
    model = entropatch.prune_(create("deit"), keep_rate=1.0)
    features, trace = run(model, photographs(model))
    assert torch.equal(entropatch.restore(features, trace), features[:, 1:].unflatten(1, (GRID, GRID)))


def test_restore_refuses_what_does_not_belong_together():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    images = photographs(model)
    features, trace = run(model, images)
    with pytest.raises(ValueError, match=r"fill must be .*, a number or a tensor .* but got 'first'"):
        entropatch.restore(features, trace, fill="first")
    with pytest.raises(ValueError, match=r"fill must be .* of width 32, but got shape \(7,\)"):
        entropatch.restore(features, trace, fill=torch.zeros(7))
    with pytest.raises(ValueError, match=r"tokens must be \(batch, tokens, width\), but got shape \(2, 32\)"):
        entropatch.restore(features[:, 0], trace)
    with pytest.raises(ValueError, match=r"the 4 patch tokens of 2 images .* restore before the next forward pass"):
        entropatch.restore(features[:1], trace)
    with pytest.raises(ValueError, match="the 4 patch tokens of 2 images"):
        entropatch.restore(features[:, :3], trace)
    with entropatch.trace(model) as empty:
        pass
    with pytest.raises(ValueError, match="the trace is empty; run the model inside"):
        entropatch.restore(features, empty)
    with torch.no_grad(), entropatch.trace(model) as stale:
        first = model.forward_features(images)
        entropatch.prune_(model, keep_rate=0.7)
        model.forward_features(images)
    with pytest.raises(ValueError, match="the 10 patch tokens of 2 images"):
        entropatch.restore(first, stale)


def test_restore_needs_all_patches_to_have_entered():
    model = entropatch.prune_(create("deit", patch_drop_rate=0.4), keep_rate=0.5).train()
    features, trace = run(model, photographs(model))
    assert trace.counts == [15, 8, 4, 2]
    with pytest.raises(ValueError, match=r"saw 15 patches of a 5×5 grid: tokens were lost .* use model.eval\(\)"):
        entropatch.restore(features, trace)
    features, trace = run(model.eval(), photographs(model))
    assert entropatch.restore(features, trace).shape == (2, 5, 5, 32)


# ------------------------------------------------------------------------------------------------ forward_intermediates


@pytest.mark.parametrize("name", FAMILIES)
def test_feature_maps_are_dense(name):
    """Kept patches show the tokens that leave the block, pruned ones the last value they had; against hooks."""
    model = entropatch.prune_(create(name), keep_rate=0.5)
    images = photographs(model)
    outputs: list[Tensor] = []
    handles = [block.register_forward_hook(lambda m, args, y: outputs.append(y)) for block in model.blocks]
    features, trace = run(model, images)
    for handle in handles:
        handle.remove()
    prefix, canvas, expected = model.num_prefix_tokens, torch.zeros(2, 25, 32), []
    numbers = torch.arange(25).expand(2, -1)
    records = {stage.block: stage for stage in trace.stages}
    for block, tokens in enumerate(outputs):
        if block in records:
            gone = records[block].dropped[..., None].expand(-1, -1, 32)
            canvas, numbers = canvas.scatter(1, gone, records[block].dropped_tokens), records[block].kept
        expected.append(canvas.scatter(1, numbers[..., None].expand(-1, -1, 32), tokens[:, prefix:]))
    with torch.no_grad():
        final, maps = model.forward_intermediates(images, output_fmt="NLC")
        assert torch.equal(final, features)
        assert len(maps) == 4
        assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
        normed = model.forward_intermediates(images, norm=True, intermediates_only=True)
        for a, b in zip(normed, expected, strict=True):
            torch.testing.assert_close(a, model.norm(b).unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("keep_rate", [1.0, 0.5])
@pytest.mark.parametrize("name", ["deit distilled", "siglip", "dinov3", "perception encoder, no class token"])
def test_feature_maps_come_in_all_of_timms_forms(name, keep_rate):
    """Shape for shape as the stock model gives them, and equal to them at keep rate 1."""
    model, stock = create(name), create(name)
    entropatch.prune_(model, keep_rate=keep_rate)
    images = photographs(model)
    forms: list[dict[str, Any]] = [
        {},
        {"indices": 2, "intermediates_only": True},
        {"indices": [0, -1], "norm": True, "output_fmt": "NLC"},
        {"indices": [1], "stop_early": True, "intermediates_only": True},
        {"indices": (1, 1), "intermediates_only": True},
    ]
    if stock.num_prefix_tokens or name == "siglip":  # timm's Eva fails when asked for prefix tokens it has not
        forms.append({"indices": 2, "return_prefix_tokens": True, "norm": True})
    if isinstance(stock, timm.models.VisionTransformer):
        forms += [
            {"output_dict": True},
            {"output_dict": True, "return_prefix_tokens": True, "intermediates_only": True},
        ]
    with torch.no_grad():
        for form in forms:
            got, expected = (leaves(m.forward_intermediates(images, **form)) for m in (model, stock))
            assert list(got) == list(expected)
            for key, value in expected.items():
                # The final features are not maps: they hold the kept tokens only.
                if keep_rate == 1 or not key.endswith("final"):
                    assert got[key].shape == value.shape, (form, key)
                if keep_rate == 1:
                    assert torch.equal(got[key], value), (form, key)


def leaves(result: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of a nest of lists, tuples and dicts, by their place in it."""
    if isinstance(result, Tensor):
        return {name: result}
    if isinstance(result, tuple) and isinstance(result[1], list):
        return {f"{name}.final": result[0]} | leaves(result[1], f"{name}.maps")
    if isinstance(result, dict):
        items = [("final" if key == "image_features" else key, value) for key, value in result.items()]
    else:
        items = list(enumerate(result))
    return {key: leaf for place, value in items for key, leaf in leaves(value, f"{name}.{place}").items()}


def test_prefix_tokens_without_any_are_left_out_where_timm_fails():
    model = entropatch.prune_(create("perception encoder, no class token"), keep_rate=0.5)
    maps = model.forward_intermediates(photographs(model), return_prefix_tokens=True, intermediates_only=True)
    assert [tuple(y.shape) for y in maps] == [(2, 32, GRID, GRID)] * 4


def test_feature_maps_of_a_grid_that_is_not_square_and_of_any_size():
    patch = create("eva-02").patch_embed.patch_size[0]
    model = entropatch.prune_(create("eva-02", dynamic_img_size=True, dynamic_img_pad=True), keep_rate=0.5)
    images = photographs(model, size=(3 * patch, 6 * patch - 5))
    (dense,) = model.forward_intermediates(images, indices=1, intermediates_only=True)
    assert dense.shape == (2, 32, 3, 6)


def test_dinos_interface():
    model = entropatch.prune_(create("dinov2"), keep_rate=0.5)
    images = photographs(model)
    with torch.no_grad():
        maps = model.get_intermediate_layers(images, n=2, reshape=True, norm=True)
        expected = model.forward_intermediates(images, indices=2, norm=True, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_feature_maps_inside_a_trace():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    images = photographs(model)
    with torch.no_grad():
        expected = model.forward_intermediates(images, intermediates_only=True)
        with entropatch.trace(model) as trace:
            maps = model.forward_intermediates(images, intermediates_only=True)
    assert trace.counts == [25, 13, 7, 4]
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_gradients_reach_pruned_patches_through_the_maps():
    model = entropatch.prune_(create("deit"), keep_rate=0.5, blocks=(3,))
    images = photographs(model).requires_grad_()
    (dense,) = model.forward_intermediates(images, indices=1, intermediates_only=True)
    *_, trace = run(model, images)
    gone = trace.stages[0].dropped[0, 0].item()
    (gradient,) = torch.autograd.grad(dense[0, :, gone // GRID, gone % GRID].sum(), images)
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0


def test_feature_maps_refuse_other_formats():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    with pytest.raises(ValueError, match="output_fmt must be NCHW or NLC, but got 'NHWC'"):
        model.forward_intermediates(photographs(model), output_fmt="NHWC")


# ------------------------------------------------------------------------------------------------------ features_only


@pytest.mark.parametrize("name", ["deit", "dinov3"])
def test_timms_feature_extractor_around_a_pruned_model(name):
    variant, _ = FAMILIES[name]
    size = GRID * patch_size(variant)
    changes = {"embed_dim": 32, "depth": 6, "num_heads": 2, "img_size": size}
    extractor = awaken(timm.create_model(variant, features_only=True, out_indices=(1, 3, 5), **changes)).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        stock = extractor(images)
        entropatch.prune_(extractor.model, keep_rate=1.0)
        assert all(torch.equal(a, b) for a, b in zip(extractor(images), stock, strict=True))
        entropatch.prune_(extractor.model, keep_rate=0.5)
        with entropatch.trace(extractor.model) as trace:
            maps = extractor(images)
        assert [tuple(y.shape) for y in maps] == [tuple(y.shape) for y in stock]
        assert trace.counts == [25, 13, 7, 4]
        assert not torch.equal(maps[-1], stock[-1])
        assert torch.equal(maps[0], copy.deepcopy(extractor)(images)[0])
        assert isinstance(entropatch.unprune_(extractor.model), nn.Module)
        assert all(torch.equal(a, b) for a, b in zip(extractor(images), stock, strict=True))


def test_a_pruned_model_whose_last_blocks_timm_cuts_off():
    model = entropatch.prune_(create("deit"), keep_rate=0.5)
    images = photographs(model)
    expected = model.forward_intermediates(images, indices=[1, 2], intermediates_only=True)
    model.prune_intermediate_layers([1, 2], prune_norm=True)
    maps = model.forward_intermediates(images, indices=[1, 2], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    assert run(model, images)[1].counts == [25, 13, 7]
