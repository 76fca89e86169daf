"""The cost of scoring: how fast each method is beside random pruning, with an interval narrow enough for yes or no.

    python benchmarks/scoring_cost.py                                     # the CPU, both OpenMP policies: hours
    python benchmarks/scoring_cost.py --device cuda --dtype bfloat16      # a GPU
    python benchmarks/scoring_cost.py --table                             # only the table, from the records there

Each cell is one `entropatch bench` in a process of its own: dense and all methods in turns, rounds added until each
ratio to random has a 95 % interval within ±2 %, or --most-rounds. The cells are 224 px (DeiT-S/16) and 196 px
(ViT-S/14; both 14 × 14 patches) at batch 1 and 16, 518 px (ViT-S/14) and 1024 px (DeiT-S/16) at batch 1; on the CPU
each with OMP_WAIT_POLICY=PASSIVE and unset, as users have it. Needs a machine with nothing else to do and
`pip install '.[bench]'`.

Records go to FOLDER, by default benchmarks/results/<device>/scoring-cost, one file per cell. A cell whose file is there
is not measured again, so an interrupted run goes on where it stopped. scoring-cost.md is made from these files alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropatch.records.files import write_text
from entropatch.records.tables import markdown_table

HERE = Path(__file__).resolve().parent
PASSIVE, UNSET = "passive", "unset"
MODELS = {196: "vit_small_patch14_dinov2", 518: "vit_small_patch14_dinov2"}  # patches of 14 px
SMALL = (224, 196)


@dataclass(frozen=True)
class Cell:
    """One run of the benchmark: an input size, a batch size, a precision and a policy of OpenMP's threads."""

    size: int
    batch: int
    dtype: str
    policy: str

    @property
    def name(self) -> str:
        return f"{self.size}-batch-{self.batch}-{self.dtype}-{self.policy}"


def cells(given: argparse.Namespace) -> list[Cell]:
    policies = given.policies or ((PASSIVE, UNSET) if given.device == "cpu" else (UNSET,))
    return [
        Cell(size, batch, given.dtype, policy)
        for size in given.sizes
        for batch in (given.batches if size in SMALL else given.large_batches)
        for policy in policies
    ]


def measure(cell: Cell, folder: Path, given: argparse.Namespace) -> int:
    """Run one cell; the exit status."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if cell.policy == PASSIVE:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    command = [sys.executable, "-m", "entropatch.cli", "bench", "--output", folder, "--name", cell.name]
    command += ["--model", MODELS.get(cell.size, "deit_small_patch16_224"), "--image-size", cell.size]
    command += ["--batch-sizes", cell.batch, "--dtype", cell.dtype, "--device", given.device]
    command += ["--methods", given.methods, "--keep-rates", given.keep_rates, "--bar", given.bar]
    command += ["--repeats", given.rounds, "--until-interval", given.width, "--most-rounds", given.most_rounds]
    try:
        done = subprocess.run(list(map(str, command)), env=environment, timeout=given.limit, check=False)
    except subprocess.TimeoutExpired:
        show(f"{cell.name}: longer than {given.limit} s, left out")
        return 124
    return done.returncode


def table(folder: Path, wanted: Sequence[Cell] = ()) -> str:
    """What all records of the folder say: a row per cell and keep rate, a column per method; then what is missing."""
    read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*-batch-*.json"))}
    rows, labels = [], []
    for data in read.values():
        labels += [r["label"] for r in data["records"] if r["vs_random"] is not None and r["method"] != "random"]
    labels = list(dict.fromkeys(labels))
    for data in sorted(read.values(), key=_place):
        about, records = data["about"], data["records"]
        for rate in dict.fromkeys(r["keep_rate"] for r in records if r["keep_rate"] is not None):
            by_label = {r["label"]: r for r in records if r["keep_rate"] == rate}
            head = [about["image_size"], records[0]["batch_size"], about["dtype"], rate]
            head += [about["omp_wait_policy"] or UNSET, max(r["rounds"] or 0 for r in records)]
            rows.append([*head, *(_cell(by_label.get(label)) for label in labels)])
    heads = ["px", "batch", "dtype", "keep rate", "OMP_WAIT_POLICY", "rounds", *labels]
    machines = list(dict.fromkeys(_machine(data["about"]) for data in read.values()))
    bars = sorted({data["about"]["bar"] for data in read.values()})
    missing = [cell.name for cell in wanted if cell.name not in read]
    text = "# The cost of scoring\n\n"
    text += "images/s over those of random pruning at the same keep rate: median of the rounds' ratios (95 % interval) "
    text += f"and whether at least {', '.join(f'{bar:g}' for bar in bars)} is reached.\n\n"
    text += markdown_table(heads, rows) if rows else "Nothing is measured yet.\n"
    text += "\n" + "".join(f"- measured on: {machine}\n" for machine in machines)
    return text + (f"- not measured: {', '.join(missing)}\n" if missing else "")


def _place(data: dict[str, Any]) -> tuple[Any, ...]:
    about = data["about"]
    return about["image_size"], data["records"][0]["batch_size"], about["dtype"], str(about["omp_wait_policy"])


def _machine(about: dict[str, Any]) -> str:
    load = about.get("load_average_before")
    busy = "" if load is None else f", load average before {load:.1f}"
    return f"{about['hardware']}, {about['threads']} threads, torch {about['torch']}, {about['date'][:10]}{busy}"


def _cell(record: dict[str, Any] | None) -> str:
    if record is None or record["vs_random"] is None:
        return "—"
    if record["vs_random_low"] is None:
        return f"{record['vs_random']:.3f}: {record['reaches']}"
    interval = f"({record['vs_random_low']:.3f} … {record['vs_random_high']:.3f})"
    return f"{record['vs_random']:.3f} {interval}: {record['reaches']}"


def show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 196, 518, 1024])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], help="at 224 and 196 px")
    parser.add_argument("--large-batches", nargs="+", type=int, default=[1], help="at the larger sizes")
    parser.add_argument("--policies", nargs="+", choices=[PASSIVE, UNSET], help="of OpenMP; default both on the CPU")
    parser.add_argument("--methods", default="dense,random,evit,shannon,renyi-2,renyi-inf")
    parser.add_argument("--keep-rates", default="0.7")
    parser.add_argument("--bar", type=float, default=0.97)
    parser.add_argument("--width", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=30, help="the least")
    parser.add_argument("--most-rounds", type=int, default=400)
    parser.add_argument("--limit", type=int, default=7200, help="seconds for a cell")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parsed(arguments)
    folder = given.folder
    if folder is None:
        name = subprocess.run(
            [sys.executable, HERE / "device_name.py", given.device], check=True, capture_output=True, text=True
        ).stdout.strip()
        folder = HERE / "results" / name / "scoring-cost"
    wanted, status = cells(given), 0
    for cell in [] if given.table else wanted:
        if (folder / f"{cell.name}.json").exists():
            show(f"== {cell.name}: measured before")
            continue
        show(f"== {cell.name}")
        status = measure(cell, folder, given) or status
        write_text(folder / "scoring-cost.md", table(folder, wanted))
    text = table(folder, wanted)
    write_text(folder / "scoring-cost.md", text)
    show(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
