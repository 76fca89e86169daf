"""ATS: inverse-transform sampling of the importance, a number of tokens for each image."""

from __future__ import annotations

from typing import Any

import pytest
import reference_methods
import torch
from small_models import create, photographs

import entropatch
from entropatch import Drop, Merge, PruneConfig, Schedule, prune_
from entropatch.criteria import ClassAttention, ValueAttention
from entropatch.sampling import InverseTransform, sampled

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("points", [1, 2, 5, 30, 200])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 6.0])
def test_points_sample_the_nearest(points: int, sharpness: float) -> None:
    mass = torch.randn(4, 30, dtype=torch.float64).mul(sharpness).softmax(1)
    got = sampled(mass, points)
    for row, shares in zip(got, mass.tolist(), strict=True):
        if points == 1:
            assert row.nonzero()[:, 0].tolist() == [max(range(30), key=lambda j: (shares[j], j))]
        else:
            assert row.nonzero()[:, 0].tolist() == reference_methods.ats_sampled(shares, points)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 6.0])
@pytest.mark.parametrize("points", [2, 5, 12, 29, 30, 31])
def test_fewer_points_than_patches_sample_of_the_best(points: int, sharpness: float) -> None:
    mass = torch.randn(4, 30, dtype=torch.float64).mul(sharpness).softmax(1)
    got = sampled(mass, points, points)
    for row, shares in zip(got, mass.tolist(), strict=True):
        assert row.nonzero()[:, 0].tolist() == reference_methods.ats_sampled(shares, points, points)
    assert torch.equal(got, sampled(mass, points)) == (points >= 29)  # the least important is never sampled


def test_sampling_by_hand() -> None:
    """Shares .1 .2 .3 .4 add up to .1 .3 .6 1, stretched 0 2/9 5/9 1: three points stand at 2/9, 11/18 and 1."""
    mass = torch.tensor([[0.3, 0.1, 0.4, 0.2], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]])
    expected = [[0, 2, 3], [1, 2, 3], [2]]
    assert [row.nonzero()[:, 0].tolist() for row in sampled(mass, 3)] == expected
    assert sampled(torch.ones(1, 5), 3).nonzero()[:, 1].tolist() == [1, 2, 4]  # 5/8 is as near to 1/2 as to 3/4
    assert sampled(torch.ones(2, 1), 5).tolist() == [[True]] * 2
    assert sampled(torch.zeros(1, 3), 2).tolist() == [[True] * 3]


def twin(samples: int | None, rate: float) -> Any:
    def choose(block: int, q: Any, k: Any, v: Any, present: list[int]) -> list[int] | None:
        if block not in (1, 2, 3):
            return None
        scores = reference_methods.ats_scores(q, k, q.shape[-1] ** -0.5, 1, v)
        points = samples or -int(-rate * len(present) // 1)
        return reference_methods.ats_sampled(scores, points, samples)

    return choose


@pytest.mark.parametrize(
    "setting",
    [{"schedule": InverseTransform(samples=25)}, {"schedule": InverseTransform(samples=14)}, {"keep_rate": 0.75}],
)
def test_images_keep_what_they_sample(setting: dict[str, Any]) -> None:
    model = prune_(create("deit").double(), method="ats", **setting)
    images = photographs(model, batch=5).double()
    with torch.no_grad(), entropatch.trace(model) as trace:
        output = model(images)
    samples = getattr(setting.get("schedule"), "samples", None)
    stock = entropatch.unprune_(model)
    for i, image in enumerate(images):
        expected, stages = reference_methods.slow_pass(stock, image[None], twin(samples, 0.75))
        torch.testing.assert_close(output[i], expected[0])
        assert [[patch for patch in kept[i].tolist() if patch >= 0] for kept in trace.kept] == stages
    counts = trace.counts[1]
    assert isinstance(counts, list), "all images kept equally many: nothing was tested"


def test_a_sampled_patch_stays_whatever_scores_more() -> None:
    """Rounded up, the further ones are those of the highest scores; merged, the others go into the sampled ones."""
    images = photographs(create("deit"), batch=6)
    exact, rounded, merged = (
        prune_(create("deit"), criterion=ValueAttention(), blocks=(1,), reduction=reduction, schedule=schedule)
        for reduction, schedule in (
            (Drop(), InverseTransform(12)),
            (Drop(), InverseTransform(12, sizes=(0.52,))),
            (Merge(), InverseTransform(12)),
        )
    )
    kept = []
    for model in (exact, rounded, merged):
        with torch.no_grad(), entropatch.trace(model) as trace:
            model(images)
        kept.append([{patch for patch in row if patch >= 0} for row in trace.kept[0].tolist()])
    assert kept[0] == kept[2]
    assert any(len(row) < 12 for row in kept[0])
    scores = trace.scores[0]
    assert scores is not None
    for own, more, row in zip(kept[0], kept[1], scores.tolist(), strict=True):
        assert len(more) == 13
        assert own < more
        others = sorted(set(range(25)) - own, key=lambda j: -row[j])
        assert more - own == set(others[: 13 - len(own)])


def test_rate_one_and_settings() -> None:
    model = prune_(create("deit"), method="ats", keep_rate=1.0)
    images = photographs(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images), entropatch.unprune_(model)(images), atol=1e-6, rtol=1e-6)
    assert InverseTransform().blocks(12) == (3, 6, 9)
    assert InverseTransform(196).blocks(12) == tuple(range(3, 12))
    config = PruneConfig(method="ats", schedule=InverseTransform(196))
    assert config == PruneConfig(criterion=ValueAttention(), schedule=InverseTransform(196))
    assert config.label == "ATS, 196 samples"
    assert PruneConfig.from_json(config.to_json()) == config
    with pytest.raises(TypeError, match="is short for its own schedule"):
        PruneConfig(method="evit", schedule=InverseTransform())
    with pytest.raises(ValueError, match="says by itself how many"):
        PruneConfig(method="ats", schedule=InverseTransform(9), keep_rate=0.5)
    wrong: list[tuple[Any, type[Exception]]] = [
        ((1,), ValueError),
        ((True,), TypeError),
        ((9, (0.1, 0.2, 0.3, 0.4)), ValueError),
    ]
    for fields, error in wrong:
        with pytest.raises(error):
            InverseTransform(*fields)
    assert "InverseTransform" in Schedule.kinds()


def test_any_criterion_can_be_sampled() -> None:
    setting: dict[str, Any] = {"criterion": ClassAttention(), "reduction": "fuse"}
    model = prune_(create("deit"), schedule=InverseTransform(), **setting)
    images = photographs(model, batch=3)
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), alone, atol=1e-5, rtol=1e-5)
