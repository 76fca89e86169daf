"""The tables of the records that grid.py wrote, and nothing else: accuracy with its error, and the paired difference to
random pruning on the same images.

    python benchmarks/evidence/table.py RECORDS [--output FOLDER]

An accuracy is the mean over seeds; its error is the standard error over test images and seeds
(`entropatch.records.uncertainty`). In a column, bold is what is ahead of every other method by more than two paired
standard errors; where nothing is, a star marks the best and all that cannot be told from it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import typer
from numpy.typing import NDArray

from entropatch import PruneConfig, prune_
from entropatch.measure import count_flops
from entropatch.methods import METHODS, method_label
from entropatch.records.correct import unpacked
from entropatch.records.files import write_text
from entropatch.records.tables import markdown_table
from entropatch.records.uncertainty import accuracy, ahead, of_shared_seeds, paired_difference

Bits = NDArray[np.bool_]


@dataclass
class Entry:
    """One method under one setting: which images were right, seed by seed, and what its pruning is."""

    runs: dict[int, Bits] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    counted: float | None = None  # 10⁹ multiply-adds, where images have numbers of their own

    @property
    def correct(self) -> Bits:
        return np.stack([self.runs[seed] for seed in sorted(self.runs)])


Column = dict[str, Entry]  # by method


def main(
    folder: Annotated[Path, typer.Argument(help="Of the records.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for tables.md and tables.json; printed otherwise.")
    ] = None,
) -> None:
    """Write the tables."""
    found = records(folder)
    parts, summary = [], []
    for key in sorted({(data, size, tag, blocks, trained) for data, size, tag, blocks, trained, _ in found}):
        columns = {rate: found[(*key, rate)] for *rest, rate in found if tuple(rest) == key}
        dense = found.get((key[0], key[1], key[2], "", key[4], None), {}).get("dense")
        if key[3] != "":
            parts.append(_section(key, columns, dense, summary))
    text = "\n\n".join(parts) + "\n"
    if output is None:
        typer.echo(text)
        return
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "tables.md", text)
    write_text(output / "tables.json", json.dumps(summary, indent=1) + "\n")


def records(folder: Path) -> dict[tuple[Any, ...], Column]:
    """By (data, size, tag, blocks, trained, keep rate), the methods."""
    found: dict[tuple[Any, ...], Column] = defaultdict(lambda: defaultdict(Entry))
    for file in sorted(folder.rglob("*.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            trained = line["seed"] is not None
            key = (line["data"], line["size"], line["tag"], line["blocks"], trained, line["keep_rate"])
            entry = found[key][line["name"]]
            entry.config, entry.counted = line["config"], line.get("gflops")
            entry.runs[line["seed"] if trained else 0] = unpacked(line["correct"], line["images"])
    return found


def _section(key: tuple[Any, ...], columns: dict[float | None, Column], dense: Entry | None, summary: list[Any]) -> str:
    data, size, tag, blocks, trained = key
    rates = sorted(columns, key=lambda rate: -(rate or 0))
    names = sorted({name for column in columns.values() for name in column}, key=_place)
    seeds = sorted({len(entry.runs) for column in columns.values() for entry in column.values()})
    images = next(iter(next(iter(columns.values())).values())).correct.shape[1]
    how = f"fine-tuned, {'/'.join(map(str, seeds))} seeds" if trained else "without training"
    lines = [f"## {data}, {size} px, {how}, {images} test images, blocks: {blocks} ({tag})", ""]
    if dense is not None:
        found = accuracy(dense.correct)
        lines += [
            f"Dense: {found.value:.2f} ± {found.standard_error:.2f} % top-1, {_gflops(None, size):.2f} GFLOPs.",
            "",
        ]
        summary.append({"key": key, "name": "dense", "top1": found.value, "standard_error": found.standard_error})
    header = ["method", *(f"ρ = {rate}" if rate else "its own" for rate in rates)]
    tops, gaps = [], []
    marks = {rate: _marks(columns[rate]) for rate in rates}
    for name in names:
        top, gap = [_label(name)], [_label(name)]
        for rate in rates:
            entry = columns[rate].get(name)
            if entry is None:
                top.append("")
                gap.append("")
                continue
            found = accuracy(entry.correct)
            mark = marks[rate].get(name, "")
            value = f"{found.value:.2f} ± {found.standard_error:.2f}"
            top.append(f"**{value}**" if mark == "**" else value + mark)
            line = {
                "key": key, "name": name, "keep_rate": rate, "top1": found.value, "seeds": found.seeds,
                "standard_error": found.standard_error, "gflops": _spent(entry, size),
            }  # fmt: skip
            chance = columns[rate].get("random")
            if chance is not None and name != "random":
                off = paired_difference(*of_shared_seeds(entry.runs, chance.runs))
                gap.append(f"{off.value:+.2f} ± {off.standard_error:.2f}")
                line |= {
                    "to_random": off.value,
                    "to_random_error": off.standard_error,
                    "low": off.low,
                    "high": off.high,
                }
            else:
                gap.append("")
            summary.append(line)
        tops.append(top)
        gaps.append(gap)
    lines += ["Top-1 in percent:", "", markdown_table(header, tops).strip(), ""]
    lines += ["Less that of random pruning, on the same images:", "", markdown_table(header, gaps).strip(), ""]
    costs = [[_label(name), *(_cost(columns[rate].get(name), size) for rate in rates)] for name in names]
    lines += ["GFLOPs:", "", markdown_table(header, costs).strip()]
    return "\n".join(lines)


def _marks(column: Column) -> dict[str, str]:
    """Bold for what is ahead of all others; where nothing is, a star for the best and what cannot be told from it."""
    best = max(column, key=lambda name: column[name].correct.mean())
    level = [
        name
        for name, entry in column.items()
        if name != best and not ahead(*of_shared_seeds(column[best].runs, entry.runs))
    ]
    return {best: "**"} if not level else dict.fromkeys((best, *level), " \\*")


def _place(name: str) -> tuple[float, str]:
    return METHODS[name].sort_key if name in METHODS else (31.0 if name.startswith("tome") else 45.0, name)


def _label(name: str) -> str:
    try:
        return method_label(name)
    except ValueError:
        return name


_COSTS: dict[tuple[str, int], float] = {}


def _gflops(config: dict[str, Any] | None, size: int) -> float:
    known = (json.dumps(config), size)
    if known not in _COSTS:
        with torch.device("meta"):
            model = timm.create_model("vit_small_patch14_dinov2", img_size=size, num_classes=0)
        model = model.to_empty(device="cpu").eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        if config is not None:
            prune_(model, PruneConfig.from_json(json.dumps(config)))
        _COSTS[known] = count_flops(model, torch.zeros(1, 3, size, size)).total / 1e9
    return _COSTS[known]


def _spent(entry: Entry, size: int) -> float:
    return _gflops(entry.config, size) if entry.counted is None else entry.counted


def _cost(entry: Entry | None, size: int) -> str:
    return "" if entry is None else f"{_spent(entry, size):.2f}"


if __name__ == "__main__":
    typer.run(main)
