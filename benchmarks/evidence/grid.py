"""The paper's protocol on a classifier of photographs: every method at every keep rate, fine-tuned with the pruning
active, and tested without any training. Methods with weights of their own learn by their own loss beside the cross
entropy, and where that has a teacher, from the dense classifier, as DynamicViT's recipe does.

    python benchmarks/evidence/grid.py --data imagenette --root FOLDER --weights CLASSIFIER --output RECORDS

Each cell starts from the same dense classifier. A cell is a line of RECORDS/*.jsonl with the setting, the accuracy and,
as packed bits in base 64, which test images were right; a cell that has its line is not computed again, so an
interrupted run goes on where it stopped. Several processes share the work: --lane 0/4, 1/4, … on one device. With
--like benchmarks/results/evidence/records the cells are those that the records there have, with their settings.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from cells import Wanted, cells, recorded, repeated
from pixels import packed, random_crops
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from entropatch import PruneConfig, entropy_penalty, method_loss, prune_
from entropatch.criteria import Random
from entropatch.data.batches import TrainingBatches
from entropatch.data.loaders import data_config
from entropatch.data.seeding import derived_seed, set_seeds
from entropatch.learning import learned_criterion
from entropatch.measure import count_flops, environment
from entropatch.models.checkpoint import save_weights
from entropatch.models.spec import ModelSpec
from entropatch.records.correct import packed as packed_bits
from entropatch.surgery import is_pruned, pruning_config
from entropatch.train.loss import TrainingLoss
from entropatch.train.optimisation import optimizer_of, schedule_of
from entropatch.train.recipe import RECIPES, Recipe

METHODS = "random,evit,evit-drop,renyi-0.5,shannon,renyi-2,renyi-4,renyi-inf,class-renyi-2"
KEEP_RATES = [0.9, 0.7, 0.5, 0.3]
SEEDS: list[int | None] = [0, 1, 2]
TEST_BATCH = 256


@dataclass
class Bench:
    """What all cells of one process share: the dense classifier on the device, the images there, and the recipe; with
    a weight, also an `entropatch.entropy_penalty` of the given settings."""

    spec: ModelSpec
    model: nn.Module
    pixels: dict[str, Tensor]
    recipe: Recipe
    device: torch.device
    curve: bool
    entropy: dict[str, Any] | None = None
    entropy_weight: float = 0.0

    def autocast(self) -> Any:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.recipe.precision))

    def attention(self) -> Any:
        """On a CPU the backward pass of PyTorch's fused attention is slow at these sizes: without it a step takes
        three quarters of the time."""
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()

    def penalised(self, model: nn.Module) -> Any:
        return nullcontext() if self.entropy is None else entropy_penalty(model, **self.entropy)

    def taught(self, model: nn.Module, config: PruneConfig | None) -> tuple[Any, nn.Module | None, Recipe]:
        """What gathers a method's own loss, the dense classifier where that asks for one, and the recipe with it."""
        criterion = learned_criterion(config)
        if criterion is None:
            return nullcontext(), None, self.recipe
        if not criterion.teaches:
            return method_loss(model), None, self.recipe
        teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        recipe = replace(self.recipe, distillation=RECIPES["dynamicvit"].distillation)
        return method_loss(model, teacher), teacher, recipe

    def correct(self, model: nn.Module) -> Tensor:
        """Which test images are right, in float32: (images,), bool."""
        model.eval()
        with torch.no_grad():
            set_seeds(0)
            found = [model(images.to(self.device)).argmax(1).cpu() for images in self.pixels["test"].split(TEST_BATCH)]
        return torch.cat(found) == self.pixels["test_labels"]

    def run(self, config: PruneConfig | None, seed: int | None, saved: Path | None = None) -> dict[str, Any]:
        """A cell's results; the trained weights are written to the file `saved`."""
        model = copy.deepcopy(self.model)
        started, curve = time.monotonic(), []
        if seed is not None:
            curve = list(self.train(model, seed, chance(config, None), chance(config, seed)))
        if saved is not None:
            save_weights(model, saved, {"model": self.spec.to_dict()})
        return {**self.test(model, config, seed or 0), "seconds": time.monotonic() - started, "curve": curve}

    def test(self, model: nn.Module, config: PruneConfig | None, seed: int) -> dict[str, Any]:
        """The accuracy under a setting, and which images were right."""
        set_pruning(model, chance(config, seed))
        correct = self.correct(model)
        found = {
            "top1": 100 * correct.float().mean().item(),
            "images": len(correct),
            "correct": packed_bits(correct.numpy()),
        }
        if config is not None and config.schedule.per_image:  # what its images cost is not in its setting
            found["gflops"] = count_flops(model, self.pixels["test"][:TEST_BATCH].to(self.device)).total / 1e9
        return found

    def train(
        self, model: nn.Module, seed: int, trained: PruneConfig | None, tested: PruneConfig | None
    ) -> Iterator[dict[str, float]]:
        """Train; after each epoch its mean loss and, half way or where the curve is wanted, the accuracy so far."""
        batches = TrainingBatches(len(self.pixels["train"]), self.recipe.batch_size, seed)
        set_pruning(model, trained)  # before the optimizer, which must know weights that the method brings
        own, teacher, recipe = self.taught(model, trained)
        optimizer = optimizer_of(model, recipe)
        schedule = schedule_of(optimizer, recipe, batches.steps_per_epoch)
        loss_of = TrainingLoss(recipe, int(self.pixels["train_labels"].max()) + 1, teacher)
        config = data_config(model, recipe.image_size)
        mean, std = (torch.tensor(config[name], device=self.device).view(3, 1, 1) for name in ("mean", "std"))
        with own as method, self.attention():
            for epoch in range(recipe.epochs):
                model.train()
                set_pruning(model, trained)
                batches.start(epoch)
                total = torch.zeros((), device=self.device)
                for step, piece in enumerate(batches):
                    numbers = torch.tensor([number for _, number in piece])
                    set_seeds(derived_seed(seed, epoch, step, 1))
                    crops = self.crops(numbers, mean, std, derived_seed(seed, epoch, step))
                    labels = self.pixels["train_labels"][numbers].to(self.device)
                    schedule.step_update(epoch * batches.steps_per_epoch + step)
                    crops, targets = loss_of.mix(crops, labels, derived_seed(seed, epoch, step, 0))
                    loss = self.loss(model, crops, targets, loss_of, method)
                    loss.backward()
                    if recipe.clip_norm is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    total += loss.detach()
                point = {"epoch": epoch + 1, "loss": round(float(total) / batches.steps_per_epoch, 4)}
                if self.curve or epoch + 1 == recipe.epochs // 2:
                    set_pruning(model, tested)
                    point["top1"] = 100 * self.correct(model).float().mean().item()
                yield point

    def crops(self, numbers: Tensor, mean: Tensor, std: Tensor, seed: int) -> Tensor:
        """Random crops of training images, normalised."""
        images, generator = self.pixels["train"][numbers].to(self.device), torch.Generator().manual_seed(seed)
        return random_crops(images, self.recipe.image_size, self.recipe.crop_scale, mean, std, generator)

    def loss(self, model: nn.Module, crops: Tensor, targets: Tensor, loss_of: TrainingLoss, method: Any) -> Tensor:
        """The recipe's loss, with the penalty and the method's own loss where there are such."""
        with self.autocast(), self.penalised(model) as penalty:
            loss = loss_of(model(crops), targets, crops)
            if penalty is not None:
                loss = loss + self.entropy_weight * penalty.value
            return loss if method is None else loss + method.value(targets)


def set_pruning(model: nn.Module, config: PruneConfig | None) -> None:
    """Prune by a setting that is not the model's already; weights that the method brought stay."""
    if config is not None and not (is_pruned(model) and pruning_config(model) == config):
        prune_(model, config)


def chance(config: PruneConfig | None, seed: int | None) -> PruneConfig | None:
    """The setting, chance drawing anew at every step (None) or from a seed."""
    if config is None or not isinstance(config.criterion, Random):
        return config
    return replace(config, criterion=Random(seed))


def recipe_of(
    epochs: int,
    batch_size: int,
    size: int,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float,
    precision: str,
) -> Recipe:
    """The recipe of every cell."""
    return Recipe(
        epochs=epochs, batch_size=batch_size, image_size=size, learning_rate=learning_rate,
        minimum_learning_rate=learning_rate / 100, weight_decay=weight_decay, layer_decay=layer_decay, clip_norm=1.0,
        crop_scale=(0.4, 1.0), mixup=0.0, cutmix=0.0, random_erasing=0.0, precision=precision,
    )  # fmt: skip


def opened(
    data: str,
    root: Path,
    weights: Path,
    model: str,
    recipe: Recipe,
    device: str,
    cache: Path,
    workers: int,
    curve: bool,
) -> Bench:
    """The dense classifier and the images, on the device."""
    torch.backends.cuda.matmul.allow_tf32 = False
    place = torch.device(device)
    spec = ModelSpec(model, str(weights), 0.0)
    dense = spec.build(None, recipe.image_size, strict=True).to(place)
    pixels = dict(packed(cache, data, root, recipe.image_size, dense, workers))
    if place.type == "cuda":
        pixels = {name: tensor.to(place) if name in ("train", "test") else tensor for name, tensor in pixels.items()}
    return Bench(spec, dense, pixels, recipe, place, curve)


def main(
    data: Annotated[str, typer.Option(help="Name of the data set, for the records.")],
    root: Annotated[Path, typer.Option(help="Its folder.")],
    weights: Annotated[Path, typer.Option(help="The dense classifier all cells start from.")],
    output: Annotated[Path, typer.Option(help="Folder of the records.")],
    size: int = 196,
    model: str = "vit_small_patch14_dinov2",
    methods: Annotated[
        str | None, typer.Option(help=f"Commas between; dense,{METHODS} where not given, or all of --like.")
    ] = None,
    keep_rates: Annotated[str | None, typer.Option(help="0.9,0.7,0.5,0.3 where not given, or all of --like.")] = None,
    blocks: Annotated[list[str] | None, typer.Option(help='"paper", or numbers such as 5,8,10; repeatable.')] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            help="A pruning config file NAME-RATE.json, to stand beside the methods at that rate; repeatable."
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="A folder of records: of the cells asked for, those that it has, with their settings."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help='"none" tests without training; 0,1,2 where not given, or all of --like.'),
    ] = None,
    epochs: int = 6,
    batch_size: int = 128,
    learning_rate: Annotated[float, typer.Option(help="Per 512 images, as in entropatch's recipes.")] = 8e-4,
    layer_decay: float = 0.75,
    weight_decay: float = 0.02,
    precision: str = "bfloat16",
    device: str = "cuda",
    lane: Annotated[str, typer.Option(help="I/N: this process takes every N-th cell from the I-th on.")] = "0/1",
    deadline: Annotated[float | None, typer.Option(help="Seconds after which no further cell is begun.")] = None,
    curve: Annotated[bool, typer.Option("--curve", help="Test after every epoch.")] = False,
    tag: Annotated[str, typer.Option(help="Part of the record files' name.")] = "grid",
    cache: Annotated[Path, typer.Option(help="Where the images' pixels are kept.")] = Path("/tmp/entropatch-pixels"),
    workers: int = 0,
    keep: Annotated[
        list[str] | None,
        typer.Option(help='A cell, such as "shannon-0.5", whose weights of seed 0 to save; repeatable.'),
    ] = None,
) -> None:
    """Compute the cells that have no record yet."""
    began = time.monotonic()
    recipe = recipe_of(epochs, batch_size, size, learning_rate, weight_decay, layer_decay, precision)
    names = None if methods is None else methods.split(",") if methods else []
    rates = None if keep_rates is None else [float(rate) for rate in keep_rates.split(",")]
    numbers = None if seeds is None else [None if seed == "none" else int(seed) for seed in seeds.split(",")]
    if like is None:
        files = {path.stem: PruneConfig.load(path) for path in config or ()}
        names = ["dense", *METHODS.split(",")] if names is None else names
        settings = cells(names, rates or KEEP_RATES, numbers or SEEDS, blocks or ["paper"], files)
    elif config or blocks:
        raise typer.BadParameter("--like takes settings and blocks from the records; leave out --config and --blocks.")
    else:
        same = {"tag": tag, "data": data, "size": size, "model": model}
        settings = repeated(like, same, Wanted(names, rates, numbers), recipe)
    bench = opened(data, root, weights, model, recipe, device, cache, workers, curve)
    output.mkdir(parents=True, exist_ok=True)
    number, count = map(int, lane.split("/"))
    about = {
        "data": data,
        "size": size,
        "model": model,
        "recipe": recipe.to_dict(),
        "machine": environment(bench.device),
    }
    done = {
        (line["name"], line["keep_rate"], line["blocks"], line["seed"], line["data"], line["size"], line["tag"])
        for line in recorded(output)
    }
    with (output / f"{tag}-{data}-{size}-{number}.jsonl").open("a") as records:
        for cell, setting in list(settings.items())[number::count]:
            if (*asdict(cell).values(), data, size, tag) in done:
                continue
            if deadline is not None and time.monotonic() - began > deadline:
                typer.echo(f"lane {lane}: the deadline is reached; the rest is left for another run.")
                break
            name = f"{cell.name}-{cell.keep_rate}" if cell.keep_rate else cell.name
            kept = name in (keep or ()) and cell.seed == 0
            result = bench.run(setting, cell.seed, output / f"{data}-{size}-{name}.safetensors" if kept else None)
            line = {
                **asdict(cell),
                "tag": tag,
                "config": None if setting is None else setting.to_dict(),
                **result,
                **about,
            }
            records.write(json.dumps(line) + "\n")
            records.flush()
            typer.echo(f"{cell} {result['top1']:.2f} in {result['seconds']:.1f} s")


if __name__ == "__main__":
    typer.run(main)
