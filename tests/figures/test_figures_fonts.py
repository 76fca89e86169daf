"""Letters of every script: drawn by a font that has them, or spelt out; never as the boxes of missing glyphs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.font_manager import fontManager, get_font

from entropatch.figures import entropy_in_blocks, fonts, save_figure
from entropatch.figures.canvas import Page

# In a font that comes with matplotlib, and not in the figures' own.
STIX = "\u233d"


@pytest.fixture
def only(monkeypatch):
    """A machine with these families alone."""

    def choose(*families):
        files = {font.name: font.fname for font in fontManager.ttflist if font.style == "normal"}
        monkeypatch.setattr(fonts, "_fonts", lambda: tuple((family, files[family]) for family in families))
        fonts._family_of.cache_clear()

    yield choose
    fonts._family_of.cache_clear()


def test_a_letter_is_drawn_by_the_first_font_that_has_it(only):
    only("DejaVu Sans", "DejaVu Serif", "STIXGeneral")
    assert fonts.families_for(f"cat {STIX} ∞ é") == ["DejaVu Sans", "STIXGeneral"]
    assert fonts.legible(f"cat {STIX} ∞ é") == f"cat {STIX} ∞ é"
    assert ord(STIX) in get_font(dict(fonts._fonts())["STIXGeneral"]).get_charmap()
    page = Page(4, 1, f"{STIX} a title", [f"a note {STIX}"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page.figure.draw_without_rendering()
    assert [text.get_text() for text in page.figure.texts] == [f"{STIX} a title", f"a note {STIX}"]


def test_letters_that_no_font_has_are_spelt_out(only, tmp_path):
    only("DejaVu Sans")
    assert fonts.legible("写真 ｃａｔ é ∞ 한 ascii") == r"\u5199\u771f cat é ∞ \ud55c ascii"
    assert not fonts.is_legible("写真")
    assert fonts.is_legible("é ∞ →")
    assert fonts.legible("bell\x07") == r"bell\x07"
    figure = entropy_in_blocks(np.full((8, 8, 3), 9, np.uint8), {1.0: np.zeros((1, 2, 2))}, title="写真", note="真")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "a.png")
    assert r"\u5199\u771f" in [text.get_text() for text in figure.texts]


def test_fonts_of_placeholders_and_coloured_pictures_do_not_count():
    names = [family.lower() for family, _ in fonts._fonts()]
    assert names[0] == "dejavu sans"
    assert not [name for name in names if "emoji" in name or name.startswith("last resort")]


def test_wide_letters_take_the_room_of_two(only):
    assert fonts.columns("写真ab") == 6
    only("DejaVu Sans")
    page = Page(4, 1, "a" * 200)
    whole = page.figure.bbox
    for text in page.figure.texts:
        assert text.get_window_extent().x1 <= whole.x1
