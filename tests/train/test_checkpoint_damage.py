"""Damaged checkpoints are noticed and named, and the one before them continues; what is not ours is left alone."""

import json
import os
import random
import stat
import subprocess
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_case import CPU, KEEPING, SPEC, recipe, run

from entropatch.train import CheckpointError, RunMismatchError
from entropatch.train.checkpoints import Checkpoints
from entropatch.train.optimisation import optimizer_of
from entropatch.train.progress import Progress
from entropatch.train.run_folder import differences, locked
from entropatch.train.sums import sums_of

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A finished run with its last two checkpoints."""
    folder = tmp_path_factory.mktemp("kept")
    run(folder, runtime=KEEPING)
    return folder


@pytest.fixture
def stopped(kept, tmp_path):
    """The same run as if it had been killed before its last file."""
    folder = tmp_path / "run"
    subprocess.run(["cp", "-a", kept, folder], check=True)
    (folder / "result.json").unlink()
    return folder


def newest_two(folder):
    """The older and the newer checkpoint."""
    return sorted((folder / "checkpoints").glob("update-*"))


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def damage_tensor(newest):
    flip(newest / "model.safetensors", -5)  # the tensors are at the end of the file


def damage_optimizer(newest):
    """One bit in the middle of a moment, which PyTorch's reader does not look at."""
    state = torch.load(newest / "training.pt", weights_only=True)["optimizer"]["state"]
    moment = max((entry["exp_avg"] for entry in state.values()), key=torch.Tensor.numel)
    found = (newest / "training.pt").read_bytes().find(moment.numpy().tobytes())
    assert found > 0
    flip(newest / "training.pt", found + moment.numel() * 2)


def damage_progress(newest):
    (newest / "progress.json").write_text("null")


def cut(newest):
    file = newest / "training.pt"
    file.write_bytes(file.read_bytes()[:1000])


def lose(newest):
    (newest / "random-0.pt").unlink()


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (damage_tensor, "model.safetensors"),
        (damage_optimizer, "training.pt"),
        (damage_progress, "progress.json"),
        (cut, "training.pt"),
        (lose, "random-0.pt"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_continues(kept, stopped, damage, name):
    older, newest = newest_two(stopped)
    damage(newest)
    said = []
    run(stopped, runtime=KEEPING, on_text=said.append)
    (line,) = [text for text in said if "could not be read" in text]
    assert newest.name in line
    assert name in line
    assert f"set aside as damaged-{newest.name}" in line
    (line,) = [text for text in said if "continuing from" in text]
    assert str(older) in line
    assert (stopped / "final.safetensors").read_bytes() == (kept / "final.safetensors").read_bytes()
    assert newest.is_dir()  # written again
    assert (stopped / "checkpoints" / f"damaged-{newest.name}").is_dir()
    run(stopped, runtime=CPU)
    assert not (stopped / "checkpoints").exists()  # what was set aside is the run's own too


def test_without_a_sound_checkpoint_the_run_says_so_and_nothing_is_removed(stopped):
    for path in newest_two(stopped):
        damage_tensor(path)
    before = sorted(path for path in stopped.rglob("*"))
    with pytest.raises(CheckpointError, match=r"update-0*10 could not .*update-0*9 could not .*None is sound: remove"):
        run(stopped)
    assert sorted(path for path in stopped.rglob("*")) == before


def test_the_checksums_are_those_of_sha256sum(stopped):
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=newest_two(stopped)[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert listed == {"model.safetensors", "training.pt", "progress.json", "random-0.pt"}


def restore(path):
    model = SPEC.build(10, 16)
    return Checkpoints(path.parent).restore(path, model, None, optimizer_of(model, recipe()), None)


WRONG = (None, [], {}, 3, "text", [[1], 2], {"state": None}, {"state": {0: 5}, "param_groups": None})


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_parts_that_are_something_else_are_an_error_that_names_the_checkpoint(stopped, wrong):
    newest = newest_two(stopped)[1]
    good = torch.load(newest / "training.pt", weights_only=True)
    text = (newest / "progress.json").read_text()
    changes = [
        ("training.pt", lambda path: torch.save(wrong, path)),
        ("training.pt", lambda path: torch.save(good | {"optimizer": wrong}, path)),
        ("random-0.pt", lambda path: torch.save(wrong, path)),
        ("random-0.pt", lambda path: torch.save({"python": wrong, "numpy": wrong, "torch": wrong, "cuda": []}, path)),
        ("progress.json", lambda path: path.write_text(json.dumps(wrong))),
        *(
            ("progress.json", lambda path, name=name: path.write_text(json.dumps(json.loads(text) | {name: wrong})))
            for name in json.loads(text)
            if not (wrong == [] and name == "damaged")
            and not (wrong == 3 and name not in ("damaged", "history", "epoch"))
        ),
    ]
    for name, change in changes:
        before = (newest / name).read_bytes()
        change(newest / name)
        (newest / "SHA256SUMS").write_text(sums_of(newest))  # so that the readers themselves see it
        with pytest.raises(CheckpointError, match=newest.name) as caught:
            restore(newest)
        assert "\n" not in str(caught.value)
        (newest / name).write_bytes(before)


def test_any_damage_is_the_promised_error(stopped):
    """One damaged byte, a lost piece or a foreign one, anywhere in any file."""
    newest, draw = newest_two(stopped)[1], random.Random(0)
    files = sorted(newest.iterdir())
    for number in range(120):
        file = files[number % len(files)]
        before = file.read_bytes()
        data, place = bytearray(before), draw.randrange(len(before))
        kind = draw.choice(("flip", "cut", "lose", "foreign"))
        if kind == "flip":
            data[place] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del data[place:]
        elif kind == "lose":
            del data[place : place + draw.randint(1, 64)]
        else:
            data[place:place] = draw.randbytes(draw.randint(1, 64))
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=newest.name) as caught:
            restore(newest)
        assert "\n" not in str(caught.value)
        file.write_bytes(before)
    assert restore(newest).updates == 10


# ---------------------------------------------------------------------------------------------- what is not ours


def test_at_the_end_of_a_run_a_user_s_own_files_stay(stopped):
    own = stopped / "checkpoints"
    newest = newest_two(stopped)[1]
    (own / "notes.txt").write_text("mine")
    (own / "update-notes.txt").write_text("mine")
    (newest / "remarks.md").write_text("mine")
    (own / "mine").mkdir()
    (own / "mine/model.safetensors").write_text("mine")
    (own / "update-000000099").symlink_to(own / "mine")
    said = []
    run(stopped, on_text=said.append)
    left = sorted(str(path.relative_to(own)) for path in own.rglob("*") if not path.is_dir())
    link = ["update-000000099"] if not (own / "update-000000099").is_dir() else []
    mine = ["mine/model.safetensors", "notes.txt", f"{newest.name}/remarks.md", "update-notes.txt", *link]
    assert left == sorted(mine)
    assert (own / "update-000000099").is_symlink()
    assert any("did not write" in text and "notes.txt" in text for text in said)


def test_old_checkpoints_go_without_what_a_user_put_into_them(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    store = Checkpoints(tmp_path)
    for updates in (1, 2, 3, 4):
        path = store.save(Progress(updates=updates), model, None, optimizer, None)
        if updates == 1:
            (path / "remarks.md").write_text("mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"update-00000000{n}" for n in (1, 3, 4)]
    assert [path.name for path in (tmp_path / "update-000000001").iterdir()] == ["remarks.md"]
    assert store.latest() == tmp_path / "update-000000004"
    assert [path.name for path in store.all()] == ["update-000000003", "update-000000004"]


def test_checkpoints_behind_a_link_are_removed_and_the_link_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to(tmp_path / "disk")
    said = []
    run(tmp_path / "run", on_text=said.append)
    assert list((tmp_path / "disk").iterdir()) == []
    assert (tmp_path / "run/checkpoints").is_symlink()
    assert any(f"is a link to {tmp_path / 'disk'}" in text for text in said)


def test_checkpoints_of_another_run_behind_one_link_are_not_taken_for_its_own(stopped, tmp_path):
    disk = tmp_path / "disk"
    (stopped / "checkpoints").rename(disk)
    (stopped / "checkpoints").symlink_to(disk)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/checkpoints").symlink_to(disk)
    before = sorted(disk.rglob("*"))
    with pytest.raises(CheckpointError, match=r"update-000000010 is another run's; give each run a folder"):
        run(tmp_path / "other", seed=1)
    assert sorted(disk.rglob("*")) == before
    said = []
    run(stopped, on_text=said.append)
    assert any("continuing from" in text for text in said)


def test_the_lock_is_never_a_link_and_empties_no_file(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/.lock").symlink_to(tmp_path / "thesis.tex")
    with (
        pytest.raises(RunMismatchError, match=r"is a link to .*thesis\.tex; remove it"),
        locked(tmp_path / "linked"),
    ):
        pass
    (tmp_path / "hard").mkdir()
    os.link(tmp_path / "thesis.tex", tmp_path / "hard/.lock")
    with locked(tmp_path / "hard"):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling/.lock").symlink_to(tmp_path / "new.tex")
    with pytest.raises(RunMismatchError, match="remove it"), locked(tmp_path / "dangling"):
        pass
    assert not (tmp_path / "new.tex").exists()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_every_file_of_a_run_has_the_permissions_of_any_new_file(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        run(tmp_path, runtime=replace(KEEPING, tensorboard=True), recipe=recipe(epochs=1, ema_decay=0.9))
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"final.safetensors", "ema.safetensors", "SHA256SUMS", ".lock"}
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == dict.fromkeys(
        (path.name for path in files), mode
    )


# ------------------------------------------------------------------------------------------------ what a run says


def test_a_run_says_what_learning_rates_it_uses_and_from_where_it_continues(stopped):
    said = []
    run(stopped, on_text=said.append, runtime=KEEPING)
    assert "starts at 0.000625 and falls to 3.12e-08" in said[0]  # 0.02 and 1e-6, times 16 / 512
    assert said[1] == f"continuing from {newest_two(stopped)[1]}: 2 of 2 epochs are done, 10 of 10 steps in all"
    said.clear()
    for path in newest_two(stopped)[1:]:
        subprocess.run(["rm", "-r", path], check=True)
    (stopped / "result.json").unlink()
    run(stopped, on_text=said.append, runtime=KEEPING)
    assert said[1].endswith(
        "update-000000009: 1 of 2 epochs and 4 of 5 steps of the next are done, 9 of 10 steps in all"
    )
    said.clear()
    run(stopped, on_text=said.append)
    assert said == [f"{stopped} is complete: nothing is left to train"]
    noted = json.loads((stopped / "run.json").read_text())["learning_rates"]
    assert noted == {"peak": 0.02 * 16 / 512, "minimum": 1e-6 * 16 / 512}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", "null", "run.json is not the settings of a run but 'None'"),
        ("run.json", "[" * 100_000, "run.json is not the settings of a run"),
        ("result.json", "{}", "result.json is not the outcome of a run"),
        ("result.json", '{"top1": 3, "n', "result.json is not the outcome of a run"),
        ("result.json", "[]", "result.json is not the outcome of a run"),
    ],
)
def test_a_damaged_record_of_a_run_is_named(stopped, kept, name, text, message):
    (stopped / "result.json").write_text((kept / "result.json").read_text())
    (stopped / name).write_text(text)
    with pytest.raises(RunMismatchError, match=message):
        run(stopped)


def test_two_spellings_of_one_path_are_no_difference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/best.safetensors").write_text("x")
    (tmp_path / "d/copy.safetensors").write_text("x")
    there = {"weights": "d/best.safetensors", "seed": 0}
    assert differences(there, {"weights": str(tmp_path / "d/best.safetensors"), "seed": 0}) == []
    assert differences(there, {"weights": "d/../d/best.safetensors", "seed": 0}) == []
    assert differences(there, {"weights": "d/copy.safetensors", "seed": 0}) == [
        "weights is 'd/best.safetensors' there and 'd/copy.safetensors' here"
    ]
    assert differences({"a": "gone"}, {"a": "./gone"}) == ["a is 'gone' there and './gone' here"]


def test_a_users_file_where_a_checkpoint_goes_is_said_to_be_in_the_way(tmp_path):
    notes = tmp_path / "run/checkpoints/update-000000002/notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(CheckpointError, match=r"move what .*update-000000002 holds elsewhere and start"):
        run(tmp_path / "run")
    assert notes.read_text() == "mine"
