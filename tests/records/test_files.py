"""Files are written whole or not at all; optional packages are asked for by their extra."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import stat
from pathlib import Path

import pytest

from entropatch import extras
from entropatch.extras import install_hint, require, source_folder
from entropatch.records.files import remove_left_over, replacing, write_text


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


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX files")
def test_a_writer_that_puts_a_file_of_its_own_in_place_changes_no_permissions(tmp_path: Path) -> None:
    (tmp_path / "beside").touch(0o666)
    with replacing(tmp_path / "model.bin") as temporary:
        temporary.unlink()
        temporary.touch(0o600)
    assert (tmp_path / "model.bin").stat().st_mode == (tmp_path / "beside").stat().st_mode


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path: Path) -> None:
    name = "é" * 120 + ".json"  # 245 bytes of the 255 that file systems allow
    write_text(tmp_path / name, "text")
    assert names(tmp_path) == [name]


def write_and_die(folder: Path) -> None:
    with replacing(folder / "search.md") as temporary:
        temporary.write_text("half of")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell whether a process lives")
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_and_nothing_else(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=write_and_die, args=(tmp_path,))
    process.start()
    process.join()
    (left,) = names(tmp_path)
    assert left.startswith(".search.")
    (tmp_path / ".search.notes.md").write_text("a user's own")
    (tmp_path / left.replace("search", "link")).symlink_to("elsewhere")
    elsewhere = left.replace(left.split("-")[1], "00000000").replace("search", "elsewhere")  # another machine's
    (tmp_path / elsewhere).write_text("half of")
    old = left.replace(left.split("-")[1], "00000000").replace("search", "old")
    (tmp_path / old).write_text("half of")
    os.utime(tmp_path / old, (0, 0))
    with replacing(tmp_path / "other.md") as living:  # this process lives
        remove_left_over.cache_clear()
        write_text(tmp_path / "search.json", "{}")
        assert living.exists()
        living.write_text("")
    kept = [".search.notes.md", elsewhere, left.replace("search", "link"), "other.md", "search.json"]
    assert names(tmp_path) == sorted(kept)


def test_require_gives_the_module() -> None:
    import json.decoder

    assert require("json.decoder", "demo") is json.decoder


def test_require_names_the_extra_to_install() -> None:
    message = r"no_such_package is needed here and not installed; run  pip install '\.\[figures\]'"
    with pytest.raises(ImportError, match=message) as error:
        require("no_such_package.part", "figures")
    assert isinstance(error.value.__cause__, ModuleNotFoundError)


def test_the_hint_names_the_source_folder_only_where_there_is_one(tmp_path: Path, monkeypatch) -> None:
    source = source_folder()
    assert source is not None
    assert (source / "src/entropatch").is_dir()
    assert install_hint("train") == f"run  pip install '.[train]'  in {source}"
    monkeypatch.setattr(extras, "source_folder", lambda: None)
    # Without it: packages that are on the index, just those that the project file lists for the extra.
    project = (source / "pyproject.toml").read_text()
    listed = re.search(r"^datasets = \[(.*)\]$", project, re.MULTILINE)
    assert listed is not None
    packages = listed.group(1).replace('"', "'")
    assert install_hint("datasets").startswith(f"run  pip install {packages}  (or ")
    assert "'.[datasets]'  in the folder of entropatch's source" in install_hint("datasets")


def test_the_hint_never_names_a_folder_that_is_gone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site/entropatch/extras.py"))
    gone = json.dumps({"url": (tmp_path / "gone").as_uri(), "dir_info": {}})

    class Installed:
        def read_text(self, name: str) -> str:
            return gone

    monkeypatch.setattr(extras.metadata, "distribution", lambda name: Installed())
    assert source_folder() is None
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/pyproject.toml").write_text('[project]\nname = "another"\n')
    assert source_folder() is None
    (tmp_path / "gone/pyproject.toml").write_text('[project]\nname = "entropatch"\n')
    assert source_folder() == tmp_path / "gone"


def test_a_package_that_is_there_and_broken_is_not_called_missing(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "broken_package.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"cannot be imported \(No module named 'no_such_dependency'\)"):
        require("broken_package", "figures")
