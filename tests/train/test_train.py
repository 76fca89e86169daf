"""What a training run computes, against a slow twin written as a loop, and its settings one by one."""

import dataclasses
import json
import math
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from training_case import CPU, KEEPING, PRUNE, SIZE, SPEC, data, free_port, recipe, records, run, run_as, start
from training_twin import assert_same_training, slow_training

import entropatch
from entropatch import PruneConfig, Random, pruning_config
from entropatch.records.correct import read_correct
from entropatch.train import (
    RECIPES,
    ModelSpec,
    Recipe,
    Runtime,
    WeightsFileError,
    finetune,
    load_weights,
    provenance,
    read_about,
    save_weights,
    trainer,
)
from entropatch.train.fine_tuning import Outcome, is_outcome
from entropatch.train.loss import TrainingLoss

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")


# The same patches whatever the rounding: between near-tied scores the run and its twin might choose differently.
FIXED = PruneConfig(keep_rate=0.6, criterion=Random(seed=0))


def final(folder):
    return load_weights(folder / "final.safetensors")


def assert_close(one, other, **tolerance):
    one, other = (value if isinstance(value, dict) else final(value) for value in (one, other))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def assert_differ(one, other, least=1e-4):
    assert max((value - other[name]).abs().max() for name, value in one.items()) > least


# ------------------------------------------------------------------------------------------------------ slow twin


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    folder = tmp_path_factory.mktemp("default")
    run(folder, prune=FIXED, recipe=recipe(weight_decay=0.1))
    return folder


def test_a_run_is_the_slow_twin(default):
    assert_same_training(final(default), slow_training(recipe(weight_decay=0.1), FIXED))
    assert_differ(final(default), SPEC.build(10, SIZE).state_dict(), 1e-3)


def test_records_and_files_of_a_run(default):
    first, last = records(default)
    assert (first["epoch"], last["epoch"]) == (1, 2)
    assert first["images_tested"] == 40
    assert 0 <= first["top1"] <= first["top5"] <= 100
    result = json.loads((default / "result.json").read_text())
    assert (result["top1"], result["top5"]) == (last["top1"], last["top5"])
    assert result["images"] == 40
    p = last["top1"] / 100
    assert Outcome(**result).top1_se == pytest.approx(100 * math.sqrt(p * (1 - p) / 40))
    del result["images"]  # as older versions wrote it
    assert Outcome(**result).top1_se is None
    assert is_outcome(result)
    best = max((first, last), key=lambda record: record["top1"])
    assert (result["best_top1"], result["best_epoch"]) == (best["top1"], best["epoch"])
    about = read_about(default / "final.safetensors")
    assert about["prune"] == FIXED.to_dict()
    assert about["classes"] == 10
    assert about["epoch"] == 2
    assert read_about(default / "best.safetensors")["epoch"] == best["epoch"]


def test_a_run_learns(tmp_path):
    easy = {"mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "horizontal_flip": 0.0, "crop_scale": (0.9, 1.0)}
    settings = recipe(epochs=8, learning_rate=0.032, **easy)
    outcome = run(tmp_path, recipe=settings, data=data(480, 100), runtime=Runtime(device="cpu"))
    assert outcome.top1 > 25  # chance is 10
    losses = [record["loss"] for record in records(tmp_path)]
    assert losses[-1] < 2.1 < losses[0]


# ---------------------------------------------------------------------------------------- the same, done otherwise

# Gradients are summed in another order. SGD passes that on as it is; Adam would blow it up where gradients vanish.
SGD = recipe(optimizer="sgd", learning_rate=3.0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    run(folder, recipe=SGD)
    assert_differ(final(folder), SPEC.build(10, SIZE).state_dict(), 0.1)
    return folder


@pytest.mark.parametrize(
    "runtime",
    [
        {"accumulate": 4},
        {"workers": 2},
        {"gradient_checkpointing": True},
        {"compile": True, "compile_backend": "eager"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_how_a_run_is_carried_out_does_not_change_the_result(plain, tmp_path, runtime):
    run(tmp_path, recipe=SGD, runtime=dataclasses.replace(CPU, **runtime))
    assert_close(plain, tmp_path, rtol=1e-4, atol=1e-6)


def test_two_processes_give_the_result_of_one(plain, tmp_path):
    port = free_port()
    arguments = {"recipe": SGD, "runtime": dataclasses.replace(KEEPING, accumulate=2)}
    processes = [start(run_as, rank, 2, port, tmp_path, arguments) for rank in range(2)]
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert_close(plain, tmp_path, rtol=1e-4, atol=1e-6)
    alone, shared = read_correct(plain), read_correct(tmp_path)
    assert alone.to_dict() == shared.to_dict()
    assert 0 < sum(right.sum() for right in shared.correct.values()) < shared.tested.sum() == 40
    for one, two in zip(records(plain), records(tmp_path), strict=True):
        assert one["images_tested"] == two["images_tested"] == 40
        assert (one["top1"], one["top5"]) == (two["top1"], two["top5"])
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert len(list((tmp_path / "checkpoints").glob("update-*/random-*.pt"))) == 4


# ----------------------------------------------------------------------------------------------------- each setting


def test_dense_training_leaves_the_model_dense(tmp_path, default):
    run(tmp_path, prune=None, recipe=recipe(weight_decay=0.1))
    assert read_about(tmp_path / "final.safetensors")["prune"] is None
    assert_differ(final(tmp_path), final(default))


def test_the_model_comes_back_trained_and_pruned_at_its_target(tmp_path):
    model = SPEC.build(10, SIZE)
    finetune(model, data(), tmp_path, prune=PRUNE, recipe=recipe(keep_warmup_epochs=1), runtime=CPU)
    assert pruning_config(model) == PRUNE
    assert_close(model.state_dict(), final(tmp_path), rtol=0, atol=0)
    with entropatch.trace(model) as trace:
        model.eval()(torch.rand(1, 3, SIZE, SIZE))
    assert trace.counts == [16, 10, 6, 4]


def test_the_keep_rate_warms_up_as_evit_writes_it(tmp_path, monkeypatch):
    seen = []
    forward = TrainingLoss.__call__

    def spy(self, logits, targets, images):
        seen.append(pruning_config(model).keep_rate)
        return forward(self, logits, targets, images)

    monkeypatch.setattr(TrainingLoss, "__call__", spy)
    model = SPEC.build(10, SIZE)
    settings = recipe(epochs=4, keep_warmup_start=1, keep_warmup_epochs=2)
    finetune(model, data(), tmp_path, prune=PRUNE, recipe=settings, runtime=CPU)
    falling = [round(0.6 + 0.4 * (1 + math.cos(math.pi * t / 10)) / 2, 4) for t in range(10)]
    assert seen == [1.0] * 5 + falling + [0.6] * 5
    assert PruneConfig(keep_rate=(0.5, 1.0), blocks=(1, 2)).warmed(0.5).keep_rate == (0.75, 1.0)


def test_the_moving_average_is_what_is_tested_and_saved(tmp_path):
    run(tmp_path / "plain")
    run(tmp_path / "copy", recipe=recipe(ema_decay=0.0))
    assert_close(tmp_path / "plain", tmp_path / "copy", rtol=0, atol=0)
    run(tmp_path / "slow", recipe=recipe(ema_decay=0.99), runtime=KEEPING)
    start, plain, slow = SPEC.build(10, SIZE).state_dict(), final(tmp_path / "plain"), final(tmp_path / "slow")
    moved = sum((plain[name] - start[name]).norm() ** 2 for name in plain) ** 0.5
    behind = sum((slow[name] - start[name]).norm() ** 2 for name in plain) ** 0.5
    assert 0 < behind < 0.7 * moved
    latest = max((tmp_path / "slow/checkpoints").iterdir())
    assert_close(load_weights(latest / "ema.safetensors"), slow, rtol=0, atol=0)
    assert_close(load_weights(latest / "model.safetensors"), plain, rtol=0, atol=0)


def test_layer_decay_slows_the_early_blocks(tmp_path):
    run(tmp_path / "even", recipe=recipe(epochs=1))
    run(tmp_path / "decayed", recipe=recipe(epochs=1, layer_decay=0.5))
    start = SPEC.build(10, SIZE).state_dict()

    def moved(folder, name):
        return (final(tmp_path / folder)[name] - start[name]).norm()

    ratios = [moved("decayed", n) / moved("even", n) for n in ("blocks.0.mlp.fc1.weight", "blocks.3.mlp.fc1.weight")]
    assert ratios[0] < 0.2
    assert ratios[1] > 2 * ratios[0]


def test_clipping_bounds_the_gradients(tmp_path, monkeypatch):
    from accelerate.optimizer import AcceleratedOptimizer

    norms = []
    step = AcceleratedOptimizer.step

    def spy(self, *args, **kwargs):
        parameters = [p for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(AcceleratedOptimizer, "step", spy)
    run(tmp_path / "free", recipe=recipe(epochs=1))
    free = list(norms)
    norms.clear()
    run(tmp_path / "clipped", recipe=recipe(epochs=1, clip_norm=0.05))
    assert min(free) > 0.1
    assert max(norms) < 0.0501


def test_bfloat16_trains_float32_weights_close_to_float32(tmp_path, default):
    run(tmp_path, prune=FIXED, recipe=recipe(weight_decay=0.1, precision="bfloat16"))
    assert all(value.dtype == torch.float32 for value in final(tmp_path).values())
    assert_differ(final(tmp_path), final(default), 1e-6)
    assert records(tmp_path)[0]["loss"] == pytest.approx(records(default)[0]["loss"], rel=0.02)


def test_float16_trains_with_a_gradient_scaler(tmp_path, monkeypatch):
    """On a CPU, where Accelerate does not offer it: its autocast and PyTorch's scaler are put in by hand."""
    from accelerate import Accelerator

    init = Accelerator.__init__

    def with_scaler(self, **options):
        init(self, **options)
        self.native_amp, self.state._mixed_precision = True, "fp16"
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)

    monkeypatch.setattr(Accelerator, "__init__", with_scaler)
    run(tmp_path, recipe=recipe(epochs=5, weight_decay=0.1), runtime=KEEPING)
    # The scale is far too large at first: those steps are left out, counted, and halve it.
    skipped = [record["skipped_steps"] for record in records(tmp_path)]
    assert 0 < sum(skipped) < 20
    assert skipped[-1] == 0
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in final(tmp_path).values())
    assert_differ(final(tmp_path), SPEC.build(10, SIZE).state_dict(), 1e-4)
    state = torch.load(max((tmp_path / "checkpoints").iterdir()) / "training.pt", weights_only=True)
    assert state["scaler"]["scale"] == 2.0 ** (30 - sum(skipped))


def test_without_accelerate_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[train\]'"):
        run(tmp_path)


def test_float16_is_refused_on_a_cpu(tmp_path):
    with pytest.raises(ValueError, match="float16 needs an accelerator"):
        run(tmp_path, recipe=recipe(precision="float16"))


def test_random_numbers_of_the_user_are_not_needed_but_seeds_matter(tmp_path):
    dropping = dataclasses.replace(SPEC, drop_path=0.3)
    torch.manual_seed(1)
    run(tmp_path / "one", spec=dropping)
    torch.manual_seed(2)
    run(tmp_path / "two", spec=dropping)
    run(tmp_path / "three", spec=dropping, seed=1)
    assert_close(tmp_path / "one", tmp_path / "two", rtol=0, atol=0)
    assert_differ(final(tmp_path / "one"), final(tmp_path / "three"))


def test_tensorboard_holds_each_epoch(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, runtime=dataclasses.replace(CPU, tensorboard=True))
    events = loader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("epoch/top1")] == [
        (5 * record["epoch"], pytest.approx(record["top1"])) for record in records(tmp_path)
    ]
    assert [event.step for event in events.Scalars("training/loss")] == [10]


def test_it_is_told_how_far_a_run_is_also_one_that_goes_on(tmp_path):
    told = []

    def on_step(what, done, total, note):
        told.append((what, done, total, note))
        if len(told) == 10:
            raise KeyboardInterrupt  # after the seventh of the ten steps; the last checkpoint is of the fifth

    batches = -(-40 // 32)  # twice as many images as in a step
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_step=on_step)
    assert told[0] == ("training", 0, 10, "epoch 1/2")
    assert [(what, done) for what, done, _, _ in told[1:6]] == [("training", step) for step in range(1, 6)]
    assert all(re.fullmatch(r"epoch 1/2, loss \d\.\d{3}", note) for _, _, _, note in told[1:6])
    tests = [("testing", done, batches, "epoch 1/2") for done in range(1, batches + 1)]
    assert told[6 : 6 + batches] == tests
    assert told[-1][3].startswith("epoch 2/2, loss ")
    again = []
    run(tmp_path, on_step=lambda *said: again.append(said))
    resumed = again[0][1]
    assert again[0][:3] == ("training", resumed, 10)
    assert 5 <= resumed < 10
    assert [done for what, done, _, _ in again if what == "training"] == list(range(resumed, 11))
    assert again[-1] == ("testing", batches, batches, "epoch 2/2")


# ------------------------------------------------------------------------------------------------------------- loss


def test_distillation_adds_the_divergence_from_the_teacher():
    settings = Recipe(mixup=0.0, cutmix=0.0, label_smoothing=0.1, distillation=0.5, distillation_temperature=2.0)
    teacher = torch.nn.Linear(6, 4).requires_grad_(False)
    images, logits, labels = torch.rand(5, 6), torch.randn(5, 4), torch.randint(4, (5,))
    p = (teacher(images) / 2).softmax(1)
    q = (logits / 2).softmax(1)
    divergence = sum(float(a * (a / b).log()) for a, b in zip(p.flatten(), q.flatten(), strict=True)) / 5
    target = F.one_hot(labels, 4) * 0.9 + 0.1 / 4
    entropy = float(-(target * logits.log_softmax(1)).sum() / 5)
    loss = TrainingLoss(settings, 4, teacher)(logits, labels, images)
    assert float(loss) == pytest.approx(entropy + 0.5 * 4 * divergence, rel=1e-5)
    alone = TrainingLoss(dataclasses.replace(settings, distillation=0.0), 4)(logits, labels, images)
    assert float(alone) == pytest.approx(entropy, rel=1e-5)


def test_a_run_with_a_teacher_ends_elsewhere_and_leaves_the_teacher_alone(tmp_path):
    teacher = SPEC.build(10, SIZE, seed=5)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    run(tmp_path / "with", teacher=teacher, recipe=recipe(distillation=5.0))
    run(tmp_path / "without")
    assert_close(before, teacher.state_dict(), rtol=0, atol=0)
    assert_differ(final(tmp_path / "with"), final(tmp_path / "without"))
    with pytest.raises(ValueError, match="needs a teacher"):
        run(tmp_path / "none", recipe=recipe(distillation=5.0))


# ----------------------------------------------------------------------------------------------------------- recipe


def test_the_default_recipe_is_the_papers_protocol_and_says_whose_each_setting_is():
    paper = Recipe()
    assert (paper.epochs, paper.batch_size, paper.image_size, paper.optimizer) == (100, 256, 224, "adamw")
    assert paper.peak_learning_rate == pytest.approx(1e-5)
    assert (paper.weight_decay, paper.warmup_epochs) == (1e-6, 0)
    assert (paper.mixup, paper.cutmix, paper.random_erasing, paper.label_smoothing) == (0.8, 1.0, 0.25, 0.1)
    sources = {record["setting"]: record["source"] for record in provenance(paper)}
    assert set(sources) == {entry.name for entry in dataclasses.fields(Recipe)}
    assert sources["epochs"].startswith("the paper")
    assert sources["learning_rate"].startswith("EViT")
    assert sources["layer_decay"].startswith("entropatch")
    changed = {r["setting"]: r["source"] for r in provenance(Recipe(epochs=5))}
    assert changed["epochs"] == "given (default: 100)"
    named = dataclasses.replace(RECIPES["dynamicvit"], batch_size=64)
    sources = {r["setting"]: r["source"] for r in provenance(named, "dynamicvit")}
    assert sources["backbone_rate"] == "the recipe dynamicvit (the paper's: 1.0)"
    assert sources["batch_size"] == "given (default: 1024)"
    assert sources["optimizer"].startswith("the paper")
    assert "for the first 5 of 30 epochs" in named.learning_rates_text()
    assert "stay as they are" not in paper.learning_rates_text()
    # The rates of EViT's published command, which holds for its batch of 1024 alone.
    published = dataclasses.replace(RECIPES["evit"], warmup_epochs=1).learning_rates
    assert published == {
        name: pytest.approx(v) for name, v in (("peak", 4e-5), ("minimum", 2e-6), ("warmup_from", 1e-6))
    }
    assert RECIPES["evit"].epochs == 30


@pytest.mark.parametrize("batch_size", [8, 64])
@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_the_learning_rate_falls_at_any_batch_size(tmp_path, monkeypatch, batch_size, warmup_epochs):
    seen = []
    forward = TrainingLoss.__call__

    def spy(self, logits, targets, images):
        seen.append(optimizer[0].param_groups[0]["lr"])
        return forward(self, logits, targets, images)

    optimizer = []
    make = trainer.optimizer_of
    monkeypatch.setattr(trainer, "optimizer_of", lambda *a: optimizer.append(make(*a)) or optimizer[0])
    monkeypatch.setattr(TrainingLoss, "__call__", spy)
    settings = Recipe(epochs=3, batch_size=batch_size, image_size=SIZE, warmup_epochs=warmup_epochs)
    run(tmp_path, recipe=settings, data=data(64, 20))
    peak = seen.index(max(seen))
    assert peak == warmup_epochs * (64 // batch_size)
    assert seen[peak] == pytest.approx(2e-5 * batch_size / 512)
    assert seen[: peak + 1] == sorted(seen[: peak + 1])
    assert seen[peak:] == sorted(seen[peak:], reverse=True)
    rates = settings.learning_rates
    assert seen[peak] == rates["peak"]
    assert seen[-1] > rates["minimum"] == 1e-6 * batch_size / 512
    assert not warmup_epochs or seen[0] == pytest.approx(rates["warmup_from"])


def test_a_recipe_survives_json():
    settings = Recipe(betas=(0.9, 0.98), crop_scale=(0.5, 1.0), clip_norm=1.0)
    assert Recipe(**json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs must be a number in 1 … inf, but got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number, but got 1.5"),
        ({"mixup": -0.1}, "mixup must be"),
        ({"label_smoothing": math.nan}, "label_smoothing must be"),
        ({"precision": "int8"}, "float32, bfloat16, float16"),
        ({"crop_scale": (0.5, 0.2)}, "0 < low ≤ high ≤ 1"),
        ({"epochs": 5, "warmup_epochs": 5}, "fewer than the 5 epochs"),
        ({"epochs": 5, "keep_warmup_start": 3, "keep_warmup_epochs": 2}, "before the 5 epochs are over"),
        ({"clip_norm": "1"}, "clip_norm must be"),
        ({"learning_rate": 1e-7}, "minimum_learning_rate must not exceed learning_rate, .* but got 1e-06 and 1e-07"),
        ({"warmup_epochs": 1, "warmup_learning_rate": 1e-3}, "warmup_learning_rate must not exceed learning_rate"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": recipe(batch_size=100)}, "must not exceed the 88"),
        ({"recipe": recipe(batch_size=15)}, "multiple of 2"),
        ({"runtime": Runtime(device="cpu", compile=True), "recipe": recipe(keep_warmup_epochs=1)}, "without compile"),
        (
            {"prune": PruneConfig(r=3), "recipe": recipe(keep_warmup_epochs=1)},
            "keep-rate warm-up needs a schedule with a keep rate",
        ),
        ({"prune": PruneConfig(keep_rate=0.5, blocks=(7,))}, "blocks must lie in 0 … 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **arguments)


def test_a_model_of_another_image_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"of \(32, 32\) pixels, but image_size is 16"):
        finetune(ModelSpec("vit_tiny_patch16_224").build(10, 32), data(), tmp_path, recipe=recipe(), runtime=CPU)


def test_a_full_disk_is_told_of_weights_files_too(tmp_path):
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(OSError, match=r"w\.safetensors"):
        save_weights(SPEC.build(10, SIZE), tmp_path / "w.safetensors", {})
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_pruned_model_is_refused(tmp_path):
    model = entropatch.prune_(SPEC.build(10, SIZE), PRUNE)
    with pytest.raises(ValueError, match="pruned already"):
        finetune(model, data(), tmp_path)


# ------------------------------------------------------------------------------------------------- models and weights


def test_the_same_seed_builds_the_same_model():
    one, two, three = SPEC.build(10, SIZE, 1), SPEC.build(10, SIZE, 1), SPEC.build(10, SIZE, 2)
    assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)
    assert_differ(one.state_dict(), three.state_dict())


def test_weights_of_another_number_of_classes_start_with_a_new_head(tmp_path):
    source = SPEC.build(10, SIZE, 1)
    save_weights(source, tmp_path / "ten.safetensors", {"model": {"name": "test_vit"}, "classes": 10})
    spec = dataclasses.replace(SPEC, weights=str(tmp_path / "ten.safetensors"))
    same = spec.build(10, SIZE, 2)
    assert_close(source.state_dict(), same.state_dict(), rtol=0, atol=0)
    other = spec.build(7, SIZE, 2)
    fresh = SPEC.build(7, SIZE, 2)
    assert torch.equal(other.head.weight, fresh.head.weight)
    assert torch.equal(other.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    with pytest.raises(WeightsFileError, match="trained for 10 classes, but the data set has 7"):
        spec.build(7, SIZE, strict=True)


def test_position_embeddings_are_resampled_to_another_image_size(tmp_path):
    source = SPEC.build(10, 32, 1)
    save_weights(source, tmp_path / "w.safetensors", {})
    model = dataclasses.replace(SPEC, weights=str(tmp_path / "w.safetensors")).build(10, SIZE)
    assert model.pos_embed.shape == (1, 17, 64)
    patches = source.pos_embed[:, 1:].reshape(1, 8, 8, 64).permute(0, 3, 1, 2)
    small = F.interpolate(patches, (4, 4), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 16, 64)
    assert torch.allclose(model.pos_embed[:, 1:], small, atol=1e-5)


def test_weights_of_another_model_are_refused(tmp_path):
    save_weights(SPEC.build(10, SIZE), tmp_path / "w.safetensors", {"model": {"name": "test_vit"}, "classes": 10})
    file = str(tmp_path / "w.safetensors")
    with pytest.raises(WeightsFileError, match="holds a test_vit, but the model is to be a deit_tiny"):
        ModelSpec("deit_tiny_patch16_224", weights=file).build(10, 224)
    deeper = ModelSpec("test_vit", weights=file, arguments={"patch_size": 4, "depth": 5})
    with pytest.raises(WeightsFileError, match="12 tensors are missing, 0 unknown and 0 of another shape"):
        deeper.build(10, SIZE)
    wider = ModelSpec("test_vit", weights=file, arguments={"patch_size": 4, "depth": 4, "embed_dim": 96})
    with pytest.raises(WeightsFileError, match=r"of another shape, such as blocks.0.*: \(64,\) there, \(96,\) here"):
        wider.build(10, SIZE)


def test_weights_files_load_without_running_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    torch.save({"model": {"a": torch.ones(2)}, "note": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(WeightsFileError, match="could run code"):
        load_weights(tmp_path / "bomb.pt")
    torch.save({"model": {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "plain.pt")
    assert torch.equal(load_weights(tmp_path / "plain.pt")["a"], torch.ones(2))
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    for name, message in (("none.pt", "tensors by name"), ("torn.safetensors", "damaged"), ("no.pt", "does not exist")):
        with pytest.raises(WeightsFileError, match=message):
            load_weights(tmp_path / name)
    with pytest.raises(WeightsFileError, match="not a whole safetensors file"):
        read_about(tmp_path / "torn.safetensors")


def test_unknown_models_are_refused_with_similar_names():
    with pytest.raises(ValueError, match=r"timm knows no model 'deit_smal'; perhaps deit_small"):
        ModelSpec("deit_smal").build(10, 224)
    with pytest.raises(ValueError, match="timm cannot build test_vit for 17 px"):
        ModelSpec("test_vit", arguments={"no_such": 1}).build(10, 17)
