"""`entropatch calibrate`: the best setting for one model, from unlabelled images, under a budget."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entropatch.cli import app, parameters
from entropatch.cli.options import check_folder, data_of, entries, model_spec, pairs, weights_about
from entropatch.cli.progress import phases
from entropatch.cli.terminal import fail, is_first_process

if TYPE_CHECKING:
    from PIL.Image import Image

    from entropatch.calibration import Calibration


@app.command()
def calibrate(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files, or folders of them; or --data instead.", metavar="[IMAGE]..."),
    ] = None,
    gflops: Annotated[float | None, typer.Option(help="The budget: 10⁹ multiply-adds per image at most;")] = None,
    speedup: Annotated[
        float | None, typer.Option(help="or times dense's speed at least, measured, which takes longer;")
    ] = None,
    drop: Annotated[float | None, typer.Option(help="or the largest mean loss, at the least cost.")] = None,
    weights: Annotated[
        str, typer.Option(help="pretrained, none, bundled, or a file; the file of a run knows its model and data.")
    ] = "pretrained",
    model: Annotated[str | None, typer.Option(help="A model of --library; default what the file is of.")] = None,
    library: parameters.SpecLibrary = None,
    model_arg: parameters.ModelArguments = None,
    data: Annotated[
        str | None, typer.Option(help="Training images of a data set, as for finetune, in place of files.")
    ] = None,
    root: parameters.Root = None,
    download: parameters.Download = False,
    data_option: parameters.DataOptions = None,
    limit: Annotated[int, typer.Option(help="So many images, drawn by the seed.", min=8)] = 192,
    image_size: Annotated[
        int | None, typer.Option(help="In pixels; default the file's; else 224, or the model's own.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="What is to change least: logits, features (before a head), or dense. Default: the output."),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Blocks that may reduce, 0-based, commas between; default all but the two ends, where only a few "
            "tokens merged in every block may reduce too."
        ),
    ] = None,
    most_blocks: Annotated[
        int | None, typer.Option(help="At most so many of them; default 4, or a few tokens merged in each.", min=1)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time; also of a timed call.", min=1)] = 32,
    effort: Annotated[float, typer.Option(help="2 looks twice as long, 0 refines nothing.", min=0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the images and the search.")] = 0,
    imports: parameters.Imports = None,
    device: parameters.Device = "cpu",
    output: Annotated[
        Path,
        typer.Option(
            help="Folder for calibrated.json, tables, a picture and a page; the same command continues, another budget "
            "has a folder of its own."
        ),
    ] = Path("entropatch-calibrated"),
) -> None:
    """Find the blocks, criteria, coverage, reductions and keep rates that change a model's output least.

    No labels are needed. A third of the images is held out from the choice: on them the setting found is compared with
    random pruning, the default and every registered method at the same cost. Load the result with
    PruneConfig.load("entropatch-calibrated/calibrated.json"), or give it to --config of other commands. On several
    GPUs:  accelerate launch -m entropatch.cli calibrate …
    """
    try:
        from entropatch.calibration import Goal, calibrated
        from entropatch.calibration.writing import GOAL, refuse_other_goal

        goal = Goal(gflops, speedup, drop)
        check_folder(output)
        refuse_other_goal(output, goal.text)
        about = weights_about(weights, model, "files" if images else data, library)
        spec = model_spec(about, weights, model, 0.0, pairs(model_arg or [], "--model-arg"), library)
        size = image_size or about.get("image_size", 224 if spec.library == "timm" else None)
        network = spec.build(None, size, strict=True, say=partial(typer.echo, err=True))
        found = _images(images, about, data, root, download, pairs(data_option or [], "--data-option"), limit, seed)
        places = None if blocks is None else entries(blocks, int, "--blocks")
        device = _device(device)
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("calibrate", error, 2)
    try:
        with phases("batches", shown=is_first_process()) as tell:
            result = calibrated(
                network.to(device),
                found,
                goal,
                folder=output,
                on_step=tell,
                objective=objective,
                blocks=places,
                most_blocks=most_blocks,
                batch_size=batch_size,
                effort=effort,
                seed=seed,
            )
        if is_first_process():
            said = {"model": spec.name, "weights": weights, "seed": seed, GOAL: goal.text}
            _report(result, output, said, device)
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("calibrate", error, 1)


def _report(result: Calibration, output: Path, about: dict[str, Any], device: str) -> None:
    """Print what was found, and write it."""
    from entropatch.calibration.writing import GOAL, summary, write_calibration
    from entropatch.measure import environment

    typer.echo(summary(result))
    title = f"{about['model']}, {about[GOAL]}"
    paths = write_calibration(result, output, title, {**about, **environment(device)})
    if find_spec("jinja2") is not None and find_spec("markdown_it") is not None:
        from entropatch.report import write_report

        paths.append(write_report([output], output / "report.html", title=title))
    typer.echo("Written: " + ", ".join(str(path) for path in paths))


def _images(
    files: list[Path] | None,
    about: dict[str, Any],
    data: str | None,
    root: Path | None,
    download: bool,
    options: dict[str, Any],
    limit: int,
    seed: int,
) -> list[Image]:
    """Images of files or of a training split, at most `limit`, drawn by the seed."""
    import random

    from entropatch.data.images import image_files, load_image

    draw = random.Random(seed)
    if files:
        if data is not None:
            raise ValueError("--data brings its own images; leave out the files, or --data.")
        paths = image_files(files)
        return [load_image(path) for path in sorted(draw.sample(paths, min(limit, len(paths))))]
    training = data_of(about, data, root, download, None, options).train
    return [training.image(i) for i in sorted(draw.sample(range(len(training)), min(limit, len(training))))]


def _device(device: str) -> str:
    """This process's device, where several were launched."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return device
    from entropatch.extras import require

    return str(require("accelerate", "train").PartialState(cpu=device == "cpu").device)
