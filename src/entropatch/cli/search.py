"""`entropatch search`: methods, orders and keep rates tried on a model and data set; started again, it continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from entropatch.cli import app, parameters
from entropatch.cli.options import (
    check_folder,
    data_of,
    entries,
    model_spec,
    named_configs,
    named_methods,
    names_group,
    pairs,
    recipe_of,
    say_untaught,
    weights_about,
)
from entropatch.cli.terminal import fail
from entropatch.extras import require

if TYPE_CHECKING:
    from entropatch.search import Standing
    from entropatch.train import Recipe

DEFAULT = "default"


@app.command()
def search(
    output: Annotated[
        Path, typer.Option(help="Folder of the study, its runs and its report; the same command continues it.")
    ],
    data: Annotated[str | None, typer.Option(help="As for finetune; default what the weights were trained on.")] = None,
    root: parameters.Root = None,
    download: parameters.Download = False,
    train_limit: parameters.TrainLimit = None,
    test_limit: parameters.TestLimit = None,
    data_option: parameters.DataOptions = None,
    model: Annotated[str | None, typer.Option(help="A model of --library; default what the weights are of.")] = None,
    library: parameters.SpecLibrary = None,
    weights: parameters.StartWeights = "pretrained",
    drop_path: parameters.DropPath = 0.1,
    model_arg: parameters.ModelArguments = None,
    scope: Annotated[
        str, typer.Option(help="training-free (test the weights as they are) or finetuned (train each setting).")
    ] = "training-free",
    methods: Annotated[
        str | None,
        typer.Option(help=f"{parameters.METHODS_HELP} Default: {parameters.COMPARED_HELP}, and renyi-0.5,renyi-4."),
    ] = None,
    keep_rates: Annotated[
        str | None, typer.Option(help="In (0, 1]; commas between; default 0.9 to 0.3. Not with a target.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Commas between. Without training they matter to random alone.")] = "0",
    blocks: Annotated[
        list[str] | None,
        typer.Option(
            help="0-based, commas between; default ¼, ½, ¾ of the depth. Repeatable: the first are the study's, at the "
            "others every method is tried too; the word default, as the first, stands for the default ones."
        ),
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            help="A setting as a file, such as calibrated.json: one more method, called by the file's name, at its own "
            "cost; with a target its keep rates are moved to meet it. Repeatable."
        ),
    ] = None,
    target_gflops: Annotated[
        float | None, typer.Option(help="Budget: each method gets the largest keep rate with at most so many GFLOPs.")
    ] = None,
    target_speedup: Annotated[
        float | None, typer.Option(help="Budget: … with at least so many times the images/s of dense, as measured.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Top-1 that the recommended setting may lose to dense, in %.")] = 1.0,
    recipe: Annotated[str, typer.Option(help="paper or evit: the training settings to start from.")] = "paper",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="NAME=VALUE of the recipe, as for finetune; image_size and precision without training too."
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database the workers share: postgresql+psycopg://…, mysql+pymysql://…; default <output>/search.db."
        ),
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the study in it.")] = "search",
    trials: Annotated[
        int | None, typer.Option(help="Try so many settings, then leave; default until none is left.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Stay while other workers are busy, to take over if one dies.")] = True,
    grace: Annotated[int, typer.Option(help="Seconds of silence after which another machine's worker is dead.")] = 120,
    retries: Annotated[int, typer.Option(help="Failures after which a setting is given up.")] = 10,
    report: Annotated[
        bool, typer.Option("--report", help="Only write the report again, from the study; no model, no data.")
    ] = False,
    imports: parameters.Imports = None,
    device: parameters.TrainingDevice = "auto",
    accumulate: parameters.Accumulate = 1,
    batch_size: Annotated[int, typer.Option(help="Images per pass over the test set, without training.", min=1)] = 64,
    speed_batch_size: Annotated[int, typer.Option(help="Images per timed call.", min=1)] = 16,
    repeats: parameters.SpeedRepeats = 10,
    workers: parameters.Workers = parameters.TRAINING_WORKERS,
    checkpoint_every: parameters.CheckpointEvery = 500,
    gradient_checkpointing: parameters.GradientCheckpointing = False,
) -> None:
    """Find the method, order and keep rate to use, as trials of an Optuna study that workers share.

    Start the same command several times, on one machine or on several with one --storage, and the workers share the
    work. Killed at any moment and started again, it continues: finished settings are not tried again. It ends with
    the tables, the Pareto plots and recommended.json for `entropatch finetune --config` and `prune_`.
    """
    try:
        require("safetensors", "search")
        from entropatch import search as searching
        from entropatch.measure.evaluation import Speed
        from entropatch.methods import DENSE, find_method
        from entropatch.search.points import TRAINING_FREE
        from entropatch.search.searching import require_extras
        from entropatch.train import Runtime

        if report:
            told = {
                "storage": storage,
                "study": study,
                "tolerance": tolerance,
                "on_text": partial(typer.echo, err=True),
            }
            _show(output, searching.report(output, **told))
            return
        require_extras(scope)
        check_folder(output)
        about = weights_about(weights, model, data, library)
        teamwork = searching.Teamwork(trials=trials, wait=wait, grace=grace, retries=retries)
        runtime = Runtime(
            device=device,
            accumulate=accumulate,
            workers=workers,
            checkpoint_every=checkpoint_every,
            gradient_checkpointing=gradient_checkpointing,
        )
        sets = _block_sets(blocks or [DEFAULT])
        settings = searching.SearchSettings(
            spec=model_spec(about, weights, model, drop_path, pairs(model_arg or [], "--model-arg"), library),
            scope=scope,
            methods=named_methods(methods) or searching.default_methods(),
            keep_rates=None if keep_rates is None else entries(keep_rates, float, "--keep-rates"),
            seeds=entries(seeds, int, "--seeds"),
            blocks=sets[0],
            more_blocks=sets[1:],
            leave_out=methods is not None and names_group(methods),
            configs=named_configs(config or []),
            recipe=_recipe(scope, recipe, pairs(setting or [], "--set"), about),
            target_gflops=target_gflops,
            target_speedup=target_speedup,
            batch_size=batch_size,
            speed=Speed(speed_batch_size, repeats),
        )
        if scope == TRAINING_FREE:
            tried = [find_method(name) for name in settings.methods if name != DENSE]
            # Of a group those that must be trained are left out.
            rows = {method.label: method for method in tried if not (settings.leave_out and method.trained)}
            say_untaught(rows | dict(settings.configs), about, partial(typer.echo, err=True))
        options = pairs(data_option or [], "--data-option")
        opened = data_of(about, data, root, download, test_limit, options, train_limit)
    except (ImportError, TypeError, ValueError, OSError) as error:
        fail("search", error, 2)
    try:
        with _progress() as (text, standing):
            found = searching.search(
                settings,
                opened,
                output,
                storage=storage,
                study=study,
                runtime=runtime,
                teamwork=teamwork,
                tolerance=tolerance,
                on_text=text,
                on_standing=standing,
            )
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("search", error, 1)
    _show(output, found.files)
    now = found.standing
    typer.echo(f"{now.finished} of {now.settings} settings are finished; {found.tried} were tried here.")
    if now.given_up:
        fail("search", f"{now.given_up} settings failed and were given up; {output / 'search.md'} says why.", 1)


def _block_sets(texts: list[str]) -> tuple[Any, ...]:
    """The sets of blocks that --blocks names; None for the default ones, as the first."""
    return tuple(None if text.strip() == DEFAULT else entries(text, int, "--blocks") for text in texts)


def _recipe(scope: str, name: str, changes: dict[str, Any], about: dict[str, Any]) -> Recipe:
    """The recipe; of the weights' own image size where no training could change it."""
    from entropatch.search.points import TRAINING_FREE

    if scope != TRAINING_FREE:
        return recipe_of(name, changes)
    if other := sorted(set(changes) - {"image_size", "precision"}):
        raise ValueError(
            f"without training --set takes image_size and precision, but got {', '.join(other)}; or --scope finetuned."
        )
    noted = {"image_size": about["image_size"]} if "image_size" in about else {}
    return recipe_of(name, noted | changes)


def _show(output: Path, files: list[Path]) -> None:
    """The table that answers the question, and where the rest is."""
    if not files:
        typer.echo("No setting is finished yet, so there is nothing to report.")
        return
    typer.echo((output / "table-1.md").read_text(encoding="utf-8"))
    for line in (output / "search.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("- recommended"):
            typer.echo(line.removeprefix("- "))
    typer.echo("Written: " + ", ".join(str(path) for path in files))


@contextmanager
def _progress() -> Iterator[tuple[Callable[[str], None], Callable[[Standing], None]]]:
    """A bar over the settings on a terminal's error stream, else a line for each thing that is begun.

    Yields the function to tell what is going on, and that to tell how far the study is.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("opening the study", total=None)

        def text(what: str) -> None:
            progress.update(task, description=what)
            if not console.is_terminal:
                typer.echo(what, err=True)

        def standing(now: Standing) -> None:
            progress.update(task, total=now.settings, completed=now.finished)

        yield text, standing
