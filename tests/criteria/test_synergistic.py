"""STAR: class attention times the relevance of places, learnt offline."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import reference
import reference_methods
import torch
from small_models import create, photographs

import entropatch
from entropatch import PruneConfig, prune_
from entropatch.criteria import ClassAttention, Mix, Product, Renyi, Synergistic

pytestmark = pytest.mark.usefixtures("one_thread")


def relevance_twin(model: Any, image: torch.Tensor, number: int) -> list[float]:
    """Shares of |dy/dt| at t = 0, each patch that enters a block moved by t away from their mean, by differences."""

    def answer(x: torch.Tensor) -> torch.Tensor:
        for block in list(model.blocks)[number:]:
            x = block(x)
        return model.forward_head(model.norm(x))[0]

    with torch.no_grad():
        x = reference_methods.embedded(model, image)
        for block in list(model.blocks)[:number]:
            x = block(x)
        top, step, slopes = answer(x).argmax(), 1e-4, []
        for j in range(1, x.shape[1]):
            further, nearer, away = x.clone(), x.clone(), x[:, j] - x[:, 1:].mean(1)
            further[:, j] += step * away
            nearer[:, j] -= step * away
            slopes.append(abs((answer(further)[top] - answer(nearer)[top]).item() / (2 * step)))
    return [slope / sum(slopes) for slope in slopes]


@pytest.mark.parametrize("pruned", [False, True])
def test_the_maps_are_the_slopes_towards_the_mean_patch(pruned: bool) -> None:
    model: Any = create("deit").double().train()
    images = photographs(model, batch=3).double()
    if pruned:
        prune_(model, keep_rate=0.5)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    config = entropatch.pruning_config(model) if pruned else None
    maps = Synergistic().calibrate(model, images, batch=2).relevance
    assert all(module.training for module in model.modules())
    assert type(model.blocks[0]).__module__.startswith("entropatch") == pruned
    if pruned:
        assert entropatch.pruning_config(model) == config
        entropatch.unprune_(model)
    stock = copy.deepcopy(model).eval()
    for block in (0, 3):
        rows = [relevance_twin(stock, image[None], block) for image in images]
        expected = [sum(row[j] for row in rows) / 3 for j in range(25)]
        torch.testing.assert_close(torch.tensor(maps[block]), torch.tensor(expected), rtol=1e-4, atol=1e-7)


def test_places_are_followed_through_prunings() -> None:
    torch.manual_seed(3)
    maps = tuple(tuple(row) for row in torch.rand(4, 25).tolist())
    model = prune_(create("deit").double(), criterion=Synergistic(0.3, maps), keep_rate=0.6, blocks=(1, 2, 3))
    images = photographs(model).double()
    with torch.no_grad(), entropatch.trace(model) as trace:
        output = model(images)

    def choose(block: int, q: Any, k: Any, v: Any, present: list[int]) -> list[int] | None:
        if block == 0:
            return None
        intra = reference.evit_importance(q, k, q.shape[-1] ** -0.5, 1)
        scores = [a**0.3 * maps[block][patch] ** 0.7 for a, patch in zip(intra, present, strict=True)]
        return reference.kept_places(scores, reference.kept_count(0.6, len(present)))

    stock = entropatch.unprune_(model)
    for i, image in enumerate(images):
        expected, stages = reference_methods.slow_pass(stock, image[None], choose)
        torch.testing.assert_close(output[i], expected[0])
        assert [kept[i].tolist() for kept in trace.kept] == stages


def test_what_was_not_learnt_is_refused() -> None:
    model = create("deit")
    for criterion in (Synergistic(), Mix(Renyi(1.0), Synergistic()), Product(Synergistic(), ClassAttention())):
        with pytest.raises(ValueError, match=r"use criterion=Synergistic\(\)\.calibrate\(model, images\)\.$"):
            prune_(model, criterion=criterion)
    images = photographs(model)
    prune_(model, criterion=Synergistic(relevance=((0.1,) * 9,) * 4))
    with pytest.raises(ValueError, match="4 blocks with 9 patches, but block 1 of a model with 25 patches"):
        model(images)
    with pytest.raises(ValueError, match="share must lie"):
        Synergistic(2)
    with pytest.raises(ValueError, match="equally many patches"):
        Synergistic(relevance=((0.1,), (0.1, 0.2)))


def test_calibrated_criteria_save_mix_and_fuse() -> None:
    model = create("deit")
    images = photographs(model, batch=3)
    criterion = Mix(Synergistic(), Renyi(2.0)).calibrate(model, images)
    config = PruneConfig(criterion=criterion, reduction="fuse", blocks=(1, 3))
    assert PruneConfig.from_json(config.to_json()) == config
    assert config.label.startswith("0.5 × STAR + 0.5 × Rényi")
    assert len(repr(criterion)) < 200
    prune_(model, config)
    with torch.no_grad():
        assert model(images).isfinite().all()
    assert Renyi(2.0).calibrate(model, images) == Renyi(2.0)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        ("photos", "str"),
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\)"),
        (torch.zeros(0, 3, 32, 32), r"\(0, 3, 32, 32\)"),
    ],
)
def test_what_are_no_images_is_refused(images: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"normalised images \(n, 3, H, W\), at least one, but got {got}"):
        Synergistic().calibrate(create("deit"), images)
