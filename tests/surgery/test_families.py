"""Every transformer in timm: at keep rate 1 exactly the stock model, or refused by its class's name."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from small_models import FAMILIES, SMALL, SUPPORTED_CLASSES, create, known, photographs, promised_class, supported_names
from torch import nn

import entropatch

pytestmark = pytest.mark.usefixtures("one_thread")

# Written out, not read from the package: what is meant to be supported.
SPLITTABLE_BLOCKS = {"Block", "ResPostBlock", "EvaBlock", "EvaBlockPostNorm"}
SPLITTABLE_ATTENTION = {"Attention", "AttentionRope", "EvaAttention"}

# One model of each other transformer class, and of the block and attention classes of timm's ViT that are no split.
OTHERS = [
    "beit_base_patch16_224", "cait_xxs24_224", "coat_tiny", "coatnet_nano_rw_224", "convit_tiny", "crossvit_9_240",
    "davit_tiny", "deepseek_vit_412m", "deepseek_vit_412m_enc", "edgenext_xx_small", "efficientformer_l1",
    "efficientformerv2_s0", "efficientvit_b0", "efficientvit_m0", "fastvit_t8", "gcvit_xxtiny", "gemma4_vit_167m",
    "gemma4_vit_167m_enc", "hiera_tiny_224", "hieradet_small", "levit_128s", "levit_conv_128s", "maxvit_nano_rw_256",
    "mixer_s16_224", "mobilevit_xxs", "mobilevitv2_050", "mvitv2_tiny", "naflexvit_base_patch16_gap",
    "nest_tiny", "nextvit_small", "pit_ti_224", "pit_ti_distilled_224", "poolformer_s12", "pvt_v2_b0", "qwen3_vit_88m",
    "qwen3_vit_88m_enc", "samvit_base_patch16_224", "swiftformer_xs", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "test_vit_relpos", "tiny_vit_5m_224", "tnt_s_patch16_224",
    "twins_svt_small", "visformer_tiny", "volo_d1_224", "vit_relpos_base_patch16_cls_224",
    "vit_relpos_base_patch16_rpn_224", "xcit_nano_12_p16_224",
]  # fmt: skip
UNSPLITTABLE = {
    "vit_small_patch16_18x2_224": "ParallelThingsBlock",
    "vit_base_patch16_xp_224": "ParallelScalingBlock",
    "vit_dwee_patch16_reg1_gap_256": "DiffAttention",
    "vit_dpwee_patch16_reg1_gap_256": "DiffParallelScalingBlock",
}


def kind_of(model: Any) -> tuple[Any, ...]:
    """What tells supported models apart: the classes of their parts, how they pool, their prefix tokens."""
    rope = getattr(model, "rope", None)
    attention = model.blocks[0].attn
    return (
        type(model).__name__,
        type(model.blocks[0]).__name__,
        type(attention).__name__,
        type(rope).__name__ if rope is not None else None,
        getattr(attention, "qkv", None) is not None,
        getattr(attention, "num_kv_groups", 1) > 1,
        model.global_pool,
        model.cls_token is not None,
        model.num_prefix_tokens > int(model.cls_token is not None),
    )


def is_splittable(model: Any) -> bool:
    block = model.blocks[0]
    attention = getattr(block, "attn", None)
    return type(block).__name__ in SPLITTABLE_BLOCKS and type(attention).__name__ in SPLITTABLE_ATTENTION


def small(name: str) -> nn.Module:
    """A timm model of a supported class in small, at its own image size: its patch grids are part of the test."""
    full: Any = on_meta(name)
    changes: dict[str, Any] = {}
    groups = [getattr(getattr(block, "attn", None), "num_kv_groups", None) for block in full.blocks]
    if any(groups):  # one entry per block where heads share keys, which does not fit another depth
        changes["num_kv_heads"] = 1 if max(groups) > 1 else SMALL["num_heads"]
    if isinstance(full.patch_embed.proj, nn.Identity):  # the stem alone fixes the width
        changes |= {"embed_dim": full.embed_dim, "num_heads": full.blocks[0].attn.num_heads}
    return timm.create_model(name, **SMALL | changes).eval()


def assert_stock_at_keep_rate_one(model: nn.Module) -> None:
    images = photographs(model, batch=1)
    classes = [type(module) for module in model.modules()]
    with torch.no_grad():
        expected, features = model(images), model.forward_features(images)
        maps = model.forward_intermediates(images, indices=1, intermediates_only=True)
        assert entropatch.prune_(model, keep_rate=1.0) is model
        assert torch.equal(model(images), expected)
        assert torch.equal(model.forward_features(images), features)
        assert torch.equal(model.forward_intermediates(images, indices=1, intermediates_only=True)[0], maps[0])
        with entropatch.trace(model) as trace:
            assert torch.equal(model(images), expected)
        height, width = model.patch_embed.grid_size
        assert trace.grid == (height, width)
        assert trace.counts == [height * width] * (len(trace.stages) + 1)
        assert all(scores.isfinite().all() for scores in trace.scores)
        entropatch.unprune_(model)
        assert torch.equal(model(images), expected)
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("name", FAMILIES)
def test_keep_rate_one_is_the_stock_model(name):
    assert_stock_at_keep_rate_one(create(name))


def test_keep_rate_one_is_the_stock_model_on_a_convolutional_stem():
    assert_stock_at_keep_rate_one(small("vit_tiny_r_s16_p8_224"))


@pytest.mark.parametrize("name", OTHERS)
def test_other_transformers_are_refused_by_name(name):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    assert_refused_by_class(on_meta(name))


@pytest.mark.parametrize(("name", "part"), UNSPLITTABLE.items())
def test_vit_blocks_that_have_no_middle_are_refused_by_name(name, part):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    assert_refused_by_part(on_meta(name), part)


def test_the_supported_classes_still_have_the_names_we_list():
    names = supported_names()
    assert len(names) > 150
    assert {name for name, _ in FAMILIES.values() if timm.is_model(name)} <= set(names)
    assert not set(OTHERS) & set(names)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def assert_refused_by_class(model: nn.Module) -> None:
    before = type(model)
    with pytest.raises(entropatch.UnsupportedModelError) as refusal:
        entropatch.prune_(model)
    assert f"{before.__module__}.{before.__qualname__} is not supported" in str(refusal.value)
    assert "VisionTransformer, VisionTransformerDistilled, Eva" in str(refusal.value)
    assert type(model) is before


def assert_refused_by_part(model: nn.Module, part: str) -> None:
    classes = [type(module) for module in model.modules()]
    with pytest.raises(entropatch.UnsupportedModelError, match=f"block 0 is a timm.*{part}, which .* Supported: "):
        entropatch.prune_(model)
    assert [type(module) for module in model.modules()] == classes


# ------------------------------------------------------------------------------------------------ the complete walk


@pytest.mark.slow
@pytest.mark.parametrize("name", supported_names())
def test_every_supported_model(name):
    model = small(name)
    if is_splittable(model):
        assert_stock_at_keep_rate_one(model)
    else:
        block = model.blocks[0]
        assert_refused_by_part(model, type(getattr(block, "attn", block)).__name__)


@pytest.mark.slow
def test_the_families_cover_every_kind():
    """`FAMILIES`, which the quick tests run on, leaves out no kind of supported model that timm has."""
    covered = {kind_of(create(name)) for name in FAMILIES if known(name)}
    for name in supported_names():
        model = small(name)
        assert not is_splittable(model) or kind_of(model) in covered, f"{name} is a kind of its own: {kind_of(model)}"


def other_names() -> list[str]:
    return [name for name in timm.list_models() if promised_class(name) not in SUPPORTED_CLASSES]


@pytest.mark.slow
@pytest.mark.parametrize("name", other_names())
def test_every_other_model(name):
    """Also those that are no transformers: whatever timm has is supported or refused."""
    model = on_meta(name)
    if type(model) in SUPPORTED_CLASSES:
        assert_stock_at_keep_rate_one(small(name))
    else:
        assert_refused_by_class(model)
