"""What `prune_` does where nothing says how to prune, and that whatever says so is done instead."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from small_models import create, photographs
from small_transformers import CASES

from entropatch import PruneConfig, prune_, pruning_config, trace
from entropatch.calibration.comparing import usual
from entropatch.calibration.finding import DEFAULT
from entropatch.methods import DENSE, default_method, find_method

WITH, WITHOUT, PAPER = "class-renyi-2@2", "renyi-2@2", "renyi-2"


@pytest.mark.parametrize(
    ("name", "changes", "method"),
    [
        ("deit", {}, WITH),
        ("clip", {}, WITH),
        ("rope", {}, WITH),
        ("siglip", {}, WITHOUT),
        ("siglip average", {}, WITHOUT),
        ("deit", {"patch_drop_rate": 0.3}, PAPER),
    ],
)
def test_what_a_model_of_timm_gets(name: str, changes: dict[str, Any], method: str) -> None:
    model = create(name, **changes)
    assert pruning_config(prune_(model, keep_rate=0.6, blocks=(1,))) == PruneConfig(0.6, blocks=(1,), method=method)
    model.train()(photographs(model))  # nothing that it cannot do in training


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("ViTModel", WITH),
        ("SiglipVisionModel", WITHOUT),
        ("Siglip2VisionModel", PAPER),
        ("Idefics3VisionTransformer", PAPER),
        ("VideoMAEModel", PAPER),
    ],
)
def test_what_a_model_of_transformers_gets(name: str, method: str) -> None:
    model = CASES[name].model()
    assert pruning_config(prune_(model)) == PruneConfig(method=method)
    with torch.no_grad():
        model(**CASES[name].batch(model))


def test_it_keeps_what_loops_over_float64_keep() -> None:
    model = create("deit")
    images, block = photographs(model), 1
    seen: list[torch.Tensor] = []
    hook = model.blocks[block].attn.qkv.register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.no_grad(), trace(prune_(model, keep_rate=0.5, blocks=(block,))) as traced:
        model(images)
    hook.remove()
    attention = model.blocks[block].attn
    heads, side = attention.num_heads, math.isqrt(len(model.pos_embed[0]) - 1)
    for image, kept in zip(seen[-1].double(), traced.kept[0], strict=True):
        q, k, _ = image.unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3).numpy()
        shares = np.array(reference.evit_importance(q, k, attention.scale, 1))
        entropies = -np.array(reference.renyi_importance(q, k, 2.0, attention.scale, 1))
        scores = list(np.log(shares / shares.sum()) - entropies)
        n = side * side
        assert kept.tolist() == reference.covering_places(scores, math.ceil(n / 2), range(n), (side, side), 2)


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        ({"order": 2.0}, PruneConfig(0.6, order=2.0)),
        ({"order": 1.0}, PruneConfig(0.6, order=1.0)),
        ({"method": "evit"}, PruneConfig(0.6, method="evit")),
        ({"reduction": "merge"}, PruneConfig(0.6, reduction="merge")),
        ({"criterion": find_method("random").criterion}, PruneConfig(0.6, method="random")),
        ({"coverage": 3}, PruneConfig(0.6, method="class-renyi-2@3")),
        ({"order": None, "method": None}, PruneConfig(0.6, method=WITH)),
    ],
)
@pytest.mark.parametrize("pruned_before", [False, True])
def test_whatever_says_how_to_prune_is_done_alone(
    fields: dict[str, Any], config: PruneConfig, pruned_before: bool
) -> None:
    model = create("deit")
    if pruned_before:
        prune_(model, keep_rate=0.9)
    assert pruning_config(prune_(model, keep_rate=0.6, **fields)) == config


def test_a_setting_that_was_asked_for_stays_where_only_the_rate_changes() -> None:
    model = prune_(create("deit"), keep_rate=0.9, order=1.0)
    assert pruning_config(prune_(model, keep_rate=0.5)) == PruneConfig(0.5, order=1.0)
    prune_(model, coverage=2)
    assert pruning_config(prune_(model, order=2.0)) == PruneConfig(0.5, order=2.0, coverage=2)
    for explicit in ({"method": WITH}, {"criterion": find_method(WITH).criterion, "coverage": 2}):
        prune_(model, **explicit)
        assert pruning_config(prune_(model, reduction="merge")) == PruneConfig(
            0.5, criterion=find_method(WITH).criterion, coverage=2, reduction="merge"
        )
    prune_(model, PruneConfig(0.5, method=WITH))
    assert pruning_config(prune_(model, reduction="merge")).coverage == 2
    assert pruning_config(prune_(model, PruneConfig(0.4))) == PruneConfig(0.4, order=2.0)  # a config says all


@pytest.mark.parametrize("name", ["deit", "siglip"])
@pytest.mark.parametrize("coverage", [None, 2, 3])
def test_of_the_default_only_what_was_asked_for_stays(name: str, coverage: int | None) -> None:
    model = prune_(create(name), keep_rate=0.6)
    prune_(model, coverage=coverage)
    prune_(model, keep_rate=0.5)
    assert pruning_config(prune_(model, order=1.0)) == PruneConfig(0.5, order=1.0, coverage=coverage)
    model = prune_(prune_(create(name)), coverage=coverage)
    assert pruning_config(prune_(model, r=3)) == PruneConfig(r=3, coverage=coverage)
    model = prune_(create(name), order=2.0, coverage=2)  # asked for, although it is what one of them gets anyway
    assert pruning_config(prune_(model, order=1.0)) == PruneConfig(order=1.0, coverage=2)


def test_it_is_what_calibration_compares_with() -> None:
    subject: Any = SimpleNamespace(depth=12, has_class_token=True, knows_places=False, refusal=lambda cuts: None)
    _, (cut, *_) = usual(subject)[DEFAULT]
    assert (cut.choice.criterion, cut.choice.coverage) == (find_method(PAPER).criterion, None)


def test_the_names_are_those_of_methods() -> None:
    for class_token in (False, True):
        for places in (False, True):
            assert find_method(default_method(class_token, places)).name != DENSE
