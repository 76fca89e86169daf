"""The part of the page that calibrates: which images, under which budget, and what came of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image, ImageOps
from torch import nn

from entropatch.calibration import Calibration, Goal
from entropatch.calibration.answers import OBJECTIVES, SHORT
from entropatch.calibration.finding import CHOSEN
from entropatch.config import PruneConfig
from entropatch.config_fields import setting_label
from entropatch.data.images import to_tensor
from entropatch.models.card import card_of
from entropatch.models.checkpoint import fingerprint
from entropatch.named_method import Method

LEAST_VIEWS, MOST_IMAGES = 24, 128
SHARE, SPEEDUP = "share of the GFLOPs", "times the speed"


@dataclass(frozen=True)
class Identity:
    """Of which model a calibration is; of another it says nothing, whatever that is called.

    Attributes:
        name: as it was asked for.
        library: whose it is.
        source: where its weights came from.
        weights: their fingerprint.
        size: of its images, (height, width).
    """

    name: str
    library: str
    source: str
    weights: str
    size: tuple[int, int]

    @classmethod
    def of(cls, name: str, model: nn.Module, source: str) -> Identity:
        card = card_of(model)
        height, width = to_tensor(Image.new("RGB", (64, 64)), model).shape[-2:]
        library = "timm" if card is None else card.library
        return cls(name, library, source, fingerprint(model.state_dict()), (height, width))


def views(images: Sequence[Image.Image], least: int = LEAST_VIEWS, seed: int = 0) -> list[Image.Image]:
    """The images, at most `MOST_IMAGES`, and where they are few crops of them, every second one mirrored."""
    images = list(images)[:MOST_IMAGES]
    draw, found = random.Random(seed), list(images)
    while images and len(found) < least:
        image = images[len(found) % len(images)]
        width, height = (round(draw.uniform(0.6, 0.95) * side) for side in image.size)
        left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
        crop = image.crop((left, top, left + width, top + height))
        found.append(ImageOps.mirror(crop) if len(found) % 2 else crop)
    return found


def goal_of(kind: str, value: float, dense_gflops: float) -> Goal:
    """The budget that is chosen on the page: a share of the multiply-adds, or a speed-up."""
    return Goal(speedup=value) if kind == SPEEDUP else Goal(gflops=value * dense_gflops)


def found_label(kind: str, value: float) -> str:
    """How the menu calls what was found."""
    return f"Calibrated: {value:.2f}× speed" if kind == SPEEDUP else f"Calibrated: {value:.0%} of the GFLOPs"


def method_of_config(config: PruneConfig, label: str) -> Method:
    """A setting of several parts as the page shows methods."""
    blocks = config.blocks or ()
    rates = config.keep_rate if isinstance(config.keep_rate, tuple) else (config.keep_rate,) * len(blocks)
    parts = config.parts if len(config.parts) > 1 else config.parts * len(blocks)
    texts = [
        f"block {block}: {setting_label(*part, config.schedule)}, keeps {rate:.0%}"
        for block, part, rate in zip(blocks, parts, rates, strict=True)
    ]
    criteria, reductions, sides = zip(*parts, strict=True)
    about = "; ".join(texts) + "."
    return Method("calibrated", label, about, criteria, reductions, config.schedule, coverage=sides)


def result_html(found: Calibration, model: Identity, images: int, seen: int) -> str:
    """The setting beside random, the default and the methods at the same cost, on the images held out of one model."""
    head = ("", f"cost ({found.unit})", "of dense", f"loss: {SHORT[found.objective]}", "± standard error")
    body = ""
    for row in found.rows:
        cells = (row.label, f"{row.cost:.3g}", f"{row.cost / found.dense:.0%}", f"{row.loss:.4g}", f"{row.error:.2g}")
        kind = ' class="ep-best"' if row.name == CHOSEN else ""
        body += f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    heads = "".join(f"<th>{escape(text)}</th>" for text in head)
    note = f"{found.counts['chosen by']} views chosen by, {found.counts['held out']} held out"
    if seen > images:
        note += (
            f"; with {images} images {seen - images} are crops of them, so those held out are no others: "
            "give 64 images or more to trust the numbers"
        )
    verdict = "".join(f"<p>{escape(line)}</p>" for line in found.verdict.splitlines())
    caption = f"<caption>{escape(model.name)}, {model.size[1]}×{model.size[0]} pixels</caption>"
    return (
        f'<div class="ep-result"><table class="ep-table">{caption}'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
        f'{verdict}<p class="ep-note">Loss: {escape(OBJECTIVES[found.objective])}. {escape(note)}.</p></div>'
    )
