"""Checksums of the files in a folder, in the format of `sha256sum`, so that `sha256sum -c SHA256SUMS` checks it too."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\n]+)")


def sums_of(folder: Path) -> str:
    """One line for each file in the folder: its SHA-256, two spaces, its name."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    return "".join(f"{_sha256(path)}  {path.name}\n" for path in files)


def check_sums(folder: Path) -> None:
    """Read every file that SHA256SUMS lists and compare.

    Raises:
        ValueError: a file has another checksum, or the list is damaged; the message names the file.
        FileNotFoundError: a file, or the list, is missing.
    """
    lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    found = [_LINE.fullmatch(line) for line in lines]
    if not found or None in found:
        raise ValueError(f"{SUMS} is damaged")
    for line in found:
        assert line is not None
        if _sha256(folder / line[2]) != line[1]:
            raise ValueError(f"{line[2]} has another checksum than {SUMS} notes, so one of the two is damaged")


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest()
