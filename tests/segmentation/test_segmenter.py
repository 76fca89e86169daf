"""`Segmenter`: dense maps however the blocks prune, on the models of several libraries; its loss; what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import GRID, awaken, create, photographs
from small_towers import clip, pictures, torchvision_model
from torch import nn

import entropatch
from entropatch import (
    AtExits,
    EarlyExit,
    Park,
    QueryScore,
    RemoveBetweenBlocks,
    Segmenter,
    UnsupportedModelError,
    prune_,
)
from entropatch.surgery.state import pruned_part

pytestmark = pytest.mark.usefixtures("one_thread")


def made(backbone: Any = None, head: str = "linear", **fields: Any) -> Any:
    return awaken(Segmenter(backbone or create("deit"), 3, head, **fields)).eval()


def hf_model() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    return awaken(transformers.Dinov2Model(transformers.Dinov2Config(**sizes, image_size=80, patch_size=16))).eval()


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_a_dropped_patch_shows_its_last_value(head: str) -> None:
    segmenter = prune_(made(head=head), keep_rate=0.5)
    images = photographs(segmenter.backbone, 3)  # type: ignore[attr-defined]
    with torch.no_grad(), entropatch.trace(segmenter.backbone) as trace:  # type: ignore[attr-defined]
        tokens = segmenter.backbone.forward_features(images)  # type: ignore[attr-defined,operator]
        dense = entropatch.restore(tokens, trace)
        expected = segmenter.head(dense.permute(0, 3, 1, 2))  # type: ignore[attr-defined,operator]
        counts = trace.counts
    with torch.no_grad(), entropatch.trace(segmenter) as outer:
        found = segmenter.patch_logits(images)  # type: ignore[attr-defined,operator]
    assert torch.equal(found, expected)
    assert outer.counts == counts == [25, 13, 7, 4]  # a trace that is open already sees the pass
    with torch.no_grad():
        enlarged = F.interpolate(expected, size=(80, 80), mode="bilinear", align_corners=False)
        assert torch.equal(segmenter(images), enlarged)
        assert segmenter(images, (31, 47)).shape == (3, 3, 31, 47)


@pytest.mark.parametrize("method", ["evo-vit", "cropr"])
def test_where_those_that_wait_are_back_the_map_is_of_what_leaves_the_model(method: str) -> None:
    segmenter = made()
    if method == "cropr":
        prune_(segmenter, criterion=QueryScore(), reduction=Park(), schedule=RemoveBetweenBlocks(5))
    else:
        prune_(segmenter, method=method, keep_rate=0.5)
    images = photographs(segmenter.backbone)
    with torch.no_grad():
        tokens = segmenter.backbone.forward_features(images)
        assert tokens.shape[1] == 1 + GRID * GRID
        expected = segmenter.head(tokens[:, 1:].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2))
        torch.testing.assert_close(segmenter.patch_logits(images), expected)


@pytest.mark.parametrize("method", ["tome", "evit", "shannon-merge", "ats", "spvit", "a-vit", "renyi-2@2"])
def test_any_method_gives_a_whole_map(method: str) -> None:
    segmenter = prune_(made(), method=method)
    with torch.no_grad():
        found = segmenter(photographs(segmenter.backbone))  # type: ignore[attr-defined]
    assert found.shape == (2, 3, 80, 80)
    assert found.isfinite().all()


@pytest.mark.parametrize("backbone", [torchvision_model, hf_model])
def test_other_libraries(backbone: Any) -> None:
    segmenter, images = made(backbone()), pictures()
    with torch.no_grad():
        dense = segmenter(images)
        prune_(segmenter, criterion=EarlyExit(threshold=float("inf")), schedule=AtExits())
        awaken(pruned_part(segmenter).entropatch)  # type: ignore[arg-type]
        assert torch.equal(segmenter(images), dense)
        prune_(segmenter, criterion=EarlyExit(threshold=0.5, context=1), schedule=AtExits())
        with entropatch.trace(segmenter) as trace:
            found = segmenter(images)
        assert len({*trace.counts[-1]}) > 1  # type: ignore[misc]
        torch.testing.assert_close(torch.cat([segmenter(image[None]) for image in images]), found)
        entropatch.unprune_(segmenter)
        assert torch.equal(segmenter(images), dense)


def test_what_it_cannot_be_built_on_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"VisionTransformer of open_clip does not"):
        Segmenter(clip().visual, 3)
    with pytest.raises(UnsupportedModelError, match="Linear is not supported"):
        Segmenter(nn.Linear(2, 2), 3)
    for fields in ({"classes": 1}, {"classes": 256}, {"head": "mlp"}, {"channels": 4}, {"head": "conv", "channels": 0}):
        with pytest.raises(ValueError, match=r"must be|are those"):
            Segmenter(create("deit"), **({"classes": 3} | fields))  # type: ignore[arg-type]


def test_patch_dropout_leaves_no_map() -> None:
    segmenter = made(create("deit", patch_drop_rate=0.5)).train()
    images = photographs(segmenter.backbone)
    with pytest.raises(ValueError, match="patch dropout"):
        segmenter(images)
    prune_(segmenter, keep_rate=0.5)
    with pytest.raises(ValueError, match="patch dropout"):
        segmenter(images)


def test_masks_are_checked_and_may_say_nothing() -> None:
    segmenter, images = made(), torch.zeros(2, 3, 80, 80)
    nothing = torch.full((2, 4, 4), 255)
    terms = segmenter.losses(images, nothing)
    assert {name: float(term) for name, term in terms.items()} == {"map": 0.0}
    for wrong in (nothing[:1], nothing[0], nothing.float(), torch.full((2, 4, 4), 3), torch.full((2, 4, 4), -1)):
        with pytest.raises(ValueError, match="masks must"):
            segmenter.losses(images, wrong)
