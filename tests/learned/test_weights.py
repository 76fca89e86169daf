"""Weights of a method's own: where they are, how they travel, and that they come and go with the setting."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from small_models import awaken, create, photographs
from small_towers import clip, pictures, torchvision_model

import entropatch
from entropatch import KeepPredictor, UnsupportedModelError, prune_, unprune_
from entropatch.export.subject import named_outputs
from entropatch.measure.variants import pruned_copy

pytestmark = pytest.mark.usefixtures("one_thread")
METHOD: dict[str, Any] = {"method": "dynamicvit", "keep_rate": 0.6}


def hf_classifier() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    return awaken(transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=80))).eval()


MODELS: dict[str, Any] = {
    "timm": lambda: create("deit"),
    "torchvision": torchvision_model,
    "open_clip": lambda: clip().eval(),
    "transformers": hf_classifier,
}


def run(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output = model.encode_image(pictures()) if hasattr(model, "encode_image") else model(pictures())
        return output if isinstance(output, torch.Tensor) else next(iter(named_outputs(output, model).values()))


@pytest.mark.parametrize("name", MODELS)
def test_they_come_with_the_method_and_vanish(name: str) -> None:
    model = MODELS[name]()
    dense, stock = run(model), {key: value.clone() for key, value in model.state_dict().items()}
    prune_(model, **METHOD)
    own = {key: value for key, value in model.state_dict().items() if key not in stock}
    assert {key.partition("entropatch.")[2].partition(".")[0] for key in own} == {"1", "2", "3"}
    assert len({key.partition("entropatch.")[0] for key in own}) == 1  # one prefix
    assert {key for key, _ in model.named_parameters()} >= own.keys()
    pruned = run(model)
    assert not torch.allclose(pruned, dense)
    unprune_(model)
    assert model.state_dict().keys() == stock.keys()
    assert not [module for _, module in model.named_modules() if type(module).__name__ == "Predictor"]
    assert torch.equal(run(model), dense)


@pytest.mark.parametrize("name", MODELS)
def test_they_travel(name: str) -> None:
    model = prune_(MODELS[name](), **METHOD)
    awaken(next(part for key, part in model.named_modules() if key.endswith("entropatch")))
    expected = run(model)
    again = prune_(MODELS[name](), **METHOD)
    assert not torch.equal(run(again), expected)
    again.load_state_dict(model.state_dict())
    assert torch.equal(run(again), expected)
    assert torch.equal(run(copy.deepcopy(model)), expected)
    assert torch.equal(run(pickle.loads(pickle.dumps(model))), expected)


def test_they_are_drawn_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one: Any = prune_(create("deit"), **METHOD)
    before = torch.get_rng_state()
    two: Any = prune_(create("deit"), **METHOD)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(0).get_state())
    assert not torch.equal(before, torch.get_rng_state())
    for a, b in zip(one.entropatch.parameters(), two.entropatch.parameters(), strict=True):
        assert torch.equal(a, b)
    three: Any = prune_(create("deit"), criterion=KeepPredictor(seed=1), schedule=entropatch.ShareOfTotal())
    weight = "1.embed.1.weight"
    assert not torch.equal(three.entropatch.get_parameter(weight), one.entropatch.get_parameter(weight))
    other = one.entropatch.get_parameter("2.embed.1.weight")
    assert not torch.equal(other, one.entropatch.get_parameter(weight))


def test_pruning_leaves_the_random_state() -> None:
    model = create("deit")
    before = torch.get_rng_state()
    prune_(model, **METHOD)
    assert torch.equal(torch.get_rng_state(), before)


def test_they_have_the_type_of_the_blocks() -> None:
    model: Any = prune_(create("deit").double(), **METHOD)
    assert {p.dtype for p in model.entropatch.parameters()} == {torch.float64}
    model.to(torch.bfloat16)
    assert {p.dtype for p in model.entropatch.parameters()} == {torch.bfloat16}
    assert model(photographs(model).bfloat16()).isfinite().all()


def test_another_setting_of_the_method_keeps_them_and_another_method_puts_them_aside() -> None:
    model: Any = prune_(create("deit"), **METHOD)
    awaken(model.entropatch)
    first, expected = model.entropatch["1"], run(model)
    prune_(model, keep_rate=0.9)
    assert model.entropatch["1"] is first
    prune_(model, method="evit")
    assert not hasattr(model, "entropatch")
    prune_(model, keep_rate=0.8)
    prune_(model, method="cropr")
    assert list(model.entropatch) == ["1", "2"]
    unprune_(model)
    prune_(model, **METHOD)
    assert model.entropatch["1"] is first  # an optimiser still has its parameters
    assert torch.equal(run(model), expected)
    prune_(model, blocks=(1, 2))
    assert list(model.entropatch) == ["1", "2"]
    prune_(model, blocks=(1, 2, 3))
    assert torch.equal(run(model), expected)
    unprune_(model)
    assert torch.equal(run(prune_(copy.deepcopy(model), **METHOD)), expected)


def test_copies_for_comparisons_share_them() -> None:
    model: Any = prune_(create("deit"), **METHOD)
    shared: Any = pruned_copy(model, entropatch.pruning_config(model))
    assert shared.entropatch["1"].embed[1].weight is model.entropatch["1"].embed[1].weight


def test_looking_at_a_model_leaves_them() -> None:
    from entropatch.look.inspection import entropy_maps, possible_methods

    model: Any = prune_(create("deit"), **METHOD)
    first = model.entropatch["1"]
    entropy_maps(model, photographs(model), (2.0,))
    assert "dynamicvit" in possible_methods(model, ["evit", "dynamicvit"])[0]
    assert model.entropatch["1"] is first


def test_refusals_leave_the_model_as_it_was() -> None:
    model: Any = create("deit")
    model.entropatch = torch.nn.Identity()
    with pytest.raises(UnsupportedModelError, match="has an attribute 'entropatch' already"):
        prune_(model, **METHOD)
    assert not entropatch.surgery.is_pruned(model)
    assert isinstance(model.entropatch, torch.nn.Identity)


@pytest.mark.slow
def test_compiled() -> None:
    model = prune_(create("deit"), **METHOD)
    awaken(model.entropatch)  # pyright: ignore[reportArgumentType]
    expected = run(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled), expected)
