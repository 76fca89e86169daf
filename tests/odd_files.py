"""Files that are not what they seem."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path


def bomb(path: Path) -> None:
    """A PNG of a few bytes whose header claims more pixels than Pillow opens at all."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
