"""What is released: versions that agree, and a wheel and a source archive that hold what they should and no more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from written import ROOT

import entropatch

MOST = 2**20  # bytes of a file that was measured, in the source archive


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def found(pattern: str, name: str) -> str:
    match = re.search(pattern, text(name), re.MULTILINE)
    assert match is not None, f"{name} has no {pattern}"
    return match[1]


def test_versions_agree() -> None:
    version = found(r'^version = "(.+)"$', "pyproject.toml")
    assert entropatch.__version__ == version
    assert found(r"^version: (.+)$", "CITATION.cff") == version
    assert found(r"^## (\S+)", "CHANGELOG.md") == version
    assert found(r"^date-released: (.+)$", "CITATION.cff") in text("CHANGELOG.md").split("\n## ")[1].split("\n")[0]


def test_every_python_that_is_promised_is_tested() -> None:
    classified = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text("pyproject.toml"))
    assert re.findall(r'"(3\.\d+)"', found(r"^ +python: \[(.+)\]$", ".github/workflows/ci.yml")) == classified
    assert found(r'^requires-python = ">=(.+)"$', "pyproject.toml") == classified[0]
    assert "- run: .ci/run\n" in text(".github/workflows/ci.yml")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder named by DIST, or one in which both are built."""
    if given := os.environ.get("DIST"):
        return Path(given)
    pytest.importorskip("build", reason="build is not installed")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(distributions: Path) -> None:
    (path,) = distributions.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"entropatch", f"entropatch-{entropatch.__version__}.dist-info"}
    own = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src/entropatch").rglob("*") if file.is_file()}
    own = {name for name in own if "__pycache__" not in name}
    assert {name for name in names if name.startswith("entropatch/")} == own
    assert {"entropatch/py.typed", "entropatch/report/page.html", "entropatch/app/style.css"} <= own
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert path.stat().st_size < 2 * MOST


@pytest.mark.slow
def test_the_source_archive_has_the_tests_and_little_of_what_was_measured(distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        sizes = {member.name.partition("/")[2]: member.size for member in archive if member.isfile()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "tests/conftest.py", "mkdocs.yml", "docs/index.md"} <= set(sizes)
    measured = {name: size for name, size in sizes.items() if name.startswith("benchmarks/")}
    assert max(measured.values()) < MOST
    assert sum(measured.values()) < MOST
    assert not any(name.startswith("benchmarks/results") for name in sizes)
    assert path.stat().st_size < 4 * MOST
