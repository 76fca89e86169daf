"""`entropatch finetune`: train a model on a data set, dense or pruned; started again, it continues."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from entropatch.cli import app, parameters
from entropatch.cli.options import check_folder, entries, model_spec, pairs, pruning, recipe_of, with_options
from entropatch.cli.progress import phases
from entropatch.cli.terminal import fail, is_first_process, printer
from entropatch.extras import require
from entropatch.methods import PAPER_METHOD

if TYPE_CHECKING:
    from entropatch.config import PruneConfig
    from entropatch.data import DataSet
    from entropatch.train import ModelSpec, Outcome, Recipe, Runtime


@app.command()
def finetune(
    data: parameters.DataName,
    output: Annotated[Path, typer.Option(help="Folder of the run; the same command continues what is in it.")],
    root: parameters.Root = None,
    download: parameters.Download = False,
    train_limit: parameters.TrainLimit = None,
    test_limit: parameters.TestLimit = None,
    data_option: parameters.DataOptions = None,
    model: Annotated[str, typer.Option(help="A model of --library.")] = "deit_small_patch16_224",
    library: parameters.SpecLibrary = None,
    weights: parameters.StartWeights = "pretrained",
    drop_path: parameters.DropPath = 0.1,
    model_arg: parameters.ModelArguments = None,
    method: Annotated[str | None, typer.Option(help=parameters.METHOD_HELP, show_default=PAPER_METHOD)] = None,
    order: parameters.Orders = None,
    coverage: parameters.Coverage = None,
    keep_rate: Annotated[
        str | None, typer.Option(help="In (0, 1]; or one per block, commas between.", show_default="0.7")
    ] = None,
    blocks: parameters.Blocks = None,
    config: Annotated[Path | None, typer.Option(help="A pruning config file, in place of the five above.")] = None,
    imports: parameters.Imports = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="paper, evit or dynamicvit: the settings to start from; else the method's own, or the paper's."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of the recipe, as --show-recipe lists; repeatable.")
    ] = None,
    entropy_weight: Annotated[
        float | None,
        typer.Option(help="Of a penalty on attention entropy in the loss; --set entropy_side and others say which."),
    ] = None,
    entropy_target: Annotated[
        float | None,
        typer.Option(help="The normalised entropy it leads to, from 0 (all on one patch) to 1."),
    ] = None,
    show_recipe: Annotated[
        bool, typer.Option("--show-recipe", help="Print the recipe and where each setting comes from; do not train.")
    ] = False,
    teacher: Annotated[
        Path | None, typer.Option(help="Weights of a dense run, to distil from; with --set distillation=0.5.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="One run for each; commas between.")] = "0",
    device: parameters.TrainingDevice = "auto",
    accumulate: parameters.Accumulate = 1,
    workers: parameters.Workers = parameters.TRAINING_WORKERS,
    checkpoint_every: parameters.CheckpointEvery = 500,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Leave the last two when the run is finished.")
    ] = False,
    gradient_checkpointing: parameters.GradientCheckpointing = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")] = False,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="The same bits on a GPU too.")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Write curves to <output>/tensorboard.")] = True,
) -> None:
    """Fine-tune a model, pruned in training and in testing; by the paper's protocol unless told otherwise.

    Killed at any moment and started again with the same command, it continues from the last checkpoint. On several
    GPUs or machines:  accelerate launch -m entropatch.cli finetune …

    A damaged training image is replaced by the next sound one and counted; ten next to each other end the run, since
    then the data set is at fault.
    """
    try:
        require("safetensors", "train")
        from entropatch.train import Runtime

        changes = pairs(setting or [], "--set")
        check_folder(output)
        prune = pruning(method, keep_rate, blocks, config, order, coverage)
        changes = with_options(changes, entropy_weight=entropy_weight, entropy_target=entropy_target)
        begun = recipe or _own_recipe(prune)
        settings = recipe_of(begun, changes)
        _check_teacher(teacher, prune, settings)
        if show_recipe:
            _show_recipe(settings, begun)
            return
        for package in ("accelerate", *(("tensorboard",) if tensorboard else ())):
            require(package, "train")  # before anything is fetched or trained
        numbers = entries(seeds, int, "--seeds")
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"--seeds must be different, since equal ones are one run, but got {seeds}.")
        runtime = Runtime(
            device=device,
            accumulate=accumulate,
            workers=workers,
            checkpoint_every=checkpoint_every,
            keep_checkpoints=keep_checkpoints,
            gradient_checkpointing=gradient_checkpointing,
            compile=compiled,
            deterministic=deterministic,
            tensorboard=tensorboard,
        )
        options = pairs(data_option or [], "--data-option")
        opened = _open(data, root, download, train_limit, test_limit, options)
        arguments = pairs(model_arg or [], "--model-arg")
        spec = model_spec({}, weights, model, drop_path, arguments, library)
    except (ImportError, TypeError, ValueError, OSError) as error:
        fail("finetune", error, 2)
    try:
        outcomes = [
            _run(
                spec,
                opened,
                output if len(numbers) == 1 else output / f"seed-{seed}",
                prune,
                settings,
                seed,
                teacher,
                runtime,
                f"seed {seed}, " if len(numbers) > 1 else "",
            )
            for seed in numbers
        ]
        about = {"model": model, "data": data, "prune": None if prune is None else prune.to_dict()}
        _report(outcomes, numbers, output, about)
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("finetune", error, 1)


def _check_teacher(teacher: Path | None, prune: PruneConfig | None, recipe: Recipe) -> None:
    """Raise ValueError for a teacher that neither the recipe nor the method's own loss asks."""
    from entropatch.learning import learned_criterion

    criterion = learned_criterion(prune)
    if teacher is not None and not recipe.distillation and not (criterion is not None and criterion.teaches):
        raise ValueError(
            f"nothing is distilled from --teacher {teacher}, since distillation is {recipe.distillation:g}; give --set "
            "distillation=0.5 with it, or leave it out."
        )


def _own_recipe(prune: PruneConfig | None) -> str:
    """The name of the recipe that a setting's method was published with; the paper's where it has none."""
    from entropatch.learning import learned_criterion

    criterion = learned_criterion(prune)
    return (None if criterion is None else criterion.recipe) or "paper"


def _show_recipe(settings: Recipe, name: str) -> None:
    from entropatch.records.tables import markdown_table
    from entropatch.train import provenance

    records = provenance(settings, name)
    typer.echo(markdown_table(list(records[0]), [list(record.values()) for record in records]))
    typer.echo(f"With this recipe {settings.learning_rates_text()}.")


def _open(
    name: str,
    root: Path | None,
    download: bool,
    train_limit: int | None,
    test_limit: int | None,
    options: dict[str, Any],
) -> DataSet:
    """The data set; of several processes on a machine the first fetches it and the others wait."""
    from entropatch.data import open_data

    def opened() -> DataSet:
        return open_data(name, root, download=download, train_limit=train_limit, test_limit=test_limit, **options)

    if not download or "LOCAL_RANK" not in os.environ:
        return opened()
    from accelerate import PartialState

    with PartialState().local_main_process_first():
        return opened()


def _run(
    spec: ModelSpec,
    data: DataSet,
    folder: Path,
    prune: Any,
    recipe: Recipe,
    seed: int,
    teacher: Path | None,
    runtime: Runtime,
    named: str,
) -> Outcome:
    """One run, with a line for each epoch that begins as it is `named`."""
    from entropatch import train

    classes = len(data.classes)
    model = spec.build(classes, recipe.image_size, seed)
    guide = None
    if teacher is not None:
        guide = dataclasses.replace(spec, weights=str(teacher), drop_path=0.0).build(
            classes, recipe.image_size, strict=True
        )
    console = Console(stderr=True)
    say = printer(console)
    with phases("batches", console, shown=is_first_process()) as tell:
        return train.finetune(
            model,
            data,
            folder,
            prune=prune,
            recipe=recipe,
            seed=seed,
            teacher=guide,
            runtime=runtime,
            about={"model": spec.to_dict(), "image_size": recipe.image_size, "data": dict(data.description)},
            on_epoch=lambda record: say(named + _epoch_line(record)),
            on_text=say,
            on_step=lambda what, done, total, note: tell(what, done, total, named + note),
        )


def _epoch_line(record: dict[str, Any]) -> str:
    damaged = len(record["damaged_training"]) + len(record["damaged_testing"])
    entropy = record.get("entropy")
    return (
        f"epoch {record['epoch']}: loss {record['loss']:.4f}, top-1 {record['top1']:.2f} %, "
        f"top-5 {record['top5']:.2f} %, {record['images_per_second']:.0f} images/s"
        + (f", entropy of blocks {min(entropy):.2f} … {max(entropy):.2f} of log n" if entropy else "")
        + (f", {damaged} damaged images skipped" if damaged else "")
    )


def _report(outcomes: list[Outcome], seeds: tuple[int, ...], output: Path, about: dict[str, Any]) -> None:
    """What the runs came to; for several seeds also as a table in files."""
    from entropatch.records.tables import plus_minus, write_records
    from entropatch.train import summarise

    if not is_first_process():
        return
    for seed, outcome in zip(seeds, outcomes, strict=True):
        typer.echo(
            f"seed {seed}: top-1 {plus_minus(outcome.top1, outcome.top1_se)} %, "
            f"top-5 {outcome.top5:.2f} % after {outcome.epochs} epochs; best "
            f"top-1 {outcome.best_top1:.2f} % after epoch {outcome.best_epoch}; {outcome.folder}"
        )
    if any(outcome.top1_se is not None for outcome in outcomes):
        typer.echo("± of a seed is one standard error over the test images.")
    if len(outcomes) > 1:
        summary = summarise(outcomes)
        records = [
            {"seed": seed, **dataclasses.asdict(outcome), "top1_se": outcome.top1_se}
            for seed, outcome in zip(seeds, outcomes, strict=True)
        ]
        write_records(records, output, "summary", title="Runs by seed", about=about | summary)
        error = "" if summary["top1_se"] is None else f", standard error over images and seeds {summary['top1_se']:.2f}"
        typer.echo(
            f"{summary['runs']} seeds: top-1 {summary['top1_mean']:.2f} %, standard deviation of the seeds "
            f"{summary['top1_std']:.2f}{error}; best {summary['top1_best']:.2f} %; top-5 {summary['top5_mean']:.2f} %, "
            f"standard deviation {summary['top5_std']:.2f}, best {summary['top5_best']:.2f} %"
        )
