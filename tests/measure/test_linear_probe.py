"""Accuracy on scikit-learn's digits: the data, the features with shared first blocks, the linear probe."""

from __future__ import annotations

import math
import unittest.mock
from collections import Counter
from typing import Any

import numpy as np
import pytest
import timm
import torch

import entropatch
from entropatch import ClassAttention, PruneConfig, Random, Renyi
from entropatch.measure.linear_probe import Digits, enlarged, linear_probe, load_digits, pooled_features
from entropatch.surgery.sharing import Shared

datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def model() -> Any:
    """A small random ViT on 16 patches, in eval mode."""
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=5, embed_dim=48, num_heads=3, num_classes=0
    ).eval()


# --------------------------------------------------------------------------------------------------------- data


def test_all_digits_are_there_once_with_their_labels() -> None:
    bundle: Any = datasets.load_digits()
    digits = load_digits()
    assert (len(digits), digits.training, digits.held_out) == (1797, 1257, 540)
    assert digits.images.shape == (1797, 1, 8, 8)
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    ours = Counter((image.tobytes(), label) for image, label in zip(digits.images.numpy(), digits.labels, strict=True))
    theirs = Counter(
        ((image / 16).astype(np.float32).tobytes(), label)
        for image, label in zip(bundle.images, bundle.target, strict=True)
    )
    assert ours == theirs


def test_order_is_random_and_repeatable_and_every_digit_is_held_out_in_its_share() -> None:
    digits, again, other = load_digits(), load_digits(), load_digits(seed=1)
    assert torch.equal(digits.images, again.images)
    assert np.array_equal(digits.labels, again.labels)
    assert not np.array_equal(digits.labels, other.labels)
    everywhere, held_out = Counter(digits.labels), Counter(digits.labels[digits.training :])
    for label in range(10):
        assert abs(held_out[label] - 0.3 * everywhere[label]) <= 1
    # The data set lists its digits as 0, 1, 2, … 9, 0, 1 … for long stretches: a batch place would tell the label.
    assert Counter(np.diff(digits.labels))[1] < 300


def test_a_part_of_the_digits_is_balanced_too() -> None:
    digits = load_digits(240)
    assert (len(digits), digits.training, digits.held_out) == (240, 168, 72)
    assert set(Counter(digits.labels).values()) <= {23, 24, 25}
    assert set(Counter(digits.labels[digits.training :]).values()) <= {7, 8}
    assert len(load_digits(1797)) == 1797


@pytest.mark.parametrize("count", [0, 39, 1790, 1798])
def test_a_number_of_digits_that_cannot_be_split_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"count must lie in 40 … 1787.*but got {count}"):
        load_digits(count)


def test_enlarged_keeps_place_range_and_normalisation(model: Any) -> None:
    images = load_digits(60).images[:4]
    large = enlarged(images, model)
    assert large.shape == (4, 3, 32, 32)
    # vit_tiny_patch16_224 is normalised by 0.5 and 0.5: black is -1 and white is 1, however bicubic overshoots.
    assert (large.min(), large.max()) == (-1, 1)
    assert torch.equal(large[:, 0], large[:, 2])
    assert torch.allclose(enlarged(images.flip(-1), model), large.flip(-1), atol=1e-6)
    assert torch.allclose(enlarged(images.transpose(2, 3), model), large.transpose(2, 3), atol=1e-6)
    # Enlarged fourfold and averaged back, an image is nearly itself.
    back = torch.nn.functional.avg_pool2d(large[:, :1], 4)
    assert (back - (2 * images - 1)).abs().mean() < 0.1


# ----------------------------------------------------------------------------------------------------- features

SETTINGS: dict[str, PruneConfig | None] = {
    "dense": None,
    "random": PruneConfig(0.5, Random(0)),
    "evit": PruneConfig(0.7, ClassAttention(), reduction="fuse"),
    "shannon": PruneConfig(0.7, Renyi(1.0)),
    "renyi": PruneConfig(0.5, Renyi(math.inf), blocks=(2, 4)),
}


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        SETTINGS | {"early": PruneConfig(0.5, blocks=(0,))},
        {"dense": None},
        {"late": PruneConfig(blocks=(4,))},
    ],
    ids=["default blocks", "first block", "dense alone", "last block"],
)
def test_features_are_those_of_the_whole_model_with_the_pruning_in_place(
    model: Any, settings: dict[str, PruneConfig | None]
) -> None:
    images, steps = load_digits(60).images[:20], []
    features = pooled_features(model, settings, images, batch_size=8, on_step=lambda: steps.append(1))
    assert len(steps) == 3 * len(settings)
    assert list(features) == list(settings)
    for name, config in settings.items():
        if config is not None:
            entropatch.prune_(model, config)
        with torch.inference_mode():
            expected = torch.cat([model(enlarged(batch, model)) for batch in images.split(8)])
        if config is not None:
            entropatch.unprune_(model)
        assert np.array_equal(features[name], expected.numpy()), name
    if len(settings) > 1:
        assert not np.allclose(features["dense"], features["random"], atol=1e-2)


def test_what_settings_share_is_computed_once(model: Any) -> None:
    images = load_digits(60).images[:8]
    with unittest.mock.patch.object(Shared, "keep", autospec=True, side_effect=Shared.keep) as block:
        pooled_features(model, {name: SETTINGS[name] for name in ("dense", "evit", "shannon")}, images)
    depth, first = len(model.blocks), len(model.blocks) // 4
    assert block.call_count == depth + 2 * (depth - first)


def test_the_model_is_stock_again_also_after_an_interrupt(model: Any) -> None:
    images, kind = load_digits(60).images[:4], type(model)

    def interrupt_when_pruned() -> None:
        if type(model) is not kind:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pooled_features(model, SETTINGS, images, on_step=interrupt_when_pruned)
    assert type(model) is kind


# -------------------------------------------------------------------------------------------------------- probe


def some_digits(training: np.ndarray, held_out: np.ndarray) -> Digits:
    labels = np.concatenate((training, held_out))
    return Digits(torch.zeros(len(labels), 1, 8, 8), labels, len(training))


def test_the_probe_reads_what_the_features_say_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    digits = some_digits(rng.integers(0, 10, 300), rng.integers(0, 10, 200))
    telling = np.eye(10, dtype=np.float32)[digits.labels]
    assert linear_probe(telling, digits).shape == (200,)
    assert linear_probe(telling, digits).all()
    noise = rng.normal(size=(500, 10)).astype(np.float32)
    assert linear_probe(noise, digits).mean() < 0.25
    # What the held-out digits' features say is not learnt from: only the first part is fitted.
    assert linear_probe(np.concatenate((noise[:300], telling[300:])), digits).mean() < 0.35
    # A digit held out under a wrong label counts as wrong, each at its own place.
    wrong = digits.labels.copy()
    wrong[300::4] = (wrong[300::4] + 1) % 10
    hits = linear_probe(telling, Digits(digits.images, wrong, 300))
    assert np.array_equal(hits, np.arange(200) % 4 != 0)


def test_the_probe_does_not_depend_on_the_features_units() -> None:
    digits = load_digits(300)
    pixels = digits.images.flatten(1).double().numpy()
    assert 0.8 < linear_probe(pixels, digits).mean() < 1
    assert np.array_equal(linear_probe(pixels, digits), linear_probe(1000 * pixels + 1e6, digits))
