"""The literature's methods by name: on the models of every library, counted, saved, and with one another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import create, photographs
from small_towers import clip, pictures, torchvision_model

import entropatch
from entropatch import Halting, PruneConfig, UnsupportedModelError, prune_
from entropatch.deciding import AboveZeroEverywhere
from entropatch.literature import LITERATURE
from entropatch.measure import count_flops
from entropatch.methods import METHODS, compared_methods, find_method

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = [method.name for method in LITERATURE]


def setting(name: str) -> dict[str, Any]:
    """The method, at a keep rate of 0.5 where it takes one; A-ViT as of a model that was trained to halt."""
    if name == "a-vit":
        return {"criterion": Halting(scale=2.0, centre=0.5), "schedule": AboveZeroEverywhere()}
    return {"method": name, "keep_rate": 0.5}


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_registered_saved_and_counted(name: str) -> None:
    assert METHODS[name] is find_method(name)
    assert name not in compared_methods()
    config = PruneConfig(**setting(name))
    assert PruneConfig.from_json(config.to_json()) == config
    if name != "a-vit":
        assert config.named == METHODS[name]
        assert config.label == METHODS[name].label
    model = create("deit")
    images = photographs(model)[:1]
    dense = count_flops(model, images)
    flops = count_flops(prune_(model, config), images)
    assert flops.uncounted == {}
    assert flops.total < dense.total


@pytest.mark.parametrize("name", NAMES)
def test_a_method_runs_on_torchvision_and_open_clip(name: str) -> None:
    images = pictures()
    for model in (torchvision_model(), clip().visual):
        with torch.no_grad():
            dense = model(images)
            pruned = prune_(model, **setting(name))(images)
            assert pruned.isfinite().all()
            assert not torch.allclose(pruned, dense)
            assert torch.equal(entropatch.unprune_(model)(images), dense)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"col-ln", "att-entropy", "cropr"}))
def test_what_needs_a_class_token_says_so(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="needs a class token, but this VisionTransformer has none"):
        prune_(create("siglip"), method=name)


def test_custom_open_clip_attention_has_no_plain_projection() -> None:
    with pytest.raises(UnsupportedModelError, match="a scale of each head and a norm between its heads"):
        prune_(clip("custom").visual, method="value-norm")


def test_methods_of_several_blocks() -> None:
    model = prune_(create("deit"), method="head-mad_col-ln@2_att-entropy", keep_rate=0.6)
    images = photographs(model)
    with torch.no_grad(), entropatch.trace(model) as trace:
        assert model(images).isfinite().all()
    assert trace.counts == [25, 15, 9, 6]


def test_methods_on_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.CLIPVisionConfig(**sizes, image_size=80, patch_size=16)
    model, images = transformers.CLIPVisionModel(config).eval(), pictures()
    for name in NAMES:
        prune_(model, PruneConfig(**setting(name)))
        with torch.no_grad(), entropatch.trace(model) as trace:
            assert model(images).pooler_output.isfinite().all()
        fewer = any(stage.tokens_after < 25 for stage in trace.stages)
        assert fewer or (name == "evo-vit" and trace.kept[-1].shape[1] == 12)
