"""Tables of the manual of cost, speed and accuracy together: every method under one budget of multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accuracy_tables import cell, gap, label, place
from evidence import DATA, FREE, TRAINED, by_seed, counted, runs
from methods_page import table
from speed_tables import column, machine, record

from entropatch.records.uncertainty import paired_difference


def one_cost(file: str, rate: str | None = None, size: str | None = None) -> str:
    """Each method of a run of `entropatch bench` under one budget: cost, speed at its batch sizes, and accuracy.

    Args:
        file: of the bench.
        rate: the keep rate of the paper's blocks whose multiply-adds are the budget; without it no accuracy is shown.
        size: of the images, in pixels.
    """
    data = record(file)
    speed, batches = by_batch(data)
    found = None if size is None else runs("cost", "paper", int(size))
    rows = []
    for name in dict.fromkeys(method for method, _ in speed):
        one = speed[name, batches[0]]
        if name != "dense" and one.get("target_gflops") is None:  # it meets no budget
            continue
        key = None if name == "dense" or rate is None else float(rate)
        columns = [] if found is None else [found.get((data_set, key), {}).get(name) for data_set in DATA]
        rows.append(
            [
                one["label"],
                f"{one['gflops']:.2f}",
                *(column(speed[name, batch], "vs_dense") for batch in batches),
                *("—" if bits is None else cell(bits) for bits in columns),
            ]
        )
    heads = [
        "method",
        "GFLOPs",
        *(f"× dense, batch {batch}" for batch in batches),
        *(() if found is None else DATA.values()),
    ]
    return f"{table(heads, rows)}\n\n{machine(data['about'], file)}"


def trained_at_one_cost(data: str, rate: str, size: str, file: str, given: str) -> str:
    """Each method at one cost: speed, accuracy without training, and fine-tuned with it active (seed 0), some longer.

    Args:
        data: the data set.
        rate: the keep rate of the paper's blocks whose multiply-adds are the budget.
        size: of the images, in pixels.
        file: of a run of `entropatch bench` under that budget.
        given: of one of whole settings, that of each data set called "calibrated-" and its name.
    """
    key, pixels = (data, float(rate)), int(size)
    free, cost, grid, own = (by_seed(tag, "paper", pixels)[key] for tag in (FREE, "cost", TRAINED, "cost-trained"))
    untrained = {**free, **cost}
    trained = {name: bits[0] for name, bits in {**grid, **own}.items() if 0 in bits}
    longer, spent = by_seed("cost-longer", "paper", pixels)[key], counted("cost-trained", pixels).get(key, {})
    bench = record(file)
    timed, batches = by_batch(bench)
    for (name, batch), one in by_batch(record(given))[0].items():
        timed.setdefault((name.replace(f"calibrated-{data}", "calibrated"), batch), one)
    rows = []
    for name in sorted(trained, key=place):
        off = paired_difference(trained[name], trained["random"], resamples=0)
        speed = [timed.get((name, batch), {}) for batch in batches]
        gflops = spent.get(name, speed[0].get("gflops"))
        rows.append(
            [
                label(name),
                "" if gflops is None else f"{gflops:.2f}",
                *(column(one, "vs_dense") for one in speed),
                cell(untrained[name][None]) if name in untrained else "—",
                cell(trained[name]),
                "" if name == "random" else gap(off),
                cell(longer[name][0]) if name in longer else "",
            ]
        )
    fast = [f"× dense, batch {batch}" for batch in batches]
    heads = ["method", "GFLOPs", *fast, "without training", "6 epochs", "less random", "30 epochs"]
    return f"{table(heads, rows)}\n\n{machine(bench['about'], file)}"


def by_batch(data: Mapping[str, Any]) -> tuple[dict[tuple[str, int], dict[str, Any]], list[int]]:
    """The rows of a bench whose cost was counted, by method and batch size, and those sizes."""
    rows = {(one["method"], one["batch_size"]): one for one in data["records"] if one["gflops"] is not None}
    return rows, sorted({batch for _, batch in rows})
