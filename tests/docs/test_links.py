"""Every link between what is written for people leads somewhere: files, sections, pictures."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from written import DOCS, ROOT, TEXTS

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\]|`[^`]*`)*\]\(([^()\s]+(?:\([^()\s]*\))?)\)")
OUTSIDE = re.compile(r"https://[a-z0-9.-]+\.[a-z]{2,}(/[\w.~%/#?=&+-]*)?")


def in_page(value: Path) -> str:
    return str(value.relative_to(ROOT))


@cache
def shown(path: Path) -> str:
    """A page as its reader has it: with what the manual makes into it."""
    import hook

    text = path.read_text(encoding="utf-8")
    return hook.made(text) if path.parent == DOCS else text


def without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`", text)


@cache
def anchors(path: Path) -> frozenset[str]:
    """What a link to a section of a page may say, as GitHub and mkdocs make it of the heading."""
    found: set[str] = set()
    for heading in re.findall(
        r"^#{1,6} (.+)$", re.sub(r"^```.*?^```", "", shown(path), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    ):
        own = re.search(r"\{ ?#([\w-]+)", heading)
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"\s*\{.*\}$", "", heading)).replace("`", "")
        words = re.sub(r"[^\w\s-]", "", plain.lower()).strip()
        found |= {own[1] if own else words.replace(" ", "-"), re.sub(r"[\s-]+", "-", words)}
    found |= set(re.findall(r"^::: (\S+)", shown(path), re.MULTILINE))
    return frozenset(found)


def wrong(path: Path, link: str) -> str | None:
    """What is wrong with a link of a page; None if nothing is."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None if OUTSIDE.fullmatch(link) else f"{link} is no address"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.exists():
        return f"{link} leads to no file"
    if path.parent == DOCS and not target.is_relative_to(DOCS):
        return f"{link} leads out of the manual"
    fragment = unquote(parts.fragment)
    if not fragment or target.suffix != ".md":
        return None
    return None if fragment in anchors(target) else f"{link} leads to no section of {target.name}"


@pytest.mark.skipif(not (ROOT / "benchmarks/results").is_dir(), reason="the records are in the repository alone")
@pytest.mark.parametrize("path", TEXTS, ids=in_page)
def test_links_lead_somewhere(path: Path) -> None:
    found = [wrong(path, link) for link in LINK.findall(without_code(shown(path)))]
    assert [one for one in found if one is not None] == []


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("nowhere.md", "no file"),
        ("train.md#nowhere", "no section"),
        ("../README.md", "out of the manual"),
        ("http://example.org", "no address"),
        ("https://exa mple", "no address"),
    ],
)
def test_links_that_lead_nowhere_are_found(link: str, said: str) -> None:
    assert said in (wrong(DOCS / "index.md", link) or "")


def test_pages_are_all_in_the_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1].split("\nplugins:")[0]
    assert set(re.findall(r": (\S+\.md)$", contents, re.MULTILINE)) == {path.name for path in DOCS.glob("*.md")}
