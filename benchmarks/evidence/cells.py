"""The cells of the grid: which are asked for, and their settings, by name or as records have them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from entropatch import PruneConfig
from entropatch.config import method_config
from entropatch.train.recipe import Recipe


@dataclass(frozen=True)
class Cell:
    """One setting: `name` is dense, a method, or of a config file; `seed` is None without training."""

    name: str
    keep_rate: float | None
    blocks: str
    seed: int | None

    def config(self) -> PruneConfig | None:
        """The setting that the name says."""
        if self.name == "dense":
            return None
        blocks = None if self.blocks == "paper" else [int(block) for block in self.blocks.split(",")]
        return method_config(self.name, self.keep_rate or 1.0, blocks)


@dataclass(frozen=True)
class Wanted:
    """Which cells are asked for, by name, keep rate and seed; None are all that records have."""

    names: list[str] | None
    rates: list[float] | None
    seeds: list[int | None] | None

    def missing(self, cells: Iterable[Cell]) -> list[str]:
        """What was asked for that none of the cells has."""
        cells = list(cells)
        return [
            f"{what} {one}"
            for what, asked in (("name", self.names), ("keep_rate", self.rates), ("seed", self.seeds))
            for one in asked or []
            if one not in {getattr(cell, what) for cell in cells}
        ]

    def __contains__(self, cell: Cell) -> bool:
        return (
            (self.names is None or cell.name in self.names)
            and (self.rates is None or cell.keep_rate is None or cell.keep_rate in self.rates)
            and (self.seeds is None or cell.seed in self.seeds)
        )


def cells(
    names: list[str], rates: list[float], seeds: list[int | None], blocks: list[str], files: dict[str, PruneConfig]
) -> dict[Cell, PruneConfig | None]:
    """All cells with their settings, seed by seed, so that what an interrupted run has is whole seeds."""
    found: dict[Cell, PruneConfig | None] = {}
    for seed in seeds:
        asked = [Cell("dense", None, "", seed)] * ("dense" in names)
        asked += [
            Cell(name, rate, place, seed) for rate in rates for place in blocks for name in names if name != "dense"
        ]
        found |= {cell: cell.config() for cell in asked}
        for stem, config in files.items():  # "calibrated-0.5" stands beside the methods at ρ = 0.5
            name, _, rate = stem.rpartition("-")
            found[Cell(name, float(rate), blocks[0], seed)] = config
    return found


def recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of all records in a folder."""
    for file in sorted(folder.glob("*.jsonl")):
        yield from map(json.loads, file.read_text().splitlines())


def repeated(folder: Path, same: dict[str, Any], wanted: Wanted, recipe: Recipe) -> dict[Cell, PruneConfig | None]:
    """The wanted cells of the records with the `same` tag, data, size and model, with their settings.

    Raises:
        BadParameter: some are not there, or were trained by another recipe (the precision may be another).
    """
    found: dict[Cell, PruneConfig | None] = {}
    ours = recipe.to_dict()
    for line in recorded(folder):
        cell = Cell(line["name"], line["keep_rate"], line["blocks"], line["seed"])
        if any(line[key] != value for key, value in same.items()) or cell not in wanted:
            continue
        if cell.seed is not None:
            theirs = {key: value for key, value in line["recipe"].items() if key != "precision"}
            if other := [f"{key} {value}" for key, value in theirs.items() if ours.get(key) != value]:
                raise typer.BadParameter(f"{cell} was trained with {', '.join(other)}; give the same.")
        found[cell] = None if line["config"] is None else PruneConfig.from_dict(line["config"])
    lacking = wanted.missing(found) if found else ["any such cell"]
    if lacking:
        described = ", ".join(f"{key} {value}" for key, value in same.items())
        raise typer.BadParameter(f"of {described} the records in {folder} have not: {', '.join(lacking)}.")
    return found
