"""`entropatch segment`: train a model that makes maps of classes, with early exits or other pruning, and test it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from entropatch.cli import app, parameters
from entropatch.cli.options import check_folder, entries, model_spec, pairs
from entropatch.cli.progress import phases, progress_bar
from entropatch.cli.terminal import fail, is_first_process, printer
from entropatch.extras import require

if TYPE_CHECKING:
    from entropatch.config import PruneConfig
    from entropatch.data.mask_folders import SegmentationSet
    from entropatch.segmenter import Segmenter
    from entropatch.train import SegmentationRecipe


@app.command()
def segment(
    root: Annotated[
        Path,
        typer.Option(help="Folder of the data: train and val, each of images and masks, or these two alone."),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the run; the same command continues what is in it.")],
    classes: Annotated[
        int | None, typer.Option(help="How many; without it a name per line in <root>/classes.txt.")
    ] = None,
    digit_scenes: Annotated[
        str | None,
        typer.Option(
            help="TRAIN,TEST: first write so many scenes of handwritten digits to --root, if it is not there."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="A model of --library.")] = "deit_small_patch16_224",
    library: parameters.SpecLibrary = None,
    weights: parameters.StartWeights = "pretrained",
    drop_path: parameters.DropPath = 0.1,
    model_arg: parameters.ModelArguments = None,
    head: Annotated[str, typer.Option(help="linear, or conv: 3×3, norm, 1×1.")] = "linear",
    method: Annotated[str, typer.Option(help="dtop, dense, or any other method: what is trained and tested.")] = "dtop",
    keep_rate: Annotated[float | None, typer.Option(help="Of a method that takes one.")] = None,
    blocks: parameters.Blocks = None,
    exits: Annotated[str | None, typer.Option(help="dtop: behind which blocks, 0-based; default 5,7 of 12.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="dtop: how sure a patch is that leaves; default 0.95.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="dtop: how many of each class stay; default 5.")] = None,
    compare: Annotated[
        str,
        typer.Option(help="Fixed keep rates that are tested beside with the same weights; commas between, or none."),
    ] = "0.7",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of the recipe: epochs, image_size, batch_size, …; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the run.")] = 0,
    device: parameters.Device = "cpu",
    workers: parameters.Workers = parameters.TESTING_WORKERS,
    checkpoint_every: parameters.CheckpointEvery = 200,
    batch_size: Annotated[int, typer.Option(help="Images per pass in testing.", min=1)] = 8,
    speed_batch_size: Annotated[int, typer.Option(help="Images per timed call; 0 measures no speed.", min=0)] = 8,
    repeats: parameters.SpeedRepeats = 10,
) -> None:
    """Train a Vision Transformer with a small head for segmentation, and test it: mIoU, GFLOPs and images/s.

    By DToP patches leave once an auxiliary head is sure of their class. First all stay, and the auxiliary heads learn
    beside; in the last quarter of the epochs (--set exit_epochs=N) patches leave in training too. Tested are the model
    without exits, as it was trained, and with the same weights at fixed keep rates. Killed at any moment and started
    again with the same command, it continues from the last checkpoint.
    """
    try:
        for package, extra in (("safetensors", "train"), ("fvcore", "bench")):
            require(package, extra)  # before anything is trained
        recipe = _recipe(pairs(setting or [], "--set"))
        prune = _prune(method, keep_rate, blocks, exits, threshold, context)
        rates = () if compare == "none" else entries(compare, float, "--compare")
        check_folder(output)
        data = _data(root, classes, digit_scenes, recipe)
        spec = model_spec({}, weights, model, drop_path, pairs(model_arg or [], "--model-arg"), library)
        segmenter = _segmenter(spec, recipe, len(data.classes), head, seed)
    except (ImportError, TypeError, ValueError, OSError) as error:
        fail("segment", error, 2)
    try:
        from entropatch.train import segment as run

        console = Console(stderr=True)
        say = printer(console)
        with phases("batches", console, shown=is_first_process()) as tell:

            def on_epoch(record: dict[str, Any]) -> None:
                text = f"epoch {record['epoch']}: loss {record['loss']:.3f}, mIoU {record['miou']:.2f}"
                say(text + (", patches leave" if record["leaving"] else ""))

            run(
                segmenter,
                data,
                output,
                prune=prune,
                recipe=recipe,
                seed=seed,
                device=device,
                workers=workers,
                checkpoint_every=checkpoint_every,
                about={"model": spec.to_dict()},
                on_epoch=on_epoch,
                on_text=say,
                on_step=tell,
            )
        _test(segmenter, data, prune, rates, recipe, output, device, batch_size, speed_batch_size, repeats)
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("segment", error, 1)


def _recipe(changes: dict[str, Any]) -> SegmentationRecipe:
    from entropatch.train import SegmentationRecipe

    known = [field.name for field in dataclasses.fields(SegmentationRecipe)]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(f"--set takes {', '.join(known)}, but got {', '.join(unknown)}.")
    return SegmentationRecipe(**changes)


def _prune(
    method: str,
    keep_rate: float | None,
    blocks: str | None,
    exits: str | None,
    threshold: float | None,
    context: int | None,
) -> PruneConfig | None:
    from entropatch.config import PruneConfig
    from entropatch.criteria import EarlyExit
    from entropatch.methods import DENSE

    own = {name: value for name, value in (("threshold", threshold), ("context", context)) if value is not None}
    if method == DENSE and (own or exits or blocks or keep_rate is not None):
        raise ValueError("the dense model has no exits, blocks or keep rate; leave them out.")
    if method == DENSE:
        return None
    fields: dict[str, Any] = {"method": method}
    fields |= {} if keep_rate is None else {"keep_rate": keep_rate}
    fields |= {} if blocks is None else {"blocks": entries(blocks, int, "--blocks")}
    config = PruneConfig(**fields)
    criterion = config.criterion
    if not isinstance(criterion, EarlyExit):
        if own or exits:
            raise ValueError(f"--exits, --threshold and --context are those of dtop, but the method is {method}.")
        return config
    if exits is not None:
        if blocks is not None:
            raise ValueError("--exits says behind which blocks, --blocks before which; give one of the two.")
        config = dataclasses.replace(config, blocks=tuple(block + 1 for block in entries(exits, int, "--exits")))
    return dataclasses.replace(config, criterion=dataclasses.replace(criterion, **own))


def _data(root: Path, classes: int | None, digit_scenes: str | None, recipe: SegmentationRecipe) -> SegmentationSet:
    from entropatch.data.mask_folders import open_mask_folder
    from entropatch.data.scenes import write_digit_scenes

    if digit_scenes is not None and not root.exists():
        counts = entries(digit_scenes, int, "--digit-scenes")
        if len(counts) != 2:
            raise ValueError(f"--digit-scenes must be two numbers, TRAIN,TEST, but got {digit_scenes!r}.")
        write_digit_scenes(root, *counts, size=recipe.image_size)
    return open_mask_folder(root, classes)


def _segmenter(spec: Any, recipe: SegmentationRecipe, classes: int, head: str, seed: int) -> Segmenter:
    from entropatch.data.seeding import derived_seed, seeded
    from entropatch.segmenter import Segmenter

    backbone = spec.build(0 if spec.library == "timm" else None, recipe.image_size, seed)
    with seeded(derived_seed(seed, 1)):
        return Segmenter(backbone, classes, head)


def _test(
    segmenter: Segmenter,
    data: SegmentationSet,
    prune: PruneConfig | None,
    rates: tuple[float, ...],
    recipe: SegmentationRecipe,
    output: Path,
    device: str,
    batch_size: int,
    speed_batch_size: int,
    repeats: int,
) -> None:
    from entropatch.config import PruneConfig
    from entropatch.measure import environment
    from entropatch.measure.evaluation import Speed
    from entropatch.measure.segmentation import evaluate_segmentation, segmentation_table
    from entropatch.methods import method_label
    from entropatch.records.tables import write_records

    settings: dict[str, PruneConfig | None] = {method_label("dense"): None}
    if prune is not None:
        rate = f", {prune.keep_rate}" if prune.schedule.uses_keep_rate else ""
        settings[prune.label + rate] = prune
    for rate in rates:
        fixed = PruneConfig(keep_rate=rate)
        settings.setdefault(f"{fixed.label}, {rate:g}", fixed)
    speed = Speed(speed_batch_size, repeats) if speed_batch_size else None
    with progress_bar("testing", -(-len(data.test) // batch_size), unit="batches") as step:
        records = evaluate_segmentation(
            segmenter,
            data.test,
            settings,
            image_size=recipe.image_size,
            device=device,
            batch_size=batch_size,
            speed=speed,
            on_step=step,
        )
    shown = segmentation_table(records)
    facts = {"data": dict(data.description), "image_size": recipe.image_size, **environment(device)}
    paths = write_records(records, output, "segment", title="Segmentation", about=facts, table=shown)
    typer.echo(shown)
    typer.echo("Written: " + ", ".join(map(str, paths)))
