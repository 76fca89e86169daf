"""Errors in one line."""

from __future__ import annotations

import pytest

from entropatch.error_text import one_line


@pytest.mark.parametrize(
    ("error", "first", "expected"),
    [
        (ValueError("a  b\n c"), False, "a b c"),
        (ValueError("\n a  b\n c"), True, "a b"),
        (ValueError(""), False, "ValueError"),
        (ValueError(" \n"), True, "ValueError"),
        (OSError("x" * 301), False, "x" * 299 + "…"),
        ("x" * 300, True, "x" * 300),
    ],
)
def test_an_error_is_one_line(error, first, expected):
    assert one_line(error, first=first) == expected
    assert one_line(error, first=first, longest=5) in (expected, expected[:4] + "…")
