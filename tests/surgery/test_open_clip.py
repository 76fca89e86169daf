"""OpenCLIP's towers: the stock model at keep rate 1, the masked dense model below, else refused; never the text."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from typing import Any

import pytest
import timm
import torch
from open_clip import get_model_config, list_models, transformer
from open_clip.model import CLIP, CustomTextCLIP, _build_vision_tower, convert_weights_to_lp
from reference_model import evit, renyi
from reference_towers import open_clip_twin
from small_towers import (
    DEPTH,
    OPEN_CLIP,
    SIZE,
    WIDTH,
    clip,
    coca,
    pictures,
    refused,
    timm_clip,
    uneven_pictures,
    words,
)
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn
from torch.utils._pytree import tree_leaves

import entropatch
from entropatch import UnsupportedModelError

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = {1: 0.7, 2: 0.5, 3: 0.6}
SETTING: dict[str, Any] = {"blocks": tuple(STAGES), "keep_rate": tuple(STAGES.values())}
WHOLE: dict[str, Any] = {"CLIP": clip, "CustomTextCLIP": lambda: clip(kind=CustomTextCLIP), "CoCa": coca}


def equal(ours: Any, theirs: Any) -> bool:
    pairs = list(zip(tree_leaves(ours), tree_leaves(theirs), strict=True))
    return all(torch.equal(a, b) for a, b in pairs) and len(pairs) > 0


@pytest.mark.parametrize("name", OPEN_CLIP)
@pytest.mark.parametrize("gradients", [False, True], ids=["fused path", "with gradients"])
def test_keep_rate_one_is_the_stock_tower_to_the_last_bit(name: str, gradients: bool) -> None:
    dense, pruned = clip(name).visual, entropatch.prune_(clip(name), keep_rate=1.0).visual
    images = pictures()
    with torch.set_grad_enabled(gradients):
        expected = dense(images)
        assert equal(pruned(images), expected)
        with entropatch.trace(pruned) as trace:
            assert equal(pruned(images), expected)
    assert trace.counts == [25] * 4
    assert all(scores is not None for scores in trace.scores)


@pytest.mark.parametrize("name", WHOLE)
def test_keep_rate_one_is_the_whole_stock_model(name: str) -> None:
    dense, pruned = WHOLE[name](), entropatch.prune_(WHOLE[name](), keep_rate=1.0)
    images, text = pictures(), words(length=7 if name == "CoCa" else 8)
    with torch.no_grad():
        assert equal(pruned(images, text), dense(images, text))
        assert torch.equal(pruned.encode_image(images, normalize=True), dense.encode_image(images, normalize=True))


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_equals_the_dense_tower_with_dropped_patches_masked(name: str) -> None:
    dense, pruned = clip(name).double().visual, entropatch.prune_(clip(name).double(), order=2.0, **SETTING)
    images = pictures(dtype=torch.float64)
    with torch.no_grad(), entropatch.trace(pruned) as trace:
        output = pruned.encode_image(images)
    twin = open_clip_twin(dense, images, STAGES, renyi(2.0))
    assert [kept.tolist() for kept in trace.kept] == twin.kept
    assert trace.counts == [25, 18, 9, 6]
    torch.testing.assert_close(output, twin.output, atol=1e-10, rtol=0)
    for scores, expected in zip(trace.scores, twin.scores, strict=True):
        torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=0)
    with torch.no_grad():
        assert (dense(images) - output).abs().max() > 0.01, "pruning changed nothing, so the test shows nothing"


def test_tokens_beside_the_output_are_those_that_are_left() -> None:
    for pool in ("tok", "none"):
        dense, pruned = (clip(pool_type=pool, output_tokens=True).double().visual for _ in range(2))
        entropatch.prune_(pruned, criterion=entropatch.ClassAttention(), **SETTING)
        twin = open_clip_twin(dense, pictures(dtype=torch.float64), STAGES, evit)
        with torch.no_grad(), entropatch.trace(pruned) as trace:
            pooled, tokens = pruned(pictures(dtype=torch.float64))
        torch.testing.assert_close((pooled, tokens), twin.output, atol=1e-10, rtol=0)
        assert tokens.shape[1] == (6 if pool == "tok" else 7)
        if pool == "tok":
            assert entropatch.restore(tokens, trace).shape == (2, 5, 5, WIDTH)


@pytest.mark.parametrize("setting", [{"keep_rate": 0.5}, {"method": "evit"}, {"method": "tome"}], ids=str)
def test_equals_timm_with_the_same_weights(setting: dict[str, Any]) -> None:
    ours = clip()
    sizes = {"img_size": SIZE, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "num_classes": 16}
    twin = timm.create_model("vit_base_patch16_clip_224", **sizes).eval()
    twin.load_state_dict(checkpoint_filter_fn(ours.state_dict(), twin))  # pyright: ignore[reportArgumentType]
    passes = []
    for model, run in ((ours, ours.encode_image), (twin, twin)):
        entropatch.prune_(model.double(), **setting)
        with torch.no_grad(), entropatch.trace(model) as trace:
            passes.append((run(pictures(dtype=torch.float64)), trace))
    (output, trace), (expected, theirs) = passes
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=0)
    assert trace.counts == theirs.counts
    assert all(torch.equal(*kept) for kept in zip(trace.kept, theirs.kept, strict=True))


# -------------------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("name", WHOLE)
def test_the_image_tower_alone_is_pruned(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, stock = WHOLE[name](), WHOLE[name]()
    images, text = pictures(), words(length=7 if name == "CoCa" else 8)
    with caplog.at_level(logging.INFO, "entropatch"):
        entropatch.prune_(model, keep_rate=0.5)
    assert f"{name}: .visual is pruned (VisionTransformer)." in caplog.text
    assert entropatch.tower_name(model) == "visual"
    changed = [
        part for part, other in zip(model.modules(), stock.modules(), strict=True) if type(part) is not type(other)
    ]
    assert {id(part) for part in changed} <= {id(part) for part in model.visual.modules()}
    assert len(changed) == 2 + 2 * DEPTH
    with torch.no_grad(), entropatch.trace(model) as trace:
        ours, theirs = model(images, text), stock(images, text)
        assert torch.equal(model.encode_text(text), stock.encode_text(text))
    assert trace.counts == [25, 13, 7, 4]
    image = ours["image_features"] if isinstance(ours, dict) else ours[0]
    assert not torch.equal(image, theirs["image_features"] if isinstance(theirs, dict) else theirs[0])
    with torch.no_grad():
        assert torch.equal(image, model.encode_image(images, normalize=True))
    entropatch.unprune_(model)
    assert [type(part) for part in model.modules()] == [type(part) for part in stock.modules()]
    with torch.no_grad():
        assert equal(model(images, text), stock(images, text))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_timm_tower_is_pruned_by_timms_adapter(pool: str) -> None:
    model, stock, images = timm_clip(timm_pool=pool), timm_clip(timm_pool=pool), pictures(size=160)
    twin = copy.deepcopy(stock.visual)
    assert entropatch.tower_name(model) == "visual.trunk"
    entropatch.prune_(model, keep_rate=0.5)
    entropatch.prune_(twin.trunk, keep_rate=0.5)
    with torch.no_grad(), entropatch.trace(model) as trace:
        assert torch.equal(model.encode_image(images), twin(images))
    assert trace.counts == [100, 50, 25, 13]
    entropatch.prune_(model, keep_rate=1.0)
    with torch.no_grad():
        assert torch.equal(model.encode_image(images), stock.encode_image(images))


def test_a_setting_copies_pickles_and_the_state_dict() -> None:
    model = clip()
    names = list(model.state_dict())
    entropatch.prune_(model, keep_rate=0.5)
    entropatch.prune_(model, order=1.0)
    assert entropatch.pruning_config(model) == entropatch.PruneConfig(keep_rate=0.5, order=1.0)
    assert list(model.state_dict()) == names
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.encode_image(pictures()), model.encode_image(pictures()))
    pair = nn.ModuleList([model, copy.deepcopy(model)])
    with pytest.raises(ValueError, match=r"ModuleList holds 2 pruned models, \.0\.visual, \.1\.visual; give the one"):
        entropatch.pruning_config(pair)
    with pytest.raises(ValueError, match=r"CLIP is not pruned"):
        entropatch.pruning_config(clip())


@pytest.mark.parametrize("pool", ["tok", "avg", "none"])
def test_counts_per_image_equal_each_image_alone(pool: str) -> None:
    model = clip(pool_type=pool, output_tokens=True).double()
    entropatch.prune_(model, schedule=entropatch.CumulativeImportance(0.82), blocks=(1, 2))
    with torch.no_grad(), entropatch.trace(model) as trace:
        pooled, tokens = model.visual(uneven_pictures())
    counts = trace.counts[-1]
    assert counts == [19, 25, 25, 19]
    for i, image in enumerate(uneven_pictures()):
        with torch.no_grad():
            alone, left = model.visual(image[None])
        n = left.shape[1]
        torch.testing.assert_close(tokens[i, :n], left[0], atol=1e-10, rtol=0)
        assert tokens[i, n:].isnan().all()
        torch.testing.assert_close(pooled[i, :n] if pool == "none" else pooled[i], alone[0], atol=1e-10, rtol=0)


# -------------------------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("indices", [None, 2, [0, 2]], ids=str)
def test_intermediates_are_dense(rate: float, indices: Any) -> None:
    stock, model = clip(), entropatch.prune_(clip(), keep_rate=rate)
    asked = {"image_indices": indices, "image_output_extra_tokens": True, "normalize_intermediates": True}
    with torch.no_grad():
        expected = stock.forward_intermediates(pictures(), **asked)
        found = model.forward_intermediates(pictures(), **asked)
        assert found.keys() == expected.keys()
        if rate == 1.0:
            assert equal(found, expected)
        assert [y.shape for y in tree_leaves(found)] == [y.shape for y in tree_leaves(expected)]
        assert torch.equal(found["image_intermediates"][0], expected["image_intermediates"][0]) == (
            rate == 1.0 or indices != 2
        )
        torch.testing.assert_close(found["image_features"], model.encode_image(pictures(), normalize=True))
        early = model.visual.forward_intermediates(
            pictures(), [1], stop_early=True, intermediates_only=True, output_fmt="NLC"
        )
    assert [y.shape for y in early["image_intermediates"]] == [(2, 25, WIDTH)]


def test_patch_dropout_in_training() -> None:
    dense, pruned = clip("patch dropout").train(), entropatch.prune_(clip("patch dropout"), keep_rate=1.0).train()
    outputs = []
    for model in (dense, pruned):
        torch.manual_seed(3)
        outputs.append(model.encode_image(pictures()))
    assert torch.equal(*outputs)
    entropatch.prune_(pruned, keep_rate=0.5)
    with entropatch.trace(pruned) as trace:
        pruned.encode_image(pictures()).square().sum().backward()
    assert trace.counts == [12, 6, 3, 2]
    assert all(p.grad is not None for p in pruned.visual.transformer.resblocks.parameters())


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_gradient_checkpointing(rate: float) -> None:
    gradients, runs = [], []
    for enable in (False, True):
        model = entropatch.prune_(clip("layer scale"), keep_rate=rate).train()
        model.set_grad_checkpointing(enable)
        for block in model.visual.transformer.resblocks:
            block.ln_1.register_forward_hook(lambda module, args, y, enable=enable: runs.append(enable))
        model.encode_image(pictures()).square().sum().backward()
        gradients.append([p.grad for p in model.visual.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    assert (runs.count(False), runs.count(True)) == (DEPTH, 2 * DEPTH)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [True, False], ids=["weights of OpenCLIP's precision", "all"])
def test_half_precision(dtype: torch.dtype, mixed: bool) -> None:
    """OpenCLIP's bf16 and fp16 leave the norms in float32; its pure_bf16 and pure_fp16 do not."""
    models = [clip(cast_dtype=dtype if mixed else None) for _ in range(2)]
    for model in models:
        convert_weights_to_lp(model, dtype) if mixed else model.to(dtype)
    assert models[0].visual.ln_post.weight.dtype == (torch.float32 if mixed else dtype)
    images = pictures(dtype=dtype)
    with torch.no_grad():
        expected = models[0].encode_image(images)
        assert torch.equal(entropatch.prune_(models[1], keep_rate=1.0).encode_image(images), expected)
        entropatch.prune_(models[1], keep_rate=0.5)
        with entropatch.trace(models[1]) as trace:
            output = models[1].encode_image(images)
    assert output.dtype == dtype
    assert trace.counts == [25, 13, 7, 4]
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert torch.equal(
            entropatch.prune_(clip(), keep_rate=1.0).encode_image(pictures()), clip().encode_image(pictures())
        )


@pytest.mark.parametrize("gradients", [False, True])
def test_a_tower_built_sequence_first(gradients: bool) -> None:
    dense, pruned = (sequence_first(clip("layer scale")) for _ in range(2))
    entropatch.prune_(pruned, keep_rate=1.0)
    with torch.set_grad_enabled(gradients):
        expected = dense.visual(pictures())
        assert torch.equal(pruned.visual(pictures()), expected)
        with entropatch.trace(pruned):
            assert torch.equal(pruned.visual(pictures()), expected)
    entropatch.prune_(pruned.double(), order=2.0, **SETTING)
    twin = open_clip_twin(dense.double().visual, pictures(dtype=torch.float64), STAGES, renyi(2.0))
    torch.testing.assert_close(pruned.visual(pictures(dtype=torch.float64)), twin.output, atol=1e-10, rtol=0)


def sequence_first(model: Any) -> Any:
    tower = model.visual
    old = tower.transformer
    tower.transformer = transformer.Transformer(WIDTH, DEPTH, 2, 4.0, 0.3, batch_first=False)
    tower.transformer.load_state_dict(old.state_dict())
    return model.eval()


def test_hooks_fire_and_a_watch_leaves_the_stock_model() -> None:
    model, seen, blocks = entropatch.prune_(clip(), keep_rate=0.5), [], []
    for name in ("transformer", "transformer.resblocks.3", "transformer.resblocks.3.attn"):
        model.visual.get_submodule(name).register_forward_hook(lambda module, args, y: seen.append(module))
    model.encode_image(pictures())
    assert len(seen) == 3
    entropatch.unprune_(model)
    expected = model.encode_image(pictures())
    with entropatch.watch(model, None, lambda attention, tokens: blocks.append(attention.block)) as watching:
        assert torch.equal(model.encode_image(pictures()), expected)
    assert blocks == [0, 1, 2, 3]
    assert watching.grid == (5, 5)
    assert type(model.visual) is transformer.VisionTransformer


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    model = entropatch.prune_(clip(), keep_rate=0.5)
    with torch.no_grad():
        compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(pictures(), words()), model(pictures(), words()))


def test_a_locked_tower_trains_what_is_unlocked() -> None:
    model = entropatch.prune_(clip(), keep_rate=0.5).train()
    model.lock_image_tower(unlocked_groups=2)
    model.encode_image(pictures()).square().sum().backward()
    trained = {name for name, p in model.visual.named_parameters() if p.grad is not None}
    assert {name.split(".resblocks.")[1][0] for name in trained if ".resblocks." in name} == {"3"}
    assert {"proj", "ln_post.weight"} <= trained


# ------------------------------------------------------------------------------------------------------------- refused


def test_other_towers_are_refused_by_name() -> None:
    model = clip(layers=(1, 1, 1, 1), width=32, image_size=64)
    assert re.search(r"ModifiedResNet, the \.visual of this CLIP, is not supported\.", refused(model))
    assert "open_clip VisionTransformer (also inside CLIP, CustomTextCLIP, CoCa, TimmModel)" in refused(model)
    convolutional = timm_clip(timm_model_name="test_convnext", timm_pool="avg")
    assert re.search(r"ConvNeXt, the \.visual\.trunk of this CustomTextCLIP, is not supported", refused(convolutional))


@pytest.mark.slow
def test_every_tower_that_open_clip_knows_is_pruned_or_refused_by_name() -> None:
    pruned, refusals = 0, set()
    for name in list_models():
        config: Any = get_model_config(name)
        with torch.device("meta"):
            tower: Any = _build_vision_tower(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False))
            try:
                entropatch.prune_(tower.eval(), keep_rate=0.5)
            except UnsupportedModelError as error:
                refusals |= set(re.findall(r"(\w+)(?:, the \.trunk of this TimmModel,)? is not supported", str(error)))
                continue
            with entropatch.trace(tower) as trace:
                tower(torch.empty(2, 3, *tower.image_size))
        counts = trace.counts
        assert counts[1:] == [(n + 1) // 2 for n in counts[:-1]], name
        pruned += 1
    assert pruned > 100
    assert refusals == {"ConvNeXt", "FastVit", "ModifiedResNet", "SwinTransformer", "VisionTransformerRelPos"}


def test_the_text_tower_is_refused_by_name() -> None:
    model = clip(kind=CustomTextCLIP)
    assert "TextTransformer is not supported" in refused(model.text)
    assert "Transformer is not supported" in refused(model.text.transformer)
    assert "Transformer is not supported" in refused(clip().transformer)


def test_attention_that_is_not_understood() -> None:
    scaled = clip(scaled_cosine_attn=True)
    with pytest.raises(RuntimeError, match="must be a 3D tensor"):  # the stock model does not run either
        scaled.encode_image(pictures())
    assert "the attention of block 0 has scaled_cosine_attn=True" in refused(scaled)
    model = clip()
    block = transformer.ResidualAttentionBlock(WIDTH, 2, is_cross_attention=True)
    model.visual.transformer.resblocks[2] = block
    assert "block 2 is built for cross-attention (is_cross_attention=True)" in refused(model)
    model = clip()
    model.visual.transformer.resblocks[2] = transformer.ResidualAttentionBlock(WIDTH, 2, batch_first=False)
    assert "has batch_first=True, but blocks of it have another layout" in refused(model)
    model = clip()
    model.visual.transformer.resblocks[1].attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True, add_zero_attn=True)
    assert "add_zero_attn=True" in refused(model)


def test_a_stock_model_that_does_not_run() -> None:
    """OpenCLIP's parallel pooling norms before it pools, by a norm of another width unless both are the same."""
    message = refused(clip("parallel pooling", embed_dim=16))
    assert "the stock VisionTransformer does not run on a random image of its size: Given normalized_shape" in message


def test_replaced_parts_and_subclasses() -> None:
    class Mine(CLIP):
        pass

    model = clip()
    model.__class__ = Mine
    assert re.search(r"Mine is not supported. It holds one as \.visual: prune that", refused(model))
    model = clip()
    model.visual._embeds = lambda x: x
    assert "the model (VisionTransformer) had its _embeds replaced on the instance" in refused(model)
    model = clip()
    model.visual.transformer = nn.Module()
    model.visual.transformer.resblocks = nn.ModuleList()
    assert "the transformer of the VisionTransformer is a Module" in refused(model)
    model = clip()
    model.visual.compile()
    assert "is compiled already" in refused(model)
    model = clip()
    model.visual = torch.compile(model.visual)
    assert "compiled already" in refused(model)


def test_a_scripted_model_is_refused_with_the_fix() -> None:
    tower = transformer.VisionTransformer(32, 16, 32, 1, 2, 4.0)
    assert "create_model(…, jit=False)" in refused(torch.jit.script(tower))


def test_a_tower_of_another_size_of_patches() -> None:
    model = clip(image_size=(64, 96), patch_size=16)
    with torch.no_grad(), entropatch.trace(entropatch.prune_(model, keep_rate=0.5)) as trace:
        model.encode_image(torch.randn(1, 3, 64, 96))
    assert trace.grid == (4, 6)
