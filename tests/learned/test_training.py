"""Fine-tuning a method with weights of its own: its losses, its learning rates, and weights that load anywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_case import CPU, SIZE, SPEC, recipe, run
from training_twin import assert_same_training, slow_training

import entropatch
from entropatch import PruneConfig, method_loss, prune_
from entropatch.data.seeding import set_seeds
from entropatch.models.checkpoint import without_method
from entropatch.train import ModelSpec, WeightsFileError, load_weights, read_about, save_weights
from entropatch.train.trainer import Trainer

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

PRUNE = PruneConfig(method="dynamicvit", keep_rate=0.6)
RECIPE = recipe(distillation=0.5, backbone_rate=0.25, backbone_frozen_epochs=1, learning_rate=0.02)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dynamicvit")
    run(folder, prune=PRUNE, recipe=RECIPE)
    return folder


def test_a_run_is_the_slow_twin(finished: Path) -> None:
    """Cross entropy, the dense model as it starts as teacher, and a share of the learning rate for its copy."""
    teacher = SPEC.build(10, SIZE).eval().requires_grad_(False)

    def term(model: nn.Module, images: Tensor) -> Tensor:
        torch.set_rng_state(states.pop(0))  # the noise of the pass whose cross entropy is taken
        with method_loss(model, teacher) as own:
            logits, taught = model(images), teacher(images)
            distance = F.kl_div(logits.log_softmax(1), taught.softmax(1), reduction="batchmean")
            return 0.5 * distance + sum(own.terms().values())

    states: list[Tensor] = []
    seeded = set_seeds

    def noted(seed: int) -> None:
        seeded(seed)
        states.append(torch.get_rng_state())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training_twin.set_seeds", noted)
        expected = slow_training(
            RECIPE, PRUNE, 0, term, lambda name, epoch: 1.0 if "entropatch" in name else 0.25 * (epoch >= 1)
        )
    found = load_weights(finished / "final.safetensors")
    assert_same_training(found, expected)
    start = prune_(SPEC.build(10, SIZE), PRUNE).state_dict()
    assert (found["blocks.0.mlp.fc1.weight"] - start["blocks.0.mlp.fc1.weight"]).abs().max() > 1e-4
    assert (found["entropatch.1.embed.1.weight"] - start["entropatch.1.embed.1.weight"]).abs().max() > 1e-3


def test_stopped_and_started_again_it_ends_with_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Trainer._count_skipped

    def stopping(self: Any) -> None:
        count(self)
        if self.progress.updates == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_count_skipped", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, prune=PRUNE, recipe=RECIPE)
    run(tmp_path, prune=PRUNE, recipe=RECIPE)
    for name in ("final.safetensors", "best.safetensors"):
        assert (finished / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_weights_load_anywhere(finished: Path, tmp_path: Path) -> None:
    path = finished / "best.safetensors"
    images = torch.randn(4, 3, SIZE, SIZE)
    model: Any = prune_(SPEC.build(10, SIZE), PruneConfig.from_json(json.dumps(read_about(path)["prune"])))
    model.load_state_dict(load_weights(path))
    expected = model.eval()(images)
    spec = ModelSpec("test_vit", weights=str(path), drop_path=0.0, arguments=SPEC.arguments)
    built = spec.build(10, SIZE, strict=True).eval()
    assert built.state_dict().keys() == SPEC.build(10, SIZE).state_dict().keys()
    dense = built(images)
    assert torch.equal(prune_(built, PRUNE)(images), expected)
    prune_(built, method="evit")
    assert not torch.equal(built(images), expected)
    assert torch.equal(prune_(built, PRUNE)(images), expected)
    assert torch.equal(entropatch.unprune_(built)(images), dense)
    other = spec.build(10, SIZE, strict=True)
    with pytest.raises(ValueError, match=r"of blocks 1, 2, 3, do not fit those of KeepPredictor in blocks 0, 1, 2"):
        prune_(other, PRUNE.changed(blocks=(0, 1, 2)))
    assert not entropatch.surgery.is_pruned(other)
    model_only, own = without_method(load_weights(path))
    assert own
    assert model_only.keys() == SPEC.build(10, SIZE).state_dict().keys()
    torn = tmp_path / "torn.safetensors"
    save_weights(nn.Linear(2, 2), torn, {})
    with pytest.raises(WeightsFileError):
        ModelSpec("test_vit", weights=str(torn), arguments=SPEC.arguments).build(10, SIZE)


def test_the_record_names_the_teacher_and_the_setting(finished: Path) -> None:
    settings = json.loads((finished / "run.json").read_text())
    assert settings["teacher"] == settings["model"]["weights"]
    assert settings["prune"]["criterion"]["name"] == "KeepPredictor"
    assert settings["recipe"]["backbone_rate"] == 0.25


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        pytest.param({"compile": True, "compile_backend": "eager"}, marks=pytest.mark.slow),
    ],
    ids=lambda options: next(iter(options)),
)
def test_how_a_run_is_carried_out_does_not_change_the_result(tmp_path: Path, options: dict[str, Any]) -> None:
    sgd = recipe(epochs=1, optimizer="sgd", learning_rate=0.5, distillation=0.5)
    found = []
    for name, given in (("plain", {}), ("other", options)):
        run(tmp_path / name, prune=PRUNE, recipe=sgd, runtime=replace(CPU, **given))
        found.append(load_weights(tmp_path / name / "final.safetensors"))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cropr", "a-vit", "spvit"])
def test_others_train_too(name: str, tmp_path: Path) -> None:
    prune = PruneConfig(method=name)
    run(tmp_path, prune=prune, recipe=recipe(epochs=1))
    found, start = load_weights(tmp_path / "final.safetensors"), prune_(SPEC.build(10, SIZE), prune).state_dict()
    assert found.keys() == start.keys()
    assert all(value.isfinite().all() for value in found.values())
    moved = {key for key, value in found.items() if not torch.equal(value, start[key])}
    assert "blocks.0.attn.qkv.weight" in moved
    assert {key for key in found if "entropatch" in key} <= moved


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are for a method with weights of its own"):
        run(tmp_path, prune=PruneConfig(), recipe=RECIPE)
    with pytest.raises(ValueError, match="KeepPredictor is trained at its target keep rate"):
        run(tmp_path, prune=PRUNE, recipe=recipe(keep_warmup_epochs=1))
    with pytest.raises(ValueError, match=r"backbone_rate must be a number in 0 … 1"):
        recipe(backbone_rate=2)
