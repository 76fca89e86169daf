"""torch.compile: one graph, the same output, and settings and traces that still take effect."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from small_models import GRID, awaken, create, photographs
from torch import nn

import entropatch
from entropatch import ClassAttention, Random, UnsupportedModelError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def shallow(name: str, **changes: Any) -> Any:
    """Two blocks that both prune: compiling takes seconds per block."""
    return create(name, depth=2, **changes)


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, **{"backend": "aot_eager", "fullgraph": True} | options)


SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "renyi": ("deit", {"order": 2.0}),
    "shannon, rotary": ("dinov3", {"order": 1.0}),
    "mixed rotary": ("rope mixed", {"order": 0.5}),
    "evit": ("deit distilled", {"criterion": ClassAttention(), "reduction": "fuse"}),
    "min-entropy, registers": ("dinov2 registers", {"order": float("inf")}),
    "shared keys": ("sapiens2, shared keys", {}),
    "three projections": ("eva-02, three projections", {}),
    "map pooling": ("siglip", {"criterion": Random(1)}),
}
QUICK = 4
CASES = [pytest.param(case, marks=[pytest.mark.slow] if i >= QUICK else []) for i, case in enumerate(SETTINGS)]


@pytest.mark.parametrize("case", CASES)
def test_one_graph_with_the_same_output(case):
    name, setting = SETTINGS[case]
    model = entropatch.prune_(shallow(name), keep_rate=0.5, **setting)
    images = photographs(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(images), model(images))


@pytest.mark.parametrize("name", ["deit", pytest.param("rope mixed", marks=pytest.mark.slow)])
def test_training_in_one_graph(name):
    model = entropatch.prune_(shallow(name).train(), keep_rate=0.5)
    images = photographs(model)
    passes = []
    for each in (model, compiled(model)):
        model.zero_grad()
        each(images).square().sum().backward()
        passes.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    for got, expected in zip(*passes, strict=True):
        torch.testing.assert_close(got, expected)


# What follows is decided while Python is traced into a graph; what a backend then makes of the graph is its own affair.


@pytest.mark.parametrize("name", ["deit", pytest.param("dinov3", marks=pytest.mark.slow)])
def test_a_new_setting_takes_effect_in_compiled_code(name):
    model = entropatch.prune_(shallow(name), keep_rate=0.5)
    fast, images = compiled(model, backend="eager"), photographs(model)
    with torch.no_grad():
        fast(images)
        for change in ({"keep_rate": 0.8, "order": 1.0}, {"blocks": (1,)}):
            assert entropatch.prune_(fast, **change) is fast  # by the compiled wrapper, as by the model itself
            assert entropatch.pruning_config(fast) == entropatch.pruning_config(model)
            torch.testing.assert_close(fast(images), model(images))
        entropatch.prune_(model, keep_rate=0.3)
        torch.testing.assert_close(fast(images), model(images))
        assert not torch.equal(fast(images), shallow(name)(images))
        assert entropatch.unprune_(fast) is fast
        assert type(model) is type(shallow(name))
        torch.testing.assert_close(fast(images), shallow(name)(images))


@pytest.mark.parametrize("case", ["shannon, rotary", pytest.param("evit", marks=pytest.mark.slow)])
def test_traces_of_compiled_code(case):
    name, setting = SETTINGS[case]
    model = entropatch.prune_(shallow(name), keep_rate=0.5, **setting)
    fast, images = compiled(model, backend="eager"), photographs(model, batch=3)
    with torch.no_grad():
        fast(images)
        with entropatch.trace(model) as expected:
            model(images)
        with entropatch.trace(fast) as trace:
            fast(images)
            assert trace.counts == expected.counts
            assert [kept.tolist() for kept in trace.kept] == [kept.tolist() for kept in expected.kept]
            for scores, by_hand in zip(trace.scores, expected.scores, strict=True):
                torch.testing.assert_close(scores, by_hand)
            features = fast.forward_features(images)
            torch.testing.assert_close(
                entropatch.restore(features, trace), entropatch.restore(model.forward_features(images), expected)
            )
            fast(images[:2])  # the next pass replaces the records
            assert [kept.shape[0] for kept in trace.kept] == [2, 2]
        fast(images)
        assert [kept.shape[0] for kept in trace.kept] == [2, 2]


@pytest.mark.slow
def test_several_image_sizes_share_one_graph():
    model = entropatch.prune_(shallow("dinov3", dynamic_img_size=True), keep_rate=0.5)
    fast = compiled(model, backend="eager", dynamic=True)
    with torch.no_grad():
        for grid in ((4, 6), (5, 5), (6, 3)):
            images = photographs(model, size=(grid[0] * 16, grid[1] * 16))
            torch.testing.assert_close(fast(images), model(images))


def test_feature_maps_in_one_graph():
    changes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": GRID * 16}
    extractor = awaken(
        timm.create_model("deit_tiny_patch16_224", features_only=True, out_indices=(0, 1), **changes)
    ).eval()
    entropatch.prune_(extractor.model, keep_rate=0.5)
    images = torch.randn(2, 3, GRID * 16, GRID * 16)
    with torch.no_grad():
        for got, expected in zip(compiled(extractor, backend="eager")(images), extractor(images), strict=True):
            torch.testing.assert_close(got, expected)


def test_what_is_compiled_already_is_refused():
    with pytest.raises(
        UnsupportedModelError, match=r"compiled already; prune it first, then call torch\.compile on it"
    ):
        entropatch.prune_(compiled(shallow("deit")))
    model = shallow("deit")
    model.compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match="compiled already; prune it first"):
        entropatch.prune_(model)
    model = shallow("deit")
    model.blocks[1].compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"block 1 \(Block\) is compiled already"):
        entropatch.prune_(model)


def test_a_pruned_model_compiled_in_place():
    model = entropatch.prune_(shallow("deit"), keep_rate=0.5)
    images = photographs(model)
    with torch.no_grad():
        expected = model(images)
        model.compile(backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(model(images), expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", SETTINGS)
def test_inductor(case):
    name, setting = SETTINGS[case]
    model = entropatch.prune_(shallow(name), keep_rate=0.5, **setting)
    images = photographs(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model, backend="inductor")(images), model(images), atol=1e-4, rtol=1e-4)
