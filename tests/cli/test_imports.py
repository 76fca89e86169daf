"""A criterion, a reduction and a method of a user's own module, through every command that takes methods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from training_case import SPEC
from typer.testing import CliRunner

import entropatch
from entropatch import PruneConfig, methods
from entropatch.cli import COMMANDS, app
from entropatch.criteria import Criterion
from entropatch.reductions import Reduction
from entropatch.train import ModelSpec, read_about, save_weights

for module in ("accelerate", "fvcore", "matplotlib", "optuna", "safetensors", "scipy", "sklearn"):
    pytest.importorskip(module)
for command in COMMANDS:
    import_module(f"entropatch.cli.{command}")

SOURCE = '''
from dataclasses import dataclass

import entropatch
from entropatch.reductions.base import Reduction
from entropatch.tokens import Plan, select


@dataclass(frozen=True)
class KeyNorm(entropatch.Criterion):
    power: float = 2.0

    def importance(self, attention):
        keys = attention.k[:, :, attention.num_prefix_tokens :]
        return keys.float().norm(self.power, dim=-1).mean(1)


@dataclass(frozen=True)
class DropThenFirst(Reduction):
    """Keeps the best, and the first patch in any case."""

    kind = "drop-then-first"

    def plan(self, attention, tokens, scores, k):
        scores = scores.clone()
        scores[:, 0] = float("inf")
        return Plan(kept=select(scores, k))


METHOD = entropatch.Method(
    "key-norm", "Key norm", "Keeps the patches with long keys, and the first.", KeyNorm(), DropThenFirst(), rank=25
)
entropatch.register_method(METHOD)
'''
NAME = "a_module_of_mine"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the module, which is the current one; afterwards nothing of it is left."""
    (tmp_path / f"{NAME}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(methods.METHODS, "_methods", dict(methods.METHODS._methods))
    for family in (Criterion, Reduction):
        monkeypatch.setattr(family, "_known", {kind: dict(known) for kind, known in family._known.items()})
    yield tmp_path
    sys.modules.pop(NAME, None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    model = ModelSpec("test_vit", None, 0.0, dict(SPEC.arguments)).build(10, 16)
    about = {"model": {"name": "test_vit", "arguments": dict(SPEC.arguments)}, "classes": 10, "image_size": 16}
    save_weights(model, path, about | {"data": {"name": "digits", "root": None, "options": {}}})
    return path


@pytest.fixture
def picture(here):
    pixels = np.random.default_rng(0).integers(0, 255, (120, 120, 4)).astype(np.uint8)
    pixels[..., 3] = 0
    pixels[30:100, 30:100, 3] = 255
    Image.fromarray(pixels).save(here / "picture.png")
    return here / "picture.png"


def run(*arguments, status=0):
    with torch.random.fork_rng():
        shown = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert shown.exit_code == status, shown.output
    return shown


def afresh(*arguments):
    """The command as a process runs it in which the module was not imported."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        known = {name: method for name, method in methods.METHODS._methods.items() if name != "key-norm"}
        patch.setattr(methods.METHODS, "_methods", known)
        for family in (Criterion, Reduction):
            others = {
                kind: {name: one for name, one in classes.items() if one.__module__ != NAME}
                for kind, classes in family._known.items()
            }
            patch.setattr(family, "_known", others)
        patch.delitem(sys.modules, NAME, raising=False)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])


def records(path: Path) -> list[dict]:
    return json.loads(path.read_text())["records"]


SAID = "These weights do not say that they were trained with"
QUICK = ("--test-limit", 20, "--device", "cpu", "--workers", 0, "--repeats", 1, "--speed-batch-size", 2)
MINE = ("--import", NAME)


def test_bench_measures_it_unasked(here):
    run("bench", *MINE, *("--model", "test_vit", "--image-size", 48, "--keep-rates", 0.5, "--batch-sizes", 1),
        *("--repeats", 1, "--warmup", 0, "--output", "out"))  # fmt: skip
    rows = {record["method"]: record for record in records(here / "out/bench.json")}
    assert list(rows)[:4] == ["dense", "random", "evit", "key-norm"]
    assert rows["key-norm"]["label"] == "Key norm"
    assert rows["key-norm"]["gflops"] == pytest.approx(rows["random"]["gflops"], rel=0.02)
    assert rows["key-norm"]["images_per_second"] > 0


def test_evaluate_by_name_and_by_config_file(here, weights, one_thread):
    config = {"keep_rate": 0.5, "criterion": {"name": "KeyNorm", "power": 2.0}, "reduction": "drop-then-first"}
    (here / "own.json").write_text(json.dumps(config))
    run("evaluate", *MINE, "--weights", weights, *QUICK, "--methods", "dense,key-norm", "--keep-rates", 0.5,
        "--config", "own.json", "--output", "out")  # fmt: skip
    dense, named, loaded = records(here / "out/evaluate.json")
    assert [named["name"], loaded["name"]] == ["Key norm, 0.5", "own: Key norm, 0.5"]
    measured = ("top1", "top5", "gflops")
    assert [named[key] for key in measured] == [loaded[key] for key in measured]
    assert named["gflops"] < dense["gflops"]
    (here / "by name.json").write_text('{"method": "key-norm"}')
    assert PruneConfig.load(here / "by name.json").named.label == "Key norm"


@pytest.mark.parametrize("command", ["evaluate", "search"])
def test_methods_that_these_weights_were_not_trained_with_are_named(here, weights, one_thread, command):
    """Else A-ViT's row, of a model whose tokens never halt, looks like a method that loses nothing."""
    small = ["--weights", weights, *QUICK, "--keep-rates", 0.5, "--output", "out"]
    shown = run(command, *small, "--methods", "dense,evit,a-vit,dynamicvit")
    (line,) = [line for line in shown.stderr.splitlines() if SAID in line]
    assert line.startswith(f"{SAID} A-ViT; DynamicViT; without that, accuracy says nothing of the method. Train with")
    model = SPEC.build(10, 48)
    entropatch.prune_(model, method="dynamicvit", keep_rate=0.7)
    taught = entropatch.pruning_config(model).to_dict()
    save_weights(model, here / "taught.safetensors", read_about(weights) | {"prune": taught})
    shown = run(command, "--weights", "taught.safetensors", *small[2:-1], "other", "--methods", "dense,dynamicvit")
    assert SAID not in shown.stderr


def test_weights_of_an_unknown_criterion_are_tested_by_others(here, weights, one_thread):
    model = SPEC.build(10, 48)
    unknown = read_about(weights) | {"prune": {"keep_rate": 0.5, "criterion": {"name": "KeyNorm"}}}
    save_weights(model, here / "other.safetensors", unknown)
    shown = run("evaluate", "--weights", "other.safetensors", *QUICK, "--methods", "dense,evit")
    assert SAID not in shown.stderr
    shown = run("evaluate", "--weights", "other.safetensors", *QUICK, "--methods", "dense,dynamicvit")
    assert f"{SAID} DynamicViT;" in shown.stderr
    (here / "a").mkdir()
    (here / "b").mkdir()
    for name, rate in (("a", 0.5), ("b", 0.7)):
        PruneConfig(keep_rate=rate).save(here / name / "calibrated.json")
    files = ("--config", "a/calibrated.json", "--config", "b/calibrated.json")
    run("evaluate", "--weights", weights, *QUICK, "--methods", "dense", *files, "--output", "out")
    assert [one["name"].partition(":")[0] for one in records(here / "out/evaluate.json")] == ["dense", "a", "b"]


def test_a_file_that_needs_the_module_says_so_without_it(here, weights):
    (here / "own.json").write_text('{"criterion": {"name": "KeyNorm"}}')
    shown = run("evaluate", "--weights", weights, *QUICK, "--config", "own.json", status=1)
    assert "own.json holds no pruning config" in shown.stderr
    assert "--import my_module" in shown.stderr
    shown = run("bench", "--methods", "key-norm", status=2)
    assert "but got 'key-norm'; import the module that registers it first" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_search_tries_it_and_its_study_says_what_it_needs(here, weights, one_thread):
    study = ["search", "--weights", weights, *QUICK, "--keep-rates", 0.5, "--output", "out"]
    run(*study, "--methods", "dense,renyi-2")
    run(*study, *MINE, "--methods", "dense,renyi-2,key-norm,tome")  # the study goes on with more methods
    found = records(here / "out/search.json")
    assert [record["method"] for record in found] == ["dense", "key-norm", "tome", "renyi-2"]
    assert "| Key norm" in (here / "out/table-1.md").read_text()
    assert "Key norm" not in (here / "out/table-2.md").read_text()
    before = (here / "out/search.json").read_bytes()
    for line in (study, [*study, "--report"]):
        other = afresh(*line)
        assert other.exit_code in (1, 2), other.stderr
        assert "the study 'search' has the method key-norm, which no imported module registers" in other.stderr
    assert (here / "out/search.json").read_bytes() == before


def test_figures_and_visualize_show_it_unasked(here, picture, checkpoint, monkeypatch):
    monkeypatch.setattr("entropatch.figures.saving.DPI", 40)
    model = ("--model", "test_vit", "--weights", checkpoint)
    run("figures", picture, *MINE, *model, "--orders", 2, "--output", "out")
    with np.load(here / "out/stages-picture-0.7.npz") as data:
        assert data["methods"].tolist() == ["evit", "key-norm", "renyi-2"]
        assert data["kept"][1, :, 0, 0].all()  # the first patch, as its reduction has it
    shown: list[list[str]] = []
    import entropatch.look.inspection as inspection

    real = inspection.inspect_image
    monkeypatch.setattr(inspection, "inspect_image", lambda *a, **k: shown.append(a[2]) or real(*a, **k))
    run("visualize", picture, *MINE, *model, "--output", "pictures")
    assert shown == [["evit", "key-norm", "shannon", "renyi-2"]]


def test_check_scores_its_criterion(here, picture, checkpoint):
    model = ("--model", "test_vit", "--weights", checkpoint)
    run("check", picture, "--alpha", *MINE, *model, "--output", "out")
    found = records(here / "out/check.json")
    assert {record["score"] for record in found} == {"evit", "key-norm", "shannon", "renyi-2", "renyi-inf", "pixels"}
    shown = run("check", picture, "--alpha", *MINE, *model, "--methods", "key-norm", "--orders", 2)
    assert "Key norm: a high score marks the foreground in" in shown.stdout
    assert "EViT" not in shown.stdout
    shown = run("check", picture, "--alpha", *model, "--methods", "tome", status=2)
    assert "tome asks for no scores" in shown.stderr


def test_the_page_offers_it(here, monkeypatch):
    pytest.importorskip("gradio")
    from entropatch.app import serving
    from entropatch.app.interface import RENYI, criteria, method_name

    offered: list[list[str]] = []
    page = SimpleNamespace(block_thread=lambda: None)
    monkeypatch.setattr(serving, "serve", lambda *a, **k: offered.append(criteria()) or (page, "here"))
    monkeypatch.setattr("entropatch.models.pretrained.load_model", lambda *a, **k: (torch.nn.Identity(), "none"))
    run("app", *MINE)
    assert offered[0][0] == RENYI
    assert "Key norm" in offered[0]
    assert method_name("Key norm", 3) == "key-norm"


def test_finetune_trains_with_it_and_evaluate_knows_the_run(here, one_thread):
    line = ["finetune", *MINE, "--data", "digits", "--train-limit", 32, "--test-limit", 16, "--model", "test_vit"]
    line += ["--weights", "none", "--set", "epochs=1", "--set", "batch_size=16", "--set", "image_size=32"]
    line += ["--device", "cpu", "--workers", 0, "--no-tensorboard", "--output", "run", "--method", "key-norm"]
    run(*line)
    noted = json.loads((here / "run/run.json").read_text())["prune"]
    assert noted["criterion"] == {"name": "KeyNorm", "power": 2.0}
    shown = run("evaluate", *MINE, "--weights", "run/final.safetensors", *QUICK)
    assert "as trained: Key norm, 0.7" in shown.stdout
    again = afresh(*[part for part in line if part not in MINE])
    assert again.exit_code == 2
    assert "import the module that registers it first (on the command line: --import my_module)" in again.stderr


# ------------------------------------------------------------------------------------------------------- the option

TAKING = ["app", "bench", "check", "demo", "evaluate", "figures", "finetune", "search", "visualize"]


@pytest.mark.parametrize("command", TAKING)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module_of_mine", "there is no module of that name in the current folder or among the installed"),
        ("./mine.py", "takes the name of a module, such as my_module, but got './mine.py'"),
        ("broken", "--import broken: RuntimeError: two lines."),
        ("halfway", "--import halfway: ModuleNotFoundError: No module named 'missing_of_mine'"),
        ("leaving", "--import leaving: SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(here, command, name, reason):
    (here / "broken.py").write_text("raise RuntimeError('two\\nlines')")
    (here / "halfway.py").write_text("import missing_of_mine")
    (here / "leaving.py").write_text("raise SystemExit(3)")
    arguments = {"finetune": ["--data", "digits", "--output", "out"], "search": ["--output", "out"]}
    shown = run(command, *arguments.get(command, []), *(["x.png"] if command == "visualize" else []),
                "--import", name, status=2)  # fmt: skip
    assert shown.stderr.startswith(f"entropatch {command}: --import")
    assert reason in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_several_modules_each_once_whatever_the_order_on_the_line(here):
    (here / "second_of_mine.py").write_text(
        f"import {NAME}, entropatch\n"
        f"entropatch.register_method(entropatch.Method('key-1', 'Key, power 1', '', {NAME}.KeyNorm(1.0)))"
    )
    line = ["bench", "--methods", "key-1,key-norm", "--model", "test_vit", "--image-size", 48, "--keep-rates", 0.5]
    line += ["--batch-sizes", 1, "--repeats", 1, "--warmup", 0, "--output", "out"]
    run(*line, "--import", "second_of_mine", *MINE)
    run(*line, "--import", "second_of_mine", *MINE)
    assert [record["label"] for record in records(here / "out/bench.json")] == ["Key, power 1", "Key norm"]
    sys.modules.pop("second_of_mine")


def test_from_the_installed_command_the_current_folder_is_searched(here):
    script = Path(sys.executable).with_name("entropatch")
    if not script.exists():
        pytest.skip("the command is not installed beside this Python")
    source = str(Path(entropatch.__file__).parents[1])
    line = [script, "bench", *MINE, "--methods", "nonsense"]
    shown = subprocess.run(
        line, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": source}, cwd=here
    )
    assert shown.returncode == 2
    assert "key-norm" in shown.stderr  # among the methods that there are
