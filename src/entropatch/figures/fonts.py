"""Letters that the figures' font lacks: drawn with another font of this machine, or written as escapes."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path

FAMILY = "DejaVu Sans"  # comes with matplotlib
# Families are tried in this order, the first that has a letter draws it; then all others, by name.
_PREFERRED = ("noto sans cjk", "noto sans", "source han sans", "pingfang", "hiragino", "yu gothic", "microsoft yahei")
_PREFERRED += ("malgun", "apple sd gothic", "wenquanyi", "unifont", "arial unicode")


def families_for(text: str) -> list[str]:
    """The font families that draw the text, in matplotlib's order of fallback; the figures' own is the first."""
    others = (_family_of(letter) for letter in text if not _is_common(letter))
    return list(dict.fromkeys([FAMILY, *(one for one in others if one)]))


def legible(text: str) -> str:
    r"""The text with letters that no font of this machine has written in other ones: "e" for "é", or "\u5199"."""
    return "".join(letter if _is_common(letter) or _family_of(letter) else _plain(letter) for letter in text)


def is_legible(text: str) -> bool:
    """Whether the figures draw the text as it is."""
    return legible(text) == text


@contextmanager
def quietly() -> Iterator[None]:
    """Without matplotlib's warnings that a font has no bold letters; the regular ones stand in."""
    log = logging.getLogger("matplotlib.font_manager")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def columns(text: str) -> int:
    """How wide the text is, in letters: those of East Asian scripts are twice as wide as others."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def _is_common(letter: str) -> bool:
    if ord(letter) < 0x180:
        return letter.isprintable() or letter.isspace()
    return unicodedata.category(letter) in ("Cf", "Mn", "Me", "Zs")


@lru_cache(maxsize=4096)
def _family_of(letter: str) -> str | None:
    """The first family that has the letter; None if none does."""
    return next((family for family, path in _fonts() if ord(letter) in _letters(path)), None)


@lru_cache(maxsize=1)
def _fonts() -> tuple[tuple[str, str], ...]:
    """Family and file of the upright fonts of this machine, the figures' own first."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    # matplotlib looks for fonts once and keeps the list; some may have come since.
    listed = {font.fname for font in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - listed):
        with suppress(Exception):  # whatever a damaged font provokes
            fontManager.addfont(path)
    usable = [font for font in fontManager.ttflist if font.style == "normal" and not _is_odd(font.name)]
    # Of a family the file of regular weight, which has at least the letters of the others.
    usable.sort(key=lambda font: (font.weight not in (400, "normal", "regular", "book"), font.fname), reverse=True)
    files = {font.name: font.fname for font in usable}
    return tuple((family, files[family]) for family in sorted(files, key=_rank))


def _rank(family: str) -> tuple[bool, int, str]:
    name = family.lower()
    place = next((i for i, one in enumerate(_PREFERRED) if name.startswith(one)), len(_PREFERRED))
    return family != FAMILY, place, name


def _is_odd(family: str) -> bool:
    """Fonts of coloured pictures, which are not drawn, and that of the boxes that stand for letters no font has."""
    return "emoji" in family.lower() or family.lower().startswith("last resort")


@cache
def _letters(path: str) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    try:
        return frozenset(get_font(path).get_charmap()) if Path(path).is_file() else frozenset()
    except (OSError, RuntimeError, ValueError):  # a damaged font file, or one of bitmaps
        return frozenset()


def _plain(letter: str) -> str:
    parts = unicodedata.normalize("NFKD", letter)
    plain = "".join(part for part in parts if not unicodedata.combining(part))
    if plain and plain.isascii() and plain.isprintable():
        return plain
    return letter.encode("unicode_escape").decode("ascii")
