"""What the page of methods says of each, found by running it: multiply-adds, and which models refuse it.

    python docs/make/facts.py

writes facts.json beside this file. A method that is not in it, or was changed since, is looked at when the page is
made.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from entropatch import Method, prune_, unprune_
from entropatch.look.inspection import stage_config
from entropatch.measure import count_flops
from entropatch.methods import METHODS

FILE = Path(__file__).with_name("facts.json")
MODEL, SIZE, RATES = "deit_small_patch16_224", 224, (0.7, 0.5, 0.3)
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
Facts = dict[str, Any]


def of_timm(name: str, side: int) -> nn.Module:
    return timm.create_model(name, img_size=side, **SMALL)


def of_transformers() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=80, patch_size=16))  # pyright: ignore


def backbone() -> nn.Module:
    from transformers import Dinov2Backbone, Dinov2Config

    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    return Dinov2Backbone(Dinov2Config(**sizes, image_size=80, patch_size=16))  # pyright: ignore


def of_torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=80, patch_size=16, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64)


def of_open_clip() -> nn.Module:
    from open_clip.model import CLIP

    tower: Any = {"layers": 4, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 80}
    text: Any = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    return CLIP(16, tower, text)


# How the table calls them: small models, one for each way in which a method may not fit.
KINDS: dict[str, Callable[[], nn.Module]] = {
    "timm, class token": lambda: of_timm("deit_tiny_patch16_224", 80),
    "timm, none": lambda: of_timm("vit_base_patch16_siglip_224", 80),
    "timm, rotary": lambda: of_timm("vit_small_patch16_dinov3", 80),
    "transformers": of_transformers,
    "torchvision": of_torchvision,
    "OpenCLIP": of_open_clip,
    "dense maps": backbone,
}


def needs_training(method: Method) -> bool:
    """Whether it does nothing good before it was trained: says so itself, or a part of it has weights."""
    parts = [part for pair in method.parts for part in pair]
    return method.trained or any(getattr(part, "has_weights", False) for part in parts)


_seen: dict[str, Facts] = {}  # what was looked at in this process


def identity(method: Method) -> str:
    """What the facts hang on."""
    return repr((method.criterion, method.reduction, method.schedule, method.coverage))


def gflops(method: Method | None, rate: float = 1.0) -> float | str:
    """10⁹ multiply-adds per image of DeiT-S at 224 px; dense for None; or why they cannot be counted."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL).eval()
    try:
        if method is not None:
            prune_(model, stage_config(method.name, rate))
        return round(count_flops(model, torch.randn(1, 3, SIZE, SIZE)).total / 1e9, 4)
    except (ValueError, RuntimeError) as error:
        return str(error)


def refusal(method: Method, model: nn.Module) -> str | None:
    """What is said where a model cannot be pruned by the method; None where it can."""
    try:
        unprune_(prune_(model, stage_config(method.name, 0.7)))
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error)
    return None


def kinds() -> dict[str, nn.Module]:
    """A model of each kind."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {kind: make().eval() for kind, make in KINDS.items()}


def look_at(method: Method, models: dict[str, nn.Module]) -> Facts:
    """Everything that is found by running it."""
    rates = RATES if method.takes_keep_rate else RATES[:1]
    costs = {str(rate): gflops(method, rate) for rate in rates}
    refused = {kind: refusal(method, model) for kind, model in models.items()}
    said = {kind: text for kind, text in refused.items() if text is not None}
    return {"is": identity(method), "gflops": costs, "refusals": said}


def known() -> dict[str, Facts]:
    """The facts of every registered method, from the file where they are still true."""
    written = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    seen = {facts["is"]: facts for name, facts in written.items() if name in METHODS} | _seen
    if missing := [method for method in METHODS.values() if identity(method) not in seen]:
        models = kinds()
        _seen.update({identity(method): look_at(method, models) for method in missing})
    found = {name: (seen | _seen)[identity(method)] for name, method in METHODS.items()}
    dense = written.get("dense") or {"gflops": gflops(None)}
    return {"dense": dense, **found}


if __name__ == "__main__":
    FILE.unlink(missing_ok=True)  # a method may have changed under the same name
    FILE.write_text(json.dumps(known(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
