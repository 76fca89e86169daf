"""`entropatch export`: a model by name to a file, its lines and its statuses."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import entropatch
from entropatch.cli import app
from entropatch.cli import export as _registered  # noqa: F401
from entropatch.export import about_file
from entropatch.models.checkpoint import save_weights
from entropatch.models.spec import ModelSpec

SMALL = ["--model", "test_vit", "--weights", "none", "--image-size", "48", "--model-arg", "depth=1"]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["export", *arguments])


def test_a_file_with_the_setting_that_was_asked_for(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    chosen = ["--method", "shannon", "--keep-rate", "0.5", "--blocks", "0", "--kept"]
    outcome = invoke(str(tmp_path / "model.onnx"), *SMALL, *chosen)
    assert outcome.exit_code == 0, outcome.output
    lines = outcome.output.splitlines()
    assert lines[-1] == f"written: {tmp_path / 'model.onnx'}, 0.6 MiB"
    assert next(line for line in lines if line.startswith("kept sets: equal for "))
    said = entropatch.PruneConfig.from_json(json.dumps(about_file(tmp_path / "model.onnx")["pruning"]))
    assert said == entropatch.PruneConfig(0.5, blocks=(0,), method="shannon")


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ([], {}),
        (["--keep-rate", "0.25"], {"keep_rate": 0.25}),
        (["--blocks", "1"], {"blocks": (1,)}),
        (["--method", "random"], {"method": "random", "keep_rate": 0.7, "blocks": None}),
    ],
)
def test_the_weights_of_a_run_are_pruned_as_trained_but_for_what_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], changes: dict[str, Any]
) -> None:
    trained = entropatch.PruneConfig(0.5, order=1.0, blocks=(0,))
    spec = ModelSpec("test_vit", None, 0.0, {"depth": 2})
    about = {"model": spec.to_dict(), "classes": 3, "image_size": 48, "prune": trained.to_dict()}
    save_weights(spec.build(3, 48), tmp_path / "w.safetensors", about)
    exported: list[Any] = []
    monkeypatch.setattr(import_module("entropatch.export"), "export", lambda model, *_, **__: exported.append(model))
    outcome = invoke(str(tmp_path / "m.pt2"), "--weights", str(tmp_path / "w.safetensors"), *options)
    assert outcome.exit_code == 0, outcome.output
    assert entropatch.surgery.pruning_config(exported[0]) == trained.changed(**changes)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["model.bin", *SMALL], 2, "the name of an exported file must end in .onnx"),
        (["model.pt2", "--weights", "none"], 2, "none does not say which model it belongs to; give --model."),
        (["model.pt2", *SMALL, "--images", "nowhere.jpg"], 2, "nowhere.jpg: no such file."),
        (["model.pt2", *SMALL, "--method", "topo"], 2, "but got 'topo'"),
        (["model.pt2", *SMALL, "--opset", "20"], 1, "opset belongs to ONNX files, but the format is torch-export"),
    ],
)
def test_errors_are_one_line_with_the_right_status(arguments: list[str], status: int, message: str) -> None:
    outcome = invoke(*arguments)
    assert outcome.exit_code == status
    assert outcome.stderr.startswith("entropatch export: ")
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
