"""`entropatch finetune`, in this process and launched on two."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from terminal_screen import screen
from training_case import records
from typer.main import get_command
from typer.testing import CliRunner

from entropatch.cli import app
from entropatch.data import DATASETS
from entropatch.measure.environment import available_cores
from entropatch.records.correct import aligned, read_correct
from entropatch.records.uncertainty import accuracy
from entropatch.train import load_weights, read_about

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

SMALL = [
    *("--data", "digits", "--train-limit", "40", "--test-limit", "30", "--device", "cpu", "--workers", "0"),
    *("--model", "test_vit", "--weights", "none", "--model-arg", "patch_size=4", "--model-arg", "depth=4"),
    *("--set", "epochs=2", "--set", "batch-size=16", "--set", "image_size=16", "--no-tensorboard", "--drop-path", "0"),
]


def command(*arguments):
    import_module("entropatch.cli.finetune")  # registers the subcommand
    torch.set_num_threads(1)
    shown = CliRunner().invoke(app, ["finetune", *map(str, arguments)])
    assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.exception
    return shown


def test_the_help_names_every_data_set():
    shown = command("--help")
    named = "".join(shown.output.split())  # names are broken at their hyphens
    assert all(f"{name}," in named or f"{name}or" in named for name in DATASETS)


@pytest.mark.parametrize(("name", "most"), [("evaluate", 2), ("finetune", 4), ("search", 4), ("segment", 2)])
def test_images_are_loaded_by_no_more_processes_than_cores(name, most):
    """PyTorch warns of more."""
    import_module(f"entropatch.cli.{name}")
    (workers,) = (one for one in get_command(app).commands[name].params if one.name == "workers")
    assert workers.default == min(most, available_cores())


def test_a_terminal_keeps_each_epochs_line_and_no_bar(tmp_path, monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "200")):
        monkeypatch.setenv(name, value)
    shown = command(*SMALL, "--seeds", "0,1", "--output", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "left; seed 1, epoch 2/2" in shown.stderr  # there were bars
    lines = [line.partition(": ")[0] for line in screen(shown.stderr) if "the learning rate" not in line]
    assert lines == [f"seed {seed}, epoch {epoch}" for seed in (0, 1) for epoch in (1, 2)]


def test_a_run_from_the_command_line_and_the_same_command_again(tmp_path, monkeypatch):
    monkeypatch.setattr("entropatch.cli.progress.LINE_EVERY", 0.0)  # every step
    arguments = [*SMALL, "--method", "evit", "--keep-rate", "0.5,0.6", "--blocks", "1,2", "--output", tmp_path]
    shown = command(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "epoch 2: loss" in shown.output
    line = r"^training: 3 of 4 batches, about 0:00:\d\d left; epoch 2/2, loss \d\.\d{3}$"
    assert re.search(line, shown.output, re.MULTILINE)
    assert "testing" not in shown.output  # of one batch
    assert "the learning rate starts at 6.25e-07 and falls to 3.12e-08" in shown.output  # 2e-5 and 1e-6, 16 / 512 of it
    assert json.loads((tmp_path / "run.json").read_text())["learning_rates"]["peak"] == 2e-5 * 16 / 512
    about = read_about(tmp_path / "final.safetensors")
    assert about["model"]["name"] == "test_vit"
    assert about["model"]["arguments"] == {"patch_size": 4, "depth": 4}
    assert about["data"]["name"] == "digits"
    assert about["image_size"] == 16
    assert about["prune"]["reduction"] == "fuse"
    assert about["prune"]["keep_rate"] == [0.5, 0.6]
    settings = json.loads((tmp_path / "run.json").read_text())
    assert settings["recipe"]["epochs"] == 2
    assert settings["recipe"]["mixup"] == 0.8
    before = (tmp_path / "final.safetensors").stat().st_mtime_ns
    again = command(*arguments)
    assert again.exit_code == 0
    assert "epoch 2: loss" not in again.output
    assert "seed 0: top-1" in again.output
    assert (tmp_path / "final.safetensors").stat().st_mtime_ns == before
    other = command(*arguments, "--set", "mixup=0")
    assert other.exit_code == 1
    assert "recipe.mixup is 0.8 there and 0 here" in other.output


def test_several_seeds_end_in_mean_spread_and_best(tmp_path):
    shown = command(*SMALL, "--method", "dense", "--seeds", "0,3", "--output", tmp_path)
    assert shown.exit_code == 0, shown.output
    last = [records(tmp_path / f"seed-{seed}")[-1]["top1"] for seed in (0, 3)]
    best = max(record["top1"] for seed in (0, 3) for record in records(tmp_path / f"seed-{seed}"))
    summary = json.loads((tmp_path / "summary.json").read_text())["about"]
    mean = sum(last) / 2
    assert summary["top1_mean"] == pytest.approx(mean)
    assert summary["top1_std"] == pytest.approx((sum((value - mean) ** 2 for value in last)) ** 0.5)
    assert summary["top1_best"] == pytest.approx(best)
    assert f"2 seeds: top-1 {mean:.2f} %, standard deviation of the seeds {summary['top1_std']:.2f}" in shown.output
    runs = [read_correct(tmp_path / f"seed-{seed}") for seed in (0, 3)]
    for run, top1 in zip(runs, last, strict=True):  # what the run ended with, image by image
        (right,) = run.correct.values()
        assert 100 * right.sum() / run.tested.sum() == pytest.approx(top1)
    (correct,) = aligned(runs)
    assert summary["top1_se"] == pytest.approx(accuracy(correct).standard_error)
    p, n = last[0] / 100, correct.shape[1]
    assert f"seed 0: top-1 {last[0]:.2f} ± {100 * (p * (1 - p) / n) ** 0.5:.2f} %" in shown.output


def test_a_teacher_and_a_config_file(tmp_path):
    assert command(*SMALL, "--method", "dense", "--output", tmp_path / "dense").exit_code == 0
    (tmp_path / "prune.json").write_text('{"keep_rate": 0.5}')
    distilled = [*SMALL, "--set", "distillation=0.5", "--config", tmp_path / "prune.json"]
    shown = command(*distilled, "--teacher", tmp_path / "dense/final.safetensors", "--output", tmp_path / "distilled")
    assert shown.exit_code == 0, shown.output
    assert json.loads((tmp_path / "distilled/run.json").read_text())["teacher"]
    without = command(*distilled, "--output", tmp_path / "none")
    assert without.exit_code == 1
    assert "needs a teacher" in without.output


def test_the_recipe_is_shown_with_its_sources():
    shown = command("--data", "digits", "--output", "nowhere", "--show-recipe", "--recipe", "evit", "--set", "epochs=5")
    assert shown.exit_code == 0
    assert "given (default: 30)" in shown.output
    assert "the recipe evit (the paper's: 256)" in shown.output
    assert "EViT's fine-tuning recipe" in shown.output
    assert "the learning rate starts at 4e-05 and falls to 2e-06" in shown.output  # of a batch of 1024


def test_an_entropy_penalty_from_the_command_line(tmp_path):
    penalty = ["--entropy-weight", "0.5", "--entropy-target", "0.6", "--set", "entropy-blocks=[1, 3]"]
    shown = command(*SMALL, *penalty, "--set", "entropy_order=inf", "--set", "epochs=1", "--output", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "entropy of blocks 0.9" in shown.output  # random weights attend evenly
    assert " of log n" in shown.output
    noted = json.loads((tmp_path / "run.json").read_text())["recipe"]
    assert (noted["entropy_weight"], noted["entropy_target"]) == (0.5, 0.6)
    assert (noted["entropy_blocks"], noted["entropy_order"], noted["entropy_side"]) == ([1, 3], "inf", "both")


def test_what_is_missing_is_told_before_anything_is_fetched(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr("entropatch.data.open_data", lambda *a, **k: fetched.append("data"))
    monkeypatch.setattr("entropatch.train.ModelSpec.build", lambda *a, **k: fetched.append("weights"))
    for package in ("accelerate", "safetensors", "tensorboard"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            shown = command("--data", "digits", "--download", "--output", tmp_path / "run")
        assert shown.exit_code == 2
        assert f"{package} is needed here and not installed; run pip install '.[train]' in" in shown.output
    assert fetched == []


def test_a_run_that_goes_on_says_from_where(tmp_path):
    arguments = [*SMALL, "--output", tmp_path, "--keep-checkpoints"]
    assert command(*arguments).exit_code == 0
    (tmp_path / "result.json").unlink()
    shown = command(*arguments)
    newest = max((tmp_path / "checkpoints").iterdir())
    assert f"continuing from {newest}: 2 of 2 epochs are done, 4 of 4 steps in all" in shown.output
    assert "is complete: nothing is left to train" in command(*arguments).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "epoch=3"], "--set knows epochs, batch_size"),
        (["--set", "epochs"], "--set takes NAME=VALUE"),
        (["--recipe", "mine"], "--recipe must be one of paper, evit"),
        (["--method", "best"], "a method is one of"),
        (["--keep-rate", "1.5"], "keep_rate must lie in (0, 1]"),
        (["--data", "cifar"], "a data set is one of"),
        (["--device", "cuda:1"], 'device must be "auto" or "cpu"'),
        (["--seeds", ","], "--seeds takes at least one value"),
        (["--seeds", "0,1,0"], "--seeds must be different, since equal ones are one run, but got 0,1,0."),
        (["--teacher", "w.safetensors"], "nothing is distilled from --teacher w.safetensors, since distillation is 0"),
        (["--config", "c.json", "--keep-rate", "0.3"], "--config says how to prune, so --keep-rate 0.3 would have no"),
        (["--config", "c.json", "--method", "dense"], "so --method dense would have no effect"),
        (["--method", "dense", "--keep-rate", "0.5", "--blocks", "1"], "so --keep-rate 0.5 and --blocks 1 would have"),
        (["--entropy-weight", "1"], "entropy_weight=1 needs an entropy_target"),
        (["--entropy-target", "0.5"], "have no effect without a weight"),
        (["--entropy-weight", "1", "--set", "entropy-weight=2"], "--entropy-weight and --set entropy_weight=… say"),
    ],
)
def test_settings_that_make_no_sense_are_one_line_and_status_2(tmp_path, arguments, message):
    shown = command(*SMALL, "--output", tmp_path, *arguments)
    assert shown.exit_code == 2
    assert message in shown.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["bench", "calibrate", "evaluate", "finetune", "search", "segment"])
def test_a_file_in_the_place_of_the_output_folder_is_found_at_once(tmp_path, name):
    import_module(f"entropatch.cli.{name}")
    (tmp_path / "file").touch()
    needed = {"calibrate": ["--gflops", "1"], "finetune": ["--data", "digits"], "search": ["--data", "digits"]}
    needed |= {"segment": ["--root", "nowhere"]}
    needed |= {"evaluate": ["--data", "digits", "--weights", "none", "--model", "test_vit"]}
    shown = CliRunner().invoke(app, [name, *needed.get(name, []), "--output", str(tmp_path / "file")])
    assert shown.exit_code in (1, 2)
    assert f"--output must be a folder, but {tmp_path / 'file'} is a file." in shown.output


@pytest.mark.slow
def test_accelerate_launch_on_two_processes_gives_the_result_of_one(tmp_path):
    # SGD, since Adam would blow up the rounding of sums taken in another order where gradients vanish.
    arguments = [*SMALL, "--set", "optimizer=sgd", "--set", "learning_rate=3.0", "--method", "shannon"]
    assert command(*arguments, "--output", tmp_path / "one").exit_code == 0
    # Without GPUs --multi_gpu starts the processes all the same, and --device cpu joins them by gloo.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    done = subprocess.run(
        [
            *launch,
            "-m",
            "entropatch.cli",
            "finetune",
            *arguments,
            "--keep-checkpoints",
            "--output",
            str(tmp_path / "two"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("seed 0: top-1") == 1
    assert len(list((tmp_path / "two/checkpoints").glob("*/random-*.pt"))) == 4
    one, two = (load_weights(tmp_path / name / "final.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    assert [r["top1"] for r in records(tmp_path / "one")] == [r["top1"] for r in records(tmp_path / "two")]


def test_one_value_per_block() -> None:
    from entropatch import PruneConfig
    from entropatch.cli.options import pruning

    assert pruning("renyi-2", "0.7", None, None, "inf,1,2", "2,none,3") == PruneConfig(
        0.7, order=(float("inf"), 1.0, 2.0), coverage=(2, None, 3)
    )
    assert pruning("evit,renyi-inf@2", "0.7,0.5", "1,3", None) == PruneConfig(
        (0.7, 0.5), blocks=(1, 3), method=("evit", "renyi-inf@2")
    )
    assert pruning("evit", "0.7", None, None, coverage="2") == PruneConfig(0.7, method="evit", coverage=2)
    with pytest.raises(ValueError, match="give one of them"):
        pruning("evit", "0.7", None, None, "1")
    with pytest.raises(ValueError, match="--coverage takes values"):
        pruning("evit", "0.7", None, None, coverage="x")


def test_a_method_brings_its_own_recipe(tmp_path):
    shown = command(*SMALL, "--method", "dynamicvit", "--set", "backbone_frozen_epochs=1", "--output", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "the teacher is the model as it starts" in shown.output
    settings = json.loads((tmp_path / "run.json").read_text())
    assert (settings["recipe"]["backbone_rate"], settings["recipe"]["distillation"]) == (0.01, 0.5)
    assert any(name.startswith("entropatch.1.") for name in load_weights(tmp_path / "best.safetensors"))
    import_module("entropatch.cli.evaluate")
    options = ["--workers", "0", "--test-limit", "30", "--speed-batch-size", "0"]
    evaluated = CliRunner().invoke(app, ["evaluate", "--weights", str(tmp_path / "best.safetensors"), *options])
    assert evaluated.exit_code == 0, evaluated.output
    assert "as trained: DynamicViT" in evaluated.output
