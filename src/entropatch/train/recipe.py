"""The training settings, and where each default comes from."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from entropatch.entropy import check_order
from entropatch.regularisation import SIDES

PAPER = "the paper (arXiv 2604.03803)"
EVIT = "EViT's fine-tuning recipe (Liang et al. 2022); the paper does not state it"
OWN = "entropatch; neither the paper nor EViT's recipe has it"

PRECISIONS = ("float32", "bfloat16", "float16")


def _setting(default: Any, source: str) -> Any:
    return field(default=default, metadata={"source": source})


@dataclass(frozen=True)
class Recipe:
    """What is computed in a training run. The defaults are the paper's protocol; `provenance` says whose each one is.

    The paper states epochs, optimiser, batch, image size and which augmentations it uses. Learning rate, schedule,
    weight decay, betas and the strengths of the augmentations come from EViT's published fine-tuning recipe.

    Attributes:
        epochs, batch_size, image_size: batch over all processes and accumulated passes; side of the images in pixels.
        optimizer: any name of timm's optimiser factory; biases and norms are not decayed.
        learning_rate: per 512 images, as all learning rates here: the rate used is learning_rate · batch_size / 512.
        minimum_learning_rate: per 512 images, where the cosine ends. EViT's 2e-6 are not scaled, for its batch of 1024.
        warmup_epochs, warmup_learning_rate: linear warm-up before the cosine, from that rate, per 512 images.
        betas: of the optimiser; its library's own when None.
        weight_decay, layer_decay: the latter scales the rate by layer_decay per block from the head down; None is off.
        clip_norm: largest norm of the gradient over all parameters; None is off.
        crop_scale: range of the random crop's share of the image; the crop is resized to image_size.
        horizontal_flip, random_erasing: probabilities.
        mixup, cutmix: α of their Beta(α, α); one of the two is drawn for each batch; 0 is off.
        label_smoothing: share of the target spread over all classes.
        auto_augment, color_jitter: timm's policy string, and strength; None and 0 are off.
        keep_warmup_start, keep_warmup_epochs: the keep rate is 1 in the first `keep_warmup_start` epochs, then falls
            along a half cosine for `keep_warmup_epochs` epochs to its target. 0 and 0: the target from the first step.
        distillation, distillation_temperature: weight of T² · KL(teacher ‖ student) at temperature T; 0 is off.
        backbone_rate: the share of the learning rate that the model's weights get beside those of a method's own.
        backbone_frozen_epochs: for so many epochs the model's weights have none, while those of the method's learn.
        ema_decay: of an exponential moving average of the weights, which is then what is tested and saved; None is off.
        entropy_weight: of the penalty on attention entropy (`entropatch.entropy_penalty`) in the loss; 0 is off.
        entropy_target, entropy_side, entropy_order, entropy_blocks: its target in [0, 1], a share of log n; "both",
            "above" or "below" the target is penalised; α, also of the entropies that are recorded; 0-based blocks,
            None for all.
        precision: "float32"; or "bfloat16" or "float16" for autocast, the latter with a gradient scaler.

    Raises:
        ValueError: a setting is out of range; the message names rule and value.
    """

    epochs: int = _setting(100, PAPER)
    batch_size: int = _setting(256, PAPER)
    image_size: int = _setting(224, PAPER)
    optimizer: str = _setting("adamw", PAPER)
    learning_rate: float = _setting(2e-5, EVIT)
    minimum_learning_rate: float = _setting(1e-6, EVIT + ": 2e-6 at its batch of 1024")
    warmup_epochs: int = _setting(0, EVIT)
    warmup_learning_rate: float = _setting(5e-7, EVIT + ": 1e-6 at its batch of 1024")
    betas: tuple[float, float] | None = _setting(None, EVIT)
    weight_decay: float = _setting(1e-6, EVIT)
    layer_decay: float | None = _setting(None, OWN)
    clip_norm: float | None = _setting(None, EVIT)
    crop_scale: tuple[float, float] = _setting((0.08, 1.0), PAPER + ": random crop; its range is timm's")
    horizontal_flip: float = _setting(0.5, PAPER)
    random_erasing: float = _setting(0.25, PAPER + "; probability of EViT")
    mixup: float = _setting(0.8, PAPER + "; α of EViT")
    cutmix: float = _setting(1.0, PAPER + "; α of EViT")
    label_smoothing: float = _setting(0.1, EVIT)
    auto_augment: str | None = _setting(None, PAPER + ": RandAugment is not in its list (EViT's: rand-m9-mstd0.5-inc1)")
    color_jitter: float = _setting(0.0, PAPER + ": not in its list")
    keep_warmup_start: int = _setting(0, EVIT)
    keep_warmup_epochs: int = _setting(0, EVIT)
    distillation: float = _setting(0.0, OWN)
    distillation_temperature: float = _setting(1.0, OWN)
    backbone_rate: float = _setting(1.0, OWN)
    backbone_frozen_epochs: int = _setting(0, OWN)
    ema_decay: float | None = _setting(None, OWN + " (EViT's code keeps one at 0.99996 but reports the plain weights)")
    entropy_weight: float = _setting(0.0, OWN)
    entropy_target: float | None = _setting(None, OWN)
    entropy_side: str = _setting("both", OWN)
    entropy_order: float = _setting(1.0, OWN)
    entropy_blocks: tuple[int, ...] | None = _setting(None, OWN)
    precision: str = _setting("float32", OWN)

    def __post_init__(self) -> None:
        for name in ("betas", "crop_scale"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{name} must be a number in {low:g} … {high:g}, but got {value!r}.")
        for name in _WHOLE:
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be a whole number, but got {getattr(self, name)!r}.")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must be two shares 0 < low ≤ high ≤ 1, but got {self.crop_scale}.")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be fewer than the {self.epochs} epochs, but got {self.warmup_epochs}."
            )
        if self.keep_warmup_start + self.keep_warmup_epochs >= self.epochs and (
            self.keep_warmup_start or self.keep_warmup_epochs
        ):
            raise ValueError(
                f"the keep rate must reach its target before the {self.epochs} epochs are over, but keep_warmup_start "
                f"and keep_warmup_epochs are {self.keep_warmup_start} and {self.keep_warmup_epochs}."
            )
        for name in ("minimum_learning_rate", "warmup_learning_rate"):
            if getattr(self, name) > self.learning_rate and (self.warmup_epochs or name == "minimum_learning_rate"):
                raise ValueError(
                    f"{name} must not exceed learning_rate, or the rate would move the wrong way (both are per 512 "
                    f"images), but got {getattr(self, name):g} and {self.learning_rate:g}; lower the one or raise the "
                    "other."
                )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, but got {self.precision!r}.")
        self._check_entropy()

    def _check_entropy(self) -> None:
        """The settings of the entropy penalty: what is out of range, or would have no effect."""
        order = math.inf if self.entropy_order == "inf" else self.entropy_order  # as JSON and command lines have it
        object.__setattr__(self, "entropy_order", check_order(order))
        if self.entropy_side not in SIDES:
            raise ValueError(f"entropy_side must be one of {', '.join(SIDES)}, but got {self.entropy_side!r}.")
        blocks: Any = self.entropy_blocks
        if blocks is not None:
            sound = isinstance(blocks, (list, tuple)) and len(blocks) > 0
            if not sound or any(isinstance(b, bool) or not isinstance(b, Integral) or b < 0 for b in blocks):
                raise ValueError(
                    f"entropy_blocks must be 0-based blocks such as [3, 6, 9], or None, but got {blocks!r}."
                )
            object.__setattr__(self, "entropy_blocks", tuple(int(block) for block in blocks))
        if self.entropy_weight and self.entropy_target is None:
            raise ValueError(
                f"entropy_weight={self.entropy_weight:g} needs an entropy_target in [0, 1], a share of log n; the "
                "entropies of a run without it, in its epochs.jsonl, say where the model stands."
            )
        if not self.entropy_weight and (self.entropy_target, self.entropy_side, blocks) != (None, "both", None):
            raise ValueError(
                "entropy_target, entropy_side and entropy_blocks have no effect without a weight; set entropy_weight, "
                "or leave them out."
            )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate the cosine starts from: learning_rate · batch_size / 512."""
        return self.learning_rate * self.batch_size / 512

    @property
    def learning_rates(self) -> dict[str, float]:
        """The rates used, all scaled by batch_size / 512: peak, minimum and, where there is a warm-up, warmup_from."""
        rates = {"peak": self.learning_rate, "minimum": self.minimum_learning_rate}
        rates |= {"warmup_from": self.warmup_learning_rate} if self.warmup_epochs else {}
        return {name: rate * self.batch_size / 512 for name, rate in rates.items()}

    def learning_rates_text(self) -> str:
        """The rates used, in a line."""
        rates = self.learning_rates
        frozen = (
            f"; the model's weights stay as they are for the first {min(self.backbone_frozen_epochs, self.epochs)} of "
            f"{self.epochs} epochs (backbone_frozen_epochs)"
            if self.backbone_frozen_epochs
            else ""
        )
        warmup = f"rises from {rates['warmup_from']:.3g} to" if self.warmup_epochs else "starts at"
        return (
            f"the learning rate {warmup} {rates['peak']:.3g} and falls to {rates['minimum']:.3g}: learning_rate and "
            f"minimum_learning_rate, {self.learning_rate:.3g} and {self.minimum_learning_rate:.3g} per 512 images, "
            f"times {self.batch_size} / 512{frozen}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them: a tuple is a list, and ∞ the string "inf"."""
        return {
            key: list(v) if isinstance(v, tuple) else "inf" if v == math.inf else v
            for key, v in dataclasses.asdict(self).items()
        }

    def keep_rate_share(self, epochs_done: float) -> float:
        """How far the keep rate still is from its target: 1 keeps every patch, 0 is the target.

        EViT's schedule: 1 for t < s, then ½ (1 + cos(π (t - s) / E)) for E epochs, then 0; t in epochs.
        """
        since = epochs_done - self.keep_warmup_start
        if since < 0:
            return 1.0
        if since >= self.keep_warmup_epochs:
            return 0.0
        return 0.5 * (1 + math.cos(math.pi * since / self.keep_warmup_epochs))


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("epochs", 1, math.inf),
    ("batch_size", 1, math.inf),
    ("image_size", 1, math.inf),
    ("learning_rate", 0, math.inf),
    ("minimum_learning_rate", 0, math.inf),
    ("warmup_epochs", 0, math.inf),
    ("warmup_learning_rate", 0, math.inf),
    ("weight_decay", 0, math.inf),
    ("layer_decay", 0, 1),
    ("clip_norm", 1e-12, math.inf),
    ("horizontal_flip", 0, 1),
    ("random_erasing", 0, 1),
    ("mixup", 0, math.inf),
    ("cutmix", 0, math.inf),
    ("label_smoothing", 0, 1),
    ("color_jitter", 0, 1),
    ("keep_warmup_start", 0, math.inf),
    ("keep_warmup_epochs", 0, math.inf),
    ("distillation", 0, math.inf),
    ("distillation_temperature", 1e-3, math.inf),
    ("backbone_rate", 0, 1),
    ("backbone_frozen_epochs", 0, math.inf),
    ("ema_decay", 0, 1),
    ("entropy_weight", 0, math.inf),
    ("entropy_target", 0, 1),
)
_MAY_BE_NONE = ("layer_decay", "clip_norm", "ema_decay", "entropy_target")
_WHOLE = ("epochs", "batch_size", "image_size", "warmup_epochs", "keep_warmup_start", "keep_warmup_epochs")
_WHOLE += ("backbone_frozen_epochs",)

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(),
    # finetune.sh: eight processes of 128 images; RandAugment is the default of the script it calls.
    "evit": Recipe(epochs=30, batch_size=1024, auto_augment="rand-m9-mstd0.5-inc1"),
    # Its paper's: 1e-3 for 1024 images; weight decay and augmentations are those of the others here.
    "dynamicvit": Recipe(
        epochs=30,
        batch_size=1024,
        learning_rate=5e-4,
        auto_augment="rand-m9-mstd0.5-inc1",
        distillation=0.5,
        backbone_rate=0.01,
        backbone_frozen_epochs=5,
    ),
}


# Settings that recipes of earlier versions lack, with the values that leave a run as it was.
ADDED = ("entropy_weight", "entropy_target", "entropy_side", "entropy_order", "entropy_blocks")
ADDED += ("backbone_rate", "backbone_frozen_epochs")


def provenance(recipe: Recipe, name: str = "paper") -> list[dict[str, str]]:
    """Each setting, its value, and where it comes from: one record per field.

    Args:
        recipe: what is computed.
        name: of the one of `RECIPES` that it began as.
    """
    records, named = [], RECIPES[name]
    for entry in dataclasses.fields(recipe):
        value, default = getattr(recipe, entry.name), getattr(named, entry.name)
        if value != default:
            source = f"given (default: {default})"
        elif default != entry.default:
            source = f"the recipe {name} (the paper's: {entry.default})"
        else:
            source = entry.metadata["source"]
        records.append({"setting": entry.name, "value": str(value), "source": source})
    return records
