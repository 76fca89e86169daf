"""Programs of torch.export and packages of AOTInductor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import create, photographs
from torch import Tensor, nn

import entropatch
from entropatch.export import about_file
from entropatch.export.subject import subject_of
from entropatch.export.torch_formats import traced

SMALL = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any]:
    model = create("deit", depth=1)
    entropatch.prune_(model, keep_rate=0.6, blocks=(0,), criterion=entropatch.Renyi(2.0), reduction="fuse")
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    return model, entropatch.export(model, photographs(model, 3), path, on_message=lambda line: None)


def test_a_program_computes_what_the_model_does_for_any_batch(written: Any) -> None:
    model, done = written
    program = torch.export.load(str(done.path)).module()
    for batch in (1, 5):
        images = photographs(model, batch)
        with torch.no_grad():
            assert (program(images) - model(images)).abs().max() < 1e-5
    assert done.parity.counted == 4


def test_it_holds_standard_operators_and_nothing_of_this_machine(written: Any) -> None:
    _, done = written
    program = torch.export.load(str(done.path))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets
    assert not {target for target in targets if "entropatch" in target}
    content = done.path.read_bytes()
    assert str(Path(entropatch.__file__).parent).encode() not in content
    assert program.example_inputs is None


def test_it_says_what_it_is(written: Any) -> None:
    model, done = written
    assert done.about == about_file(done.path)
    setting = entropatch.PruneConfig.from_json(json.dumps(done.about["pruning"]))
    assert setting == entropatch.surgery.pruning_config(model)
    assert done.about["format"] == done.format == "torch-export"


class Drawing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(images.flatten(1), 0.5, training=True)


class Quiet(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(images.flatten(1), 0.5, training=self.training)


class Foreign(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.ops.entropatch.attention_entropy(images, images, 2.0, 1.0, "streaming")


class Data(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images if images.sum() > 0 else -images


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Drawing(), r"draws random numbers \(aten.dropout"),
        (Foreign(), "entropatch.attention_entropy.default is not PyTorch's own"),
        (Data(), "torch.export cannot trace Data: "),
    ],
)
def test_what_no_other_process_could_run_is_refused_by_name(tmp_path: Path, model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropatch.export(model, SMALL, tmp_path / "refused.pt2")
    assert not list(tmp_path.iterdir())


def test_dropout_that_is_off_draws_nothing() -> None:
    assert "aten.dropout.default" in str(traced(subject_of(Quiet(), SMALL), inspected=False).graph)


def test_aotinductor_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler"):
        entropatch.export(Quiet(), SMALL, tmp_path / "a.pt2", format="aotinductor")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_aotinductor(tmp_path: Path) -> None:
    model = create("deit", depth=2)
    entropatch.prune_(model, keep_rate=0.6, blocks=(0, 1), order=2.0)
    path = tmp_path / "model.pt2"
    lines: list[str] = []
    done = entropatch.export(model, photographs(model, 3), path, format="aotinductor", on_message=lines.append)
    assert lines[0].startswith("kept sets: equal for 4 of 4 images")
    assert about_file(path) == done.about
    assert done.about["format"] == "aotinductor"
    package = torch._inductor.aoti_load_package(str(path))
    for batch in (1, 5):
        images = photographs(model, batch)
        with torch.no_grad():
            assert (package(images) - model(images)).abs().max() < 1e-5
