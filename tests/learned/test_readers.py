"""Learned methods where more is read of a model than its output: maps, shared passes, runs in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import awaken, create, photographs
from small_towers import pictures

import entropatch
from entropatch import Halting, PruneConfig, prune_
from entropatch.deciding import AboveZeroEverywhere
from entropatch.surgery.sharing import Shared, sharing

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS: dict[str, PruneConfig] = {
    "dynamicvit": PruneConfig(method="dynamicvit", keep_rate=0.6),
    "cropr": PruneConfig(method="cropr", r=5),
    "a-vit": PruneConfig(criterion=Halting(scale=2.0, centre=0.5), schedule=AboveZeroEverywhere()),
    "spvit": PruneConfig(method="spvit"),
}


def awake(model: Any) -> Any:
    """The model, whose own weights tell patches apart."""
    for name, part in model.named_modules():
        if name.rpartition(".")[2] == "entropatch":
            awaken(part)
    return model


@pytest.mark.parametrize("name", ["dynamicvit", "cropr", "a-vit"])
def test_a_backbone_s_map_is_what_restore_gives(name: str) -> None:
    """transformers' loop hands on dense maps; the same weights in a tower that hands on what is left, restored."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 80, "patch_size": 16}
    torch.manual_seed(0)
    backbone = awaken(transformers.Dinov2Backbone(transformers.Dinov2Config(**sizes, out_indices=[4]))).eval()
    tower = transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval()
    tower.load_state_dict(backbone.state_dict())
    for model in (backbone, tower):
        awake(prune_(model, SETTINGS[name]))
    with torch.no_grad(), entropatch.trace(tower) as trace:
        tokens = tower(pictures(3)).last_hidden_state
        found = backbone(pictures(3)).feature_maps[0]
    torch.testing.assert_close(found.permute(0, 2, 3, 1), entropatch.restore(tokens, trace), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_passes_that_share_blocks(name: str) -> None:
    model = awake(prune_(create("deit"), SETTINGS[name]))
    images = photographs(model, batch=3)
    with torch.no_grad():
        alone = model(images)
        with sharing(model, Shared()) as shared:
            for _ in range(2):
                torch.testing.assert_close(model(images), alone, atol=1e-6, rtol=1e-6)
    assert shared.blocks_skipped > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_maps_of_blocks_in_between(name: str) -> None:
    model = awake(prune_(create("deit"), SETTINGS[name]))
    images = photographs(model)
    with torch.no_grad(), entropatch.trace(model) as trace:
        maps = model.forward_intermediates(images, indices=[1, 2], stop_early=True, intermediates_only=True, norm=True)
        record = trace.stages[0]
    assert [tuple(one.shape) for one in maps] == [(2, 32, 5, 5)] * 2
    gone = record.dropped
    for i in range(2):
        for place, patch in enumerate(gone[i].tolist()):
            if patch >= 0:  # it shows the value with which it left, before block 1
                expected = model.norm(record.dropped_tokens[i, place])
                torch.testing.assert_close(maps[0][i].flatten(1)[:, patch], expected)
