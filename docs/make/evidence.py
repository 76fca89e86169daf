"""What the committed records say of accuracy: which test images came out right, by method."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entropatch.records.correct import unpacked

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
Bits = NDArray[np.bool_]
DATA = {"caltech101": "Caltech-101", "imagenette": "Imagenette"}
FREE, TRAINED = "free", "grid"


@cache
def runs(tag: str, blocks: str = "paper", size: int = 196) -> dict[tuple[str, float | None], dict[str, Bits]]:
    """By data set and keep rate, (seeds, images) of each method; the keep rate of dense is None."""
    return {
        key: {name: stacked(by) for name, by in column.items()} for key, column in by_seed(tag, blocks, size).items()
    }


def stacked(by: Mapping[Any, Bits]) -> Bits:
    """The images of every seed, (seeds, images)."""
    return np.stack(list(by.values()))


@cache
def by_seed(tag: str, blocks: str, size: int) -> dict[tuple[str, float | None], dict[str, dict[Any, Bits]]]:
    """As `runs`, the images of each seed; None is the seed without training."""
    found: dict[tuple[str, float | None], dict[str, dict[Any, Bits]]] = defaultdict(lambda: defaultdict(dict))
    for line in _lines():
        if line["tag"] == tag and line["size"] == size and line["blocks"] in ("", blocks):
            bits = unpacked(line["correct"], line["images"])
            found[line["data"], line["keep_rate"]][line["name"]][line["seed"]] = bits
    return found


@cache
def counted(tag: str, size: int) -> dict[tuple[str, float | None], dict[str, float]]:
    """By data set and keep rate, the GFLOPs of each method whose images have numbers of patches of their own."""
    found: dict[tuple[str, float | None], dict[str, float]] = defaultdict(dict)
    for line in _lines():
        if line["tag"] == tag and line["size"] == size and "gflops" in line:
            found[line["data"], line["keep_rate"]][line["name"]] = line["gflops"]
    return found


@cache
def _lines() -> list[dict[str, Any]]:
    files = sorted((RESULTS / "evidence/records").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


@cache
def single_blocks() -> dict[str, dict[int, dict[str, float]]]:
    """By data set and block, the loss of each choice where that block alone is pruned at 0.5, at 196 px."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for data in DATA:
        file = RESULTS / f"evidence/calibration/{data}-0.5/single-blocks.md"
        if not file.exists():
            continue
        rows = [line.strip("| ").split(" | ") for line in file.read_text(encoding="utf-8").splitlines()]
        for block, choice, rate, loss in (map(str.strip, row) for row in rows if len(row) == 4):
            if rate == "0.5":
                found.setdefault(data, {}).setdefault(int(block), {})[choice] = float(loss)
    return found
