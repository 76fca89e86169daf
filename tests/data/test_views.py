"""How much of a picture a model sees, against what is left of it in the pixels that the model gets."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from entropatch.data.images import cropped
from entropatch.data.views import cropping_note, seen_share


def places(width: int, height: int) -> Image.Image:
    """Red tells how far right a pixel lies, green how far down."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    pixels = np.stack(np.broadcast_arrays(across[None], down[:, None], 0.0), axis=-1)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {}),  # nine tenths of the short side
        ("vit_small_patch16_384", {}),  # all of it
        ("vit_base_patch16_siglip_224", {}),  # squashed, so all of the picture
        ("vit_small_patch14_dinov2", {"img_size": (70, 140)}),
    ],
)
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (60, 900), (900, 60)])
def test_the_share_is_what_the_pixels_show(name, arguments, size):
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    image = places(*size)
    seen = np.asarray(cropped(image, model)).astype(float)
    expected = np.ptp(seen[..., 0]) / 255 * np.ptp(seen[..., 1]) / 255
    assert seen_share(image, model) == pytest.approx(expected, abs=0.03)
    assert (cropping_note(image, model) is None) == (seen_share(image, model) >= 0.5)


def test_a_long_picture_is_said_to_be_cropped():
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch16_384")
    note = "40×4000 pixels are cropped to the middle: the model sees 1 % of the picture"
    assert cropping_note(Image.new("RGB", (40, 4000)), model) == note
    assert cropping_note(Image.new("RGB", (640, 427)), model) is None
