"""What a benchmark runs: the model with random weights, its images, and the precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.bench.settings import DTYPES, BenchSettings
from entropatch.error_text import one_line
from entropatch.models.libraries import TIMM, Request, load_from
from entropatch.models.words import RANDOM_WEIGHTS


def created(settings: BenchSettings) -> nn.Module:
    """The model with random weights, on its device. Raises ValueError where its library cannot make it."""
    made = _of_timm(settings) if settings.library == TIMM else _of_library(settings)
    return made.to(settings.device, torch.float32 if settings.amp else DTYPES[settings.dtype]).eval()


def _of_library(settings: BenchSettings) -> nn.Module:
    model, _ = load_from(settings.library, Request(settings.model, RANDOM_WEIGHTS, settings.image_size, images=False))
    return model


def _of_timm(settings: BenchSettings) -> nn.Module:
    import timm

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(settings.model, pretrained=False, img_size=settings.image_size)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"timm cannot make the model {settings.model!r} at {settings.image_size} px: {one_line(error, first=True)}"
        ) from error
    patches = getattr(model, "patch_embed", None)
    patch = max(getattr(patches, "patch_size", (1,)))
    if settings.image_size % patch and not getattr(patches, "dynamic_img_pad", False):
        above = (settings.image_size // patch + 1) * patch
        raise ValueError(
            f"image_size must be a multiple of the patch size {patch}, but got {settings.image_size}; use {above}."
        )
    return model


def random_images(settings: BenchSettings, batch_size: int) -> Tensor:
    """The same images at every call, (batch_size, 3, H, W), on the device."""
    shape = (batch_size, 3, settings.image_size, settings.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return images.to(settings.device, torch.float32 if settings.amp else DTYPES[settings.dtype])


def autocast(settings: BenchSettings) -> AbstractContextManager[Any]:
    """What a forward pass runs in."""
    kind = torch.device(settings.device).type
    return torch.autocast(kind, dtype=DTYPES[settings.dtype]) if settings.amp else nullcontext()
