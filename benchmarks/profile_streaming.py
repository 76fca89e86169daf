"""Where the time of one scored attention at 1024 px goes on the CPU: its parts, beside PyTorch's fused attention.

python benchmarks/profile_streaming.py: Markdown on standard output. DeiT-S at 1024 px, one image: 6 heads, 4096 patches
and a class token, head width 64. The parts are those of entropatch.kernels.streaming, at its block size, timed alone
and multiplied by the number of blocks.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from entropatch.kernels import streaming
from entropatch.tables import markdown_table

HEADS, PATCHES, WIDTH, REPEATS = 6, 4096, 64, 20


def timed(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each call, median, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(taken[1:]) for name, taken in seconds.items()}


def main() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, PATCHES + 1, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
    rows, together = streaming.BLOCK_LOGITS // PATCHES, torch.get_num_threads()
    queries, keys, values = torch.randn(3, together, PATCHES, WIDTH).unbind(0)
    x, w = torch.randn(2, together, rows, PATCHES).unbind(0)
    shift, queries = x.amax(-1, keepdim=True), queries[:, :rows]
    parts: dict[str, Callable[[], object]] = {
        "logits: q · kᵀ": lambda: torch.baddbmm(x, queries, keys.transpose(1, 2), beta=0, alpha=0.125, out=x),
        "row maximum": lambda: x.amax(-1),
        "less the maximum, to base 2": lambda: x.sub_(shift).mul_(1.0),
        "exp2": lambda: torch.exp2(x, out=w),
        "row sum": lambda: w.sum(-1),
        "output: w · v": lambda: w @ values,
        "Shannon alone: Σ w · x": lambda: torch.mul(x, w, out=x).sum(-1),
        "order 2 alone: norm": lambda: torch.linalg.vector_norm(w, 2, dim=-1),
    }
    wholes: dict[str, Callable[[], object]] = {
        "fused attention, no entropy": lambda: F.scaled_dot_product_attention(q, k, v),
        "output and Shannon entropy": lambda: streaming.attend_with_entropy(q, k, v, 1.0, 0.125, 1),
        "output and entropy of order 2": lambda: streaming.attend_with_entropy(q, k, v, 2.0, 0.125, 1),
    }
    with torch.inference_mode():
        whole, part = timed(wholes), timed(parts)
    blocks = HEADS * PATCHES / (together * rows)
    rows_shown = [[name, f"{ms:.0f}"] for name, ms in whole.items()]
    rows_shown += [[f"part: {name}", f"{ms * blocks:.0f}"] for name, ms in part.items()]
    sys.stdout.write(markdown_table(["4096 patches, 6 heads, one image", "ms"], rows_shown))


if __name__ == "__main__":
    main()
