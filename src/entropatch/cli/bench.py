"""`entropatch bench`: speed, memory and multiply-adds of pruning methods, measured in turns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entropatch.cli import app, parameters
from entropatch.cli.options import check_folder, entries, named_configs, named_methods, names_group
from entropatch.cli.progress import progress_bar
from entropatch.cli.terminal import fail


@app.command()
def bench(
    model: Annotated[
        str, typer.Option(help="A model of --library; its weights are random, which does not change its speed.")
    ] = "deit_small_patch16_224",
    library: parameters.Library = "timm",
    methods: Annotated[
        str | None, typer.Option(help=f"{parameters.METHODS_HELP} Default: {parameters.COMPARED_HELP}.")
    ] = None,
    keep_rates: Annotated[
        str | None, typer.Option(help="Keep rates in (0, 1]; commas between; default 0.7,0.5,0.3. Not with a target.")
    ] = None,
    target_gflops: Annotated[
        str | None,
        typer.Option(
            help="Budgets, commas between: each method at the largest keep rate with at most so many GFLOPs, so that "
            "all are compared at one cost; finding it takes seconds for each."
        ),
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            help="A setting as a file, such as calibrated.json: one more row, called by the file's name, at its own "
            "cost. Repeatable."
        ),
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Images per call; commas between.")] = "1,16",
    image_size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 224,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    amp: Annotated[bool, typer.Option("--amp", help="Float32 weights under autocast to --dtype.")] = False,
    device: parameters.Device = "cpu",
    backend: Annotated[
        str, typer.Option(help="What computes entropies: auto, reference, streaming or triton.")
    ] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Every row through torch.compile, as one graph.")] = False,
    runtimes: Annotated[
        str | None,
        typer.Option(
            help="Of torch, compile, cuda-graphs (torch.compile as in its mode reduce-overhead, on a GPU), "
            "onnxruntime, openvino (exported files, on the CPU); commas between. What is named is measured "
            "beside torch."
        ),
    ] = None,
    int8: Annotated[
        str | None, typer.Option(help="dynamic or static: the exported files in eight bits as well.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed rounds.")] = 20,
    warmup: Annotated[int, typer.Option(help="Untimed rounds before.")] = 2,
    until_interval: Annotated[
        float | None,
        typer.Option(help="Add rounds until each ratio to random is known to ± this share, such as 0.02, with 95 %."),
    ] = None,
    most_rounds: Annotated[int, typer.Option(help="The most rounds that --until-interval takes.")] = 400,
    bar: Annotated[
        float | None,
        typer.Option(help="A share of random's speed, such as 0.97; says of each row whether it is reached."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the .md, .csv and .json files.")] = Path("entropatch-bench"),
    name: Annotated[str, typer.Option(help="Name of those files.")] = "bench",
    imports: parameters.Imports = None,
    table: Annotated[int | None, typer.Option(help="3 also prints the paper's Table 3 beside this run.")] = None,
) -> None:
    """Measure GFLOPs, images/s, latency and peak memory of pruned models, against dense and against random pruning.

    All rows take turns, so that drift hits all alike; ratios are medians of the rounds' ratios, with their 95 %
    intervals from six rounds on. A row that cannot be measured says why, and the
    exit status is 1, unless a group of methods was asked for; for a setting that makes no sense it is 2.
    """
    from entropatch.bench import BenchSettings, bar_sentences, bench_table, check_table, run_bench, table_3
    from entropatch.measure.budget import BudgetError
    from entropatch.methods import DENSE, compared_methods
    from entropatch.records.tables import write_records

    try:
        settings = BenchSettings(
            model=model,
            library=library,
            methods=named_methods(methods) or (DENSE, *compared_methods()),
            keep_rates=None if keep_rates is None else entries(keep_rates, float, "--keep-rates"),
            target_gflops=() if target_gflops is None else entries(target_gflops, float, "--target-gflops"),
            configs=named_configs(config or []),
            batch_sizes=entries(batch_sizes, int, "--batch-sizes"),
            image_size=image_size,
            dtype=dtype,
            amp=amp,
            device=device,
            backend=backend,
            compile=compiled,
            repeats=repeats,
            warmup=warmup,
            until_interval=until_interval,
            most_rounds=most_rounds,
            bar=bar,
            runtimes=() if runtimes is None else entries(runtimes, str, "--runtimes"),
            int8=int8,
        )
        if table is not None:
            check_table(table, settings)
        check_folder(output)
        if Path(name).name != name:
            raise ValueError(f"--name is a file name without folders, but got {name!r}; use --output for the folder.")
    except (TypeError, ValueError, OSError) as error:
        fail("bench", error, 2)
    try:
        with progress_bar("measuring", settings.steps()) as step:
            result = run_bench(settings, step)
        shown, sentences = bench_table(result.records), bar_sentences(result.records, bar) if bar else []
        shown = "\n".join([shown, *sentences]) + "\n" * bool(sentences)
    except BudgetError as error:
        fail("bench", error, 2)
    except (ImportError, ValueError, OSError) as error:
        fail("bench", error, 1)
    typer.echo(shown)
    if table is not None:
        typer.echo(table_3(result.records))
    title = f"{settings.model} at {settings.image_size} px on {result.about['hardware']}"
    try:
        paths = write_records(result.records, output, name, title=title, about=result.about, table=shown)
    except (ValueError, OSError) as error:
        fail("bench", error, 1)
    typer.echo("Written: " + ", ".join(str(path) for path in paths))
    if result.failed and methods is not None and names_group(methods):
        typer.echo(f"{len(result.failed)} rows are of methods that the model or the budget rules out.", err=True)
    elif result.failed:
        fail(
            "bench",
            f"{len(result.failed)} of {len(result.records)} rows could not be measured; their notes say why.",
            1,
        )
