"""Where the time of one scored attention at 1024 px goes on the CPU: its parts, beside PyTorch's fused attention.

OMP_WAIT_POLICY=PASSIVE python benchmarks/profile_streaming.py: Markdown on standard output. DeiT-S at 1024 px, one
image: 6 heads, 4096 patches and a class token, head width 64. The parts are those of entropatch.kernels.streaming, each
done alone on all its blocks, as many at a time as there are threads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from entropatch.kernels import streaming
from entropatch.kernels.near_one import power_gap
from entropatch.kernels.streaming import THREAD_LOGITS, WORKER_LOGITS
from entropatch.kernels.workers import number_of_workers, share_out
from entropatch.measure import time_interleaved
from entropatch.records.tables import markdown_table

HEADS, PATCHES, WIDTH, REPEATS = 6, 4096, 64, 20


@dataclass(frozen=True)
class Space:
    """One worker's block: queries, keys and values; logits, weights and their products; a value for each row."""

    q: Tensor
    k: Tensor
    v: Tensor
    x: Tensor
    w: Tensor
    y: Tensor
    z: Tensor
    row: Tensor

    @classmethod
    def of(cls, heads: int, rows: int) -> Space:
        q, (k, v) = torch.randn(heads, rows, WIDTH), torch.randn(2, heads, PATCHES, WIDTH).unbind(0)
        x, w, y, z = torch.rand(4, heads, rows, PATCHES).unbind(0)
        return cls(q, k, v, x, w, y, z, x.amax(-1, keepdim=True))


def main() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, PATCHES + 1, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
    workers = number_of_workers(torch.device("cpu"))
    heads, logits = (1, WORKER_LOGITS) if workers > 1 else (torch.get_num_threads(), THREAD_LOGITS)
    rows = logits // PATCHES
    blocks = HEADS * PATCHES // (heads * rows)
    spaces = [Space.of(heads, rows) for _ in range(workers)]

    def part(work: Callable[[Space], object]) -> Callable[[], object]:
        return lambda: share_out(lambda block, space: work(space), range(blocks), spaces)

    parts = {
        "logits: q · kᵀ": part(lambda s: torch.baddbmm(s.x, s.q, s.k.mT, beta=0, alpha=0.125, out=s.x)),
        "row maximum": part(lambda s: s.x.amax(-1)),
        "less the maximum, to base 2": part(lambda s: s.x.sub_(s.row).mul_(1.0)),
        "exp2": part(lambda s: torch.exp2(s.x, out=s.w)),
        "row sum": part(lambda s: s.w.sum(-1)),
        "output: w · v": part(lambda s: s.w @ s.v),
        "Shannon alone: Σ w · x": part(lambda s: torch.mul(s.x, s.w, out=s.y).sum(-1)),
        "order 2 alone: norm": part(lambda s: torch.linalg.vector_norm(s.w, 2, dim=-1)),
        "order 1.1 alone: Σ w · (w^0.1 - 1)": part(lambda s: power_gap(s.y.copy_(s.x), s.w, 0.1, None)),
        "order 1.01 alone: the series of that": part(lambda s: power_gap(s.y.copy_(s.x), s.w, 0.01, s.z)),
    }
    wholes: dict[str, Callable[[], object]] = {
        "fused attention, no entropy": lambda: F.scaled_dot_product_attention(q, k, v),
        "output and Shannon entropy": lambda: streaming.attend_with_entropy(q, k, v, 1.0, 0.125, 1),
        "output and entropy of order 2": lambda: streaming.attend_with_entropy(q, k, v, 2.0, 0.125, 1),
        "output and entropy of order 1.1": lambda: streaming.attend_with_entropy(q, k, v, 1.1, 0.125, 1),
        "output and entropy of order 1.01": lambda: streaming.attend_with_entropy(q, k, v, 1.01, 0.125, 1),
    }
    whole, alone = (time_interleaved(calls, 1, repeats=REPEATS) for calls in (wholes, parts))
    rows_shown = [[name, f"{timing.p50_ms:.0f}"] for name, timing in whole.items()]
    rows_shown += [[f"part: {name}", f"{timing.p50_ms:.0f}"] for name, timing in alone.items()]
    sys.stdout.write(markdown_table(["4096 patches, 6 heads, one image", "ms"], rows_shown))


if __name__ == "__main__":
    main()
