"""Accuracy of a pruned encoder on real labelled images without any download: scikit-learn's handwritten digits.

The 1,797 images of 8×8 pixels (UCI, Alpaydin & Kaynak 1998) are enlarged to the encoder's input. The encoder stays as
it is; a logistic regression on its pooled feature is fitted anew for every pruning, with the pruning in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from entropatch.config import PruneConfig
from entropatch.extras import require
from entropatch.surgery import prune_, unprune_
from entropatch.surgery.sharing import Shared, sharing

HELD_OUT = 0.3


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, those for training first.

    Attributes:
        images: (n, 1, 8, 8), float32 in 0 … 1.
        labels: (n,), 0 … 9.
        training: how many of them, from the first on, are for training; the others are held out.
    """

    images: Tensor
    labels: np.ndarray
    training: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def held_out(self) -> int:
        return len(self) - self.training


def load_digits(count: int | None = None, seed: int = 0) -> Digits:
    """scikit-learn's digits in random order, 30 % of them held out, every digit in its share of both parts.

    Args:
        count: how many; all 1,797 when None.
        seed: of the order, the choice and the split.

    Raises:
        ValueError: `count` is out of range. ImportError: scikit-learn is not installed.
    """
    datasets, selection = require("sklearn.datasets", "demo"), require("sklearn.model_selection", "demo")
    bundle: Any = datasets.load_digits()
    labels = bundle.target
    chosen = np.arange(len(labels))
    if count is not None and count != len(labels):
        if not 40 <= count <= len(labels) - 10:
            raise ValueError(
                f"count must lie in 40 … {len(labels) - 10}, or be None for all {len(labels)}, but got {count}."
            )
        chosen, _ = selection.train_test_split(chosen, train_size=count, stratify=labels, random_state=seed)
    first, rest = selection.train_test_split(chosen, test_size=HELD_OUT, stratify=labels[chosen], random_state=seed)
    order = np.concatenate((first, rest))
    images = torch.from_numpy(bundle.images[order] / 16).float()[:, None]
    return Digits(images, labels[order], len(first))


def enlarged(images: Tensor, model: nn.Module) -> Tensor:
    """Grey images as a timm model takes them: bicubic to its input size, three channels, its mean and deviation.

    Args:
        images: (b, 1, h, w) in 0 … 1.
        model: a timm model.

    Returns:
        (b, 3, H, W).
    """
    stock: Any = model
    config = stock.pretrained_cfg
    large = F.interpolate(images, size=stock.patch_embed.img_size, mode="bicubic", align_corners=False).clamp(0, 1)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (large - mean) / std


def pooled_features(
    model: nn.Module,
    configs: Mapping[str, PruneConfig | None],
    images: Tensor,
    *,
    batch_size: int = 32,
    on_step: Callable[[], None] | None = None,
) -> dict[str, np.ndarray]:
    """The pooled feature of every image under every pruning, equal to `model(images)` with that pruning in place.

    The settings share the blocks before the first one in which they differ.

    Args:
        model: a stock timm `VisionTransformer` without a head, in eval mode; stock again afterwards.
        configs: prunings by name; None means none.
        images: (n, 1, h, w), as `enlarged` takes them.
        batch_size: images at a time. The random criterion draws by the place in the batch.
        on_step: called once for each setting and batch.

    Returns:
        (n, C) float32 for each name.
    """
    step = on_step or (lambda: None)
    pruned: Any = prune_(model, keep_rate=1.0)
    # Dense passes hold nothing for others, and can begin where others' first reducing block does.
    order = sorted(configs, key=lambda name: configs[name] is None)
    parts: dict[str, list[Tensor]] = {name: [] for name in configs}
    try:
        with torch.inference_mode():
            for batch in images.split(batch_size):
                large, shared = enlarged(batch, pruned), Shared()
                for name in order:
                    prune_(pruned, configs[name] or PruneConfig(keep_rate=1.0))
                    with sharing(pruned, shared):
                        parts[name].append(pruned(large))
                    step()
    finally:
        unprune_(model)
    return {name: torch.cat(found).numpy() for name, found in parts.items()}


def linear_probe(features: np.ndarray, digits: Digits) -> np.ndarray:
    """Which held-out digits a logistic regression, fitted on the features of the others, gets right: (held out,), bool.

    Features are scaled to zero mean and unit deviation over the training part first.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    pipeline = require("sklearn.pipeline", "demo")
    scaler = require("sklearn.preprocessing", "demo").StandardScaler()
    regression = require("sklearn.linear_model", "demo").LogisticRegression(max_iter=2000)
    n = digits.training
    fitted = pipeline.make_pipeline(scaler, regression).fit(features[:n], digits.labels[:n])
    return fitted.predict(features[n:]) == digits.labels[n:]
