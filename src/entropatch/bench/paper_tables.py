"""Records of a benchmark as tables: all rows, or the layout of the paper's Table 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropatch.bench.rows import Record
from entropatch.bench.settings import BenchSettings
from entropatch.criteria import ClassAttention
from entropatch.methods import DENSE, find_method, is_known
from entropatch.records.tables import footnotes, markdown_table
from entropatch.reductions import Fuse
from entropatch.schedule import KeepRate

COLUMNS = {
    "label": "method",
    "target_gflops": "budget",
    "keep_rate": "keep rate",
    "batch_size": "batch",
    "runtime": "runtime",
    "int8": "int8",
    "backend": "backend",
    "gflops": "GFLOPs",
    "images_per_second": "images/s",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "rounds": "rounds",
    "vs_dense": "× dense",
    "vs_dense_interval": "95 %",
    "vs_random": "× random",
    "vs_random_interval": "95 %",
    "vs_torch": "× PyTorch",
    "vs_torch_interval": "95 %",
    "difference": "largest difference",
    "reaches": "reached",
    "peak_memory_mib": "peak MiB",
    "note": "note",
}


def bench_table(records: Sequence[Record]) -> str:
    """The records as a Markdown table, long notes below; columns of backends, intervals and notes only where needed."""
    records = [
        dict(record) | {f"{key}_interval": _interval(record, key) for key in ("vs_dense", "vs_random", "vs_torch")}
        for record in records
    ]
    may_lack = ("int8", "backend", "rounds", "vs_dense_interval", "vs_random_interval", "reaches", "note")
    may_lack += ("target_gflops", "vs_torch", "vs_torch_interval", "difference")
    optional = [key for key in may_lack if not any(record.get(key) for record in records)]
    optional += ["runtime"] * (len({record.get("runtime") for record in records}) == 1)
    shown = {key: head for key, head in COLUMNS.items() if key not in optional}
    formats = {"gflops": ".2f", "images_per_second": ".1f", "p50_ms": ".2f", "p95_ms": ".2f"}
    formats |= {"vs_torch": ".2f", "difference": ".1e", "vs_dense": ".2f", "vs_random": ".3f", "peak_memory_mib": ".1f"}
    rows = [[_format(record.get(key), formats.get(key, "")) for key in shown] for record in records]
    below = ""
    if "note" in shown:
        place = list(shown).index("note")
        notes, below = footnotes([record.get("note") for record in records])
        for row, note in zip(rows, notes, strict=True):
            row[place] = note
    return markdown_table(list(shown.values()), rows) + (f"\n{below}" if below else "")


def _interval(record: Record, key: str) -> str | None:
    low, high = (record.get(f"{key}_{end}") for end in ("low", "high"))
    return None if low is None or high is None else f"{low:.3f} … {high:.3f}"


def _format(value: Any, spec: str) -> Any:
    return format(value, spec) if spec and value is not None else value


# Table 3 of arXiv 2604.03803: DeiT-S, 224 px, throughput on an RTX A6000. (row, keep rate) -> (GFLOPs, images/s); the
# throughputs that are None are not known to this package.
PAPER_MODEL, PAPER_IMAGE_SIZE = "deit_small_patch16_224", 224
PAPER_TABLE_3: Mapping[tuple[str, float | None], tuple[float, int | None]] = {
    ("dense", None): (4.61, None),
    ("evit", 0.7): (3.04, 1947),
    ("evit", 0.5): (2.31, None),
    ("evit", 0.3): (1.82, None),
    ("ours", 0.7): (3.00, 1730),
    ("ours", 0.5): (2.29, None),
    ("ours", 0.3): (1.80, None),
}


def check_table(number: int, settings: BenchSettings) -> None:
    """Raise ValueError unless the settings measure what that table of the paper is about."""
    if number != 3:
        raise ValueError(f"--table must be 3, the paper's table of GFLOPs and throughput, but got {number}.")
    if len(settings.kinds()) > 1:
        raise ValueError(f"Table 3 is of one runtime, but got {', '.join(settings.runtimes)}; leave out the others.")
    if (settings.model, settings.image_size) != (PAPER_MODEL, PAPER_IMAGE_SIZE):
        raise ValueError(
            f"Table 3 is about {PAPER_MODEL} at {PAPER_IMAGE_SIZE} px, "
            f"but got {settings.model} at {settings.image_size} px."
        )
    if not any(_paper_key(variant.method, variant.keep_rate) for variant in settings.variants()):
        at = ", ".join(map(str, settings.keep_rates or settings.target_gflops))
        raise ValueError(
            "Table 3 has rows for dense, evit and the entropy methods at keep rates 0.7, 0.5 and 0.3, "
            f"but got methods {', '.join(settings.methods)} at {at}."
        )


def table_3(records: Sequence[Record]) -> str:
    """Records in the layout of the paper's Table 3, one table per batch size, its figures beside those measured.

    Rows: dense, EViT and the entropy methods measured, at ρ = 0.7, 0.5, 0.3. A cell without a figure is "—".
    """
    texts = []
    for batch_size in dict.fromkeys(record["batch_size"] for record in records):
        keyed = [(_paper_key(record["method"], record["keep_rate"]), record) for record in records]
        rows = [_paper_row(key, record) for key, record in keyed if key and record["batch_size"] == batch_size]
        columns = ["method", "keep rate", "GFLOPs, paper", "GFLOPs", "images/s, paper (RTX A6000)", "images/s"]
        texts.append(
            f"Table 3 of arXiv 2604.03803 beside this run, batch {batch_size}:\n\n{markdown_table(columns, rows)}"
        )
    return "\n".join(texts)


def _paper_key(method: str, keep_rate: float | None) -> tuple[str, float | None] | None:
    """The row of the paper's table that a method belongs to, if any."""
    key = (_paper_name(method), keep_rate)
    return key if key in PAPER_TABLE_3 else None


def _paper_name(method: str) -> str:
    """What the paper calls a method, by what it does; empty for one it has not."""
    if method == DENSE:
        return DENSE
    if not is_known(method):  # a setting
        return ""
    found = find_method(method)
    if found.drops_by_entropy:
        return "ours"
    does = (found.criterion, found.reduction, found.schedule)
    return "evit" if does == (ClassAttention(), Fuse(), KeepRate()) else ""


def _paper_row(key: tuple[str, float | None], record: Record) -> list[Any]:
    gflops, images_per_second = PAPER_TABLE_3[key]
    return [
        f"Ours ({record['label']})" if key[0] == "ours" else record["label"],
        record["keep_rate"],
        f"{gflops:.2f}",
        _format(record["gflops"], ".2f"),
        images_per_second,
        _format(record["images_per_second"], ".1f"),
    ]
