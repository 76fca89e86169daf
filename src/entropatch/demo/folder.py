"""The folder the demo writes into: files that no demo wrote are never overwritten."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from entropatch.data.images import png_texts
from entropatch.demo.settings import MADE_BY, STEM


def check_folder(folder: Path, pictures: Sequence[Path]) -> None:
    """Make the folder and try to write into it; refuse to overwrite what no demo wrote.

    A table is the demo's own if results.json beside it says so, a picture if its PNG metadata does.

    Raises:
        OSError: the folder cannot be made or written into, or a file of that name is somebody else's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"cannot write into the folder {folder} ({reason}); choose another one.") from error
    tables = [folder / f"{STEM}.{suffix}" for suffix in ("md", "csv", "json")]
    foreign = [] if _is_own_table(tables[-1]) else [path for path in tables if path.exists()]
    foreign += [path for path in pictures if path.exists() and not _is_own_picture(path)]
    if foreign:
        names = ", ".join(path.name for path in foreign)
        raise FileExistsError(f"{folder} holds {names}, which no demo wrote; choose another folder or move them away.")


def _is_own_table(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["about"]["made by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_own_picture(path: Path) -> bool:
    return png_texts(path).get("Software") == MADE_BY
