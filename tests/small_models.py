"""Small stock timm models, one for each way a supported model can be built, with weights that make attention matter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import model_entrypoint
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SUPPORTED_CLASSES = (VisionTransformer, VisionTransformerDistilled, Eva)
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
GRID = 5

# name: (timm's model, what else it is created with). Together they cover the kinds that `kind_of` tells apart.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("deit_tiny_patch16_224", {}),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {}),
    "deit-iii": ("deit3_small_patch16_224", {}),
    "dinov2": ("vit_small_patch14_dinov2", {}),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", {}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "siglip average": ("vit_base_patch16_siglip_gap_224", {}),
    "registers, map": ("vit_so150m_patch16_reg4_map_256", {}),
    "average": ("vit_medium_patch16_gap_240", {}),
    "beit3": ("beit3_base_patch16_224", {}),
    "registers, average": ("vit_little_patch16_reg4_gap_256", {}),
    "post-norm": ("vit_base_patch16_rpn_224", {}),
    "radio": ("vit_base_patch16_radio_v3", {}),
    "q/k norm": ("deit_tiny_patch16_224", {"qk_norm": True}),
    "eva": ("eva_giant_patch14_224", {}),
    "eva clip": ("eva_giant_patch14_clip_224", {}),
    "eva-02": ("eva02_tiny_patch14_224", {}),
    "eva-02, three projections": ("eva02_base_patch14_224", {}),
    "eva-02 clip": ("eva02_base_patch16_clip_224", {}),
    "eva post-norm": ("eva02_enormous_patch14_clip_224", {}),
    "rope": ("vit_small_patch16_rope_224", {}),
    "rope mixed": ("vit_small_patch16_rope_mixed_224", {}),
    "rope mixed + absolute": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "rope registers": ("vit_betwixt_patch16_rope_reg4_gap_256", {}),
    "perception encoder": ("vit_pe_core_small_patch16_384", {}),
    "perception encoder, average": ("vit_pe_spatial_small_patch16_512", {}),
    "perception encoder, no class token": ("vit_pe_spatial_gigantic_patch14_448", {}),
    "perception encoder, no class token, map": ("vit_pe_core_gigantic_patch14_448", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "lingbot": ("vit_small_patch16_lingbot", {}),
    "sapiens2": ("vit_base_patch16_sapiens2", {"num_kv_heads": 2}),
    "sapiens2, shared keys": ("vit_base_patch16_sapiens2", {"num_heads": 4, "num_kv_heads": 2}),
}


def known(name: str) -> bool:
    """Whether the installed timm has this family's model; the newest families came with the newest versions."""
    return timm.is_model(FAMILIES[name][0])


def create(name: str, **changes: Any) -> nn.Module:
    """One of `FAMILIES` in small, in evaluation mode, the same weights on every call."""
    if not known(name):
        pytest.skip(f"timm {timm.__version__} has no {FAMILIES[name][0]}")
    torch.manual_seed(0)
    variant, extra = FAMILIES[name]
    arguments = SMALL | {"img_size": GRID * patch_size(variant)} | extra | changes
    return awaken(timm.create_model(variant, **arguments)).eval()


def patch_size(variant: str) -> int:
    return next(size for size in (14, 16) if f"patch{size}" in variant)


def photographs(model: Any, batch: int = 2, size: tuple[int, int] | None = None) -> Tensor:
    """Random images of the model's size."""
    shape = size or model.patch_embed.img_size
    return torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(1))


def awaken(model: nn.Module) -> nn.Module:
    """Draw new weights under which every part of the model matters; timm's own leave attention all but uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "rope" in name:  # learnt frequencies of rotary embeddings
                continue
            if name.endswith(("token", "pos_embed", "latent")):
                weight.copy_(0.5 * noise)
            elif weight.ndim < 2:  # biases, norms, LayerScale, temperatures
                weight.add_(0.2 * noise)
            else:
                weight.copy_(noise * weight[0].numel() ** -0.5)
    return model


def supported_names() -> list[str]:
    """timm's models whose entry point promises one of the supported classes."""
    return [name for name in timm.list_models() if promised_class(name) in SUPPORTED_CLASSES]


def promised_class(name: str) -> Any:
    """The class in the return annotation of a timm entry point."""
    return inspect.signature(model_entrypoint(name)).return_annotation


class Wrapped(nn.Module):
    """A model that says where in it the one to prune is, and makes something else of what that returns."""

    entropatch_tower = "tower"

    def __init__(self, tower: nn.Module, wrap: Callable[[Any], Any]) -> None:
        super().__init__()
        self.tower, self.wrap = tower, wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.tower(images))
