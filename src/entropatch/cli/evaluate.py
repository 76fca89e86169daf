"""`entropatch evaluate`: accuracy, multiply-adds and speed of a model, dense beside pruned."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entropatch.cli import app, parameters
from entropatch.cli.options import (
    check_folder,
    data_of,
    entries,
    input_side,
    model_spec,
    named_configs,
    named_methods,
    names_group,
    pairs,
    possible,
    say_untaught,
    weights_about,
)
from entropatch.cli.progress import progress_bar
from entropatch.cli.terminal import fail

if TYPE_CHECKING:
    from entropatch.config import PruneConfig


@app.command()
def evaluate(
    weights: Annotated[
        str,
        typer.Option(help="pretrained, bundled, none, or a file; the file of a run knows its model, data and pruning."),
    ] = "pretrained",
    model: Annotated[str | None, typer.Option(help="A model of --library; default what the file is of.")] = None,
    library: parameters.SpecLibrary = None,
    model_arg: parameters.ModelArguments = None,
    data: Annotated[str | None, typer.Option(help="As for finetune; default what the file was trained on.")] = None,
    root: parameters.Root = None,
    download: parameters.Download = False,
    test_limit: parameters.TestLimit = None,
    data_option: parameters.DataOptions = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"{parameters.METHODS_HELP} Default: dense and what the file was "
            f"trained with; or {parameters.COMPARED_HELP}."
        ),
    ] = None,
    keep_rates: Annotated[str | None, typer.Option(help="In (0, 1]; commas between; default 0.7.")] = None,
    imports: parameters.Imports = None,
    blocks: parameters.Blocks = None,
    config: Annotated[
        list[Path] | None, typer.Option(help="A pruning config file as one more row; repeatable.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="In pixels; default the file's; else 224, or the model's own.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per pass over the test set.", min=1)] = 64,
    speed_batch_size: Annotated[int, typer.Option(help="Images per timed call; 0 measures no speed.", min=0)] = 16,
    repeats: parameters.SpeedRepeats = 10,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: parameters.Device = "cpu",
    workers: parameters.Workers = parameters.TESTING_WORKERS,
    output: Annotated[Path | None, typer.Option(help="Folder for evaluate.md, .csv, .json and correct.json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON in place of the table.")] = False,
) -> None:
    """Test a model on a data set: top-1, top-5, GFLOPs and images/s, dense beside pruned.

    Accuracies have standard errors, and differences to dense and to random those of the pairs on the same images.
    """
    from entropatch.look.naming import data_label, pruning_label
    from entropatch.measure import environment
    from entropatch.measure.comparing import evaluation_table
    from entropatch.measure.evaluation import Speed, count_steps
    from entropatch.measure.evaluation import evaluate as run
    from entropatch.methods import DENSE
    from entropatch.records.correct import CorrectImages, write_correct
    from entropatch.records.tables import write_records

    try:
        if output is not None:
            check_folder(output)
        about = weights_about(weights, model, data, library)
        opened = data_of(about, data, root, download, test_limit, pairs(data_option or [], "--data-option"))
        spec = model_spec(about, weights, model, 0.0, pairs(model_arg or [], "--model-arg"), library)
        size = image_size or about.get("image_size", 224 if spec.library == "timm" else None)
        settings = _settings(methods, keep_rates, blocks, config or [], about.get("prune"))
        speed = Speed(speed_batch_size, repeats) if speed_batch_size else None
        say = partial(typer.echo, err=True)
        built = spec.build(None, size, strict=True, classes=opened.classes, say=say)
        size = size or input_side(built)
        if methods is not None and names_group(methods):
            names = [name for name in named_methods(methods) if name != DENSE]
            allowed = ",".join((DENSE, *possible(built, names, False, say)))
            settings = _settings(allowed, keep_rates, blocks, config or [], None)
        say_untaught({pruning_label(one): one for one in settings.values() if one is not None}, about, say)
        correct: list[CorrectImages] = []
        with progress_bar(
            "evaluating", count_steps(opened, len(settings), batch_size, speed), unit="batches and timed calls"
        ) as step:
            records = run(
                built,
                opened,
                settings,
                image_size=size,
                device=device,
                precision=precision,
                batch_size=batch_size,
                workers=workers,
                speed=speed,
                on_step=step,
                on_correct=correct.append,
            )
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("evaluate", error, 1)
    shown, paths = evaluation_table(records), []
    if output is not None:
        facts = {
            "model": spec.name,
            "library": spec.library,
            "weights": weights,
            "data": dict(opened.description),
            "image_size": size,
        }
        facts |= {"precision": precision, **environment(device)}
        title = f"{spec.name} on {data_label(opened.description)}"
        try:
            paths = write_records(records, output, "evaluate", title=title, about=facts, table=shown)
            paths += [write_correct(output, found) for found in correct]
        except (TypeError, ValueError, OSError) as error:
            typer.echo(shown)
            fail("evaluate", error, 1)
    typer.echo(json.dumps(records, indent=2, ensure_ascii=False) if as_json else shown)
    if records[0]["damaged"]:
        typer.echo(f"{records[0]['damaged']} damaged images were skipped.", err=True)
    if paths:
        typer.echo("Written: " + ", ".join(str(path) for path in paths), err=as_json)


def _settings(
    methods: str | None, keep_rates: str | None, blocks: str | None, configs: list[Path], own: dict[str, Any] | None
) -> dict[str, PruneConfig | None]:
    """The rows: by method and keep rate, then by config file. Without either, the file's own pruning beside dense."""
    from entropatch.config import PruneConfig
    from entropatch.measure.variants import variants_of
    from entropatch.methods import DENSE, compared_methods

    rows: dict[str, PruneConfig | None] = {}
    if methods is None and keep_rates is None and (own or configs):
        if blocks is not None:
            raise ValueError(
                f"--blocks {blocks} says where the rows of --methods and --keep-rates prune; give one of them."
            )
        rows[DENSE] = None
        if own:
            trained = PruneConfig.from_dict(own)
            rows[f"as trained: {_row_name(trained)}"] = trained
    else:
        rates = entries(keep_rates or "0.7", float, "--keep-rates")
        places = None if blocks is None else entries(blocks, int, "--blocks")
        for row in variants_of(named_methods(methods) or (DENSE, *compared_methods()), rates):
            rate = "" if row.keep_rate is None else f", {row.keep_rate:g}"
            rows[DENSE if row.method == DENSE else row.label + rate] = row.config(places)
    return rows | {f"{name}: {_row_name(setting)}": setting for name, setting in named_configs(configs).items()}


def _row_name(config: PruneConfig) -> str:
    from entropatch.look.naming import pruning_label, rates_text

    rate = f", {rates_text(config.keep_rate)}" if config.schedule.uses_keep_rate else ""
    return pruning_label(config) + rate
