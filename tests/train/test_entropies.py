"""The entropy term of the training loss, and the entropies that a run records, against loops and plain tensors."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn
from training_case import CPU, PRUNE, SIZE, SPEC, data, free_port, recipe, records, run, run_as, start
from training_twin import assert_same_training, slow_training

import entropatch
from entropatch import CumulativeImportance, PruneConfig, Random
from entropatch.data.loaders import EvaluationImages, data_config, evaluation_transform
from entropatch.surgery import is_pruned
from entropatch.train import Recipe, RunMismatchError, finetune, load_weights
from entropatch.train.entropies import HeadEntropies
from entropatch.train.recipe import ADDED

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")

# The same patches whatever the rounding.
FIXED = PruneConfig(keep_rate=0.6, criterion=Random(seed=0), blocks=(1, 2))
PENALTY: dict[str, Any] = {"entropy_weight": 3.0, "entropy_target": 0.2, "entropy_blocks": (0, 2), "entropy_order": 2.0}
SGD: dict[str, Any] = {"epochs": 1, "optimizer": "sgd", "learning_rate": 3.0}


def final(folder: Path) -> dict[str, Tensor]:
    return load_weights(folder / "final.safetensors")


def distance(one: Path, other: Path) -> float:
    a, b = final(one), final(other)
    return max((a[name] - b[name]).abs().max().item() for name in a)


def matrix_penalty(model: Any, x: Tensor) -> Tensor:
    """3 · the penalty of order 2 with target 0.2 on blocks 0 and 2, by whole attention matrices."""
    outputs: dict[int, Tensor] = {}
    hooks = [
        model.blocks[i].attn.qkv.register_forward_hook(lambda module, args, y, i=i: outputs.update({i: y}))
        for i in (0, 2)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    terms = []
    for i, y in outputs.items():
        heads = model.blocks[i].attn.num_heads
        q, k, _ = y.unflatten(2, (3, heads, -1))[:, 1:].permute(2, 0, 3, 1, 4)
        p = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        entropy = -p.square().sum(-1).log().mean(-1) / math.log(p.shape[-1])
        terms.append((entropy - 0.2).square().mean())
    return 3 * torch.stack(terms).mean()


def test_a_run_with_a_penalty_is_the_slow_twin(tmp_path: Path) -> None:
    settings = recipe(weight_decay=0.1, epochs=1, **PENALTY)
    run(tmp_path, prune=FIXED, recipe=settings)
    assert_same_training(final(tmp_path), slow_training(settings, FIXED, term=matrix_penalty))
    run(tmp_path / "without", prune=FIXED, recipe=recipe(weight_decay=0.1, epochs=1))
    assert distance(tmp_path, tmp_path / "without") > 1e-3


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    run(folder, prune=PRUNE, recipe=recipe(**SGD, **PENALTY))
    return folder


@pytest.mark.parametrize("runtime", [{"accumulate": 4}, {"gradient_checkpointing": True}], ids=str)
def test_how_a_run_is_carried_out_does_not_change_the_result(plain: Path, tmp_path: Path, runtime: Any) -> None:
    run(tmp_path, prune=PRUNE, recipe=recipe(**SGD, **PENALTY), runtime=dataclasses.replace(CPU, **runtime))
    assert distance(plain, tmp_path) < 1e-5
    ((one,), (other,)) = records(plain), records(tmp_path)
    assert one["entropy"] == other["entropy"]
    assert one["loss"] == pytest.approx(other["loss"])


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(plain: Path, tmp_path: Path) -> None:
    port, arguments = free_port(), {"prune": PRUNE, "recipe": recipe(**SGD, **PENALTY)}
    processes = [start(run_as, rank, 2, port, tmp_path, arguments) for rank in range(2)]
    for process in processes:
        process.join(timeout=120)
    assert distance(plain, tmp_path) < 1e-5
    assert records(plain)[0]["entropy"] == pytest.approx(records(tmp_path)[0]["entropy"], abs=2e-4)
    assert records(plain)[0]["loss"] == pytest.approx(records(tmp_path)[0]["loss"], rel=1e-5)


def test_bfloat16_and_a_teacher_go_with_it(plain: Path, tmp_path: Path) -> None:
    run(tmp_path / "half", prune=PRUNE, recipe=recipe(**SGD, **PENALTY, precision="bfloat16"))
    assert 1e-6 < distance(plain, tmp_path / "half") < 0.05
    assert records(tmp_path / "half")[0]["loss"] == pytest.approx(records(plain)[0]["loss"], rel=0.02)
    taught = recipe(**SGD, **PENALTY, distillation=5.0)
    run(tmp_path / "taught", prune=PRUNE, recipe=taught, teacher=SPEC.build(10, SIZE, seed=5))
    untaught = recipe(**SGD, distillation=5.0)
    run(tmp_path / "untaught", prune=PRUNE, recipe=untaught, teacher=SPEC.build(10, SIZE, seed=5))
    assert distance(plain, tmp_path / "taught") > 1e-3
    assert distance(tmp_path / "untaught", tmp_path / "taught") > 1e-3


@pytest.mark.parametrize("prune", [None, PruneConfig(schedule=CumulativeImportance(0.6), blocks=(1,))], ids=str)
def test_a_penalty_leads_entropies_to_its_target(tmp_path: Path, prune: PruneConfig | None) -> None:
    """Dense, where the model comes back stock, and with a number of patches for each image."""
    model = SPEC.build(10, SIZE)
    settings = recipe(epochs=3, entropy_weight=100.0, entropy_target=0.7, learning_rate=0.1)
    finetune(model, data(), tmp_path, prune=prune, recipe=settings, runtime=CPU)
    assert is_pruned(model) is (prune is not None)
    seen = [record["entropy"] for record in records(tmp_path)]
    assert all(len(blocks) == 4 for blocks in seen)
    away = [sum(abs(value - 0.7) for value in blocks) for blocks in seen]
    assert away[-1] < 0.65 * 4 * 0.3  # it is even at first


def test_the_entropies_of_an_epoch_are_those_of_the_loops(tmp_path: Path) -> None:
    settings = recipe(epochs=1, entropy_order=math.inf)
    run(tmp_path, prune=FIXED, recipe=settings)
    assert json.loads((tmp_path / "run.json").read_text())["recipe"]["entropy_order"] == "inf"
    model, tests = SPEC.build(10, SIZE), data().test
    model.load_state_dict(final(tmp_path))
    transformed = EvaluationImages(tests, evaluation_transform(data_config(model, SIZE)))
    images = torch.stack([transformed[40 * place // 16][0] for place in range(16)])  # pyright: ignore
    entropatch.prune_(model, FIXED).eval()
    (record,) = records(tmp_path)
    for block, found in enumerate(record["entropy"]):
        assert found == pytest.approx(by_loops(model, images, block), abs=1e-4)


def by_loops(model: nn.Module, images: Tensor, block: int) -> float:
    means = []

    def look(attention: entropatch.BlockAttention, tokens: entropatch.Tokens) -> None:
        for q, k in zip(attention.q.numpy(), attention.k.numpy(), strict=True):
            for rows in reference.patch_attention(q, k, attention.scale, 1):
                entropies = [reference.renyi_entropy(row, math.inf) for row in rows]
                means.append(sum(entropies) / len(entropies) / math.log(len(entropies)))

    with torch.no_grad(), entropatch.watch(model, (block,), look):
        model(images)
    return sum(means) / len(means)


def test_tensorboard_holds_the_entropies_of_heads_and_the_penalty(tmp_path: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = recipe(**PENALTY)
    runtime = dataclasses.replace(CPU, tensorboard=True, accumulate=2)
    run(tmp_path, prune=FIXED, recipe=settings, runtime=runtime)
    events = loader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    heads = SPEC.build(10, SIZE).blocks[0].attn.num_heads  # pyright: ignore
    assert {tag for tag in tags if tag.startswith("entropy/")} == {
        f"entropy/block_{block:02}/head_{head}" for block in range(4) for head in range(heads)
    }
    for epoch, record in enumerate(records(tmp_path)):
        for block, mean in enumerate(record["entropy"]):
            values = [events.Scalars(f"entropy/block_{block:02}/head_{head}")[epoch].value for head in range(heads)]
            assert sum(values) / heads == pytest.approx(mean, abs=1e-4)
    (penalty,) = events.Scalars("training/entropy_penalty")
    means = [
        [events.Scalars(f"training_entropy/block_{block:02}/head_{head}")[0].value for head in range(heads)]
        for block in (0, 2)
    ]
    assert penalty.step == 10
    # Of the means; the penalty itself is the mean of the squares, which is a little more.
    assert penalty.value == pytest.approx(sum((v - 0.2) ** 2 for row in means for v in row) / 2 / heads, rel=0.05)
    assert not any(tag.startswith("training_entropy/block_01") for tag in tags)


def test_runs_of_a_version_without_these_settings_are_continued(tmp_path: Path, monkeypatch: Any) -> None:
    whole = Recipe.to_dict

    class KilledError(Exception):
        pass

    def killed(record: dict[str, Any]) -> None:
        raise KilledError

    with monkeypatch.context() as earlier:
        earlier.setattr(Recipe, "to_dict", lambda self: {k: v for k, v in whole(self).items() if k not in ADDED})
        with pytest.raises(KilledError):
            run(tmp_path, on_epoch=killed)
    assert len(records(tmp_path)) == 1
    said: list[str] = []
    with pytest.raises(RunMismatchError, match=r"recipe.entropy_weight is 0.0 there and 1.0 here"):
        run(tmp_path, recipe=recipe(entropy_weight=1.0, entropy_target=0.5))
    run(tmp_path, on_text=said.append)
    assert "1 of 2 epochs are done" in said[0] or "1 of 2 epochs are done" in said[1]
    run(tmp_path / "whole")
    assert records(tmp_path) == records(tmp_path / "whole")


def test_a_dense_model_that_cannot_be_looked_into_has_none() -> None:
    assert HeadEntropies(nn.Linear(3, 4), None, torch.rand(2, 3), 1.0).measured() == {}
    with pytest.raises(entropatch.UnsupportedModelError):
        HeadEntropies(nn.Linear(3, 4), FIXED, torch.rand(2, 3), 1.0)


COMPILED = dataclasses.replace(CPU, compile=True, compile_backend="eager")


def test_a_penalty_is_refused_in_a_compiled_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run it without compile, or with entropy_weight=0"):
        run(tmp_path, recipe=recipe(**PENALTY), runtime=COMPILED)


@pytest.mark.slow
def test_a_compiled_dense_run_has_entropies(tmp_path: Path) -> None:
    run(tmp_path, prune=None, recipe=recipe(epochs=1), runtime=COMPILED, data=data(16, 20))
    assert len(records(tmp_path)[0]["entropy"]) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"entropy_weight": 1.0}, "entropy_weight=1 needs an entropy_target"),
        ({"entropy_target": 0.5}, "have no effect without a weight"),
        ({"entropy_side": "above"}, "have no effect without a weight"),
        ({"entropy_weight": -1.0, "entropy_target": 0.5}, "entropy_weight must be a number in 0 … inf"),
        ({"entropy_weight": 1.0, "entropy_target": 1.5}, "entropy_target must be a number in 0 … 1"),
        ({"entropy_weight": 1.0, "entropy_target": 0.5, "entropy_side": "left"}, "both, above, below"),
        ({"entropy_weight": 1.0, "entropy_target": 0.5, "entropy_blocks": "3,6"}, r"such as \[3, 6, 9\]"),
        ({"entropy_weight": 1.0, "entropy_target": 0.5, "entropy_blocks": []}, r"such as \[3, 6, 9\]"),
        ({"entropy_order": 0.0}, "order must be"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def test_blocks_that_are_not_there_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"blocks must lie in 0 … 3"):
        run(tmp_path, recipe=recipe(**PENALTY | {"entropy_blocks": (4,)}))
    assert not (tmp_path / "run.json").exists()


def test_a_recipe_with_a_penalty_survives_json() -> None:
    settings = Recipe(**PENALTY | {"entropy_order": math.inf})
    assert Recipe(**json.loads(json.dumps(settings.to_dict()))) == settings
