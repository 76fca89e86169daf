"""transformers' and timm's models of the same weights prune alike: the same patches, the same output."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from small_transformers import lively
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import entropatch
from entropatch import RunningClassAttention, SlowFast

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, DEPTH, HEADS = 24, 4, 3
CONFIG: dict[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
}  # fmt: skip
TIMM: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 2,
    "num_classes": 0, "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}  # fmt: skip
State = dict[str, Tensor]


def blocks(state: State, layers: str, names: dict[str, str]) -> State:
    """timm's names of the blocks' weights; names is from timm's to transformers', q, k and v joined."""
    moved: State = {}
    for i in range(DEPTH):
        for ours, theirs in names.items():
            for kind in ("weight", "bias"):
                parts = [state[f"{layers}.{i}.{part}.{kind}"] for part in theirs.split()]
                moved[f"blocks.{i}.{ours}.{kind}"] = torch.cat(parts)
    return moved


def names(attention: str, out: str, norm1: str, norm2: str) -> dict[str, str]:
    qkv = " ".join(f"{attention}.{x}_proj" for x in "qkv")
    return {
        "norm1": norm1, "attn.qkv": qkv, "attn.proj": f"{attention}.{out}", "norm2": norm2,
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip


def both(state: State, ours: str, theirs: str) -> State:
    return {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for kind in ("weight", "bias") if f"{theirs}.{kind}" in state}


def vit(state: State, dinov2: bool = False) -> State:
    layers = "encoder.layer" if dinov2 else "layers"
    norms = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
    moved = blocks(state, layers, names("attention", "o_proj", *norms))
    for i in range(DEPTH if dinov2 else 0):
        for n in (1, 2):
            moved[f"blocks.{i}.ls{n}.gamma"] = state[f"{layers}.{i}.layer_scale{n}.lambda1"]
    moved |= {"cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"]}
    if "embeddings.distillation_token" in state:
        moved["dist_token"] = state["embeddings.distillation_token"]
    stem = both(state, "patch_embed.proj", "embeddings.patch_embeddings.projection")
    return moved | stem | both(state, "norm", "layernorm")


def clip(state: State) -> State:
    moved = blocks(state, "encoder.layers", names("self_attn", "out_proj", "layer_norm1", "layer_norm2"))
    moved |= both(state, "patch_embed.proj", "embeddings.patch_embedding") | both(state, "norm", "post_layernorm")
    moved |= both(state, "norm_pre", "pre_layrnorm")
    moved["pos_embed"] = state["embeddings.position_embedding.weight"][None]
    if "embeddings.class_embedding" in state:
        moved["cls_token"] = state["embeddings.class_embedding"][None, None]
    return moved


def siglip(state: State) -> State:
    pool, their = "attn_pool", "head"
    moved = clip(state) | {f"{pool}.latent": state[f"{their}.probe"]}
    for kind in ("weight", "bias"):
        joint = state[f"{their}.attention.in_proj_{kind}"]
        moved |= {f"{pool}.q.{kind}": joint[:WIDTH], f"{pool}.kv.{kind}": joint[WIDTH:]}
    moved |= both(state, f"{pool}.proj", f"{their}.attention.out_proj") | both(
        state, f"{pool}.norm", f"{their}.layernorm"
    )
    return (
        moved | both(state, f"{pool}.mlp.fc1", f"{their}.mlp.fc1") | both(state, f"{pool}.mlp.fc2", f"{their}.mlp.fc2")
    )


TWINS: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[State], State], str]] = {
    "ViT": (
        lambda: hf.ViTModel(hf.ViTConfig(**CONFIG), add_pooling_layer=False),
        lambda: VisionTransformer(**TIMM), vit, "last_hidden_state",
    ),
    "DeiT": (
        lambda: hf.DeiTModel(hf.DeiTConfig(**CONFIG), add_pooling_layer=False),
        lambda: VisionTransformerDistilled(**TIMM), vit, "last_hidden_state",
    ),
    "DINOv2": (
        lambda: hf.Dinov2Model(hf.Dinov2Config(**{**CONFIG, "mlp_ratio": 2})),
        lambda: VisionTransformer(**TIMM, init_values=1.0), partial(vit, dinov2=True), "last_hidden_state",
    ),
    "CLIP": (
        lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**CONFIG)),
        lambda: VisionTransformer(**TIMM, pre_norm=True), clip, "pooler_output",
    ),
    "SigLIP": (
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**CONFIG)),
        lambda: VisionTransformer(**TIMM, class_token=False, global_pool="map"), siglip, "pooler_output",
    ),
}  # fmt: skip
METHODS: list[dict[str, Any]] = [
    {"keep_rate": 0.6, "order": 2.0}, {"keep_rate": 0.5, "method": "shannon"}, {"method": "tome", "r": 3},
    {"keep_rate": 0.7, "method": "evit"}, {"keep_rate": 0.6, "reduction": "merge"},
    {"keep_rate": 0.5, "method": "evo-vit"},
    {"keep_rate": 0.5, "criterion": RunningClassAttention(begin=1), "reduction": SlowFast(True), "blocks": (1, 3)},
]  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("setting", METHODS, ids=str)
def test_the_timm_twin_prunes_alike(name: str, setting: dict[str, Any]) -> None:
    make, make_timm, convert, key = TWINS[name]
    model, twin = lively(make()).double(), make_timm().double().eval()
    twin.load_state_dict(convert(model.state_dict()), strict=True)
    if name == "SigLIP" and (setting.get("method") in ("evit", "evo-vit") or "criterion" in setting):
        pytest.skip("no class token")
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    traces, outputs = [], []
    with torch.no_grad():
        for one in (model, twin):
            entropatch.prune_(one, **setting)
            with entropatch.trace(one) as trace:
                outputs.append(one(images)[key] if one is model else _of_timm(one, images, key))
            traces.append(trace)
    assert traces[0].counts == traces[1].counts
    assert all(torch.equal(a, b) for a, b in zip(traces[0].kept, traces[1].kept, strict=True))
    assert torch.allclose(*outputs, rtol=1e-9, atol=1e-9)


def _of_timm(model: Any, images: Tensor, key: str) -> Tensor:
    return model.forward_features(images) if key == "last_hidden_state" else model(images)
