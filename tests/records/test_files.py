"""Files are written whole or not at all; optional packages are asked for by their extra."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from entropatch.extras import require
from entropatch.records.files import replacing, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_new_file_takes_the_place_of_the_old_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename across file systems is not atomic
    assert path.read_text() == "new"
    assert names(tmp_path) == ["table.json"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "table.json"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table.json"]


def test_a_failure_makes_no_file_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "new.png"):
        _ = 1 / 0
    assert names(tmp_path) == []


def test_a_rename_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "folder") as temporary:
        temporary.write_text("text")
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("name", ["figure.png", "model.onnx", "archive.tar.gz"])
def test_the_suffix_stays_since_writers_go_by_it(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as temporary:
        assert temporary.suffix == Path(name).suffix
        assert temporary.name != name
        temporary.write_bytes(b"x")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["plain", ".hidden", "with space.md", "größe-α.md"])
def test_any_name_will_do(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "text")
    assert names(tmp_path) == [name]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "notes.md"
    write_text(str(path), "α = ∞, ρ = 0.7\n")
    assert path.read_bytes() == "α = ∞, ρ = 0.7\n".encode()
    assert names(path.parent) == ["notes.md"]


def test_text_that_cannot_be_encoded_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["notes.md"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX files")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_permissions_follow_the_umask_as_for_any_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "notes.md", "text")
        assert os.umask(mask) == mask  # left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "notes.md").stat().st_mode) == mode


def test_require_gives_the_module() -> None:
    import json.decoder

    assert require("json.decoder", "demo") is json.decoder


def test_require_names_the_extra_to_install() -> None:
    message = r"no_such_package is needed here and not installed; run  pip install 'entropatch\[figures\]'"
    with pytest.raises(ImportError, match=message) as error:
        require("no_such_package.part", "figures")
    assert isinstance(error.value.__cause__, ModuleNotFoundError)
