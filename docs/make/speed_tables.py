"""Tables of the manual of speed and cost, from the records of `entropatch bench` and the scripts beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from evidence import RESULTS
from methods_page import table

HEADS = {
    "batch_size": "batch",
    "gflops": "GFLOPs",
    "images_per_second": "images/s",
    "int8": "8 bits",
    "peak_memory_mib": "peak MiB",
    "vs_dense": "× dense",
    "vs_random": "× random",
}


def bench(file: str, *columns: str) -> str:
    """Rows of `entropatch bench`: method, keep rate, and the columns asked for; then on what it was measured."""
    data = record(file)
    records = [one for one in data["records"] if not one["note"]]
    rows = [
        [
            one["label"],
            "—" if one["keep_rate"] is None else f"{one['keep_rate']:g}",
            *(column(one, c) for c in columns),
        ]
        for one in records
    ]
    heads = [HEADS.get(name, name) for name in columns]
    return f"{table(['method', 'keep rate', *heads], rows)}\n\n{machine(data['about'], file)}"


def statements(file: str) -> str:
    """What an import takes."""
    data = record(file)
    rows = [[f"`{one['statement']}`", f"{one['p50_ms']:.0f}", f"{one['ratio']:.3f}"] for one in data["records"]]
    return f"{table(['statement', 'ms, median', 'ratio'], rows)}\n\n{machine(data['about'], file)}"


def scoring(*files: str) -> str:
    """images/s over those of random pruning, by record."""
    names: list[str] = []
    rows = []
    for file in files:
        data = record(file)
        about = data["about"]
        scored = [one for one in data["records"] if one["method"] not in ("dense", "random")]
        names = [one["label"] for one in scored]
        batch, rounds = scored[0]["batch_size"], scored[0]["rounds"]
        policy = "" if about["device"] != "cpu" else f", OMP_WAIT_POLICY {about['omp_wait_policy'] or 'unset'}"
        what = f"{about['hardware']}, {about['image_size']} px, batch {batch}, {about['dtype']}{policy}"
        rows.append([what, str(rounds), *(column(one, "vs_random") for one in scored)])
    return table(["machine and setting", "rounds", *names], rows)


def record(file: str) -> dict[str, Any]:
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def machine(about: Mapping[str, Any], file: str) -> str:
    """Where, with what and when."""
    threads = f", {about['threads']} threads" if about["device"] == "cpu" else ""
    policy = f", OMP_WAIT_POLICY {about.get('omp_wait_policy') or 'unset'}" if about["device"] == "cpu" else ""
    versions = f"PyTorch {about['torch'].partition('+')[0]}, timm {about['timm']}, entropatch {about['entropatch']}"
    rounds = f", {about['repeats']} rounds" if "repeats" in about else ""
    when = f"{about['date'][:10]}{rounds}"
    return f"*{about['hardware']}{threads}{policy}; {versions}; {when}. Record: `benchmarks/results/{file}`.*"


def column(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None or value == "":
        return "—"
    if not isinstance(value, float):
        return str(value)
    low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
    digits = {"images_per_second": 1, "peak_memory_mib": 1, "gflops": 2}.get(name, 2 if low is None else 3)
    interval = "" if low is None or math.isnan(low) else f" ({low:.{digits}f} … {high:.{digits}f})"
    return f"{value:.{digits}f}{interval}"
