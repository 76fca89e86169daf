"""The script behind the accuracy tables: on the listed images, by the recipe of the records, also cell by cell."""

from __future__ import annotations

import inspect
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from entropatch import PruneConfig
from entropatch.train import ModelSpec, save_weights

EVIDENCE = Path(__file__).parents[2] / "benchmarks/evidence"
RECORDS = EVIDENCE.parent / "results/evidence/records"
pytestmark = pytest.mark.skipif(not RECORDS.is_dir(), reason="the records are in the repository alone")
EPOCHS = {"grid": 6, "plateau": 18, "cost-trained": 6, "cost-longer": 30}
BY_A_FILE = {"tome", "tome-falling", "calibrated", "star"}


@pytest.fixture
def script(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    modules = {name: import_module(name) for name in ("cells", "grid", "pixels")}
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    return modules


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes, told apart by their colour, and in training one picture that no list names."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 4)):
        for place, kind in enumerate("ab"):
            folder = tmp_path / "photographs" / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 100, (40, 40, 3))
                pixels[..., place] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photographs"


def recipe(script: Any, **given: Any) -> Any:
    """The recipe that the command has where nothing is given."""
    default = {name: one.default for name, one in inspect.signature(script["grid"].main).parameters.items()}
    names = inspect.signature(script["grid"].recipe_of).parameters
    return script["grid"].recipe_of(**{name: given.get(name, default[name]) for name in names})


@pytest.mark.parametrize("tag", EPOCHS)
def test_the_command_has_the_recipe_of_the_records(script, tag):
    size = 196 if tag in ("grid", "plateau") else 112
    wanted = script["cells"].Wanted(None, None, None)
    for data in ("caltech101", "imagenette"):
        same = {"tag": tag, "data": data, "size": size, "model": "vit_small_patch14_dinov2"}
        ours = recipe(script, size=size, epochs=EPOCHS[tag], precision="float32")
        found = script["cells"].repeated(RECORDS, same, wanted, ours)
        if tag == "grid":
            assert {cell.seed for cell in found} == {0, 1, 2}
            assert {cell.keep_rate for cell in found} == {None, *script["grid"].KEEP_RATES}
            named = {cell: setting for cell, setting in found.items() if cell.name not in BY_A_FILE}
            assert named == {cell: cell.config() for cell in named}  # the names still say what was measured
        slower = recipe(script, size=size, epochs=EPOCHS[tag], learning_rate=4e-4)
        with pytest.raises(typer.BadParameter, match=r"was trained with learning_rate 0\.0008, .*; give the same"):
            script["cells"].repeated(RECORDS, same, wanted, slower)


def test_what_records_have_not_is_refused(script):
    same = {"tag": "grid", "data": "imagenette", "size": 196, "model": "vit_small_patch14_dinov2"}
    wanted = script["cells"].Wanted(["shannon", "evitt"], [0.5, 0.55], [0, 7])
    with pytest.raises(typer.BadParameter, match=r"have not: name evitt, keep_rate 0\.55, seed 7\.$"):
        script["cells"].repeated(RECORDS, same, wanted, recipe(script))
    for key, value in (("tag", "other"), ("model", "deit_small_patch16_224")):
        with pytest.raises(typer.BadParameter, match=rf"{key} {value}.* have not: any such cell"):
            script["cells"].repeated(
                RECORDS, same | {key: value}, script["cells"].Wanted(None, None, None), recipe(script)
            )
    nothing = Path("nothing")
    for given in ({"config": [nothing]}, {"blocks": ["3,6,9"]}):
        with pytest.raises(typer.BadParameter, match="leave out --config and --blocks"):
            _filled(script["grid"].main)(
                data="tiny", root=nothing, weights=nothing, output=nothing, like=RECORDS, **given
            )


def test_the_listed_images_are_read(script, photographs, monkeypatch, tmp_path):
    assert len(script["pixels"].listed("tiny", photographs).train) == 18  # no list: all
    lines = [str(path.relative_to(photographs)) for path in sorted(photographs.rglob("*.png")) if path.stem != "8"]
    (tmp_path / "tiny.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(script["pixels"], "FILES", tmp_path)
    read = script["pixels"].packed(tmp_path / "cache", "tiny", photographs, 32, ModelSpec("test_vit").build(2, 32))
    assert read["train_labels"].tolist() == [0] * 8 + [1] * 8
    assert read["test_labels"].tolist() == [0] * 4 + [1] * 4
    (tmp_path / "tiny.txt").write_text("\n".join(line for line in lines if "/7." not in line) + "\n")
    again = script["pixels"].packed(tmp_path / "cache", "tiny", photographs, 32, ModelSpec("test_vit").build(2, 32))
    assert len(again["train_labels"]) == 14  # not those that were kept for the other list


def test_cells_are_computed_once_and_repeated_from_records(script, photographs, tmp_path):
    spec = ModelSpec("test_vit")
    save_weights(
        spec.build(2, 32), tmp_path / "dense.safetensors", {"model": spec.to_dict(), "image_size": 32, "classes": 2}
    )
    (tmp_path / "own-0.5.json").write_text(PruneConfig(0.4, method="evit").to_json())
    given = {
        "data": "tiny", "root": photographs, "weights": tmp_path / "dense.safetensors", "size": 32, "device": "cpu",
        "model": "test_vit", "keep_rates": "0.5", "batch_size": 8, "epochs": 2, "precision": "float32",
        "cache": tmp_path / "cache", "output": tmp_path / "records",
    }  # fmt: skip
    main = _filled(script["grid"].main)
    main(**given, methods="dense,shannon", seeds="0", config=[tmp_path / "own-0.5.json"])
    (file,) = (tmp_path / "records").glob("*.jsonl")
    first = [json.loads(line) for line in file.open()]
    assert [(line["name"], line["keep_rate"], line["seed"]) for line in first] == [
        ("dense", None, 0),
        ("shannon", 0.5, 0),
        ("own", 0.5, 0),
    ]
    assert first[2]["config"] == PruneConfig(0.4, method="evit").to_dict()
    assert [point["epoch"] for point in first[1]["curve"]] == [1, 2]
    before = file.read_bytes()
    main(**given, methods="dense,shannon", seeds="0")
    assert file.read_bytes() == before
    for methods, names in ((None, ["dense", "shannon", "own"]), ("own", ["own"])):
        output = tmp_path / f"again-{methods}"
        main(**given | {"output": output}, methods=methods, seeds="0", like=tmp_path / "records")
        again = [json.loads(line) for line in next(output.glob("*.jsonl")).open()]
        assert [line["name"] for line in again] == names
        for line in again:
            same = next(one for one in first if one["name"] == line["name"])
            assert {key: line[key] for key in ("config", "correct", "curve", "top1", "recipe")} == {
                key: same[key] for key in ("config", "correct", "curve", "top1", "recipe")
            }


def _filled(main: Any) -> Any:
    """The command as a function, as typer calls it."""
    defaults = {
        name: one.default
        for name, one in inspect.signature(main).parameters.items()
        if one.default is not inspect.Parameter.empty
    }
    return lambda **given: main(**defaults | given)
