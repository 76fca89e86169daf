"""Small models with random weights in place of those that a page's code would download; the code stays as it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import open_clip
import timm
import torch
import torchvision
import transformers as hf
from onnx import TensorProto, helper
from small_models import SMALL, awaken
from small_towers import clip

import entropatch
from entropatch.measure import count_flops

DEPTH = 12  # as the models that pages name, whose blocks they prune
DENSE = 4.608  # GFLOPs of the DeiT-S that pages name; budgets are shrunk with the model
_create, _calibrate, _export = timm.create_model, entropatch.calibrate, entropatch.export


def create_model(name: str, pretrained: bool = False, **fields: Any) -> Any:
    """A narrow model of that architecture, its depth and image size kept."""
    torch.manual_seed(0)
    return awaken(_create(name, **{**SMALL, "num_classes": 10, "depth": DEPTH, **fields}))


def calibrate(model: Any, images: Any, *, gflops: float, **settings: Any) -> Any:
    """With the same share of the small model's multiply-adds, and as little looking around as it does."""
    share = gflops / DENSE * count_flops(model, images[:1]).total / 1e9
    return _calibrate(model, images[:8], gflops=share, blocks=(3, 6, 9), effort=0, batch_size=8, **settings)


def image_classifier(name: str, **_: Any) -> Any:
    """A ViT of transformers; of a folder what is in it."""
    if Path(name).is_dir():
        return hf.ViTForImageClassification.from_pretrained(name)
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": DEPTH, "num_attention_heads": 3}
    torch.manual_seed(0)
    return hf.ViTForImageClassification(hf.ViTConfig(**sizes, intermediate_size=32))


def vit_b_16(**_: Any) -> Any:
    """torchvision's, narrow."""
    return torchvision.models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=DEPTH, num_heads=2, hidden_dim=24, mlp_dim=32
    )


def llava(*_: Any, **__: Any) -> Any:
    """A small LLaVA."""
    config = hf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 24, "num_hidden_layers": 4,
                       "num_attention_heads": 3, "intermediate_size": 32, "image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64},
        image_token_index=60,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config)


def llava_processor(*_: Any, **__: Any) -> Any:
    """A processor of the kind that the helper knows by its class."""
    return type(
        "LlavaProcessor",
        (),
        {"patch_size": 8, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
    )()


def calibrate_at_once(model: Any, images: Any, **settings: Any) -> Any:
    """No calibration: the call is one that `calibrate` takes, and a setting comes back."""
    inspect.signature(_calibrate).bind(model, images, **settings)
    return entropatch.PruneConfig(keep_rate=0.5, blocks=(3, 9), order=(2.0, 1.0))


def export_at_once(model: Any, images: Any, path: str, **options: Any) -> None:
    """No export: the call is one that `export` takes, and an ONNX file of as many classes is there."""
    inspect.signature(_export).bind(model, images, path, **options)
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [3, 10], [0.1] * 30)
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 224, 224])
    made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "page", [given], [made], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@contextmanager
def in_place(*, quick: bool = True) -> Iterator[None]:
    """While it is open, nothing is downloaded; with `quick` nothing is calibrated or exported either."""
    changes = (
        (timm, "create_model", create_model),
        (entropatch, "calibrate", calibrate_at_once if quick else calibrate),
        (entropatch, "export", export_at_once if quick else _export),
        (torchvision.models, "vit_b_16", vit_b_16),
        (open_clip, "create_model_and_transforms", lambda *_, **__: (clip(), None, None)),
        (hf.AutoModelForImageClassification, "from_pretrained", image_classifier),
        (hf.LlavaForConditionalGeneration, "from_pretrained", llava),
        (hf.AutoProcessor, "from_pretrained", llava_processor),
    )
    with ExitStack() as stack:
        for owner, name, stand_in in changes:
            stack.enter_context(patch.object(owner, name, stand_in))
        yield
