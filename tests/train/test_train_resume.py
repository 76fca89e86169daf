"""Nothing lost: runs that are killed end with the same bits as one that is not, and failures leave things whole."""

import json
import os
import random
import resource
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from training_case import (
    CPU,
    KEEPING,
    SPEC,
    SomeTorn,
    data,
    free_port,
    kill,
    recipe,
    records,
    run,
    run_and_die,
    run_as,
    start,
)

from entropatch import PruneConfig, Random
from entropatch.data import DataSet
from entropatch.data.images import ImageError
from entropatch.train import CheckpointError, DivergedError, ModelSpec, RunMismatchError, Runtime, load_weights
from entropatch.train.checkpoints import Checkpoints
from entropatch.train.optimisation import optimizer_of
from entropatch.train.progress import Progress
from entropatch.train.run_folder import locked
from entropatch.train.sums import sums_of

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

# Everything that has a state: random pruning, moving average, keep-rate warm-up, accumulation, augmentation.
FULL = {
    "recipe": recipe(ema_decay=0.9, keep_warmup_epochs=1, clip_norm=1.0, auto_augment="rand-m9-mstd0.5"),
    "prune": PruneConfig(keep_rate=0.6, criterion=Random(seed=None)),
    "runtime": Runtime(device="cpu", checkpoint_every=2, accumulate=2),
    "spec": ModelSpec("test_vit", drop_path=0.2, arguments=SPEC.arguments),
}


def run_full(folder):
    run(folder, **FULL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(run_full, folder)
    process.join()
    assert process.exitcode == 0
    return folder


def assert_same_run(one, other):
    for name in ("final.safetensors", "best.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert records(one) == records(other)
    assert (one / "correct.json").read_bytes() == (other / "correct.json").read_bytes()
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for result in results:
        del result["seconds"], result["folder"]
    assert results[0] == results[1]


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("update-*"))


# ------------------------------------------------------------------------------------------------------- killed


def test_killed_at_random_moments_it_ends_with_the_same_bits(undisturbed, tmp_path):
    draw, found = random.Random(0), []
    for _ in range(4):
        before = checkpoints(tmp_path)
        process = start(run_full, tmp_path)
        while process.is_alive() and checkpoints(tmp_path) == before:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.05))
        if not process.is_alive():
            break
        kill(process)
        found = checkpoints(tmp_path)
    assert found
    run_full(tmp_path)
    assert_same_run(undisturbed, tmp_path)


@pytest.mark.parametrize(
    "events", [(2, 7, 9, 15), pytest.param((1, 2, 5, 7, 8, 9, 10, 12, 15, 19, 24), marks=pytest.mark.slow)], ids=len
)
def test_killed_at_any_dealing_with_the_disk_it_ends_with_the_same_bits(undisturbed, tmp_path, events):
    deaths = 0
    # Further each time, so that each start dies at another place of the writing that follows.
    for event in events:
        process = start(run_and_die, tmp_path, FULL, event)
        process.join()
        deaths += process.exitcode == -9
    assert deaths > len(events) / 2
    run_full(tmp_path)
    assert_same_run(undisturbed, tmp_path)
    assert not list(tmp_path.rglob(".*.draft"))


def test_a_finished_run_started_again_trains_nothing(undisturbed):
    before = (undisturbed / "final.safetensors").stat().st_mtime_ns
    model = FULL["spec"].build(10, 16)
    from entropatch.train import finetune

    outcome = finetune(
        model, data(), undisturbed, prune=FULL["prune"], recipe=FULL["recipe"], runtime=Runtime(device="cpu")
    )
    assert (undisturbed / "final.safetensors").stat().st_mtime_ns == before
    assert outcome.top1 == records(undisturbed)[-1]["top1"]
    final = load_weights(undisturbed / "final.safetensors")
    assert all(torch.equal(value, final[name]) for name, value in model.state_dict().items())


def test_two_processes_cannot_train_into_one_folder(tmp_path):
    long = {"recipe": recipe(epochs=100)}  # so that it cannot be over before this process looks
    process = start(partial(run, **long), tmp_path)
    while not checkpoints(tmp_path):
        time.sleep(0.01)
    with pytest.raises(RunMismatchError, match="another process is training"):
        run(tmp_path, **long)
    kill(process)
    with locked(tmp_path):  # the lock went with the killed process
        pass


@pytest.mark.slow
def test_two_processes_killed_together_end_with_the_same_bits(tmp_path):
    whole = data()
    torn = DataSet(whole.classes, SomeTorn(whole.train), SomeTorn(whole.test), whole.description)
    arguments = FULL | {"data": torn, "recipe": recipe(ema_decay=0.9)}

    def started(folder):
        port = free_port()
        return [start(run_as, rank, 2, port, folder, arguments) for rank in range(2)]

    for process in started(tmp_path / "whole"):
        process.join()
    for _ in range(3):
        before = checkpoints(tmp_path / "killed")
        processes = started(tmp_path / "killed")
        while checkpoints(tmp_path / "killed") == before:
            time.sleep(0.005)
        for process in processes:
            kill(process)
    for process in started(tmp_path / "killed"):
        process.join()
        assert process.exitcode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert all(record["images_tested"] == 34 for record in records(tmp_path / "killed"))
    assert all(len(record["damaged_testing"]) == 6 for record in records(tmp_path / "killed"))


# ------------------------------------------------------------------------------------------------------- failures


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_can_go_on(undisturbed, tmp_path):
    process = start(run_with_small_files, tmp_path, 0)
    process.join()
    assert process.exitcode == 3
    assert checkpoints(tmp_path) == []
    # The optimiser's file is twice the model's: the model is written, then the disk is full.
    process = start(run_with_small_files, tmp_path, 2)
    process.join()
    assert process.exitcode == 3
    assert checkpoints(tmp_path) == ["update-000000002"]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    run_full(tmp_path)
    assert_same_run(undisturbed, tmp_path)


def run_with_small_files(folder, updates):
    """A run that cannot write files of more than 500 kB once it has done so many updates; leaves with status 3."""
    save = Checkpoints.save

    def limited(self, progress, *state):
        if progress.updates > updates:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
        return save(self, progress, *state)

    Checkpoints.save = limited
    try:
        run_full(folder)
    except CheckpointError as error:
        kept = "is intact" in str(error) if updates else "There is no earlier one" in str(error)
        os._exit(3 if kept and "free the disk" in str(error) else 4)


class Poisoned(nn.Module):
    """Gives NaN from its n-th training step on."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def forward(self, x):
        if self.training:
            self.left -= 1
        return x * float("nan") if self.left < 0 else x


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    build = ModelSpec.build

    def poisoned(self, *args, **kwargs):
        model = build(self, *args, **kwargs)
        model.head_drop = Poisoned(3)
        return model

    monkeypatch.setattr(ModelSpec, "build", poisoned)
    with pytest.raises(DivergedError, match=r"the loss is nan, not finite in epoch 1, step 4.*update-000000002"):
        run(tmp_path)
    monkeypatch.undo()
    (latest,) = checkpoints(tmp_path)
    state = load_weights(tmp_path / "checkpoints" / latest / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())
    assert run(tmp_path).epochs == 2
    assert not (tmp_path / "checkpoints").exists()  # complete: nothing is left to continue


def restore(path):
    """Put a checkpoint of `run` back into a new model."""
    model = SPEC.build(10, 16)
    return Checkpoints(path.parent).restore(path, model, None, optimizer_of(model, recipe()), None)


class Bomb:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("bomb-exploded",))


def test_a_checkpoint_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run", runtime=KEEPING)
    (tmp_path / "run/result.json").unlink()
    newest = tmp_path / "run/checkpoints" / checkpoints(tmp_path / "run")[-1]
    for name in ("training.pt", "random-0.pt"):
        good = (newest / name).read_bytes()
        torch.save({"optimizer": Bomb()}, newest / name)
        (newest / "SHA256SUMS").write_text(sums_of(newest))
        with pytest.raises(CheckpointError, match="could not be read: Weights only load failed"):
            restore(newest)
        (newest / name).write_bytes(good)
    assert not (tmp_path / "bomb-exploded").exists()


def test_a_folder_with_another_run_is_refused_and_says_what_differs(tmp_path):
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    other = ModelSpec("test_vit", drop_path=0.0, arguments={"patch_size": 4, "depth": 3})
    for arguments, message in (
        ({"recipe": recipe(epochs=3)}, "recipe.epochs is 2 there and 3 here"),
        ({"prune": None}, "prune.keep_rate is 0.6 there and None here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"spec": other}, "model.weights is "),
        ({"data": data(80)}, "data.train is 88 there and 80 here"),
    ):
        with pytest.raises(RunMismatchError, match=message):
            run(tmp_path, **arguments)
    assert before == {path: path.read_bytes() for path in before}


def test_another_number_of_classes_is_refused(tmp_path):
    from entropatch.train import finetune

    with pytest.raises(ValueError, match="the model has 7 classes, but the data set has 10"):
        finetune(SPEC.build(7, 16), data(), tmp_path, recipe=recipe(), runtime=CPU)
    assert not list(tmp_path.iterdir())


def test_damaged_images_are_counted_and_the_run_goes_on(tmp_path):
    whole = data()
    torn = DataSet(whole.classes, SomeTorn(whole.train), SomeTorn(whole.test), whole.description)
    outcome = run(tmp_path, data=torn)
    for record in records(tmp_path):
        assert record["images_tested"] == 34
        assert record["damaged_testing"] == sorted(f"image {i}" for i in range(3, 40, 7))
        assert set(record["damaged_training"]) <= {f"image {i}" for i in range(3, 88, 7)}
        assert len(record["damaged_training"]) > 8  # of 13; not every image is shown in an epoch
    assert outcome.damaged == len(records(tmp_path)[-1]["damaged_training"]) + 6


class AllTorn(SomeTorn):
    def image(self, index):
        raise ImageError(f"image {index} is torn")


def test_a_test_set_without_one_sound_image_is_an_error(tmp_path):
    whole = data()
    with pytest.raises(ValueError, match="no image of the test set could be read, of 40; the first: image 0"):
        run(tmp_path, data=DataSet(whole.classes, whole.train, AllTorn(whole.test)))


# ----------------------------------------------------------------------------------------------- a checkpoint's parts


def test_a_checkpoint_brings_everything_back(tmp_path):
    def make():
        torch.manual_seed(len(made))
        model, ema = nn.Linear(3, 2), nn.Linear(3, 2)
        made.append((model, ema, torch.optim.AdamW(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")))
        return made[-1]

    made = []
    model, ema, optimizer, scaler = make()
    for _ in range(3):
        model(torch.rand(4, 3)).sum().backward()
        optimizer.step()
    scaler.load_state_dict(scaler.state_dict() | {"scale": 1024.0, "_growth_tracker": 7})
    record = {"epoch": 1, "top1": 1 / 3, "top5": 2 / 3, "seconds": 1.5, "damaged_training": [], "damaged_testing": []}
    progress = Progress(1, 1, 9, 0.1 + 0.2, 1, ["a"], 3.0, [record])
    store = Checkpoints(tmp_path)
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    path = store.save(progress, model, ema, optimizer, scaler)
    drawn = random.random(), np.random.rand(), torch.rand(3)

    other = make()
    assert not torch.equal(other[0].weight, model.weight)
    assert store.restore(path, *other) == progress
    assert torch.equal(other[0].weight, model.weight)
    assert torch.equal(other[1].weight, ema.weight)
    assert str(other[2].state_dict()) == str(optimizer.state_dict())
    assert other[3].state_dict() == scaler.state_dict()
    assert (random.random(), np.random.rand()) == drawn[:2]
    assert torch.equal(torch.rand(3), drawn[2])


def test_only_the_last_two_checkpoints_are_kept(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    for updates in (1, 2, 30):
        Checkpoints(tmp_path).save(Progress(updates=updates), model, None, optimizer, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-000000002", "update-000000030"]
    assert Checkpoints(tmp_path).latest() == tmp_path / "update-000000030"
    (tmp_path / "update-000000030/progress.json").write_text(json.dumps({"epoch": 1}))
    (tmp_path / "update-000000030/SHA256SUMS").write_text(sums_of(tmp_path / "update-000000030"))
    with pytest.raises(CheckpointError, match="other fields"):
        Checkpoints(tmp_path).restore(tmp_path / "update-000000030", model, None, optimizer, None)
