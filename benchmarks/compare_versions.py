"""Two versions of entropatch against each other: the same models, in turns, each version in a process of its own.

    git worktree add /tmp/before v0.1.0
    OMP_WAIT_POLICY=PASSIVE python benchmarks/compare_versions.py /tmp/before/src src --image-size 224 --batch-size 16

Prints, for each row, the median time of both, and the median ratio new / old of the rounds' pairs with its 95 %
interval (bootstrap over rounds); and the peak memory of one call above what the process held before it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from typing import Any

import numpy as np

ROWS = {
    "dense": None,
    "keep rate 1": {"keep_rate": 1.0},
    "random": {"criterion": "Random(seed=0)"},
    "EViT": {"criterion": "ClassAttention()", "reduction": "fuse"},
    "Shannon": {"order": 1.0},
    "Rényi, order 2": {"order": 2.0},
    "Rényi, order ∞": {"order": float("inf")},
    "class attention × order 2, @2": {"method": "class-renyi-2@2"},
    "ToMe, 8 in every block": {"method": "tome", "keep_rate": None, "r": 8},
}

WORKER = """
import ast, json, sys, time, timm, torch, entropatch
from entropatch import ClassAttention, Random
from entropatch.measure import peak_memory
size, batch, dtype = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rows = ast.literal_eval(sys.argv[4].replace("inf", "1e999"))
torch.manual_seed(0)
images = torch.randn(batch, 3, size, size)
models = {}
for name, fields in rows.items():
    model = timm.create_model("deit_small_patch16_224", img_size=size).eval()
    if fields is not None:
        fields = {k: eval(v) if k == "criterion" else v for k, v in fields.items()}
        fields = {"keep_rate": 0.7} | fields
        entropatch.prune_(model, **{k: v for k, v in fields.items() if v is not None})
    models[name] = model

def run(name):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        models[name](images)

print("ready", flush=True)
for line in sys.stdin:
    what, _, name = line.strip().partition(" ")
    if what == "memory":
        print(peak_memory(lambda: run(name)), flush=True)
    else:
        start = time.perf_counter()
        run(name)
        print(time.perf_counter() - start, flush=True)
"""


class Version:
    """A process that runs one version's models on request."""

    def __init__(self, source: str, arguments: list[str]):
        environment = os.environ | {"PYTHONPATH": source}
        self.process: Any = subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline().strip() == "ready"

    def ask(self, what: str, name: str) -> str:
        self.process.stdin.write(f"{what} {name}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (draws, len(ratios))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="source folder of the one version")
    parser.add_argument("new", help="source folder of the other")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    arguments = [str(given.image_size), str(given.batch_size), given.dtype, repr(ROWS)]
    versions = {"old": Version(given.old, arguments), "new": Version(given.new, arguments)}
    times: dict[str, dict[str, list[float]]] = {name: {"old": [], "new": []} for name in ROWS}
    for turn in range(-1, given.rounds):  # the first is a warm-up
        order = ("old", "new") if turn % 2 else ("new", "old")
        for name in ROWS:
            for which in order:
                seconds = float(versions[which].ask("time", name))
                if turn >= 0:
                    times[name][which].append(seconds)
    show(f"{given.image_size} px, batch {given.batch_size}, {given.dtype}, {given.rounds} rounds")
    show("| row | old ms | new ms | new / old | 95 % | old MB | new MB |\n|---|--:|--:|--:|--:|--:|--:|")
    for name in ROWS:
        old, new = times[name]["old"], times[name]["new"]
        ratios = [b / a for a, b in zip(old, new, strict=True)]
        low, high = interval(ratios)
        memory = [versions[which].ask("memory", name) for which in ("old", "new")]
        shown = [f"{float(value) / 1e6:.1f}" if value.replace(".", "").isdigit() else value for value in memory]
        show(
            f"| {name} | {1e3 * statistics.median(old):.1f} | {1e3 * statistics.median(new):.1f} "
            f"| {statistics.median(ratios):.3f} | {low:.3f} … {high:.3f} | {' | '.join(shown)} |"
        )


if __name__ == "__main__":
    main()
