"""Small random transformers models, one list entry for each class, with weights that make attention matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

WIDTH = 24
TEXT: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model class.

    Attributes:
        make: the model.
        tower, layers: where its tower is, and the layers in the tower.
        prefix: prefix tokens.
        dense: whether patches are read at their places.
        norm2: the norm behind the attention residual.
        changes: of the vision config, beside those of all.
        inputs: beside pixel_values.
        grid: patches of the input.
    """

    make: Callable[[dict[str, Any]], nn.Module]
    tower: str = ""
    layers: str = "layers"
    prefix: int = 1
    dense: bool = False
    norm2: str = "layernorm_after"
    changes: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[], dict[str, Any]] = dict
    grid: tuple[int, ...] = (4, 3)

    def model(self) -> Any:
        config = {
            "hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 32,
            "image_size": (32, 24), "patch_size": 8,
        }  # fmt: skip
        torch.manual_seed(0)
        return lively(self.make({**config, **self.changes}))

    def batch(self, model: nn.Module) -> dict[str, Any]:
        given = self.inputs()
        return given if "pixel_values" in given else {**pixels(model, 2, self.grid), **given}


def lively(model: nn.Module) -> Any:
    """In eval mode, with weights that tell tokens apart."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                std = 0.7 if ("q_proj" in name or "k_proj" in name or "query" in name or "key" in name) else 0.25
                parameter.normal_(0, std, generator=generator)
            elif "lambda" in name or "layer_scale" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def pixels(model: nn.Module, batch: int, grid: tuple[int, ...], patch: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {"pixel_values": torch.randn(batch, 3, grid[0] * patch, grid[1] * patch, generator=generator)}


def text() -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[1, 5, 7, 63], [1, 9, 3, 63]])}


def padded() -> dict[str, Tensor]:
    """Two images of 3×4 and 5×2 patches, filled up to 14."""
    generator = torch.Generator().manual_seed(2)
    mask = (torch.arange(14) < torch.tensor([[12], [10]])).int()
    values = torch.randn(2, 14, 3 * 8 * 8, generator=generator)
    return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor([[3, 4], [5, 2]])}


def unpadded() -> dict[str, Tensor]:
    inputs = padded()
    shapes = torch.tensor([[2, 7], [2, 7]])
    return {**inputs, "pixel_attention_mask": torch.ones(2, 14, dtype=torch.int32), "spatial_shapes": shapes}


def video() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 4, 3, 32, 24, generator=torch.Generator().manual_seed(2))}


def tiles() -> dict[str, Tensor]:
    """Two tiles, of which the second is filled up."""
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 2:] = False, False
    return {**pixels(nn.Identity(), 2, (4, 4)), "patch_attention_mask": mask}


def tower(file: str, name: str) -> Callable[[dict[str, Any]], nn.Module]:
    module = import_module(f"transformers.models.{file}.modeling_{file}")
    config = import_module(f"transformers.models.{file}.configuration_{file}")
    return lambda vision: getattr(module, f"{name}Transformer")(getattr(config, f"{name}Config")(**vision))


def depth(vision: dict[str, Any]) -> nn.Module:
    config = hf.DepthAnythingConfig(
        backbone_config=hf.Dinov2Config(**{**vision, "out_indices": [1, 2, 3, 4]}), reassemble_hidden_size=WIDTH,
        patch_size=8, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, head_hidden_size=4,
    )  # fmt: skip
    return hf.DepthAnythingForDepthEstimation(config)


def _clip(kind: str) -> Callable[[dict[str, Any]], nn.Module]:
    def make(vision: dict[str, Any]) -> nn.Module:
        words = {**TEXT, "hidden_size": vision["hidden_size"], "projection_size": vision["hidden_size"]}
        config = getattr(hf, f"{kind}Config")(text_config=words, vision_config=vision)
        return getattr(hf, f"{kind}Model")(config)

    return make


def _of(model: str, config: str) -> Callable[[dict[str, Any]], nn.Module]:
    return lambda vision: getattr(hf, model)(getattr(hf, config)(**vision))


SQUARE: dict[str, Any] = {"image_size": 32}
FOUR = (4, 4)
DINO: dict[str, Any] = {"layers": "encoder.layer", "norm2": "norm2"}
CLIP: dict[str, Any] = {"layers": "encoder.layers", "norm2": "layer_norm2", "changes": SQUARE, "grid": FOUR}
STAGES: dict[str, Any] = {"out_indices": [1, 2, 4]}
MLP: dict[str, Any] = {"mlp_ratio": 2, "image_size": 32}

NAFLEX: dict[str, Any] = {
    "layers": "encoder.layers", "norm2": "layer_norm2", "changes": {"num_patches": 16}, "prefix": 0,
}  # fmt: skip
VIDEO: dict[str, Any] = {
    "layers": "encoder.layer", "prefix": 0, "grid": (2, 4, 3), "inputs": video,
    "changes": {"num_frames": 4, "tubelet_size": 2},
}  # fmt: skip

CASES: dict[str, Case] = {
    "ViTModel": Case(_of("ViTModel", "ViTConfig")),
    "ViTModel, no qkv bias": Case(_of("ViTModel", "ViTConfig"), changes={"qkv_bias": False, "num_attention_heads": 4}),
    "ViTForImageClassification": Case(_of("ViTForImageClassification", "ViTConfig"), "vit"),
    "ViTForMaskedImageModeling": Case(
        _of("ViTForMaskedImageModeling", "ViTConfig"), "vit", dense=True, grid=FOUR,
        changes={**SQUARE, "encoder_stride": 8},
    ),
    "DeiTModel": Case(_of("DeiTModel", "DeiTConfig"), prefix=2),
    "DeiTForImageClassification": Case(_of("DeiTForImageClassification", "DeiTConfig"), "deit", prefix=2),
    "DeiTForImageClassificationWithTeacher": Case(
        _of("DeiTForImageClassificationWithTeacher", "DeiTConfig"), "deit", prefix=2
    ),
    "DeiTForMaskedImageModeling": Case(
        _of("DeiTForMaskedImageModeling", "DeiTConfig"), "deit", prefix=2, dense=True, grid=FOUR,
        changes={**SQUARE, "encoder_stride": 8},
    ),
    "ViTMSNModel": Case(_of("ViTMSNModel", "ViTMSNConfig")),
    "ViTMSNForImageClassification": Case(_of("ViTMSNForImageClassification", "ViTMSNConfig"), "vit"),
    "IJepaModel": Case(_of("IJepaModel", "IJepaConfig"), prefix=0),
    "IJepaForImageClassification": Case(_of("IJepaForImageClassification", "IJepaConfig"), "ijepa", prefix=0),
    "PixioModel": Case(_of("PixioModel", "PixioConfig"), prefix=8, changes=SQUARE, grid=FOUR),
    "PixioBackbone": Case(
        _of("PixioBackbone", "PixioConfig"), "pixio", prefix=8, dense=True, grid=FOUR,
        changes={**SQUARE, **STAGES, "drop_path_rate": 0.1},
    ),
    "Dinov2Model": Case(_of("Dinov2Model", "Dinov2Config"), **DINO, changes=MLP),
    "Dinov2Model, SwiGLU": Case(_of("Dinov2Model", "Dinov2Config"), **DINO, changes={"use_swiglu_ffn": True, **MLP}),
    "Dinov2ForImageClassification": Case(
        _of("Dinov2ForImageClassification", "Dinov2Config"), "dinov2", **DINO, changes={**MLP, "drop_path_rate": 0.1}
    ),
    "Dinov2Backbone": Case(_of("Dinov2Backbone", "Dinov2Config"), **DINO, dense=True, changes={**MLP, **STAGES}),
    "Dinov2Backbone, tokens": Case(
        _of("Dinov2Backbone", "Dinov2Config"), **DINO, dense=True,
        changes={**MLP, **STAGES, "reshape_hidden_states": False, "apply_layernorm": False},
    ),
    "Dinov2WithRegistersModel": Case(
        _of("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"), **DINO, prefix=3,
        changes={**MLP, "num_register_tokens": 2},
    ),
    "Dinov2WithRegistersForImageClassification": Case(
        _of("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig"), "dinov2_with_registers", **DINO,
        prefix=5, changes={**MLP, "num_register_tokens": 4},
    ),
    "Dinov2WithRegistersBackbone": Case(
        _of("Dinov2WithRegistersBackbone", "Dinov2WithRegistersConfig"), **DINO, prefix=5, dense=True,
        changes={**MLP, **STAGES},
    ),
    "DINOv3ViTModel": Case(
        _of("DINOv3ViTModel", "DINOv3ViTConfig"), layers="model.layer", norm2="norm2", prefix=5,
        changes={"num_register_tokens": 4},
    ),
    "DINOv3ViTModel, gated": Case(
        _of("DINOv3ViTModel", "DINOv3ViTConfig"), layers="model.layer", norm2="norm2",
        changes={"use_gated_mlp": True, "key_bias": True, "drop_path_rate": 0.1},
    ),
    "DINOv3ViTBackbone": Case(
        _of("DINOv3ViTBackbone", "DINOv3ViTConfig"), layers="model.layer", norm2="norm2", prefix=3, dense=True,
        changes={**STAGES, "num_register_tokens": 2, "return_class_token": True},
    ),
    "CLIPVisionModel": Case(_of("CLIPVisionModel", "CLIPVisionConfig"), **CLIP),
    "CLIPVisionModelWithProjection": Case(
        _of("CLIPVisionModelWithProjection", "CLIPVisionConfig"), "vision_model", **CLIP
    ),
    "CLIPModel": Case(_clip("CLIP"), "vision_model", **CLIP, inputs=text),
    "CLIPForImageClassification": Case(
        lambda vision: hf.CLIPForImageClassification(hf.CLIPConfig(text_config=TEXT, vision_config=vision)),
        "vision_model", **CLIP,
    ),
    "MetaClip2VisionModel": Case(_of("MetaClip2VisionModel", "MetaClip2VisionConfig"), **CLIP),
    "MetaClip2VisionModelWithProjection": Case(
        _of("MetaClip2VisionModelWithProjection", "MetaClip2VisionConfig"), "vision_model", **CLIP
    ),
    "AltCLIPVisionModel": Case(_of("AltCLIPVisionModel", "AltCLIPVisionConfig"), **CLIP),
    "ChineseCLIPVisionModel": Case(_of("ChineseCLIPVisionModel", "ChineseCLIPVisionConfig"), **CLIP),
    "SiglipVisionModel": Case(_of("SiglipVisionModel", "SiglipVisionConfig"), **CLIP, prefix=0),
    "SiglipVisionModel, no head": Case(
        _of("SiglipVisionModel", "SiglipVisionConfig"), **{**CLIP, "changes": {**SQUARE, "vision_use_head": False}},
        prefix=0,
    ),
    "SiglipModel": Case(_clip("Siglip"), "vision_model", **CLIP, prefix=0, inputs=text),
    "SiglipForImageClassification": Case(
        lambda vision: hf.SiglipForImageClassification(hf.SiglipConfig(text_config=TEXT, vision_config=vision)),
        "vision_model", **CLIP, prefix=0,
    ),
    "Siglip2VisionModel": Case(
        _of("Siglip2VisionModel", "Siglip2VisionConfig"), **NAFLEX, grid=(1, 14), inputs=padded,
    ),
    "Siglip2VisionModel, one grid": Case(
        _of("Siglip2VisionModel", "Siglip2VisionConfig"), **NAFLEX, grid=(2, 7), inputs=unpadded,
    ),
    "Siglip2Model": Case(
        _clip("Siglip2"), "vision_model", **NAFLEX, grid=(1, 14), inputs=lambda: {**padded(), **text()},
    ),
    "VideoMAEModel": Case(_of("VideoMAEModel", "VideoMAEConfig"), **VIDEO),
    "VideoMAEModel, final norm": Case(
        _of("VideoMAEModel", "VideoMAEConfig"), **{**VIDEO, "changes": {**VIDEO["changes"], "use_mean_pooling": False}},
    ),
    "VideoMAEForVideoClassification": Case(
        _of("VideoMAEForVideoClassification", "VideoMAEConfig"), "videomae", **VIDEO,
    ),
    "BlipVisionModel": Case(_of("BlipVisionModel", "BlipVisionConfig"), **CLIP),
    "Blip2VisionModel": Case(_of("Blip2VisionModel", "Blip2VisionConfig"), **CLIP),
    "InstructBlipVisionModel": Case(_of("InstructBlipVisionModel", "InstructBlipVisionConfig"), **CLIP),
    "InternVLVisionModel": Case(
        _of("InternVLVisionModel", "InternVLVisionConfig"), layers="encoder.layer", grid=FOUR,
        changes={"image_size": (32, 32), "patch_size": (8, 8), "use_qk_norm": True},
    ),
    "JanusVisionModel": Case(_of("JanusVisionModel", "JanusVisionConfig"), **CLIP, prefix=0, dense=True),
    "Idefics2VisionTransformer": Case(
        lambda vision: tower("idefics2", "Idefics2Vision")(vision), **CLIP, prefix=0, dense=True
    ),
    "Idefics3VisionTransformer": Case(
        lambda vision: tower("idefics3", "Idefics3Vision")(vision), **CLIP, prefix=0, dense=True, inputs=tiles,
    ),
    "SmolVLMVisionTransformer": Case(
        lambda vision: tower("smolvlm", "SmolVLMVision")(vision), **CLIP, prefix=0, dense=True, inputs=tiles,
    ),
    "DepthAnythingForDepthEstimation": Case(
        depth, "backbone", **DINO, dense=True, grid=FOUR, changes={**MLP, **STAGES, "reshape_hidden_states": False},
    ),
}  # fmt: skip
