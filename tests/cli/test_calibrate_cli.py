"""`entropatch calibrate`: a setting from image files, which other commands load."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from entropatch import PruneConfig, Renyi
from entropatch.calibration import calibrating
from entropatch.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("fvcore")
pytest.importorskip("matplotlib")


def test_files_in_and_a_setting_out(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "offered_criteria", lambda: [Renyi(1.0)])
    monkeypatch.setattr("entropatch.calibration.comparing.compared_methods", lambda: ["evit"])
    monkeypatch.setattr("entropatch.calibration.comparing.spread_within", lambda *_: {})
    import_module("entropatch.cli.calibrate")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 40, 40, 3), dtype=np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"{i}.png")
    arguments = ["calibrate", str(tmp_path), "--model", "test_vit", "--weights", str(checkpoint), "--image-size", "160"]
    arguments += ["--blocks", "1,2", "--effort", "0", "--output", str(tmp_path / "out")]
    wrong = CliRunner().invoke(app, [*arguments, "--drop", "0.1", "--speedup", "2"])
    assert wrong.exit_code == 2
    assert "speedup and drop" in wrong.output
    result = CliRunner().invoke(app, [*arguments, "--gflops", "0.028"])
    assert result.exit_code == 0, result.output
    assert "held out" in result.output
    config = PruneConfig.load(tmp_path / "out" / "calibrated.json")
    assert set(config.blocks or ()) <= {1, 2}
    assert (tmp_path / "out" / "calibration.svg").exists()
    other = CliRunner().invoke(app, [*arguments, "--gflops", "0.027"])
    assert other.exit_code == 2
    assert "holds the calibration for at most 0.028 GFLOPs, but got at most 0.027 GFLOPs; give" in other.output
    assert PruneConfig.load(tmp_path / "out" / "calibrated.json") == config
    (tmp_path / "out" / "calibration.json").write_text("[1")
    broken = CliRunner().invoke(app, [*arguments, "--gflops", "0.028"])
    assert broken.exit_code == 2
    assert "calibration.json is damaged, or not a calibration's; give a folder of its own" in broken.output
