"""ONNX files: what they compute, hold and say, against the model in PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import create, photographs
from torch import Tensor, nn

import entropatch
from entropatch import ClassAttention, CumulativeImportance, Mix, Product, Random, Renyi
from entropatch.export import Exported, ParityError, about_file, job
from entropatch.export.onnx_operators import translations
from entropatch.priorities import covering
from entropatch.tokens import removed_indices, select

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def largest_difference(model: nn.Module, path: Path, batch: int) -> float:
    images = torch.randn(batch, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected = model.eval()(images).numpy()
    return float(np.abs(session(path).run(None, {"images": images.numpy()})[0] - expected).max())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Exported, list[str]]:
    """One file with several ideas in it: EViT's fused token, merging, a cell's best, chance, an order next to 1."""
    model = create("deit", depth=4)
    entropatch.prune_(
        model,
        keep_rate=0.75,
        blocks=(0, 1, 2, 3),
        criterion=(ClassAttention(), Renyi(1.001), Renyi(2.0), Random(seed=3)),
        reduction=("fuse", "merge", "drop", "drop"),
        coverage=(None, None, 2, None),
    )
    lines: list[str] = []
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    model.train()
    done = entropatch.export(model, photographs(model, 3), path, kept=True, on_message=lines.append)
    assert model.training
    return model.eval(), done, lines


@pytest.mark.parametrize("batch", [1, 5])
def test_the_file_computes_what_the_model_does_for_any_batch(written: Any, batch: int) -> None:
    model, done, _ = written
    assert largest_difference(model, done.path, batch) < 1e-5


def test_it_gives_the_patches_that_stay(written: Any) -> None:
    model, done, _ = written
    images = photographs(model, 3)
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(images)
    runtime = session(done.path)
    assert [output.name for output in runtime.get_outputs()] == ["logits", "kept_0", "kept_1", "kept_2", "kept_3"]
    for kept, expected in zip(runtime.run(None, {"images": images.numpy()})[1:], trace.kept, strict=True):
        assert kept.tolist() == expected.tolist()


def test_kept_sets_are_compared_and_printed_before_success_is(written: Any) -> None:
    _, done, lines = written
    assert [line.partition(":")[0] for line in lines] == ["kept sets", "outputs", "written"]
    assert lines[0].startswith("kept sets: equal for 4 of 4 images, batch sizes 3 and 1; score error ")
    assert done.parity.wrong(1e-5) is None
    assert [*done.parity.scores] == [0, 1, 2, 3]


def test_it_says_what_it_is(written: Any) -> None:
    model, done, _ = written
    said = json.loads(session(done.path).get_modelmeta().custom_metadata_map["entropatch"])
    assert said == done.about == about_file(done.path)
    setting = entropatch.PruneConfig.from_dict(said["pruning"])
    assert setting == entropatch.surgery.pruning_config(model)
    assert (said["opset"], said["backend"], said["outputs"]) == (20, "reference", ["logits"])
    assert said["input"] == ["batch", 3, 80, 80]
    assert said["preprocessing"]["mean"] == [0.485, 0.456, 0.406]


def test_it_holds_standard_operators_and_nothing_of_this_machine(written: Any) -> None:
    _, done, _ = written
    loaded = onnx.load(str(done.path))
    assert {node.domain for node in loaded.graph.node} == {""}
    assert not loaded.functions
    content = done.path.read_bytes()
    assert str(Path(entropatch.__file__).parent).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content
    assert [file.name for file in done.path.parent.iterdir()] == [done.path.name]
    used = {name for node in loaded.graph.node for name in node.input}
    assert {tensor.name for tensor in loaded.graph.initializer} <= used


def test_openvino_runs_it(written: Any) -> None:
    openvino = pytest.importorskip("openvino")
    model, done, _ = written
    images = photographs(model, 3)
    compiled = openvino.Core().compile_model(str(done.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        expected = model(images).numpy()
    assert np.abs(compiled([images.numpy()])[compiled.outputs[0]] - expected).max() < 1e-5


@pytest.mark.slow
def test_tome_and_a_lone_image(tmp_path: Path) -> None:
    model = create("deit", depth=2)
    entropatch.prune_(model, method="tome", r=4)
    done = entropatch.export(model, photographs(model, 1), tmp_path / "tome.onnx", on_message=lambda line: None)
    assert done.parity.batch_sizes == (2, 1)
    assert largest_difference(model, done.path, 5) < 1e-5
    assert [output.name for output in session(done.path).get_outputs()] == ["logits"]


# ------------------------------------------------------------------------------------------ the rule of equal scores


class Choosing(nn.Module):
    def forward(self, scores: Tensor) -> tuple[Tensor, ...]:
        positions = torch.arange(scores.shape[1]).expand_as(scores)
        kept = select(scores, 7)
        order = scores.argsort(dim=1, descending=True, stable=True)
        return kept, removed_indices(kept, 20), select(covering(scores, positions, (4, 5), 2), 7), order


def test_equal_scores_keep_the_lower_index_as_in_pytorch(tmp_path: Path) -> None:
    scores = torch.randint(0, 3, (40, 20), generator=torch.Generator().manual_seed(0)).float()
    program: Any = torch.onnx.export(
        Choosing().eval(),
        (scores,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        custom_translation_table=translations(),
        verbose=False,
    )
    program.save(tmp_path / "choosing.onnx")
    found = session(tmp_path / "choosing.onnx").run(None, {"scores": scores.numpy()})
    for mine, expected in zip(found, Choosing()(scores), strict=True):
        assert mine.tolist() == expected.tolist()


class NearZero(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.expm1(x), torch.log1p(x)


def test_small_numbers_keep_their_digits(tmp_path: Path) -> None:
    sizes = torch.logspace(-20, 1.5, 400, dtype=torch.float64).float()
    x = torch.cat((sizes, -sizes[sizes < 0.99], torch.zeros(1)))[None]
    program: Any = torch.onnx.export(
        NearZero().eval(), (x,), dynamo=True, custom_translation_table=translations(), verbose=False
    )
    program.save(tmp_path / "near.onnx")
    found = session(tmp_path / "near.onnx").run(None, {"x": x.numpy()})
    for mine, expected in zip(found, NearZero()(x.double()), strict=True):
        np.testing.assert_allclose(mine, expected.numpy(), rtol=5e-7, atol=1e-37)


# --------------------------------------------------------------------------------------------------- dense and small


class Small(nn.Module):
    """Two linear layers, what the options of a file can be seen by."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 6))

    def forward(self, images: Tensor) -> dict[str, Any]:
        hidden = self.layers[:3](images)
        return {"scores": self.layers[3:](hidden), "hidden": (hidden, None), "loss": None}


SMALL = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_any_dense_model_and_its_own_output_names(tmp_path: Path) -> None:
    done = entropatch.export(Small(), SMALL, tmp_path / "small.onnx", opset=18, on_message=lambda line: None)
    assert (done.about["pruning"], done.about["opset"]) == (None, 18)
    assert done.about["outputs"] == ["scores", "hidden_0"]
    assert [entry.version for entry in onnx.load(str(done.path)).opset_import if not entry.domain] == [18]
    assert not done.parity.staged


@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_eight_bits_are_reported_as_measured(tmp_path: Path, how: str) -> None:
    lines: list[str] = []
    done = entropatch.export(Small(), SMALL, tmp_path / "small.onnx", int8=how, on_message=lines.append)
    assert 1e-5 < done.parity.outputs.difference < 0.5
    assert "with the same highest one" in lines[0]
    assert lines[1].startswith(f"int8, {how}: 2 products with weights")
    weights = [tensor for tensor in onnx.load(str(done.path)).graph.initializer if len(tensor.dims) == 2]
    assert {tensor.data_type for tensor in weights} <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    assert done.about["int8"] == how


def test_simplified(tmp_path: Path) -> None:
    pytest.importorskip("onnxsim")
    done = entropatch.export(Small(), SMALL, tmp_path / "small.onnx", simplify=True, on_message=lambda line: None)
    assert done.about["simplified"]
    assert done.parity.outputs.difference < 1e-6


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(b"before")
    run = job.run_outside

    def off(*given: Any) -> Any:
        return [{size: [y + 1e-3 for y in outputs] for size, outputs in found.items()} for found in run(*given)]

    monkeypatch.setattr(job, "run_outside", off)
    lines: list[str] = []
    with pytest.raises(ParityError, match=r"small\.onnx was not written: its outputs differ by up to 0\.001"):
        entropatch.export(Small(), SMALL, path, on_message=lines.append)
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["small.onnx"]
    assert not any(line.startswith("written") for line in lines)


# --------------------------------------------------------------------------------------------------------- refusals


class Drawing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) + torch.rand_like(images.flatten(1))


class Foreign(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.ops.entropatch.attention_entropy(images, images, 2.0, 1.0, "streaming")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Drawing(), "draws random numbers"),
        (Foreign(), "ONNX has no operator for entropatch.attention_entropy"),
    ],
)
def test_what_no_other_process_could_run_is_refused_by_name(tmp_path: Path, model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropatch.export(model, SMALL, tmp_path / "refused.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": CumulativeImportance(0.9)}, "another number of tokens for each image"),
        ({"criterion": Random(seed=None)}, r"use Random\(seed=0\)"),
        ({"criterion": (Renyi(), Random(seed=None)), "blocks": (0, 1)}, r"use Random\(seed=0\)"),
    ],
)
def test_settings_that_no_graph_holds_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    model = create("deit", depth=2)
    entropatch.prune_(model, **fields)
    with pytest.raises(ValueError, match=message):
        entropatch.export(model, photographs(model), tmp_path / "refused.onnx")


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [
        ({"format": "tflite"}, "a.onnx", "format must be one of onnx, torch-export, aotinductor, but got 'tflite'"),
        ({}, "a.bin", r"must end in .onnx \(onnx\), .pt2 \(torch-export\), .pt2 \(aotinductor\), but got 'a.bin'"),
        ({"format": "onnx"}, "a.pt2", "must end in"),
        ({"int8": "static"}, "a.pt2", "int8 belongs to ONNX files, but the format is torch-export"),
        ({"int8": "half"}, "a.onnx", "int8 must be one of dynamic, static"),
        ({"opset": 9}, "a.onnx", "opset must be a whole number from 18 to 23, but got 9"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, given: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropatch.export(Small(), SMALL, tmp_path / name, **given)


def test_models_and_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "refused.onnx"
    with pytest.raises(ValueError, match=r"exported in float32, but .* is torch.bfloat16; export model.float\(\)"):
        entropatch.export(Small().bfloat16(), SMALL, path)
    with pytest.raises(TypeError, match="images must be a floating-point tensor"):
        entropatch.export(Small(), SMALL.long(), path)
    with pytest.raises(ValueError, match=r"a batch of at least one, .* but got \(0, 3, 4, 4\)"):
        entropatch.export(Small(), SMALL[:0], path)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        entropatch.export(None, SMALL, path)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_a_file_of_others_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    with pytest.raises(ValueError, match=r"does not say that entropatch.export wrote it"):
        about_file(tmp_path / "other.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("order", [1e-3, 0.5, 1 - 1e-6, 1.0, 1 + 1e-4, 1.2, 2.0, 7.5, float("inf")])
def test_every_order(tmp_path: Path, order: float) -> None:
    model = create("deit", depth=2)
    entropatch.prune_(model, keep_rate=0.5, blocks=(0, 1), order=order)
    done = entropatch.export(model, photographs(model, 4), tmp_path / "m.onnx", on_message=lambda line: None)
    assert done.parity.counted == 5
    assert largest_difference(model, done.path, 5) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dinov2 registers", "siglip", "eva-02", "rope mixed", "registers, map"])
@pytest.mark.parametrize(
    "fields", [{}, {"reduction": "merge"}, {"criterion": Mix(Renyi(1.0), Product(Renyi(), Renyi(0.5)))}]
)
def test_every_family(tmp_path: Path, family: str, fields: dict[str, Any]) -> None:
    model = create(family, depth=3)
    entropatch.prune_(model, keep_rate=0.6, blocks=(0, 1), **fields)
    done = entropatch.export(model, photographs(model, 3), tmp_path / "m.onnx", on_message=lambda line: None)
    assert largest_difference(model, done.path, 5) < 2e-5
    assert done.parity.counted
