"""The Pareto front against its definition."""

from math import inf, isnan, nan

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from entropatch.records.pareto import pareto_front

# Few values, so that ties and equal points are common.
VALUES = st.sampled_from([-1.0, 0.0, 0.0, 1.5, 2, 3, nan, inf, -inf])


def slow_front(costs, gains):
    """By the definition: every point against every other."""
    points = [(i, c, g) for i, (c, g) in enumerate(zip(costs, gains, strict=True)) if not (isnan(c) or isnan(g))]

    def beaten(c, g):
        return any(c2 <= c and g2 >= g and (c2 < c or g2 > g) for _, c2, g2 in points)

    return [i for i, _, _ in sorted((p for p in points if not beaten(*p[1:])), key=lambda p: (p[1], p[0]))]


@given(st.lists(st.tuples(VALUES, VALUES), max_size=12))
@example([(1.0, 5.0), (1.0, 5.0), (1.0, 4.0), (2.0, 5.0), (2.0, 6.0), (nan, 9.0), (0.0, nan)])
def test_as_defined(points):
    costs, gains = [p[0] for p in points], [p[1] for p in points]
    assert pareto_front(costs, gains) == slow_front(costs, gains)


def test_a_known_front():
    #        dense  0.9   0.7   0.7b  0.5   0.5b
    gflops = [4.61, 4.00, 3.00, 3.04, 2.29, 2.31]
    top1 = [86.0, 86.2, 85.9, 85.8, 85.0, 85.1]
    assert pareto_front(gflops, top1) == [4, 5, 2, 1]


def test_no_points_and_unequal_lengths():
    assert pareto_front([], []) == []
    with pytest.raises(ValueError, match="of one length, but got 2 and 1"):
        pareto_front([1, 2], [1])
