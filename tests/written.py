"""What is written for people: the pages of the manual and the texts beside it, and the code in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

PAGES = tuple(sorted(DOCS.glob("*.md")))
WITH_CODE = (ROOT / "README.md", *PAGES)  # CONTRIBUTING's snippets have a test of their own
TEXTS = (
    *WITH_CODE,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md")),
)
TEXTS += tuple(sorted((ROOT / "benchmarks").rglob("*/README.md")))


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        path: of the page.
        line: of its first line in the page, from 1.
        language: what the fence says.
        code: the lines.
    """

    path: Path
    line: int
    language: str
    code: str


def blocks(path: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    every = [Block(path, text[: one.start(2)].count("\n") + 1, one[1], one[2]) for one in found]
    return [block for block in every if not languages or block.language in languages]


def commands(block: Block) -> list[str]:
    """The commands of a block of shell, continued lines joined, without comments."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
