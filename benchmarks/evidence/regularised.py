"""Does training with the entropy penalty make entropy a better criterion? Dense classifiers trained further with and
without it, then pruned without any training.

    python benchmarks/evidence/regularised.py --data imagenette --root FOLDER --weights CLASSIFIER --output RECORDS

Each arm and seed trains the same dense classifier with the grid's recipe, then is tested dense and under every method
and keep rate. The lines of RECORDS/*.jsonl are those of grid.py, the arm as their tag; entropies are noted beside.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from cells import cells
from grid import opened, recipe_of

from entropatch import entropy_penalty
from entropatch.measure import environment

# Mean entropy over log n before is 0.57, 0.76 and 0.83 at the blocks that prune.
ARMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "lower": {"target": 0.5, "side": "above", "blocks": (3, 6, 9)},
    "higher": {"target": 0.9, "side": "below", "blocks": (3, 6, 9)},
}


def main(
    data: Annotated[str, typer.Option(help="Name of the data set, for the records.")],
    root: Annotated[Path, typer.Option(help="Its folder.")],
    weights: Annotated[Path, typer.Option(help="The dense classifier all arms start from.")],
    output: Annotated[Path, typer.Option(help="Folder of the records.")],
    size: int = 196,
    model: str = "vit_small_patch14_dinov2",
    methods: str = "random,evit,shannon,renyi-2,renyi-inf",
    keep_rates: str = "0.7,0.5,0.3",
    seeds: str = "0,1,2",
    arms: str = ",".join(ARMS),
    weight: Annotated[float, typer.Option(help="Of the penalty in the loss.")] = 3.0,
    epochs: int = 6,
    batch_size: int = 128,
    learning_rate: float = 8e-4,
    layer_decay: float = 0.75,
    weight_decay: float = 0.02,
    precision: str = "bfloat16",
    device: str = "cuda",
    lane: str = "0/1",
    deadline: float | None = None,
    cache: Path = Path("/tmp/entropatch-pixels"),
    workers: int = 0,
) -> None:
    """Train the arms that have no record yet, and test them."""
    began = time.monotonic()
    recipe = recipe_of(epochs, batch_size, size, learning_rate, weight_decay, layer_decay, precision)
    bench = opened(data, root, weights, model, recipe, device, cache, workers, False)
    bench.entropy_weight = weight
    number, count = map(int, lane.split("/"))
    runs = [(arm, int(seed)) for seed in seeds.split(",") for arm in arms.split(",")]
    rates = [float(rate) for rate in keep_rates.split(",")]
    output.mkdir(parents=True, exist_ok=True)
    for arm, seed in runs[number::count]:
        file = output / f"entropy-{arm}-{data}-{size}-{seed}.jsonl"
        if file.exists() or (deadline is not None and time.monotonic() - began > deadline):
            continue
        bench.entropy = ARMS[arm]
        trained = copy.deepcopy(bench.model)
        curve = list(bench.train(trained, seed, None, None))
        about = {
            "data": data, "size": size, "model": model, "tag": f"entropy-{arm}", "arm": ARMS[arm], "weight": weight,
            "recipe": recipe.to_dict(), "curve": curve, "entropies": _entropies(bench, trained),
            "machine": environment(bench.device),
        }  # fmt: skip
        lines = []
        for cell, setting in cells(["dense", *methods.split(",")], rates, [seed], ["paper"], {}).items():
            found = bench.test(copy.deepcopy(trained), setting, seed)
            text = None if setting is None else setting.to_dict()
            lines.append(json.dumps({**cell.__dict__, "config": text, "seconds": 0.0, **found, **about}) + "\n")
        draft = file.with_suffix(".draft")
        draft.write_text("".join(lines))
        draft.rename(file)
        typer.echo(f"{arm} {seed}: {about['entropies']} {[json.loads(line)['top1'] for line in lines]}")


def _entropies(bench: Any, model: torch.nn.Module) -> list[float]:
    """Mean normalised entropy of each block on 128 test images."""
    with torch.no_grad(), entropy_penalty(model.eval(), target=0.5) as penalty:
        model(bench.pixels["test"][:128].to(bench.device))
    return [round(float(mean.mean()), 4) for _, mean in sorted(penalty.means.items())]


if __name__ == "__main__":
    typer.run(main)
