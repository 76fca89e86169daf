"""The files of checkpoints on the disk: which are ours, and how they are written, set aside and removed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from entropatch.records.files import create
from entropatch.train.sums import SUMS

CHECKPOINT = re.compile(r"update-(\d{9,18})")
DRAFT = re.compile(r"\.(update-\d{9,18})\.draft")
DAMAGED = re.compile(r"damaged-update-\d{9,18}")
_FILE = re.compile(rf"model\.safetensors|ema\.safetensors|training\.pt|progress\.json|random-\d+\.pt|{SUMS}")


def folders(folder: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    """The folders in a folder with such a name; links are none."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return (path for path in found if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink())


def own_files(folder: Path) -> Iterator[Path]:
    """The files in it that a checkpoint consists of."""
    return (path for path in folder.iterdir() if _FILE.fullmatch(path.name) and not path.is_dir())


def remove(folder: Path) -> None:
    """Remove the files of a checkpoint, and its folder; if it holds others too, these stay, under its visible name."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for path in list(own_files(folder)):
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
    elif hidden := DRAFT.fullmatch(folder.name):
        folder.rename(folder.with_name(hidden[1]))


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is no longer taken for one."""
    aside = path.with_name(f"damaged-{path.name}")
    remove(aside)
    return path.rename(aside)


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """Have a new file written, with the permissions of any new file, and wait until it is on the disk."""
    mode = create(path)
    writer(path)
    path.chmod(mode)  # safetensors gives 0600
    flush(path)


def flush(path: Path) -> None:
    """Wait until a file's or folder's content is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
