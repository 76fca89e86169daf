"""Honest measurement: multiply-adds, throughput and latency, peak memory, and what machine they were measured on."""

from entropatch.measure.environment import environment
from entropatch.measure.flops import Flops, count_flops, count_flops_torch
from entropatch.measure.memory import peak_memory
from entropatch.measure.timing import Timing, time_interleaved

__all__ = [
    "Flops",
    "Timing",
    "count_flops",
    "count_flops_torch",
    "environment",
    "peak_memory",
    "time_interleaved",
]
