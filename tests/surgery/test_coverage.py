"""Coverage: the best patch of each cell of the grid stays before any second one, as the loops of `reference` choose."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_model import evit, masked_pass, renyi
from small_models import create, photographs

import entropatch
from entropatch import ClassAttention, CumulativeImportance, Renyi
from entropatch.priorities import covering
from entropatch.tokens import select

pytestmark = pytest.mark.usefixtures("one_thread")


@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(2, 8),
    st.integers(0, 10_000),
    st.booleans(),
    st.booleans(),
)
def test_the_cells_best_come_first(h: int, w: int, side: int, seed: int, tied: bool, fused: bool) -> None:
    """Any grid, divisible or not; any patches left of it; scores with and without ties; every k."""
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, h * w + 1, (), generator=generator))
    positions = torch.rand(2, h * w, generator=generator).argsort(1)[:, :n].sort(1).values
    if fused:
        positions = torch.cat((positions, torch.full((2, 1), -1)), dim=1)
    scores = torch.randint(0, 3, positions.shape, generator=generator).double()
    scores = scores if tied else torch.rand(positions.shape, generator=generator, dtype=torch.float64)
    priorities = covering(scores, positions, (h, w), side)
    for k in range(1, positions.shape[1] + 1):
        for image, kept in enumerate(select(priorities, k).tolist()):
            expected = reference.covering_places(scores[image].tolist(), k, positions[image].tolist(), (h, w), side)
            assert kept == expected


def test_fewer_kept_than_cells_are_the_best_of_the_cells_best() -> None:
    """4 × 4 patches in four cells: the two best of all lie in one cell, which sends one of them."""
    scores = torch.zeros(1, 16)
    scores[0, [0, 1, 2, 8, 10]] = torch.tensor([9.0, 8.0, 3.0, 2.0, 1.0])
    priorities = covering(scores, torch.arange(16)[None], (4, 4), 2)
    assert [select(priorities, k)[0].tolist() for k in (1, 2, 3, 4, 5)] == [
        [0],
        [0, 2],
        [0, 2, 8],
        [0, 2, 8, 10],
        [0, 1, 2, 8, 10],
    ]


RATES = {0: 0.7, 1: 0.5, 3: 0.4}
SIDES = {0: 2, 1: None, 3: 3}
CRITERIA = {0: Renyi(math.inf), 1: Renyi(1.0), 3: Renyi(2.0)}
SCORES = {0: renyi(math.inf), 1: renyi(1.0), 3: renyi(2.0)}


def twin_of(model: Any, images: torch.Tensor, grid: tuple[int, int], sides: dict[int, int | None], scores: Any) -> Any:
    def choose(values: list[float], k: int, patches: list[int], block: int) -> list[int]:
        side = sides[block]
        if side is None:
            return reference.kept_places(values, k)
        return reference.covering_places(values, k, patches, grid, side)

    return masked_pass(model, images, RATES, scores, choose=choose)


@pytest.mark.parametrize("name", ["deit", "dinov2 registers", "average", "dinov3"])
def test_a_model_that_covers_keeps_the_patches_of_the_loops(name: str) -> None:
    """Cells of original patches in later stages too, a criterion and a side of its own for each block."""
    stock = create(name).double()
    images = photographs(stock, batch=3).double()
    model = copy.deepcopy(stock)
    fields = {"criterion": tuple(CRITERIA.values()), "coverage": tuple(SIDES.values())}
    entropatch.prune_(model, keep_rate=tuple(RATES.values()), blocks=tuple(RATES), **fields)
    with torch.no_grad(), entropatch.trace(model) as trace:
        logits = model(images)
    twin = twin_of(stock, images, (5, 5), SIDES, SCORES)
    assert [kept.tolist() for kept in trace.kept] == twin.kept
    torch.testing.assert_close(logits, twin.logits, atol=1e-9, rtol=0)
    # It is not what the scores alone choose.
    entropatch.prune_(model, coverage=None)
    with torch.no_grad(), entropatch.trace(model) as plain:
        model(images)
    assert plain.kept[0].tolist() != trace.kept[0].tolist()


def test_grids_that_are_not_square() -> None:
    stock = create("dinov2 registers", dynamic_img_size=True).double()
    images = torch.randn(2, 3, 14 * 3, 14 * 7, dtype=torch.float64)
    model = copy.deepcopy(stock)
    entropatch.prune_(model, keep_rate=tuple(RATES.values()), blocks=tuple(RATES), method="evit-drop", coverage=2)
    with torch.no_grad(), entropatch.trace(model) as trace:
        logits = model(images)
    twin = twin_of(stock, images, (3, 7), dict.fromkeys(RATES, 2), evit)
    assert [kept.tolist() for kept in trace.kept] == twin.kept
    torch.testing.assert_close(logits, twin.logits, atol=1e-9, rtol=0)


SETTINGS: dict[str, dict[str, Any]] = {
    "drop": {"order": 2.0},
    "fuse": {"criterion": ClassAttention(), "reduction": "fuse"},
    "merge": {"order": 1.0, "reduction": "merge"},
    "per image": {"order": 1.0, "schedule": CumulativeImportance(0.5)},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_batch_is_its_images_one_by_one(kind: str) -> None:
    model = entropatch.prune_(create("deit"), coverage=2, **SETTINGS[kind])
    images = photographs(model, batch=5)
    with torch.no_grad():
        together, alone = model(images), [model(image[None]) for image in images]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
        entropatch.prune_(model, coverage=None)
        assert (model(images) - together).abs().max() > 1e-3


def test_every_cell_keeps_a_patch_where_there_are_enough() -> None:
    model = entropatch.prune_(create("deit"), keep_rate=0.5, blocks=(1, 2), coverage=2)  # 9 cells; 13, then 7 stay
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(photographs(model, batch=6))
    for kept, cells in zip(trace.kept, (9, 7), strict=True):
        assert all(len({(p // 5 // 2, p % 5 // 2) for p in image}) == cells for image in kept.tolist())


def test_a_rate_of_one_is_the_stock_model() -> None:
    stock = create("deit")
    images = photographs(stock)
    with torch.no_grad():
        expected = stock(images)
        assert torch.equal(entropatch.prune_(stock, keep_rate=1.0, coverage=2)(images), expected)


def test_patch_dropout_is_refused() -> None:
    model = create("deit", patch_drop_rate=0.5)
    entropatch.prune_(model, coverage=2)
    images = photographs(model)
    model(images)
    with pytest.raises(ValueError, match=r"coverage=2 needs to know where each patch stands"):
        model.train()(images)


def test_gradient_checkpointing_keeps_what_was_kept() -> None:
    grads = []
    for checkpointing in (False, True):
        model = entropatch.prune_(create("deit").train(), coverage=2, order=1.0)
        model.set_grad_checkpointing(checkpointing)
        model(photographs(model)).square().sum().backward()
        grads.append(model.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*grads)
