"""Tables of the manual of accuracy: which test images came out right, by method, data set and keep rate."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from evidence import DATA, FREE, RESULTS, TRAINED, Bits, by_seed, runs, stacked
from methods_page import table

from entropatch import PruneConfig
from entropatch.methods import METHODS, find_method, method_label
from entropatch.records.uncertainty import Estimate, accuracy, ahead, of_shared_seeds, paired_difference

SETTINGS_OF_BOTH = {"calibrated", "tome-falling"}
SETTINGS = {  # not methods by name
    "calibrated": "calibrated",
    "tome-falling": "ToMe, fewer from block to block",
    "star": "STAR",
    "class-cover-merge": "Class attention, the best of each 2 × 2, merged",
    "class-renyi-2-cover-merge": "Class attention × Rényi, order 2, the best of each 2 × 2, merged",
    "col-ln-cover-merge": "Col-Ln, the best of each 2 × 2, merged",
    "renyi-2-cover-merge": "Rényi, order 2, the best of each 2 × 2, merged",
}


def top1(tag: str, blocks: str = "paper", size: str = "196", rates: str = "0.7,0.5,0.3") -> str:
    """Accuracy by method and keep rate on both data sets; bold what is ahead of all others by two paired errors."""
    found = _beside(tag, blocks, int(size))
    keys = [(data, float(rate)) for data in DATA for rate in rates.split(",")]
    names = sorted({name for key in keys for name in found.get(key, {})}, key=place)
    best = {key: _ahead_of_all(found[key]) for key in keys if key in found}
    rows = [
        ["dense", *(cell(stacked(found[data, None]["dense"])) if rate == keys[0][1] else "" for data, rate in keys)]
    ]
    for name in names:
        cells = [cell(stacked(found[key][name])) if name in found.get(key, {}) else "—" for key in keys]
        rows.append(
            [
                label(name),
                *(f"**{cell}**" if best.get(key) == name else cell for key, cell in zip(keys, cells, strict=True)),
            ]
        )
    return table(["ρ at its blocks", *(f"{DATA[data]} {rate:g}" for data, rate in keys)], rows)


def _beside(tag: str, blocks: str, size: int) -> dict[tuple[str, float | None], dict[str, dict[Any, Bits]]]:
    """What was found under a tag, and without training calibrated and ToMe whichever table has them."""
    found = {key: dict(column) for key, column in by_seed(tag, blocks, size).items()}
    other = {FREE: "cost", "cost": FREE}.get(tag)
    if other is not None:
        for key, column in by_seed(other, blocks, size).items():
            for name in SETTINGS_OF_BOTH & set(column):
                found.setdefault(key, {}).setdefault(name, column[name])
    return found


def less_random(tag: str, blocks: str = "paper", size: str = "196") -> str:
    """What each method's accuracy is above that of random pruning, on the same images."""
    found = by_seed(tag, blocks, int(size))
    keys = [(data, rate) for data in DATA for rate in (0.7, 0.5, 0.3)]
    names = sorted({name for key in keys for name in found.get(key, {})} - {"random"}, key=place)
    rows = []
    for name in names:
        row = [label(name)]
        for key in keys:
            column = found.get(key, {})
            if name not in column or "random" not in column:
                row.append("—")
                continue
            off = paired_difference(*of_shared_seeds(column[name], column["random"]), resamples=0)
            row.append(gap(off))
        rows.append(row)
    return table(["less random", *(f"{DATA[data]} {rate:g}" for data, rate in keys)], rows)


def penalty() -> str:
    """Classifiers trained with and without the entropy penalty at 112 px, pruned at 0.5 without training for it."""
    names = {"random": "random", "evit": "EViT", "shannon": "Shannon", "renyi-inf": "order ∞"}
    rows = []
    for data, title in DATA.items():
        for arm in ("plain", "lower", "higher"):
            found = runs(f"entropy-{arm}", size=112)
            column = found[data, 0.5]
            off = paired_difference(column["shannon"], column["random"], resamples=0)
            dense = cell(found[data, None]["dense"])
            rows.append([f"{title}, {arm}", dense, *(cell(column[name]) for name in names), gap(off)])
    return table(["trained", "dense", *names.values(), "Shannon less random"], rows)


def calibration(name: str = "calibration") -> str:
    """What calibration chose under the multiply-adds of each keep rate, and its loss on images held out.

    Args:
        name: of the folder of records below evidence.
    """
    rows = []
    for data, title in DATA.items():
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
                    f"{title}, {own['cost']:.2f} GFLOPs",
                    "<br>".join(f"{block}: {share:.2f} by {what}" for block, share, what in stages),
                    f"{own['loss']:.4f} ± {own['standard_error']:.4f}",
                    f"{chance['loss']:.4f} ± {chance['standard_error']:.4f}",
                ]
            )
    return table(["budget", "block: keep rate", "KL", "random's"], rows, "---")


def longer(rate: str, size: str) -> str:
    """Three times the epochs: accuracy of seed 0 after six and after eighteen, and the paired difference."""
    six, more = (by_seed(tag, "paper", int(size)) for tag in (TRAINED, "plateau"))
    rows = []
    for name in [*sorted(more["caltech101", float(rate)], key=place), "dense"]:
        row = ["dense" if name == "dense" else label(name)]
        for data in DATA:
            key = (data, None if name == "dense" else float(rate))
            after, before = more[key][name][0], six[key][name].get(0)
            row += ["—" if before is None else cell(before), cell(after)]
            row.append("—" if before is None else gap(paired_difference(after, before, resamples=0)))
        rows.append(row)
    heads = [head for data in DATA.values() for head in (f"{data}, 6 epochs", "18 epochs", "gained")]
    return table(["method", *heads], rows)


def _ahead_of_all(column: dict[str, dict[Any, Bits]]) -> str | None:
    best = max(column, key=lambda name: np.mean([bits.mean() for bits in column[name].values()]))
    return best if all(ahead(*of_shared_seeds(column[best], column[name])) for name in column if name != best) else None


def cell(correct: Bits) -> str:
    found = accuracy(correct)
    seeds = f"<sup> ×{found.seeds}</sup>" if found.seeds > 1 else ""
    return f"{found.value:.1f} ± {found.standard_error:.1f}{seeds}"


def gap(off: Estimate) -> str:
    return f"{off.value:+.1f} ± {off.standard_error:.1f}".replace("-", "−")


def place(name: str) -> tuple[float, str]:
    if name in SETTINGS:
        return ({"calibrated": 1000.0, "tome-falling": 31.0}.get(name, 65.0), name)
    return METHODS[name].sort_key if name in METHODS else find_method(name).sort_key


def label(name: str) -> str:
    return SETTINGS.get(name) or method_label(name)
