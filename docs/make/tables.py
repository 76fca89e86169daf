"""Tables of the manual from the committed records: `<!-- make: numbers NAME ARGUMENT… -->`."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from evidence import DATA, FREE, RESULTS, TRAINED, Bits, by_seed, counted, runs
from methods_page import table

from entropatch import PruneConfig
from entropatch.methods import METHODS, find_method, method_label
from entropatch.records.uncertainty import Estimate, accuracy, ahead, of_shared_seeds, paired_difference


def made(request: str) -> str:
    """The table that a page asks for. Raises KeyError for one that is not known."""
    name, *arguments = shlex.split(request)
    return TABLES[name](*arguments)


def top1(tag: str, blocks: str = "paper", size: str = "196") -> str:
    """Accuracy by method and keep rate on both data sets; bold what is ahead of all others by two paired errors."""
    found = runs(tag, blocks, int(size))
    keys = [(data, rate) for data in DATA for rate in (0.7, 0.5, 0.3)]
    names = sorted({name for key in keys for name in found.get(key, {})}, key=_place)
    seeds = by_seed(tag, blocks, int(size))
    best = {key: _ahead_of_all(seeds[key]) for key in keys if key in found}
    rows = [["dense", *(_cell(found[data, None]["dense"]) if rate == 0.7 else "" for data, rate in keys)]]
    for name in names:
        cells = [_cell(found[key][name]) if name in found.get(key, {}) else "—" for key in keys]
        rows.append(
            [
                _label(name),
                *(f"**{cell}**" if best.get(key) == name else cell for key, cell in zip(keys, cells, strict=True)),
            ]
        )
    return table(["ρ at its blocks", *(f"{DATA[data]} {rate:g}" for data, rate in keys)], rows)


def less_random(tag: str, blocks: str = "paper", size: str = "196") -> str:
    """What each method's accuracy is above that of random pruning, on the same images."""
    found = by_seed(tag, blocks, int(size))
    keys = [(data, rate) for data in DATA for rate in (0.7, 0.5, 0.3)]
    names = sorted({name for key in keys for name in found.get(key, {})} - {"random"}, key=_place)
    rows = []
    for name in names:
        row = [_label(name)]
        for key in keys:
            column = found.get(key, {})
            if name not in column or "random" not in column:
                row.append("—")
                continue
            off = paired_difference(*of_shared_seeds(column[name], column["random"]), resamples=0)
            row.append(_gap(off))
        rows.append(row)
    return table(["less random", *(f"{DATA[data]} {rate:g}" for data, rate in keys)], rows)


def penalty() -> str:
    """Classifiers trained with and without the entropy penalty at 112 px, pruned at 0.5 without training for it."""
    names = {"random": "random", "evit": "EViT", "shannon": "Shannon", "renyi-inf": "order ∞"}
    rows = []
    for data, label in DATA.items():
        for arm in ("plain", "lower", "higher"):
            found = runs(f"entropy-{arm}", size=112)
            column = found[data, 0.5]
            off = paired_difference(column["shannon"], column["random"], resamples=0)
            dense = _cell(found[data, None]["dense"])
            rows.append([f"{label}, {arm}", dense, *(_cell(column[name]) for name in names), _gap(off)])
    return table(["trained", "dense", *names.values(), "Shannon less random"], rows)


def calibration(name: str = "calibration") -> str:
    """What calibration chose under the multiply-adds of each keep rate, and its loss on images held out.

    Args:
        name: of the folder of records below evidence.
    """
    rows = []
    for data, label in DATA.items():
        for rate in ("0.7", "0.5", "0.3"):
            folder = RESULTS / f"evidence/{name}/{data}-{rate}"
            if not folder.exists():
                continue
            config = PruneConfig.load(folder / "calibrated.json")
            held = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))["records"]
            losses = {one["name"]: one for one in held if one["part"] == "budget"}
            own, chance = losses["calibrated"], losses["random"]
            rates = config.keep_rate if isinstance(config.keep_rate, tuple) else (config.keep_rate,)
            by = config.label.split(" → ")
            by *= len(rates) if len(by) == 1 else 1
            stages = zip(config.blocks or (), rates, by, strict=True)
            rows.append(
                [
                    f"{label}, {own['cost']:.2f} GFLOPs",
                    "<br>".join(f"{block}: {share:.2f} by {what}" for block, share, what in stages),
                    f"{own['loss']:.4f} ± {own['standard_error']:.4f}",
                    f"{chance['loss']:.4f} ± {chance['standard_error']:.4f}",
                ]
            )
    return table(["budget", "block: keep rate", "KL", "random's"], rows, "---")


def bench(file: str, *columns: str) -> str:
    """Rows of `entropatch bench`: method, keep rate, and the columns asked for; then on what it was measured."""
    data = _record(file)
    records = [one for one in data["records"] if not one["note"]]
    rows = [
        [
            one["label"],
            "—" if one["keep_rate"] is None else f"{one['keep_rate']:g}",
            *(_column(one, c) for c in columns),
        ]
        for one in records
    ]
    heads = [HEADS.get(name, name) for name in columns]
    return f"{table(['method', 'keep rate', *heads], rows)}\n\n{machine(data['about'], file)}"


def one_cost(file: str, rate: str, size: str) -> str:
    """Each method of a run of `entropatch bench` under one budget: cost, speed at its batch sizes, and accuracy.

    Args:
        file: of the bench.
        rate: the keep rate of the paper's blocks whose multiply-adds are the budget.
        size: of the images, in pixels.
    """
    data = _record(file)
    speed = {(one["method"], one["batch_size"]): one for one in data["records"] if one["gflops"] is not None}
    batches = sorted({batch for _, batch in speed})
    found = runs("cost", "paper", int(size))
    rows = []
    for name in dict.fromkeys(method for method, _ in speed):
        one = speed[name, batches[0]]
        if name != "dense" and one.get("target_gflops") is None:  # it meets no budget
            continue
        key = None if name == "dense" else float(rate)
        columns = [found.get((data_set, key), {}).get(name) for data_set in DATA]
        rows.append(
            [
                one["label"],
                f"{one['gflops']:.2f}",
                *(_column(speed[name, batch], "vs_dense") for batch in batches),
                *("—" if bits is None else _cell(bits) for bits in columns),
            ]
        )
    heads = ["method", "GFLOPs", *(f"× dense, batch {batch}" for batch in batches), *DATA.values()]
    return f"{table(heads, rows)}\n\n{machine(data['about'], file)}"


def trained_at_one_cost(data: str, rate: str, size: str) -> str:
    """Each method at one cost, without training and fine-tuned with it active (seed 0), on the same images.

    Args:
        data: the data set.
        rate: the keep rate of the paper's blocks whose multiply-adds are the budget.
        size: of the images, in pixels.
    """
    key, pixels = (data, float(rate)), int(size)
    free, cost, grid, own = (by_seed(tag, "paper", pixels)[key] for tag in (FREE, "cost", TRAINED, "cost-trained"))
    untrained = {**cost, **free, **{name: cost[name] for name in own if name in cost}}
    trained = {name: bits[0] for name, bits in {**grid, **own}.items() if 0 in bits}
    spent = counted("cost-trained", pixels).get(key, {})
    rows = []
    for name in sorted(trained, key=_place):
        off = paired_difference(trained[name], trained["random"], resamples=0)
        rows.append(
            [
                _label(name),
                f"{spent[name]:.2f}" if name in spent else "",
                _cell(untrained[name][None]) if name in untrained else "—",
                _cell(trained[name]),
                "" if name == "random" else _gap(off),
            ]
        )
    return table(["method", "GFLOPs, where counted", "without training", "fine-tuned", "less random"], rows)


def statements(file: str) -> str:
    """What an import takes."""
    data = _record(file)
    rows = [[f"`{one['statement']}`", f"{one['p50_ms']:.0f}", f"{one['ratio']:.3f}"] for one in data["records"]]
    return f"{table(['statement', 'ms, median', 'ratio'], rows)}\n\n{machine(data['about'], file)}"


def scoring(*files: str) -> str:
    """images/s over those of random pruning, by record."""
    names: list[str] = []
    rows = []
    for file in files:
        data = _record(file)
        about = data["about"]
        scored = [one for one in data["records"] if one["method"] not in ("dense", "random")]
        names = [one["label"] for one in scored]
        batch, rounds = scored[0]["batch_size"], scored[0]["rounds"]
        policy = "" if about["device"] != "cpu" else f", OMP_WAIT_POLICY {about['omp_wait_policy'] or 'unset'}"
        what = f"{about['hardware']}, {about['image_size']} px, batch {batch}, {about['dtype']}{policy}"
        rows.append([what, str(rounds), *(_column(one, "vs_random") for one in scored)])
    return table(["machine and setting", "rounds", *names], rows)


def _record(file: str) -> dict[str, Any]:
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def machine(about: Mapping[str, Any], file: str) -> str:
    """Where, with what and when."""
    threads = f", {about['threads']} threads" if about["device"] == "cpu" else ""
    policy = f", OMP_WAIT_POLICY {about.get('omp_wait_policy') or 'unset'}" if about["device"] == "cpu" else ""
    versions = f"PyTorch {about['torch'].partition('+')[0]}, timm {about['timm']}, entropatch {about['entropatch']}"
    rounds = f", {about['repeats']} rounds" if "repeats" in about else ""
    when = f"{about['date'][:10]}{rounds}"
    return f"*{about['hardware']}{threads}{policy}; {versions}; {when}. Record: `benchmarks/results/{file}`.*"


HEADS = {
    "batch_size": "batch",
    "gflops": "GFLOPs",
    "images_per_second": "images/s",
    "int8": "8 bits",
    "peak_memory_mib": "peak MiB",
    "vs_dense": "× dense",
    "vs_random": "× random",
}


def _column(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None or value == "":
        return "—"
    if not isinstance(value, float):
        return str(value)
    low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
    digits = {"images_per_second": 1, "peak_memory_mib": 1, "gflops": 2}.get(name, 2 if low is None else 3)
    interval = "" if low is None or math.isnan(low) else f" ({low:.{digits}f} … {high:.{digits}f})"
    return f"{value:.{digits}f}{interval}"


def _ahead_of_all(column: dict[str, dict[Any, Bits]]) -> str | None:
    best = max(column, key=lambda name: np.mean([bits.mean() for bits in column[name].values()]))
    return best if all(ahead(*of_shared_seeds(column[best], column[name])) for name in column if name != best) else None


def _cell(correct: Bits) -> str:
    found = accuracy(correct)
    seeds = f"<sup> ×{found.seeds}</sup>" if found.seeds > 1 else ""
    return f"{found.value:.1f} ± {found.standard_error:.1f}{seeds}"


def _gap(off: Estimate) -> str:
    return f"{off.value:+.1f} ± {off.standard_error:.1f}".replace("-", "−")


def _place(name: str) -> tuple[float, str]:
    if name in SETTINGS:
        return ({"calibrated": 1000.0, "tome-falling": 31.0}.get(name, 65.0), name)
    return METHODS[name].sort_key if name in METHODS else find_method(name).sort_key


def _label(name: str) -> str:
    return SETTINGS.get(name) or method_label(name)


SETTINGS = {  # not methods by name
    "calibrated": "calibrated",
    "tome-falling": "ToMe, fewer from block to block",
    "class-cover-merge": "Class attention, the best of each 2 × 2, merged",
    "class-renyi-2-cover-merge": "Class attention × Rényi, order 2, the best of each 2 × 2, merged",
    "col-ln-cover-merge": "Col-Ln, the best of each 2 × 2, merged",
    "renyi-2-cover-merge": "Rényi, order 2, the best of each 2 × 2, merged",
}
TABLES: dict[str, Callable[..., str]] = {
    "top1": top1,
    "less-random": less_random,
    "calibration": calibration,
    "penalty": penalty,
    "bench": bench,
    "one-cost": one_cost,
    "trained-at-one-cost": trained_at_one_cost,
    "scoring": scoring,
    "statements": statements,
}

if __name__ == "__main__":
    import sys

    print(made(" ".join(sys.argv[1:])))  # noqa: T201
