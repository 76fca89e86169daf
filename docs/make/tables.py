"""Tables of the manual from the committed records: `<!-- make: numbers NAME ARGUMENT… -->`."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import accuracy_tables as accuracy
import cost_tables as cost
import speed_tables as speed


def made(request: str) -> str:
    """The table that a page asks for. Raises KeyError for one that is not known."""
    name, *arguments = shlex.split(request)
    return TABLES[name](*arguments)


TABLES: dict[str, Callable[..., str]] = {
    "top1": accuracy.top1,
    "less-random": accuracy.less_random,
    "calibration": accuracy.calibration,
    "penalty": accuracy.penalty,
    "trained-at-one-cost": cost.trained_at_one_cost,
    "longer": accuracy.longer,
    "bench": speed.bench,
    "one-cost": cost.one_cost,
    "scoring": speed.scoring,
    "statements": speed.statements,
}

if __name__ == "__main__":
    import sys

    print(made(" ".join(sys.argv[1:])))  # noqa: T201
