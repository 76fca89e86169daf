"""Every block of code in the README and the manual, as it stands: Python is run, commands are parsed."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from substitutes import create_model, in_place
from typer.testing import CliRunner
from written import PAGES, ROOT, WITH_CODE, Block, blocks, commands

import entropatch
from entropatch.cli import COMMANDS, app
from entropatch.methods import METHODS

PYTHON = [path for path in WITH_CODE if blocks(path, "python")]
LONG = [path for path in PYTHON if any(call in path.read_text("utf-8") for call in (".calibrate(", ".export("))]
SHELL = [(block, line) for path in WITH_CODE for block in blocks(path, "sh") for line in commands(block)]
IMPORTS = """
import torch
from dataclasses import dataclass
from entropatch import *
from entropatch.tokens import select
"""
WIDEST = 92  # characters of a line of code that a page shows without scrolling


for name in COMMANDS:
    import_module(f"entropatch.cli.{name}")


def in_page(value: Any) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else ""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What pages take for granted in the folder where their code runs."""
    for name in ("photos", "masks", "calibrated"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (240, 230), (90, 120, 30)).save(tmp_path / "photos/a.png")
    Image.new("L", (240, 230), 255).save(tmp_path / "masks/a.png")
    entropatch.PruneConfig(keep_rate=0.5).save(tmp_path / "calibrated/calibrated.json")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    snippets = [part.split("```")[0] for part in text.split("```python\n")[1:4]]
    (tmp_path / "my_module.py").write_text(IMPORTS + "\n".join(snippets), encoding="utf-8")
    monkeypatch.setattr(METHODS, "_methods", dict(METHODS._methods))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_module", None)


@pytest.mark.usefixtures("folder", "one_thread")
@pytest.mark.parametrize(
    ("path", "quick"),
    [*((path, True) for path in PYTHON), *(pytest.param(path, False, marks=pytest.mark.slow) for path in LONG)],
    ids=in_page,
)
def test_python_runs(path: Path, quick: bool) -> None:
    """The blocks of a page one after the other; what a print says is what the comment behind it says."""
    space: dict[str, Any] = {"__name__": "a_page"}
    if path.name == "README.md":  # whose second block takes them from its reader
        space["images"] = torch.rand(8, 3, 224, 224)
    with in_place(quick=quick):
        for block in blocks(path, "python"):
            run(block, space)


def run(block: Block, space: dict[str, Any]) -> None:
    code = "\n" * (block.line - 1) + block.code
    lines = code.splitlines()

    def said(*values: Any) -> None:
        _, comment, expected = lines[sys._getframe(1).f_lineno - 1].partition("  # ")
        if comment:
            assert " ".join(map(str, values)) == expected, f"{block.path.name}:{sys._getframe(1).f_lineno}"

    space["print"] = said
    exec(compile(code, str(block.path), "exec"), space)


def test_a_comment_that_is_wrong_is_found(tmp_path: Path) -> None:
    block = Block(tmp_path, 1, "python", "print(1 + 1)  # 3\n")
    with pytest.raises(AssertionError):
        run(block, {})


def test_methods_run() -> None:
    """The generated page's block of each method."""
    import methods_page

    for name, method in METHODS.items():
        text = methods_page.section(method, {name: {"gflops": {}, "refusals": {}}})
        code = text.split("```python\n")[1].split("```")[0]
        model = create_model("deit_small_patch16_224", img_size=64)
        names = {"entropatch": entropatch, "model": model}
        exec(code, names)
        assert entropatch.pruning_config(names.get("segmenter", model)).named == method


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("block", "line"), SHELL, ids=[f"{one.path.name}:{one.line} {line[:60]}" for one, line in SHELL]
)
def test_commands_parse(block: Block, line: str) -> None:
    for command in line.split("&&"):
        words = shlex.split(command, comments=True)
        while words and "=" in words[0] and words[0].split("=")[0].isupper():
            words.pop(0)
        check(words)


def check(words: list[str]) -> None:
    """Raise AssertionError, or click's UsageError, for what could not be run."""
    match words:
        case ["entropatch", *rest] | ["accelerate", "launch", "-m", "entropatch.cli", *rest]:
            parse(rest)
        case ["pip", "install", *rest]:
            assert set(extras(rest)) <= set(known_extras())
        case ["python", "-c", code]:
            compile(code, "-c", "exec")
        case ["python", file, *rest] if (ROOT / file).is_file():
            source = (ROOT / file).read_text(encoding="utf-8")
            for option in (word for word in rest if word.startswith("--") and word != "--help"):
                assert option in source or option[2:].replace("-", "_") in source, f"{file} has no {option}"
        case [file, *rest] if (ROOT / file).is_file():
            assert (ROOT / file).stat().st_mode & 0o100, f"{file} cannot be run"
        case ["pytest" | "jupytext" | "mkdocs", *_]:
            pass
        case _:
            raise AssertionError(f"nobody knows {words}")


def parse(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    if words and not words[0].startswith("-"):
        command = command.commands[words[0]]
        words = words[1:]
    files = {"--weights", "--teacher", "--config"}
    for option, value in pairwise(words):
        if option in files and "." in value and not Path(value).exists():
            Path(value).parent.mkdir(parents=True, exist_ok=True)
            Path(value).touch()
    command.make_context(command.name, words)


def extras(words: list[str]) -> list[str]:
    return [extra for word in words if "[" in word for extra in word.split("[")[1].rstrip("]").split(",")]


def known_extras() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    return re.findall(r"^([a-z-]+) = ", section, flags=re.MULTILINE)


@pytest.mark.parametrize("words", [["entropatch", "bench", "--no-such"], ["pip", "install", ".[none]"], ["rm", "x"]])
def test_commands_that_do_not_exist_are_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"[Nn]o such option|none|nobody knows"):
        check(words)


@pytest.mark.usefixtures("one_thread")
def test_a_method_of_ones_own_in_a_command(folder: Path) -> None:
    """The command of the page Extend, with CONTRIBUTING's snippets as the module."""
    assert (folder / "my_module.py").is_file()
    (line,) = [line for block, line in SHELL if block.path.name == "extend.md"]
    with in_place():
        quick = ["--batch-sizes", "1", "--repeats", "1", "--warmup", "0"]
        result = CliRunner().invoke(app, [*shlex.split(line)[1:], *quick])
    assert result.exit_code == 0, result.output
    assert "Key norm" in (folder / "entropatch-bench/bench.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=in_page)
def test_code_fits_the_page(path: Path) -> None:
    wide = [line for block in blocks(path, "python", "sh") for line in block.code.splitlines() if len(line) > WIDEST]
    assert not wide
