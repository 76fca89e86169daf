"""Small stock models of torchvision and OpenCLIP, one for each way a supported one can be built."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from small_models import awaken
from torch import Tensor, nn
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

import entropatch
from entropatch import UnsupportedModelError

SIZE, GRID, DEPTH, WIDTH = 80, 5, 4, 32

TORCHVISION: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.3, "attention_dropout": 0.3},
    "odd heads": {"num_heads": 1},
    "pre-logits": {"representation_size": 12},
    "convolutional stem": {
        "conv_stem_configs": [ConvStemConfig(8, 3, 4), ConvStemConfig(8, 3, 2), ConvStemConfig(8, 3, 2)]
    },
    "other norm": {"norm_layer": partial(nn.LayerNorm, eps=1e-3)},
}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.3},
    "average": {"pool_type": "avg"},
    "norm after pooling": {"pool_type": "avg", "final_ln_after_pool": True},
    "no norm before, sin-cos": {"no_ln_pre": True, "pos_embed_type": "sin_cos_2d"},
    "attention pooling": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 6},
    "parallel pooling": {
        "attentional_pool": "parallel",
        "attn_pooler_heads": 2,
        "attn_pooler_queries": 6,
        "embed_dim": WIDTH,
    },
    "cascade pooling": {
        "attentional_pool": "cascade",
        "attn_pooler_heads": 2,
        "attn_pooler_queries": 6,
        "embed_dim": WIDTH,
    },
    "q/k norm": {"qk_norm": True},
    "custom": {
        "ls_init_value": 0.3,
        "scale_heads": True,
        "scale_attn_inner": True,
        "scale_attn": True,
        "scale_fc": True,
    },
    "patch dropout": {"patch_dropout": 0.5},
}
TEXT: dict[str, Any] = {"context_length": 8, "vocab_size": 50, "width": WIDTH, "heads": 2, "layers": 2}


def torchvision_model(name: str = "plain", **changes: Any) -> Any:
    """One of `TORCHVISION`, in evaluation mode, the same weights on every call."""
    torch.manual_seed(0)
    sizes = {"image_size": SIZE, "patch_size": 16, "num_layers": DEPTH, "num_heads": 2, "hidden_dim": WIDTH}
    arguments = {**sizes, "mlp_dim": 2 * WIDTH, "num_classes": 5, **TORCHVISION[name], **changes}
    return awaken(VisionTransformer(**arguments)).eval()


def vision_config(name: str = "plain", **changes: Any) -> dict[str, Any]:
    sizes = {"layers": DEPTH, "width": WIDTH, "head_width": 16, "patch_size": 16, "image_size": SIZE}
    return {"embed_dim": 16, **sizes, **OPEN_CLIP[name], **changes}


def clip(name: str = "plain", kind: type = CLIP, text: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A `CLIP` or `CustomTextCLIP` with one of the towers of `OPEN_CLIP`."""
    torch.manual_seed(0)
    whole = {name: changes.pop(name) for name in ("cast_dtype", "output_dict", "init_logit_bias") if name in changes}
    tower = vision_config(name, **changes)
    return awaken(kind(tower.pop("embed_dim"), tower, text or TEXT, **whole)).eval()


def coca(**changes: Any) -> Any:
    torch.manual_seed(0)
    decoder = {**TEXT, "context_length": 7, "attn_pooler_heads": 2}
    text = {**TEXT, "context_length": 7, "embed_cls": True, "output_tokens": True}
    tower = vision_config("attention pooling", embed_dim=WIDTH, output_tokens=True, **changes)
    return awaken(CoCa(tower.pop("embed_dim"), decoder, text, tower)).eval()


def timm_clip(**changes: Any) -> Any:
    """A `CustomTextCLIP` whose tower is timm's smallest ViT, for images of 160 px."""
    tower = {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160}
    return clip(kind=CustomTextCLIP, **(tower | changes))


def pictures(batch: int = 2, dtype: torch.dtype = torch.float32, size: int = SIZE) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def uneven_pictures() -> Tensor:
    """Four pictures of which some need more patches than others."""
    images = pictures(4, torch.float64)
    images[1] *= 0.1
    images[2] *= 5
    images[3, :, :40] *= 4
    return images


def words(batch: int = 2, length: int = 8) -> Tensor:
    return torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(2))


def refused(model: nn.Module) -> str:
    """The words of a refusal, which leaves the model as it was."""
    before = [type(part) for part in model.modules()]
    with pytest.raises(UnsupportedModelError) as error:
        entropatch.prune_(model)
    assert [type(part) for part in model.modules()] == before
    return str(error.value)
