"""Calibration of what is odd: models, images, budgets and folders that are taken as they are meant, or refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from small_models import Wrapped
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import entropatch
from entropatch.calibration import BudgetError
from entropatch.calibration.answers import output, pooled
from entropatch.calibration.identity import fingerprint
from entropatch.calibration.judging import distance, sound
from entropatch.calibration.proposal import Choice, Cut, powered, token_counts
from entropatch.calibration.subject import as_batch
from entropatch.config import PruneConfig
from entropatch.criteria import Renyi
from entropatch.reductions import BipartiteMerge, Drop
from entropatch.surgery import is_pruned, prune_

IMAGES = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
QUICK: dict[str, Any] = {"effort": 0.0, "most_blocks": 1, "batch_size": 3, "blocks": (1,)}


@pytest.fixture(autouse=True)
def few_criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is odd is so with two criteria as with all."""
    monkeypatch.setattr("entropatch.calibration.calibrating.offered_criteria", lambda: [Renyi(1.0), Renyi(2.0)])
    monkeypatch.setattr("entropatch.calibration.comparing.compared_methods", lambda: ["evit"])
    monkeypatch.setattr("entropatch.calibration.comparing.spread_within", lambda *_: {})


def vit(**fields: Any) -> Any:
    torch.manual_seed(1)
    model: Any = timm.create_model("test_vit", img_size=32, patch_size=8, depth=3, **({"num_classes": 5} | fields))
    return model.eval()


def calibrate(model: nn.Module, images: Any = IMAGES, **fields: Any) -> PruneConfig:
    budget = {} if {"gflops", "speedup", "drop"} & set(fields) else {"gflops": 0.0021}
    return entropatch.calibrate(model, images, **budget, **(QUICK | fields))


# ----------------------------------------------------------------------------------------------------------- images


def test_labels_of_data_sets_and_loaders_are_left() -> None:
    model = vit()
    data = TensorDataset(IMAGES, torch.arange(9))
    for images in (
        data,
        DataLoader(data, batch_size=4),
        [(image, 3) for image in IMAGES],
        [{"pixel_values": image, "labels": 1} for image in IMAGES],
        (image for image in IMAGES),
        list(IMAGES.split(2)),
    ):
        assert torch.equal(as_batch(images, model), IMAGES)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ((IMAGES, torch.arange(9)), ValueError, "labels are not asked for"),
        ([IMAGES[0], IMAGES[1, :, :16]], ValueError, r"of one size, but got \[\(3, 16, 32\), \(3, 32, 32\)\]"),
        (IMAGES.to(torch.uint8), ValueError, "must be floating point"),
        ([{"label": 3}], TypeError, "but got dict"),
        ("photos", TypeError, "but got str"),
        (3, TypeError, "but got 3"),
        (torch.where(torch.arange(9)[:, None, None, None] == 2, math.nan, IMAGES), ValueError, "but 1 of 9 hold NaN"),
        (IMAGES[:, :1], ValueError, r"it fails on \(1, 32, 32\)"),
        (torch.zeros(9, 3, 30, 30), ValueError, r"it fails on \(3, 30, 30\)"),
    ],
    ids=["labels", "sizes", "bytes", "dict", "text", "number", "nan", "channels", "size"],
)
def test_what_are_no_images_is_refused(images: Any, error: type[Exception], message: str) -> None:
    model = vit()
    with pytest.raises(error, match=message):
        calibrate(model, images)
    assert not is_pruned(model)


def test_images_take_the_model_s_type() -> None:
    assert calibrate(vit().bfloat16(), IMAGES.double()).blocks == (1,)


# ----------------------------------------------------------------------------------------------------------- models


def test_outputs_are_found_in_dictionaries_and_tuples() -> None:
    expected = calibrate(vit(), objective="logits")
    assert calibrate(Wrapped(vit(), lambda out: {"loss": None, "logits": out}).eval(), objective="logits") == expected
    logits = IMAGES[:, 0, 0]
    assert pooled((logits, 3)) is pooled({"other": 1, "logits": logits}) is logits
    with pytest.raises(ValueError, match="a mapping with logits, but got dict of scores, aux"):
        pooled({"scores": IMAGES, "aux": 3})
    with pytest.raises(ValueError, match=r"but got a tensor \(9, 3, 32, 32\)"):
        pooled(IMAGES)


def test_outputs_that_say_nothing_are_refused_and_the_model_is_left_alone() -> None:
    broken, single = vit(), vit(num_classes=1)
    broken.head.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="output must be finite, but it is not on 3 of 3 images"):
        calibrate(broken)
    with pytest.raises(ValueError, match="logits must be of two classes or more"):
        calibrate(single)
    assert not is_pruned(broken)
    assert not is_pruned(single)
    assert torch.equal(sound(torch.ones(2, 1), "features"), torch.ones(2, 1))


def test_a_pruned_output_that_is_not_finite_is_the_worst_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from entropatch.calibration import judging

    def spoilt(dense: Tensor, pruned: Tensor, objective: str) -> Tensor:
        return distance(dense, pruned, objective) * math.nan

    monkeypatch.setattr(judging, "distance", spoilt)
    found = entropatch.calibration.calibrated(vit(), IMAGES, entropatch.calibration.Goal(gflops=0.0021), **QUICK)
    assert found.rows[0].loss == judging.WORST


def test_dense_maps_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    prune_(model, PruneConfig(1.0))
    with torch.inference_mode():
        found = output(model, IMAGES[:2], "dense")
        expected = model(IMAGES[:2]).last_hidden_state[:, 1:]
    assert torch.equal(found, expected)


# ------------------------------------------------------------------------------------------------ budgets and settings


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"gflops": "3"}, TypeError, "gflops must be a number, but got '3'"),
        ({"drop": True}, TypeError, "drop must be a number, but got True"),
        ({"blocks": "3"}, TypeError, "blocks must be a sequence of block indices"),
        ({"blocks": 3}, TypeError, "blocks must be a sequence of block indices"),
        ({"blocks": (0.5,)}, TypeError, "blocks must hold integers"),
        ({"most_blocks": 2.5}, TypeError, "most_blocks must be a whole number"),
        ({"seed": "a"}, TypeError, "seed must be a whole number"),
        ({"effort": math.inf}, ValueError, "effort must be a number of at least 0"),
        ({"foo": 1}, TypeError, "settings are objective, blocks, most_blocks, .* but got foo"),
        ({"gflops": 9.0}, BudgetError, r"below the dense model's 0\.\d+ GFLOPs, but got 9 GFLOPs; it needs no pruning"),
        ({"gflops": 1e-5}, BudgetError, r"but got 1e-05 GFLOPs, and no pruning of 1 blocks at most of \[1\] does"),
        ({"drop": 100.0}, BudgetError, r"drop must be less than [\d.e-]+, .* but got 100; every setting meets that"),
        ({"speedup": 500.0}, BudgetError, "but got 500 times the dense model's speed, and no pruning"),
    ],
    ids=str,
)
def test_budgets_and_settings_that_make_no_sense_are_refused(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        calibrate(vit(), **fields)


def test_rates_are_none_that_a_reduction_does_not_reach() -> None:
    cuts = (Cut(1, Choice(Renyi(), BipartiteMerge()), 0.8), Cut(2, Choice(Renyi(), Drop()), 0.8))
    assert [cut.rate for cut in powered(cuts, 9.0)] == [0.5, 0.134]
    assert [cut.rate for cut in powered(cuts, 1.0)] == [0.8, 0.8]


# ----------------------------------------------------------------------------------------------------------- folders


def test_a_folder_knows_its_model_by_every_weight(tmp_path: Any) -> None:
    calibrate(vit(), folder=tmp_path)
    other = vit()
    other.head.weight.data = other.head.weight.data.flip(0)  # the same sum
    assert fingerprint(other) != fingerprint(vit())
    assert fingerprint(vit().half()) != fingerprint(vit())
    with pytest.raises(ValueError, match="holds a calibration of something else: model differ"):
        calibrate(other, folder=tmp_path)
    with pytest.raises(ValueError, match="something else: images differ"):
        calibrate(vit(), IMAGES + 1, folder=tmp_path)
    (tmp_path / "calibrating.json").write_text("[]")
    with pytest.raises(ValueError, match=r"calibrating\.json is damaged: it holds no object"):
        calibrate(vit(), folder=tmp_path)


@pytest.mark.parametrize(
    "fields",
    [{"num_heads": 2}, {"pre_norm": True}, {"act_layer": nn.ReLU}, {"norm_layer": torch.nn.RMSNorm}],
    ids=str,
)
def test_a_folder_knows_its_model_by_its_structure(fields: dict[str, Any]) -> None:
    """Weights of the same names and shapes do not make the same model."""
    model, other = vit(num_heads=4), vit(**({"num_heads": 4} | fields))
    other.load_state_dict(model.state_dict(), strict="pre_norm" not in fields and "norm_layer" not in fields)
    assert not torch.equal(model(IMAGES), other(IMAGES))
    assert fingerprint(model) != fingerprint(other)


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Backbone", "DINOv3ViTModel", "CLIPForImageClassification"])
def test_the_same_model_is_known_again(name: str) -> None:
    pytest.importorskip("transformers")
    from small_transformers import CASES

    model, other = CASES[name].model(), CASES[name].model()
    model.config._name_or_path = model.name_or_path = "somewhere/else"
    model(**CASES[name].batch(model))
    known = [fingerprint(prune_(one, PruneConfig(1.0))) for one in (model, other)]
    assert known[0] == known[1]
    attention = next(part for part in model.modules() if hasattr(part, "scaling") or hasattr(part, "scale"))
    setattr(attention, "scaling" if hasattr(attention, "scaling") else "scale", 0.123)
    assert fingerprint(model) != known[0]


def test_a_folder_knows_a_model_that_was_pruned_before(tmp_path: Any) -> None:
    expected = calibrate(vit(), folder=tmp_path)
    pruned = prune_(vit(), keep_rate=0.5, method="dynamicvit")
    assert calibrate(pruned, folder=tmp_path) == expected


@pytest.mark.parametrize("changed", ["threads", "device", "batch"])
def test_times_of_another_machine_are_measured_anew_and_losses_are_not(
    changed: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from entropatch.calibration import Goal, calibrated, spending
    from entropatch.measure import environment

    taken: list[int] = []

    def take(self: Any, proposals: Any) -> list[float]:
        taken.append(len(proposals))
        tokens = [sum(map(sum, token_counts(cuts, self.depth, self.patches))) for cuts in proposals]
        return [one / (2 * self.depth * self.patches) for one in tokens]

    def run() -> tuple[int, int]:
        taken.clear()
        found = calibrated(vit(), IMAGES, Goal(speedup=1.1), folder=tmp_path, **QUICK)
        return sum(taken), found.counts["passes"]

    monkeypatch.setattr(spending.Time, "_take", take)
    times, passes = run()
    assert times
    assert passes
    assert run() == (0, 0)
    facts = environment("cpu")
    if changed == "batch":  # as where several processes share it
        monkeypatch.setattr("entropatch.calibration.subject.share_of", lambda batch: batch[:2])
    else:
        monkeypatch.setattr("entropatch.measure.environment", lambda device: facts | {changed: "another"})
    again, passes = run()
    assert again == times
    assert passes == 0


def test_multiply_adds_are_those_of_any_machine(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from entropatch.calibration import spending

    expected = calibrate(vit(), folder=tmp_path)
    monkeypatch.setattr("entropatch.measure.environment", lambda device: {"device": "another"})
    monkeypatch.setattr(spending.MultiplyAdds, "_take", lambda self, proposals: pytest.fail("counted again"))
    assert calibrate(vit(), folder=tmp_path) == expected


def test_stopped_by_hand_the_model_is_as_it_was_and_the_next_run_goes_on(tmp_path: Any) -> None:
    model, steps = vit(), []

    def stop(*told: Any) -> None:
        steps.append(told)
        if len(steps) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, folder=tmp_path, on_step=stop)
    assert not is_pruned(model)
    assert (tmp_path / "losses.jsonl").read_text().count("\n") >= 25
    assert calibrate(model, folder=tmp_path) == calibrate(vit())
