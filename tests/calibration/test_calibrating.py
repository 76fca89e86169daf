"""Calibration of a small model: losses as the loops have them, budgets met, nothing chosen by what is held out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import create
from torch import Tensor, nn

import entropatch
from entropatch import PruneConfig, Renyi
from entropatch.calibration import BudgetError, Calibration, Goal, calibrated, calibrating
from entropatch.calibration.finding import CHOSEN, DEFAULT, RANDOM, Row
from entropatch.calibration.judging import Judge
from entropatch.calibration.ledger import LOSSES, Ledger
from entropatch.calibration.writing import summary, write_calibration
from entropatch.measure import count_flops

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("fvcore")

QUICK: dict[str, Any] = {"batch_size": 6, "effort": 0.2, "blocks": (1, 2), "most_blocks": 2}


@pytest.fixture(scope="module", autouse=True)
def _few() -> Iterator[None]:
    """Two criteria, so that a calibration takes a second."""
    two = [Renyi(1.0), entropatch.ClassAttention()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrating, "offered_criteria", lambda: two)
        patch.setattr("entropatch.calibration.comparing.compared_methods", lambda: ["evit", "shannon"])
        patch.setattr("entropatch.calibration.comparing.spread_within", lambda *_: {})  # those of `test_spreading`
        yield


def images(count: int = 18, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 80, 80, generator=torch.Generator().manual_seed(seed))


def gflops(model: nn.Module) -> float:
    return count_flops(model, images(1)).total / 1e9


@pytest.fixture(scope="module")
def found(_few: None) -> tuple[Any, Calibration, float]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = create("deit")
    budget = 0.7 * gflops(model)
    result = calibrated(model, images(), Goal(gflops=budget), **QUICK)
    torch.set_num_threads(before)
    return model, result, budget


# --- the loss ----------------------------------------------------------------------------------------------------


def loops(objective: str, dense: np.ndarray, pruned: np.ndarray) -> float:
    """The loss of one image, in float64."""
    if objective == "logits":
        p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (dense, pruned))
        return sum(float(a) * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    rows = zip(np.atleast_2d(dense), np.atleast_2d(pruned), strict=True)
    return float(np.mean([1 - (a @ b) / math.sqrt(a @ a) / math.sqrt(b @ b) for a, b in rows]))


@pytest.mark.parametrize("objective", ["logits", "features", "dense"])
def test_losses_are_those_of_the_loops(objective: str) -> None:
    """Of passes that share their blocks, against whole passes of two models."""
    dense = create("deit")
    model: Any = entropatch.prune_(create("deit"), keep_rate=1.0)
    batches = list(images(6).split(3))
    judge = Judge(model, batches, objective, Ledger(None, {}))
    for config in (
        PruneConfig(0.5, blocks=(2,)),
        PruneConfig((0.5, 0.5), blocks=(2, 3), coverage=(2, None)),
        PruneConfig((0.6, 0.5), blocks=(1, 3), reduction=("merge", "drop")),
    ):
        got = judge.losses(config, [1, 0])
        pruned: Any = entropatch.prune_(create("deit"), config)
        expected = []
        with torch.no_grad():
            for batch in reversed(batches):
                if objective == "dense":
                    with entropatch.trace(pruned) as trace:
                        features = pruned.forward_features(batch)
                    y = entropatch.restore(features, trace).flatten(1, 2)
                    x = dense.forward_features(batch)[:, 1:]  # type: ignore[operator]
                elif objective == "features":
                    x, y = (m.forward_head(m.forward_features(batch), pre_logits=True) for m in (dense, pruned))  # type: ignore[operator]
                else:
                    x, y = dense(batch), pruned(batch)
                pairs = zip(x.double().numpy(), y.double().numpy(), strict=True)
                expected += [loops(objective, a, b) for a, b in pairs]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)
        assert judge.loss(config, [0, 1]) == pytest.approx(np.mean(expected), rel=1e-3)


def test_a_model_that_keeps_all_loses_nothing() -> None:
    model: Any = entropatch.prune_(create("deit"), keep_rate=1.0)
    for objective in ("logits", "features", "dense"):
        judge = Judge(model, [images(3)], objective, Ledger(None, {}))
        np.testing.assert_allclose(judge.losses(PruneConfig(1.0), [0]), 0, atol=1e-6)


# --- the whole ---------------------------------------------------------------------------------------------------


def test_the_budget_is_met_and_spent(found: tuple[Any, Calibration, float]) -> None:
    _, result, budget = found
    pruned = entropatch.prune_(create("deit"), result.config)
    assert 0.93 * budget < gflops(pruned) <= budget
    assert result.rows[0].config == result.config
    assert {row.name for row in result.rows} >= {CHOSEN, RANDOM, DEFAULT, "evit", "shannon"}
    assert all(row.cost <= budget for row in result.rows)
    assert all(len(row.losses) == result.counts["held out"] == 6 for row in result.rows)
    assert len(result.singles) >= 2 * 10


def test_the_chosen_loses_least_on_what_it_was_chosen_by(found: tuple[Any, Calibration, float]) -> None:
    """Of all compared, each of which took part in the race; rates are moved a little to meet the counted cost."""
    _, result, _ = found
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    model: Any = entropatch.prune_(create("deit"), keep_rate=1.0)
    judge = Judge(model, [images()[order[6:]]], "logits", Ledger(None, {}))
    losses = {row.label: judge.loss(row.config, [0]) for row in result.rows if row.name != RANDOM}
    assert losses["calibrated"] <= 1.02 * min(losses.values())


def test_the_same_seed_gives_the_same_answer_and_the_model_is_left_as_it_was() -> None:
    model: Any = create("deit").train()
    model.norm.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    goal = Goal(gflops=0.8 * gflops(create("deit")))
    first = calibrated(model, images(), goal, **QUICK)
    assert [type(module) for module in model.modules()] == classes
    assert [module.training for module in model.modules()] == [module is not model.norm for module in model.modules()]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    entropatch.prune_(model, keep_rate=0.5, method="evit")
    again = calibrated(model, list(images()), goal, **QUICK)
    assert again.config == first.config
    assert [row.loss for row in again.rows] == [row.loss for row in first.rows]
    assert entropatch.pruning_config(model) == PruneConfig(0.5, method="evit")


@pytest.mark.slow
def test_what_is_held_out_decides_nothing() -> None:
    batch, other = images(), images()
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    other[order[:6]] = images(6, seed=5)
    goal = Goal(gflops=0.8 * gflops(create("deit")))
    one, two = (calibrated(create("deit"), these, goal, **QUICK) for these in (batch, other))
    assert one.config == two.config
    assert one.singles == two.singles
    assert one.rows[0].loss != two.rows[0].loss


class Cut(Exception):  # noqa: N818
    pass


def test_a_calibration_that_was_cut_off_goes_on(tmp_path: Path, found: tuple[Any, Calibration, float]) -> None:
    _, whole, budget = found
    left = 20

    def stop(what: str, done: int, total: int) -> None:
        nonlocal left
        assert done <= total or total == 0
        left -= 1
        if left == 0:
            raise Cut

    folder = tmp_path / "run"
    with pytest.raises(Cut):
        calibrated(create("deit"), images(), Goal(gflops=budget), folder=folder, on_step=stop, **QUICK)
    with (folder / LOSSES).open("a") as file:
        file.write('{"setting": "cut o')
    again = calibrated(create("deit"), images(), Goal(gflops=budget), folder=folder, **QUICK)
    assert again.config == whole.config
    assert [row.loss for row in again.rows] == [row.loss for row in whole.rows]
    assert whole.counts["passes"] - 20 <= again.counts["passes"] < whole.counts["passes"] - 10
    assert calibrated(create("deit"), images(), Goal(gflops=budget), folder=folder, **QUICK).counts["passes"] == 0
    with pytest.raises(ValueError, match="a calibration of something else: images differ"):
        calibrated(create("deit"), images(seed=3), Goal(gflops=budget), folder=folder, **QUICK)
    other: Any = create("deit")
    with torch.no_grad():
        other.norm.weight.add_(0.1)
    with pytest.raises(ValueError, match="model differ"):
        calibrated(other, images(), Goal(gflops=budget), folder=folder, **QUICK)
    lines = (folder / LOSSES).read_text().splitlines()
    (folder / LOSSES).write_text("\n".join([lines[0][:-5], *lines[1:]]) + "\n")
    with pytest.raises(ValueError, match="damaged"):
        calibrated(create("deit"), images(), Goal(gflops=budget), folder=folder, **QUICK)


@pytest.mark.parametrize("drops", [(0.1,), pytest.param((0.12, 0.01), marks=pytest.mark.slow)], ids=str)
def test_the_least_cost_within_a_loss(drops: tuple[float, ...]) -> None:
    model = create("deit")
    results = [calibrated(model, images(), Goal(drop=drop), **QUICK) for drop in drops]
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    for result, drop in zip(results, drops, strict=True):
        pruned: Any = entropatch.prune_(create("deit"), keep_rate=1.0)
        assert Judge(pruned, [images()[order[6:]]], "logits", Ledger(None, {})).loss(result.config, [0]) <= drop
    costs = [*(result.rows[0].cost for result in results), gflops(model)]
    assert costs == sorted(set(costs))


def test_a_drop_that_is_missed_on_the_images_held_out_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where those held out are louder than those chosen by."""
    batch = images()
    batch[torch.randperm(18, generator=torch.Generator().manual_seed(0))[:6]] *= 3.0
    result = calibrated(create("deit"), batch, Goal(drop=0.02), **{**QUICK, "effort": 0.0})
    assert result.rows[0].loss > result.drop == 0.02
    assert f"the loss is {result.rows[0].loss:.4g} ±" in result.missed
    assert "above the drop of 0.02 allowed" in result.verdict
    met = replace(result, drop=1.01 * result.rows[0].loss)
    for one in (met, result, replace(result, drop=None)):
        caplog.clear()
        monkeypatch.setattr(calibrating, "calibrated", lambda *_, one=one, **__: one)
        assert entropatch.calibrate(create("deit"), batch, drop=0.02) == result.config
        assert (result.missed in caplog.text) == (one is result)
        assert ("above the drop" in one.verdict) == (one is result)


def test_speed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts tokens, so that no machine is timed."""
    from entropatch.calibration.spending import Time

    def take(self: Time, proposals: Any) -> list[float]:
        from entropatch.calibration.proposal import token_counts

        spent = [sum(n + m for n, m in token_counts(cuts, self.depth, self.patches)) for cuts in proposals]
        return [
            one / (2 * self.depth * self.patches) * (1 + 0.05 * len(cuts))
            for one, cuts in zip(spent, proposals, strict=True)
        ]

    monkeypatch.setattr(Time, "_take", take)
    result = calibrated(create("deit"), images(), Goal(speedup=1.3), **QUICK)
    assert result.unit == "time"
    assert result.rows[0].cost <= 1 / 1.3
    with pytest.raises(BudgetError, match="one that some setting meets"):
        calibrated(create("deit"), images(), Goal(speedup=4.0), **QUICK)


@pytest.mark.slow
def test_without_a_head_the_feature_counts() -> None:
    model = create("siglip", num_classes=0)
    result = calibrated(model, images(12), Goal(gflops=0.8 * gflops(model)), **QUICK)
    assert result.objective == "features"
    assert all(row.name != "evit" for row in result.rows)


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({}, "give one budget, gflops, speedup or drop, but got none"),
        ({"gflops": 1.0, "drop": 0.1}, "but got gflops and drop"),
        ({"speedup": 0.9}, "speedup must be a number above 1"),
        ({"gflops": math.nan}, "gflops must be a number above 0"),
        ({"gflops": 100.0}, "it needs no pruning"),
        ({"gflops": 1e-5}, "one that some setting meets"),
        ({"drop": 1e-12}, "drop must be one that some setting meets"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(goal: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropatch.calibrate(create("deit"), images(), **goal, **QUICK)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"objective": "accuracy"}, ValueError, "objective must be one of logits, features, dense"),
        ({"blocks": (1, 7)}, ValueError, r"blocks must lie in 0 … 3"),
        ({"held_out": 1.0}, ValueError, "held_out"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"most": 3}, TypeError, "most"),
        ({"images": images(4)}, ValueError, "at least 8, better 64 to 512"),
        ({"images": images()[0]}, ValueError, "images must be floating point"),
        ({"images": (images() * 255).byte()}, ValueError, "uint8"),
        ({"images": 3}, TypeError, "images must be a tensor"),
        ({"images": ["a.png"] * 9}, TypeError, "but got str"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    given = settings.pop("images", images()) if "images" in settings else images()
    with pytest.raises(error, match=message):
        entropatch.calibrate(create("deit"), given, gflops=1e-3, **settings)


# --- what is said of it ------------------------------------------------------------------------------------------


def rows(*losses: Any) -> tuple[Row, ...]:
    names = ((CHOSEN, "calibrated"), (RANDOM, "random"), (DEFAULT, "the default"), ("evit", "EViT"))
    names += (("tome", "ToMe"), ("ats", "ATS"))
    return tuple(
        Row(name, label, PruneConfig(), 1.0, np.asarray(one)) for (name, label), one in zip(names, losses, strict=False)
    )


def verdict(*losses: Any) -> str:
    return Calibration(PruneConfig(), rows(*losses), (), (), {}, "logits", "GFLOPs", 1.0, 2.0, {}).verdict


def test_a_difference_within_its_paired_error_is_none() -> None:
    """The errors of both means are large; that of their difference decides, and twice that."""
    image, noise = np.linspace(0, 1, 10), np.where(np.arange(10) % 2, 1.0, -1.0)
    said = verdict(image, image + 0.01 * (1 + image), image + 0.05 + 0.1 * noise, image - 0.2).splitlines()
    assert said[0].startswith("The calibrated setting beats random at the same cost")
    assert said[1].startswith("The calibrated setting cannot be told from the default at")  # 1.5 errors
    assert said[2].startswith("The calibrated setting is worse than EViT, the best of the others, at the same cost")
    assert len(said) == 3


def test_the_best_of_the_others_is_named_and_whoever_else_is_better() -> None:
    image = np.linspace(0.5, 1, 10)
    small = 0.001 * np.linspace(-1, 1, 10)
    said = verdict(image, image + 1, image + 1, image - 0.1 + small, image - 0.2 + small, image + 0.3).splitlines()
    assert said[2].startswith("The calibrated setting is worse than ToMe, the best of the others, at")
    assert said[3:] == ["It is worse than EViT by more than two paired errors."]
    said = verdict(image, image + 1, image + 1, image + 0.1 + small).splitlines()
    assert said[2].startswith("The calibrated setting beats EViT, the best of the others, at")
    noisy = image - 0.2 + np.where(np.arange(10) % 2, 1.0, -1.0)
    said = verdict(image, image + 1, image + 1, image - 0.1 + small, noisy, image * np.nan).splitlines()
    assert said[2].startswith("The calibrated setting cannot be told from ToMe, the best of the others, at")
    assert said[3:] == ["It is worse than EViT by more than two paired errors."]


def test_few_images_tell_nothing_apart() -> None:
    for images in (1, 2, 5):
        said = verdict(*(np.full(images, value) for value in (0.1, 0.2, 0.3))).splitlines()
        assert all("cannot be told from" in line for line in said)
    assert "beats random" in verdict(*(np.full(6, value) for value in (0.1, 0.2, 0.3)))


def test_files(tmp_path: Path, found: tuple[Any, Calibration, float]) -> None:
    pytest.importorskip("matplotlib")
    _, result, _ = found
    paths = write_calibration(result, tmp_path, "A model")
    assert all(path.stat().st_size for path in paths)
    assert PruneConfig.load(tmp_path / "calibrated.json") == result.config
    assert {path.name for path in paths} >= {"calibration.md", "calibration.png", "single-blocks.csv"}
    text = summary(result)
    assert "held out" in text
    assert result.verdict in text
