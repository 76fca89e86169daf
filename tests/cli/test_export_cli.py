"""`entropatch export`: a model by name to a file, its lines and its statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import entropatch
from entropatch.cli import app
from entropatch.cli import export as _registered  # noqa: F401
from entropatch.export import about_file

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
