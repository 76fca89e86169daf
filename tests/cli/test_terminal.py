"""What the terminal cannot show does not end a command, and nothing measured is lost by it."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("scipy")

import entropatch
from entropatch import cli
from entropatch.cli.terminal import CONTINUED, show_what_can_be_shown


def main(monkeypatch, *arguments: str) -> tuple[int, str]:
    """The whole command as from a shell whose streams encode to a character set without ∞ and →, as on Windows."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["entropatch", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    stream.flush()
    return int(end.value.code or 0), stream.buffer.getvalue().decode("cp1252")


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "app_command"])
def test_what_can_be_continued_is_known(name):
    import_module(f"entropatch.cli.{name}")
    shown = CliRunner().invoke(cli.app, [name, "--help"], terminal_width=1000)
    assert ("the same command continues" in " ".join(shown.output.split())) == (name in CONTINUED)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("evaluate", "entropatch evaluate: interrupted.\n"),
        ("finetune", "entropatch finetune: interrupted; the same command continues.\n"),
    ],
)
def test_an_interruption_is_said(monkeypatch, name, said):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    module = import_module(f"entropatch.cli.{name}")
    monkeypatch.setattr(module, "weights_about" if name == "evaluate" else "pairs", interrupted)
    shown = CliRunner().invoke(cli.app, [name, "--data", "digits", "--output", "nowhere"])
    assert (shown.exit_code, shown.stderr) == (130, said)


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("order ∞, é ± 1", "utf-8", "order ∞, é ± 1"),
        ("order ∞, é ± 1", "cp1252", "order inf, é ± 1"),
        ("Rényi → × 3 − 2 … ½ “a” — ≥ 70", "ascii", 'Renyi -> x 3 - 2 ... 1/2 "a" - >= 70'),
        ("写真 \udcff", "cp1252", "\\u5199\\u771f \\udcff"),
        ("\udcff", "utf-8", "\\udcff"),
    ],
)
def test_letters_a_terminal_lacks_are_written_with_those_it_has(monkeypatch, text, encoding, shown):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    show_what_can_be_shown()
    stream.write(text)
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding) == shown


def test_a_stream_that_is_not_of_a_file_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    show_what_can_be_shown()


def test_check_writes_its_files_and_prints_what_can_be_shown(monkeypatch, checkpoint, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 4), np.uint8)
    pixels[:, :, :20, 3], pixels[:, :, 20:, 3] = 255, 0
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"é{number}.png")
    files = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    output = tmp_path / "out"
    model = ["--model", "test_vit", "--weights", str(checkpoint)]
    status, shown = main(monkeypatch, "check", *files, "--alpha", *model, "--output", str(output))
    assert status == 0
    assert "Rényi, order inf" in shown
    assert "Rényi, order ∞" in Path(output, "check.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["check", "evaluate", "visualize", "figures", "bench", "search", "finetune"])
def test_help_of_every_command(monkeypatch, command):
    status, shown = main(monkeypatch, command, "--help")
    assert status == 0
    assert "Usage" in shown


def test_the_programs_own_help(monkeypatch):
    status, shown = main(monkeypatch, "--help")
    assert status == 0
    assert "Usage" in shown


def commands():
    for name in cli.COMMANDS:
        import_module(f"entropatch.cli.{name}")
    return typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("name", [name.removesuffix("_command") for name in cli.COMMANDS])
def test_help_fits_80_columns_and_cuts_nothing_off(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    text = CliRunner().invoke(cli.app, [name, "--help"]).stdout
    assert max(map(len, text.splitlines())) <= 80
    words = text.split()
    command = commands()[name]
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--"):
                assert option in {word.rstrip(",") for word in words}  # two spellings have a comma between
        default = parameter.default
        if isinstance(default, str) and "," in default:  # a list, which may be long
            assert default in "".join(words)
    # A line of help is filled before the next begins.
    helps = [line for line in text.splitlines() if line.startswith("  --")]
    assert len(helps) > 3


def test_a_missing_file_is_said_by_its_name() -> None:
    import_module("entropatch.cli.bench")
    shown = CliRunner().invoke(cli.app, ["bench", "--model", "test_vit", "--config", "nowhere.json"])
    assert shown.exit_code == 2
    assert shown.stderr == "entropatch bench: nowhere.json: no such file or directory.\n"


def test_the_version_is_shown() -> None:
    outcome = CliRunner().invoke(cli.app, ["--version"])
    assert outcome.exit_code == 0
    assert outcome.output == f"entropatch {entropatch.__version__}\n"
