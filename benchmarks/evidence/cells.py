"""The cells of the grid: which are asked for, and their settings, by name or as records have them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

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
    """Which cells are asked for, by name, keep rate and seed; None are all names that records have."""

    names: list[str] | None
    rates: list[float]
    seeds: list[int | None]

    def __contains__(self, cell: Cell) -> bool:
        named = self.names is None or cell.name in self.names
        return named and cell.seed in self.seeds and (cell.keep_rate is None or cell.keep_rate in self.rates)


def cells(wanted: Wanted, blocks: list[str], files: dict[str, PruneConfig]) -> dict[Cell, PruneConfig | None]:
    """All wanted cells with their settings, seed by seed, so that what an interrupted run has is whole seeds."""
    names, found = wanted.names or [], dict[Cell, PruneConfig | None]()
    for seed in wanted.seeds:
        asked = [Cell("dense", None, "", seed)] * ("dense" in names)
        asked += [
            Cell(name, rate, place, seed)
            for rate in wanted.rates for place in blocks for name in names if name != "dense"
        ]  # fmt: skip
        found |= {cell: cell.config() for cell in asked}
        for stem, config in files.items():  # "calibrated-0.5" stands beside the methods at ρ = 0.5
            name, _, rate = stem.rpartition("-")
            found[Cell(name, float(rate), blocks[0], seed)] = config
    return found


def repeated(
    folder: Path, tag: str, data: str, size: int, wanted: Wanted, recipe: Recipe
) -> dict[Cell, PruneConfig | None]:
    """The wanted cells that records have, with their settings.

    Raises:
        BadParameter: there are none, or they were trained by another recipe (the precision may be another).
    """
    found: dict[Cell, PruneConfig | None] = {}
    for line in (line for file in sorted(folder.glob("*.jsonl")) for line in map(json.loads, file.open())):
        cell = Cell(line["name"], line["keep_rate"], line["blocks"], line["seed"])
        if (line["tag"], line["data"], line["size"]) != (tag, data, size) or cell not in wanted:
            continue
        if cell.seed is not None:
            ours = recipe.to_dict() | {"precision": line["recipe"]["precision"]}
            if other := [f"{key} {value}" for key, value in line["recipe"].items() if ours.get(key) != value]:
                raise typer.BadParameter(f"{cell} was trained with {', '.join(other)}; give the same.")
        found[cell] = None if line["config"] is None else PruneConfig.from_dict(line["config"])
    if not found:
        raise typer.BadParameter(f"no record in {folder} is of such cells, tagged {tag}, of {data} at {size} px.")
    return found
