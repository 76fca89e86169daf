"""How much of a picture a model sees at all."""

from __future__ import annotations

from PIL import Image
from torch import nn

from entropatch.data.images import data_config

# A model that sees less of a picture than this share leaves out more than it looks at.
LITTLE = 0.5


def seen_share(image: Image.Image, model: nn.Module) -> float:
    """The share of a picture that is left when it is resized and cropped for the model, 0 … 1.

    timm enlarges or shrinks the picture until it covers the model's input, divided by the crop share of the model's
    data config, and takes the middle; a model with another way to crop sees all of it.
    """
    config = data_config(model)
    if config.get("crop_mode", "center") != "center":
        return 1.0
    height, width = (side / config["crop_pct"] for side in config["input_size"][-2:])
    scale = max(height / image.height, width / image.width)
    rows = min(1.0, config["input_size"][-2] / (scale * image.height))
    columns = min(1.0, config["input_size"][-1] / (scale * image.width))
    return rows * columns


def cropping_note(image: Image.Image, model: nn.Module) -> str | None:
    """A line for a picture of which the model sees too little to speak of the whole; None for any other."""
    share = seen_share(image, model)
    if share >= LITTLE:
        return None
    percent = f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.1g}"
    return f"{image.width}×{image.height} pixels are cropped to the middle: the model sees {percent} % of the picture"
