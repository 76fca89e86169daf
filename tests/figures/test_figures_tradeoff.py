"""The picture of a calibration: every line has a look of its own, and a method the same one in all pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb

from entropatch.calibration.spreading import LABELS
from entropatch.figures import accuracy_against, trade_off
from entropatch.figures.style import looks
from entropatch.methods import METHODS, compared_methods

# What a calibration always shows.
ROWS = ["calibrated", "random", "the default", *(METHODS[name].label for name in compared_methods()[1:])]
ROWS = list(dict.fromkeys([*ROWS, *LABELS.values()]))


def records(labels: list[str]) -> list[dict[str, Any]]:
    return [
        {"label": label, "cost": cost, "loss": 0.1 + i / 20, "standard_error": 0.01}
        for i, label in enumerate(labels)
        for cost in (1.0, 2.0)
    ]


def drawn(figure: Any) -> dict[str, Any]:
    """Each line by its label in the legend."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    return {label: handle[0] for handle, label in zip(handles, labels, strict=True) if isinstance(handle, tuple)}


def test_every_line_has_a_colour_and_a_marker_of_its_own() -> None:
    lines = drawn(trade_off(records(ROWS), "GFLOPs", "loss"))
    assert list(lines) == ROWS
    assert len(ROWS) == 9
    colours = [to_rgb(line.get_color()) for line in lines.values()]
    assert len({line.get_marker() for line in lines.values()}) == len(ROWS)
    apart = [float(np.abs(np.subtract(a, b)).max()) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(apart) > 0.15
    for colour in colours:  # each shows on white
        assert min(colour) < 0.5


def test_a_method_has_one_look_in_all_pictures_whatever_is_beside_it() -> None:
    first = drawn(trade_off(records(ROWS), "GFLOPs", "loss"))
    some = ["the default (Rényi, order 2)", "ToMe", "calibrated", "Random"]
    second = drawn(trade_off(records(["my own", *some]), "GFLOPs", "loss"))
    points = [{"label": label, "keep_rate": 0.5, "gflops": 1.0, "top1": 80.0} for label in ("a", "ToMe", "Random")]
    third = drawn(accuracy_against(points))
    for lines, label, name in [
        (second, "ToMe", "ToMe"),
        (second, "calibrated", "calibrated"),
        (second, "Random", "random"),
        (second, "the default (Rényi, order 2)", "the default"),
        (third, "ToMe", "ToMe"),
        (third, "Random", "random"),
    ]:
        assert lines[label].get_color() == first[name].get_color()
        assert lines[label].get_marker() == first[name].get_marker()
    assert second["my own"].get_color() not in {second[label].get_color() for label in some}


def test_many_lines_of_any_names_differ() -> None:
    found = looks([*"abcdefghijklmnopqrstuvwxy", "EViT", "calibrated"])
    assert len({(look["color"], look["linestyle"]) for look in found.values()}) == 27
