"""The benchmark: dense and pruned variants of one model, measured in turns on one machine, into records."""

from entropatch.bench.bar import bar_sentences
from entropatch.bench.benchmark import BenchResult, run_bench
from entropatch.bench.paper_tables import PAPER_TABLE_3, bench_table, check_table, table_3
from entropatch.bench.settings import BenchSettings
from entropatch.measure.variants import Variant

__all__ = [
    "PAPER_TABLE_3",
    "BenchResult",
    "BenchSettings",
    "Variant",
    "bar_sentences",
    "bench_table",
    "check_table",
    "run_bench",
    "table_3",
]
