"""The vision towers of transformers whose layers are understood, by name: no file of theirs is imported for it.

A tower's layers have one shape, x + a(norm1(x)), x + m(norm2(x)); what differs is what its parts are called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Parts:
    """What the parts of a layer are called.

    Attributes:
        norm1, attention, norm2, mlp: modules.
        scaled1, scaled2: what follows on attention and MLP before the residual: modules, or vectors that scale.
        core: the module with the queries and keys inside the attention; "" if it is the attention itself.
    """

    norm1: str
    attention: str
    norm2: str
    mlp: str
    scaled1: tuple[str, ...] = ()
    scaled2: tuple[str, ...] = ()
    core: str = ""


@dataclass(frozen=True)
class Family:
    """One file of transformers, and the tower in it.

    Attributes:
        module: the file, `transformers.models.{module}.modeling_{module}`.
        towers: classes of the tower, and what is read of their tokens if nothing holds them (see `READS`).
        layers: where the layers are, from each tower.
        layer, attention: classes.
        parts: what the parts of a layer are called.
        heads: class in `attention_classes` that splits queries, keys and values as this attention does.
        prefix: how many prefix tokens there are, from the config.
        norm: the final norm that `last_hidden_state` went through; "" for none.
        masked: whether layers take an `attention_mask`.
        tower: class in `tower_classes` that makes the forward passes.
        half: class in `layer_classes` that splits the layer.
    """

    module: str
    towers: dict[str, str]
    layers: dict[str, str]
    layer: str
    attention: str
    parts: Parts
    heads: str = "Separate"
    prefix: Callable[[Any], int] = lambda config: 1
    norm: str = ""
    masked: bool = True
    tower: str = "SplitTower"
    half: str = "SplitLayer"

    @property
    def path(self) -> str:
        return f"transformers.models.{self.module}.modeling_{self.module}"


def pair(size: Any) -> tuple[int, int]:
    """A side, or (height, width), as (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _none(config: Any) -> int:
    return 0


def _registers(config: Any) -> int:
    return 1 + config.num_register_tokens


VIT = Parts("layernorm_before", "attention", "layernorm_after", "mlp", ("dropout",), ("dropout",))
PIXIO = replace(VIT, scaled1=("dropout", "drop_path"), scaled2=("dropout", "drop_path"))
DINO = Parts("norm1", "attention", "norm2", "mlp", ("layer_scale1", "drop_path"), ("layer_scale2", "drop_path"))
CLIP = Parts("layer_norm1", "self_attn", "layer_norm2", "mlp")


def _vit(module: str, name: str, prefix: Callable[[Any], int], reads: str = "pooled", parts: Parts = VIT) -> Family:
    model = f"{name}Model"
    return Family(
        module, {model: reads}, {model: "layers"}, f"{name}Layer", f"{name}Attention", parts, "Separate", prefix,
        norm="layernorm",
    )  # fmt: skip


def _dino(module: str, name: str, prefix: Callable[[Any], int]) -> Family:
    towers = {f"{name}Model": "pooled", f"{name}Backbone": "grid"}
    return Family(
        module, towers, dict.fromkeys(towers, "encoder.layer"), f"{name}Layer", f"{name}Attention", DINO, "Separate",
        prefix, norm="layernorm",
    )  # fmt: skip


def _clip(module: str, name: str, layer: str = "EncoderLayer", attention: str = "Attention") -> Family:
    model = f"{name}VisionModel"
    return Family(module, {model: "pooled"}, {model: "encoder.layers"}, f"{name}{layer}", f"{name}{attention}", CLIP)


def _siglip(module: str, name: str) -> Family:
    clip = _clip(module, name)
    return replace(clip, towers=dict.fromkeys(clip.towers, "tokens"), prefix=_none, norm="post_layernorm")


def _blip(module: str, name: str, heads: str) -> Family:
    model = f"{name}VisionModel"
    return Family(
        module, {model: "pooled"}, {model: "encoder.layers"}, f"{name}EncoderLayer", f"{name}Attention", CLIP, heads,
        norm="post_layernorm", masked=False,
    )  # fmt: skip


def _tiled(module: str, name: str) -> Family:
    model = f"{name}VisionTransformer"
    return Family(
        module, {model: "grid"}, {model: "encoder.layers"}, f"{name}EncoderLayer", f"{name}VisionAttention", CLIP,
        prefix=_none, norm="post_layernorm", tower="Tiled",
    )  # fmt: skip


FAMILIES = (
    _vit("vit", "ViT", lambda config: 1),
    _vit("deit", "DeiT", lambda config: 2),
    _vit("vit_msn", "ViTMSN", lambda config: 1),
    _vit("ijepa", "IJepa", _none, reads="tokens"),
    _vit("pixio", "Pixio", lambda config: config.n_cls_tokens, parts=PIXIO),
    _dino("dinov2", "Dinov2", lambda config: 1),
    _dino("dinov2_with_registers", "Dinov2WithRegisters", _registers),
    Family(
        "dinov3_vit",
        {"DINOv3ViTModel": "pooled", "DINOv3ViTBackbone": "grid"},
        {"DINOv3ViTModel": "model.layer", "DINOv3ViTBackbone": "model.layer"},
        "DINOv3ViTLayer",
        "DINOv3ViTAttention",
        DINO,
        "Rotary",
        _registers,
        norm="norm",
    ),
    _clip("clip", "CLIP"),
    _clip("metaclip_2", "MetaClip2"),
    _clip("altclip", "AltCLIP"),
    _clip("chinese_clip", "ChineseCLIP", "VisionLayer", "VisionAttention"),
    _siglip("siglip", "Siglip"),
    replace(_siglip("siglip2", "Siglip2"), tower="Padded"),
    Family(
        "videomae",
        {"VideoMAEModel": "tokens"},
        {"VideoMAEModel": "encoder.layer"},
        "VideoMAELayer",
        "VideoMAESelfAttention",
        replace(VIT, scaled1=(), core="attention"),
        heads="Video",
        prefix=_none,
        norm="layernorm",
        masked=False,
        tower="Video",
        half="Video",
    ),
    _blip("blip", "Blip", "Matrix"),
    _blip("blip_2", "Blip2", "Joint"),
    _blip("instructblip", "InstructBlip", "Joint"),
    Family(
        "internvl",
        {"InternVLVisionModel": "pooled"},
        {"InternVLVisionModel": "encoder.layer"},
        "InternVLVisionLayer",
        "InternVLVisionAttention",
        replace(VIT, scaled1=("lambda_1",), scaled2=("dropout", "lambda_2")),
        heads="Normed",
        norm="layernorm",
        masked=False,
        tower="Silent",
    ),
    Family(
        "janus",
        {"JanusVisionModel": "grid"},
        {"JanusVisionModel": "encoder.layers"},
        "JanusVisionEncoderLayer",
        "JanusVisionAttention",
        CLIP,
        heads="Normed",
        prefix=_none,
        norm="post_layernorm",
    ),
    _tiled("idefics2", "Idefics2"),
    _tiled("idefics3", "Idefics3"),
    _tiled("smolvlm", "SmolVLM"),
)
