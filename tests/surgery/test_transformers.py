"""transformers' models: the stock model at keep rate 1, and below the stock layers with pruned patches unseen."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from masked_twin import Twin
from small_transformers import CASES, Case
from torch import Tensor
from torch.utils._pytree import tree_leaves

import entropatch
from entropatch import Mix, PruneConfig, Renyi
from entropatch.methods import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

RATES = {0: 0.8, 2: 0.45}


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if torch.is_floating_point(x) else x for name, x in inputs.items()}


def pruned_double(case: Case) -> tuple[Any, Any, dict[str, Any]]:
    """The stock model and its pruned copy in float64, and a batch."""
    model = case.model().double()
    pruned = entropatch.prune_(copy.deepcopy(model), keep_rate=tuple(RATES.values()), blocks=tuple(RATES), order=2.0)
    return model, pruned, double(case.batch(model))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_keep_rate_one_is_the_stock_model(name: str, implementation: str) -> None:
    case = CASES[name]
    model = case.model()
    model.get_submodule(case.tower).set_attn_implementation(implementation)
    inputs: dict[str, Any] = {**case.batch(model), "output_hidden_states": True}
    inputs["output_attentions"] = implementation == "eager"
    classes, config = [type(module) for module in model.modules()], model.config.to_dict()
    with torch.no_grad():
        stock = tensors(model(**inputs))
        entropatch.prune_(model, keep_rate=1.0)
        same = tensors(model(**inputs))
        with entropatch.trace(model):
            traced = tensors(model(**inputs))
    assert len(stock) == len(same) == len(traced) > 1
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(stock, same, traced, strict=True))
    assert model.config.to_dict() == config
    entropatch.unprune_(model)
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("name", [name for name in CASES if "Siglip2" not in name])
def test_below_it_is_the_stock_layers_with_pruned_patches_unseen(name: str) -> None:
    case = CASES[name]
    model, pruned, inputs = pruned_double(case)
    twin = Twin(model, case.tower, case.layers, case.prefix, RATES, 2.0, case.dense, case.norm2)
    seen = None
    if "patch_attention_mask" in inputs:
        twin.valid = seen = inputs["patch_attention_mask"].flatten(1)
    with torch.no_grad(), entropatch.trace(pruned) as trace:
        got = pruned(**inputs)
        expected = twin(**inputs)
    assert trace.grid == case.grid
    assert [[[p for p in row if p >= 0] for row in kept.tolist()] for kept in trace.kept] == twin.kept
    assert len(tensors(got)) == len(tensors(expected)) > 0
    for a, b in zip(tensors(got), tensors(expected), strict=True):
        assert near(a, b, seen)
    with torch.no_grad():
        states = _states(pruned(**inputs, output_hidden_states=True))
    assert len(states) == len(twin.states)
    for block, (state, reference) in enumerate(zip(states, twin.states, strict=True)):
        assert near(state, _left(reference, block, case, twin), seen)


def near(a: Tensor, b: Tensor, seen: Tensor | None = None) -> bool:
    """Equal up to float64's rounding, but for what only fills up."""
    differs = (a - b).abs() > 1e-9 + 1e-9 * b.abs()
    return not bool((differs if seen is None else differs & seen[..., None]).any())


def _left(reference: Tensor, block: int, case: Case, twin: Twin) -> Tensor:
    """Of the twin's tokens before a block those that a pruned model has there."""
    done = sum(stage < block for stage in RATES)
    if case.dense or not done:
        return reference
    rows = torch.tensor(twin.kept[done - 1])[..., None].expand(-1, -1, reference.shape[2])
    return torch.cat((reference[:, : case.prefix], reference[:, case.prefix :].gather(1, rows)), dim=1)


def _states(output: Any) -> list[Tensor]:
    return list(output.get("hidden_states") or output["vision_model_output"]["hidden_states"])


@pytest.mark.parametrize("name", [name for name in CASES if "Siglip2" in name])
def test_padding_is_neither_scored_nor_counted(name: str) -> None:
    case = CASES[name]
    model, pruned, inputs = pruned_double(case)
    twin = Twin(model, case.tower, case.layers, case.prefix, RATES, 2.0, True, case.norm2)
    twin.valid = inputs["pixel_attention_mask"].bool()
    tower = twin.model.get_submodule(case.tower)
    tower.head.register_forward_pre_hook(lambda head, args: (args[0], twin.alive))
    with torch.no_grad(), entropatch.trace(pruned) as trace:
        got = pruned(**inputs)
        expected = twin(**inputs)
    assert [[[p for p in row if p >= 0] for row in kept.tolist()] for kept in trace.kept] == twin.kept
    patches = inputs["pixel_attention_mask"].sum(1).tolist()
    assert trace.counts[0] == (patches if len(set(patches)) > 1 else patches[0])
    for stage in trace.stages:
        gone = stage.dropped
        for image in range(2):
            there = {*stage.kept[image].tolist()} | {*gone[image].tolist()}
            assert there - {-1} == {*stage.patches[image].tolist()} - {-1}
        assert stage.dropped_tokens.shape[:2] == gone.shape
        assert torch.equal(stage.dropped_tokens.isnan().all(-1), gone < 0)
    key = "logits_per_image" if "logits_per_image" in got else "pooler_output"
    assert torch.allclose(got[key], expected[key], rtol=1e-9, atol=1e-9)
    assert got[key].isfinite().all()


REFUSED_BESIDE_PADDING = "fills up its images with padding|needs a class token|keep different numbers"


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_padded_images_are_what_they_are_alone_or_refused(name: str) -> None:
    case = CASES["Siglip2VisionModel"]
    _, pruned, inputs = pruned_double(case)
    refused = ""
    try:
        entropatch.prune_(pruned, PruneConfig(method=name))
    except entropatch.UnsupportedModelError as error:
        refused = str(error)
    assert bool(refused) == (name not in ("shannon", "renyi-2", "renyi-inf", "att-entropy"))
    if refused:
        assert re.search(REFUSED_BESIDE_PADDING, refused)
        return
    with torch.no_grad():
        both = pruned(**inputs).pooler_output
        for image, (height, width) in enumerate(inputs["spatial_shapes"].tolist()):
            alone = {name: x[image : image + 1] for name, x in inputs.items()}
            alone["pixel_values"] = alone["pixel_values"][:, : height * width]
            alone["pixel_attention_mask"] = alone["pixel_attention_mask"][:, : height * width]
            assert torch.allclose(pruned(**alone).pooler_output[0], both[image], atol=1e-9)


def test_scores_that_padding_would_change_are_refused() -> None:
    model = CASES["Siglip2VisionModel"].model()
    with pytest.raises(entropatch.UnsupportedModelError, match=r"padding, which would change the scores of Mix\("):
        entropatch.prune_(model, criterion=(Renyi(), Mix(Renyi(1.0), Renyi())), blocks=(0, 1))
