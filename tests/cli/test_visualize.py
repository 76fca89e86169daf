"""`entropatch visualize` from the command line: every kind of file, every kind of mistake."""

from __future__ import annotations

import gc
import json
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import timm
from odd_files import bomb
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("matplotlib")

import entropatch.cli.visualize as command
from entropatch.cli import COMMANDS, app
from entropatch.data.images import png_texts
from entropatch.measure import environment


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Few dots, since nothing here looks at a picture closely."""
    monkeypatch.setattr("entropatch.figures.saving.DPI", 50)


@pytest.fixture
def run(tmp_path, checkpoint):
    def invoke(*arguments, model=("--model", "test_vit")):
        known = [*model, "--weights", str(checkpoint)] if model else []
        output = ["--output", str(tmp_path / "out")]
        return CliRunner().invoke(app, ["visualize", *known, *output, *map(str, arguments)])

    return invoke


# The smallest picture there is.
SMALL = ("--method", "random")


def photograph(path: Path, colour: int = 0) -> Path:
    """A picture with something in it, different for each `colour`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(colour).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    pixels[20:40, 30:60] = (colour, 255 - colour, 128)
    Image.fromarray(pixels).save(path)
    return path


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def written(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def one_line(result) -> str:
    """The only line on the error stream that starts as an error of this command does."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("entropatch visualize: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


# ------------------------------------------------------------------------------------------------- pictures


def test_a_picture_of_each_image_and_where_it_is(run, tmp_path):
    result = run(photograph(tmp_path / "a.png"), photograph(tmp_path / "b.jpg", 90))
    assert result.exit_code == 0, result.output
    assert written(tmp_path) == ["a.png", "b.png"]
    assert result.stdout == f"2 of 2 images drawn; the pictures are in {tmp_path / 'out'}\n"
    with Image.open(tmp_path / "out" / "a.png") as a, Image.open(tmp_path / "out" / "b.png") as b:
        assert a.size == b.size
        assert a.tobytes() != b.tobytes()


def test_svg_on_request(run, tmp_path):
    assert run(photograph(tmp_path / "a.png"), "--svg").exit_code == 0
    assert written(tmp_path) == ["a.png", "a.svg"]


def drawn_by(monkeypatch):
    """What is handed to the drawing, image by image."""
    from entropatch import figures

    seen, draw = [], figures.entropy_and_stages

    def listening(inspection, **words):
        seen.append((inspection, words))
        return draw(inspection, **words)

    monkeypatch.setattr(figures, "entropy_and_stages", listening)
    return seen


def test_methods_orders_and_keep_rate_reach_the_picture(run, tmp_path, monkeypatch):
    seen = drawn_by(monkeypatch)
    result = run(
        photograph(tmp_path / "a.png"), "--order", "inf,0.5", "--order", "1", "--method", "random", "--keep-rate", 0.5
    )
    assert result.exit_code == 0, result.output
    ((inspection, words),) = seen
    about = json.loads(png_texts(tmp_path / "out" / "a.png")["entropatch-about"])
    expected = {"model": "test_vit", "methods": ["random", "renyi-inf", "renyi-0.5", "shannon"], "keep rate": 0.5}
    expected |= {key: value for key, value in environment().items() if key != "date"}
    assert {key: value for key, value in about.items() if key != "date"} == expected
    assert datetime.fromisoformat(about["date"]).tzinfo is not None
    assert list(inspection.stages) == ["random", "renyi-inf", "renyi-0.5", "shannon"]
    assert list(inspection.entropy) == [np.inf, 0.5, 1.0]
    assert inspection.stages["random"].tokens == (100, 50, 25, 13)
    assert words == {"scale": "panel", "title": "a.png", "note": "test_vit, keep rate 0.5"}


def test_the_usual_methods(run, tmp_path, monkeypatch):
    seen = drawn_by(monkeypatch)
    assert run(photograph(tmp_path / "a.png")).exit_code == 0
    assert list(seen[0][0].stages) == ["evit", "shannon", "renyi-2"]
    assert seen[0][0].stages["shannon"].tokens == (100, 70, 49, 35)
    assert np.array_equal(seen[0][0].crop, np.asarray(seen[0][0].crop))
    assert seen[0][0].crop.shape == (160, 160, 3)


def test_the_image_size_is_the_models(run, tmp_path, monkeypatch):
    seen = drawn_by(monkeypatch)
    assert run(photograph(tmp_path / "a.png"), "--image-size", 96).exit_code == 0
    assert seen[0][0].crop.shape == (96, 96, 3)
    assert seen[0][0].stages["shannon"].kept.shape == (3, 6, 6)


def test_without_a_model_it_is_the_packages_own_encoder(run, tmp_path, monkeypatch):
    from entropatch.models import pretrained

    asked = []

    def encoder(image_size, on_message):
        asked.append(image_size)
        on_message("trying")
        return timm.create_model("test_vit", num_classes=0).eval(), "a test"

    monkeypatch.setattr(pretrained, "load_encoder", encoder)
    result = run(photograph(tmp_path / "a.png"), model=None)
    assert result.exit_code == 0, result.output
    assert asked == [None]
    assert result.stderr == "trying\nweights: a test\n"


# ------------------------------------------------------------------------------------------------- odd files


def test_every_odd_file_is_drawn_or_named_and_the_rest_still_done(run, tmp_path):
    good = {
        "one pixel.png": Image.new("RGB", (1, 1), "red"),
        "alpha.png": Image.new("RGBA", (50, 40), (1, 2, 3, 99)),
        "palette.gif": Image.new("P", (50, 40), 3),
        "cmyk.jpg": Image.new("CMYK", (50, 40), (9, 99, 0, 0)),
        "deep.png": Image.fromarray(np.linspace(0, 65535, 2500).astype(np.uint16).reshape(50, 50)),
        "bits.png": Image.new("1", (20, 20), 1),
        "price $5 & $6 <b>_x^2.png": Image.new("RGB", (50, 40), "blue"),
        "[red]猫.png": Image.new("RGB", (50, 40), "blue"),
        "line\nbreak.png": Image.new("RGB", (50, 40), "blue"),
        "é" * 125 + "a.png": Image.new("RGB", (50, 40), "blue"),
    }
    for name, image in good.items():
        image.save(tmp_path / name)
    Image.new("RGB", (9, 9)).save(
        tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")]
    )
    photograph(tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1500])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    bad = ["cut.jpg", "text.png", "[bold]missing.png", "empty.png"]
    names = [*bad[:2], *good, "moving.gif", *bad[2:]]
    result = run(*(tmp_path / name for name in names), *SMALL)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    errors = [line for line in lines if line.startswith("entropatch visualize: ")]
    assert len(errors) == 4
    for name, line in zip(bad, errors, strict=True):
        assert line.startswith(f"entropatch visualize: {tmp_path / name}: ")
    assert f"{tmp_path / 'moving.gif'}: 2 frames or pages; the first is used" in lines
    assert len(written(tmp_path)) == len(good) + 1
    assert result.stdout.startswith("11 of 15 images drawn")
    assert all(Image.open(path).size[0] > 300 for path in (tmp_path / "out").iterdir())


def test_a_folder_stands_for_the_images_in_it(run, tmp_path):
    for name in ("b.png", "a.jpg"):
        photograph(tmp_path / "album" / name)
    (tmp_path / "album" / "notes.txt").write_text("no picture")
    result = run(tmp_path / "album", photograph(tmp_path / "c.png"), *SMALL)
    assert result.exit_code == 0, result.output
    assert written(tmp_path) == ["a.png", "b.png", "c.png"]
    assert result.stdout.startswith("3 of 3 images drawn")
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty", *SMALL)
    assert result.exit_code == 2
    assert "a folder without image files" in one_line(result)


def test_a_long_picture_and_a_name_no_font_has_are_remarked_on(run, tmp_path, monkeypatch):
    Image.new("RGB", (40, 4000), "blue").save(tmp_path / "long.png")
    monkeypatch.setattr("entropatch.figures.fonts._family_of", lambda letter: None)
    photograph(tmp_path / "写真.png")
    result = run(tmp_path / "long.png", tmp_path / "写真.png", *SMALL)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'long.png'}: 40×4000 pixels are cropped to the middle: the model sees" in result.stderr
    assert "no font of this machine has all letters of its name" in result.stderr


# ------------------------------------------------------------------------------------------------- names


def test_pictures_of_different_files_never_replace_each_other(run, tmp_path):
    sources = [photograph(tmp_path / "x" / "cat.png", 1), photograph(tmp_path / "y" / "cat.png", 2)]
    sources += [photograph(tmp_path / "x" / "cat.jpg", 3)]
    result = run(*sources, *SMALL)
    assert written(tmp_path) == ["cat-2.png", "cat-3.png", "cat.png"]
    assert f"{sources[1]}: drawn as cat-2.png, since another file has the name cat.png" in result.stderr
    # The same again, one by one and in another order: each finds its own picture.
    before = {name: pixels(tmp_path / "out" / name) for name in written(tmp_path)}
    for source in reversed(sources):
        assert run(source, *SMALL).exit_code == 0
    assert {name: pixels(tmp_path / "out" / name) for name in written(tmp_path)} == before
    # A new file of the same name, in a later run.
    run(photograph(tmp_path / "z" / "cat.png", 4), "--svg", *SMALL)
    assert written(tmp_path) == ["cat-2.png", "cat-3.png", "cat-4.png", "cat-4.svg", "cat.png"]
    assert {name: pixels(tmp_path / "out" / name) for name in before} == before


def test_a_second_drawing_of_the_same_file_replaces_the_first(run, tmp_path):
    source = photograph(tmp_path / "a.png")
    run(source, *SMALL)
    before = (tmp_path / "out" / "a.png").read_bytes()
    run(source, "--keep-rate", 0.4, *SMALL)
    assert written(tmp_path) == ["a.png"]
    assert (tmp_path / "out" / "a.png").read_bytes() != before


def test_a_huge_picture_of_the_same_name_in_the_output_folder_is_somebody_elses(run, tmp_path):
    photograph(tmp_path / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    bomb(out / "a.png")
    before = (out / "a.png").read_bytes()
    result = run(tmp_path / "a.png", *SMALL)
    assert result.exit_code == 0, result.output
    assert (out / "a-2.png").exists()
    assert (out / "a.png").read_bytes() == before


def test_a_photograph_in_the_output_folder_is_not_replaced(run, tmp_path):
    source = photograph(tmp_path / "out" / "a.png")
    (tmp_path / "out" / "b.png").write_text("no picture")
    (tmp_path / "out" / "c.svg").write_text("a drawing")
    before = source.read_bytes()
    run(source, photograph(tmp_path / "b.png"), photograph(tmp_path / "c.png"), "--svg", *SMALL)
    assert source.read_bytes() == before
    assert (tmp_path / "out" / "b.png").read_text() == "no picture"
    assert (tmp_path / "out" / "c.svg").read_text() == "a drawing"
    assert {"a-2.png", "a-2.svg", "b-2.png", "c-2.png", "c-2.svg"} <= {*written(tmp_path)}


def test_the_place_of_a_file_is_not_given_away(run, tmp_path):
    run(photograph(tmp_path / "secret-folder" / "a.png"), *SMALL)
    picture = (tmp_path / "out" / "a.png").read_bytes()
    assert b"secret-folder" not in picture
    assert command.fingerprint(tmp_path / "secret-folder" / "a.png").encode() in picture


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--order", "0"], "order must be greater than 0"),
        (["--order", "-1"], "order must be greater than 0"),
        (["--order", "nan"], "NaN"),
        (["--order", "2,"], "an order must be a number"),
        (["--order", "two"], "an order must be a number greater than 0, or \"inf\", but got 'two'"),
        (["--keep-rate", "0"], "keep_rate must lie in"),
        (["--keep-rate", "1.01"], "keep_rate must lie in"),
        (["--keep-rate", "nan"], "keep_rate must lie in"),
        (["--method", "nonsense"], "a method is one of"),
        (["--method", ""], "a method is one of"),
        (["--model", "vit_tiny_patch16_22"], "no model that this version of timm"),
        (["--model", "resnet18"], "ResNet is not supported"),
        (["--weights", "missing.pth"], "missing.pth: no such file"),
        (["--image-size", "-5"], "positive number of pixels"),
    ],
)
def test_a_bad_setting_is_one_line_and_status_two(run, tmp_path, arguments, reason):
    result = run(photograph(tmp_path / "a.png"), *arguments)
    assert result.exit_code == 2
    assert reason in one_line(result)
    assert not list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else True


def test_mistakes_typer_finds(run, tmp_path):
    assert run().exit_code == 2
    assert run(photograph(tmp_path / "a.png"), "--keep-rate", "x").exit_code == 2
    assert run(photograph(tmp_path / "a.png"), "--nonsense").exit_code == 2


def test_an_output_that_is_no_folder(run, tmp_path):
    (tmp_path / "file").touch()
    result = run(photograph(tmp_path / "a.png"), "--output", tmp_path / "file")
    assert result.exit_code == 2
    assert "must be a folder" in one_line(result)


def test_weights_out_of_reach_are_no_usage_error(tmp_path, monkeypatch):
    from entropatch.models import pretrained

    monkeypatch.setattr(pretrained, "hub_answers", lambda: False)
    monkeypatch.setattr(pretrained, "_cached", lambda config: None)
    result = CliRunner().invoke(app, ["visualize", str(photograph(tmp_path / "a.png")), "--model", "test_vit"])
    assert result.exit_code == 1
    assert "give a weights file" in one_line(result)


def test_a_picture_that_cannot_be_written_is_named(run, tmp_path, monkeypatch):
    from entropatch import figures

    save = figures.save_figure

    def fail(figure, path, *rest):
        if path.stem == "a":
            raise OSError("No space left on device")
        return save(figure, path, *rest)

    monkeypatch.setattr(figures, "save_figure", fail)
    result = run(photograph(tmp_path / "a.png"), photograph(tmp_path / "b.png"), *SMALL)
    assert result.exit_code == 1
    assert re.search(r"a\.png: its picture could not be written: No space left", one_line(result))
    assert written(tmp_path) == ["b.png"]


def test_a_model_without_a_class_token(tmp_path, monkeypatch):
    from entropatch.models import pretrained

    model = timm.create_model(
        "test_vit", num_classes=0, class_token=False, no_embed_class=True, global_pool="avg"
    ).eval()
    monkeypatch.setattr(pretrained, "load_encoder", lambda *_: (model, "a test"))
    arguments = ["visualize", str(photograph(tmp_path / "a.png")), "--output", str(tmp_path / "out")]
    seen = drawn_by(monkeypatch)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert list(seen[0][0].stages) == ["shannon", "renyi-2"]
    assert re.search("EViT is left out: .*needs a class token", result.stderr)
    result = CliRunner().invoke(app, [*arguments, "--method", "evit"])
    assert result.exit_code == 2
    assert "needs a class token" in one_line(result)


def test_a_rotary_model_has_evit_without_its_fused_token(tmp_path, monkeypatch):
    from small_models import create

    from entropatch.models import pretrained

    monkeypatch.setattr(pretrained, "load_encoder", lambda *_: (create("eva-02"), "a test"))
    seen = drawn_by(monkeypatch)
    arguments = ["visualize", str(photograph(tmp_path / "a.png")), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert list(seen[0][0].stages) == ["evit-drop", "shannon", "renyi-2"]
    assert "EViT, no fused token stands in for EViT: " in result.stderr


# ------------------------------------------------------------------------------------------------- many images


def test_nothing_of_an_image_stays_when_the_next_is_drawn(run, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from entropatch import figures

    def figures_alive():
        gc.collect()
        return sum(type(thing) is Figure for thing in gc.get_objects())

    alive, draw = [], figures.entropy_and_stages

    def counting(*arguments, **words):
        alive.append(figures_alive())
        return draw(*arguments, **words)

    before = figures_alive()
    monkeypatch.setattr(figures, "entropy_and_stages", counting)
    assert run(*(photograph(tmp_path / f"{i}.png", i) for i in range(4)), *SMALL).exit_code == 0
    assert alive == [before] * 4


def test_the_command_is_one_of_the_programs():
    assert "visualize" in COMMANDS
    help_text = CliRunner().invoke(app, ["visualize", "--help"]).output
    assert "IMAGE" in help_text
