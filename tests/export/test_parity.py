"""The comparison of a file with PyTorch, on arrays that stand for what a file computed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import create, photographs

import entropatch
from entropatch.export import parity as parity_module
from entropatch.export import runs
from entropatch.export.parity import Parity, batches_of, compare, in_pytorch
from entropatch.export.runs import OutsideError, run_outside
from entropatch.export.subject import Subject, subject_of

Arrays = dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = create("deit", depth=3)
    entropatch.prune_(model, keep_rate=0.7, blocks=(0, 1), order=2.0)
    return subject_of(model, photographs(model, 4))


def found(subject: Subject) -> Arrays:
    """What a perfect file gives."""
    batches = batches_of(subject.images)
    return {size: dict(in_pytorch(subject.model, images)) for size, images in batches.items()}


def compared(subject: Subject, change: Callable[[Arrays], None], lossy: bool = False) -> Parity:
    arrays = found(subject)
    change(arrays)
    return compare(subject, batches_of(subject.images), arrays, lossy=lossy)


def test_a_perfect_file_is_right(subject: Subject) -> None:
    parity = compared(subject, lambda arrays: None)
    assert parity.wrong(1e-5) is None
    assert (parity.batch_sizes, parity.images, parity.counted) == ((4, 1), 5, 5)
    assert parity.near_ties == parity.differing == []
    assert parity.outputs.difference == 0.0
    assert "equal for 5 of 5 images" in parity.lines()[0]


def swap(arrays: Arrays, image: int = 2, block: int = 1) -> tuple[int, int]:
    """Keep the best dropped patch instead of the worst kept one, as a file does that ranks the two otherwise."""
    scores, places = arrays["4"][f"scores_{block}"], arrays["4"][f"places_{block}"]
    before, kept = arrays["4"][f"kept_{block - 1}"][image], arrays["4"][f"kept_{block}"][image]
    order = np.argsort(-scores[image], kind="stable")
    out, into = order[len(kept) - 1], order[len(kept)]
    kept[kept == before[out]] = before[into]
    kept.sort()
    places[image] = -1
    places[image, kept] = np.arange(len(kept))
    return out, into


def test_another_patch_kept_is_named(subject: Subject) -> None:
    parity = compared(subject, swap)
    assert parity.differing == [(4, 2, 1)]
    assert parity.wrong(1e-5) == "it keeps other patches: block 1, image 2 of 4"
    assert any("other patches kept: block 1, image 2 of 4" in line for line in parity.lines())


def test_a_near_tie_excuses_it_and_what_follows_is_not_counted(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = in_pytorch

    def with_near_tie(model: torch.nn.Module, images: torch.Tensor) -> dict[str, np.ndarray]:
        arrays = dict(exact(model, images))
        if len(images) == 4:
            scores, k = arrays["scores_1"][2], arrays["kept_1"].shape[1]
            order = np.argsort(-scores, kind="stable")
            scores[order[k]] = scores[order[k - 1]] - 1e-6
        return arrays

    monkeypatch.setattr(parity_module, "in_pytorch", with_near_tie)

    def change(arrays: Arrays) -> None:
        out, into = swap(arrays)
        scores = arrays["4"]["scores_1"][2]
        scores[[out, into]] = scores[[into, out]] + np.float32(1e-6)
        arrays["4"]["logits"][2] += 1.0  # follows from the other patch

    arrays = {size: with_near_tie(subject.model, images) for size, images in batches_of(subject.images).items()}
    change(arrays)
    parity = compare(subject, batches_of(subject.images), arrays)
    assert parity.near_ties == [(4, 2, 1)]
    assert parity.differing == []
    assert parity.counted == 4
    assert parity.wrong(1e-5) is None
    assert "near tie, not counted: block 1, image 2 of 4" in parity.lines()


def test_scores_that_are_wrong_are_no_near_tie(subject: Subject) -> None:
    def change(arrays: Arrays) -> None:
        swap(arrays)
        arrays["4"]["scores_1"] += np.linspace(0, 3, arrays["4"]["scores_1"].shape[1], dtype=np.float32)

    assert "scores in block 1 differ by up to 3" in str(compared(subject, change).wrong(1e-5))


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_outputs_that_differ(subject: Subject, value: float) -> None:
    parity = compared(subject, lambda arrays: arrays["1"]["logits"].__setitem__((0, 0), value))
    assert parity.wrong(1e-5) is not None
    lossy = compared(subject, lambda arrays: arrays["1"]["logits"].__setitem__((0, 0), value), lossy=True)
    assert (lossy.wrong(1e-5) is None) == np.isfinite(value)


def test_where_nothing_could_be_compared_nothing_is_right(subject: Subject) -> None:
    parity = Parity((4, 1), staged=True, images=5, near_ties=[(4, 0, 0)])
    assert "no image could be compared" in str(parity.wrong(1e-5))


def test_equal_scores_without_error_are_compared() -> None:
    model = create("deit", depth=2)
    entropatch.prune_(model, keep_rate=0.5, blocks=(0,), criterion=Level())
    parity = compared(subject_of(model, photographs(model, 2)), lambda arrays: None)
    assert (parity.counted, parity.near_ties) == (3, [])


class Level(entropatch.Criterion):
    def importance(self, attention: entropatch.BlockAttention) -> torch.Tensor:
        return torch.zeros(attention.q.shape[0], attention.num_patches)


def test_a_lossy_file_is_reported_as_it_is(subject: Subject) -> None:
    def change(arrays: Arrays) -> None:
        swap(arrays)
        arrays["4"]["logits"][3] = -arrays["4"]["logits"][3]

    parity = compared(subject, change, lossy=True)
    kept = [arrays.shape[1] for arrays in (found(subject)["4"][f"kept_{block}"] for block in (0, 1))]
    assert parity.wrong(1e-5) is None
    assert parity.kept_share == pytest.approx(1 - 1 / kept[1] / 10)
    assert parity.agreeing == pytest.approx(4 / 5)


# ----------------------------------------------------------------------------------------------- the process outside


def test_the_process_cannot_import_entropatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = """
import importlib, numpy
def importable(name):
    try:
        importlib.import_module(name)
    except ImportError:
        return 0
    return 1
class InferenceSession:
    def __init__(self, path, providers): pass
    def get_inputs(self): return [type("Input", (), {"name": "images"})]
    def run(self, names, feeds): return [numpy.array(list(map(importable, ("entropatch", "timm", "json"))))]
"""
    (tmp_path / "onnxruntime.py").write_text(fake, encoding="utf-8")
    source = str(Path(entropatch.__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{source}")
    check = [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('entropatch') is not None)"]
    assert subprocess.run(check, capture_output=True, text=True, check=True).stdout.strip() == "True"
    (found,) = run_outside("onnxruntime", [tmp_path / "any.onnx"], {"1": np.zeros((1, 2), np.float32)})
    (result,) = found["1"]
    assert result.tolist() == [0, 0, 1]


def test_a_file_that_does_not_run_is_an_error_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(OutsideError, match=r"does not run in onnxruntime without entropatch: .*broken.onnx"):
        run_outside("onnxruntime", [tmp_path / "broken.onnx"], {"1": np.zeros((1, 2), np.float32)})


def test_the_script_is_part_of_the_package() -> None:
    assert runs.SCRIPT.is_file()
