"""`entropatch check`: whether low entropy marks the foreground, in this model and on these images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entropatch.cli import app, parameters
from entropatch.cli.options import entries, pairs
from entropatch.cli.terminal import fail, progress_bar

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from entropatch.look.foreground import ForegroundCheck

    Pairs = Iterator[tuple[Image.Image, np.ndarray]]


@app.command()
def check(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files, or folders of them.", metavar="[IMAGE]...")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks, each named as its image and of its size; white = foreground.")
    ] = None,
    mask_level: Annotated[
        int, typer.Option(help="Grey levels above this are foreground; 0 for class numbers.", min=0, max=254)
    ] = 127,
    alpha: Annotated[bool, typer.Option("--alpha", help="Take the images' own alpha channels as masks.")] = False,
    data: Annotated[
        str | None, typer.Option(help="A data set with exact masks instead of files: fashion-mnist-photos.")
    ] = None,
    root: parameters.Root = None,
    data_option: parameters.DataOptions = None,
    limit: Annotated[int, typer.Option(help="So many of the data set's test images.", min=1)] = 40,
    model: parameters.TimmModel = None,
    weights: parameters.Checkpoint = None,
    image_size: parameters.ImageSize = None,
    orders: Annotated[
        str, typer.Option(help="Of the entropy, in (0, inf], commas between; 1 is Shannon.", metavar="O[,O]...")
    ] = "1,2,inf",
    blocks: Annotated[
        str | None, typer.Option(help="Blocks that would prune, 0-based; default ¼, ½, ¾ of the depth.")
    ] = None,
    device: parameters.Device = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder for check.md, .csv and .json.")] = None,
) -> None:
    """Check whether patches of low entropy are the foreground, before trusting a pruning that keeps them.

    Prints, for each block, the AUROC of low entropy, of EViT's class attention and of plain colour (0.5 is chance,
    below it the sign is reversed), and a verdict. A patch is foreground if at least half of it is, by the mask.
    """
    from entropatch.look.foreground import check_foreground
    from entropatch.measure import environment
    from entropatch.methods import parse_order
    from entropatch.records.tables import write_records

    try:
        wanted = tuple(dict.fromkeys(parse_order(text) for text in entries(orders, str, "--orders")))
        places = None if blocks is None else entries(blocks, int, "--blocks")
        count, found, source = _pairs(
            images, masks, mask_level, alpha, data, root, pairs(data_option or [], "--data-option"), limit
        )
        network, about = _network(model, weights, image_size, device)
        with progress_bar("checking", count) as step:
            result = check_foreground(network, found, wanted, blocks=places, on_image=step)
        table = foreground_table(result)
        typer.echo(table)
        if result.one_class:
            typer.echo(f"skipped, since all of their patches are foreground, or none: {result.one_class}", err=True)
        typer.echo(result.verdict)
        if output is not None:
            facts = {"verdict": result.verdict, "images": result.images, "one class only, skipped": result.one_class}
            facts |= {"masks": source, "pruning blocks": list(result.pruning_blocks), **about}
            facts |= environment(device)
            title = "Does low entropy mark the foreground? AUROC per block, mean over images ± standard error"
            paths = write_records(result.records, output, "check", title=title, about=facts, table=table)
            typer.echo("Written: " + ", ".join(str(path) for path in paths))
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("check", error, 2)


def foreground_table(result: ForegroundCheck) -> str:
    """A Markdown table: a row per block and one for their mean, a column per score."""
    from entropatch.records.tables import markdown_table

    def cell(mean: float, error: float | None) -> str:
        return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"

    names = {record["score"]: record["label"] for record in result.records}
    cells = {(one["score"], one["block"]): cell(one["auroc"], one["standard_error"]) for one in result.records}
    depth = 1 + max(one["block"] for one in result.records if one["block"] is not None)
    # The pixels know no blocks: theirs is the same in every row.
    rows = [[block, *(cells.get((name, block), cells.get((name, None))) for name in names)] for block in range(depth)]
    return markdown_table(["block", *names.values()], [*rows, ["mean", *(cell(*result.means[name]) for name in names)]])


def _pairs(
    images: list[Path] | None,
    masks: Path | None,
    level: int,
    alpha: bool,
    data: str | None,
    root: Path | None,
    options: dict[str, Any],
    limit: int,
) -> tuple[int, Pairs, str]:
    """How many images there are, the images with their masks one after the other, and where the masks come from."""
    from entropatch.data.images import image_files
    from entropatch.data.masks import masks_by_stem

    sources = [name for name, given in (("--masks", masks), ("--alpha", alpha), ("--data", data)) if given]
    if len(sources) != 1:
        given = f"got {' and '.join(sources)}" if sources else "got none"
        raise ValueError(f"masks come from one of --masks FOLDER, --alpha or --data NAME, but {given}.")
    if data is not None:
        if images:
            raise ValueError("--data brings its own images; leave out the files, or --data.")
        return _from_data(data, root, options, limit)
    if not images:
        raise ValueError("name the image files whose masks are given.")
    files = image_files(images)
    if masks is None:
        return len(files), _from_alpha(files), "alpha channels of the images"
    return len(files), _from_files(files, masks_by_stem(files, masks), level), f"{masks}, above {level} is foreground"


def _from_data(name: str, root: Path | None, options: dict[str, Any], limit: int) -> tuple[int, Pairs, str]:
    from entropatch.data import open_data

    test = open_data(name, root, test_limit=limit, **options).test
    test.mask(0)  # says so if there are none
    return len(test), ((test.image(i), test.mask(i)) for i in range(len(test))), f"{name}, {len(test)} test images"


def _from_files(files: list[Path], masks: list[Path], level: int) -> Pairs:
    from entropatch.data.images import load_image
    from entropatch.data.masks import check_size, load_mask

    for file, path in zip(files, masks, strict=True):
        image, mask = load_image(file), load_mask(path, level)
        check_size(mask, image, str(path))
        yield image, mask


def _from_alpha(files: list[Path]) -> Pairs:
    from entropatch.data.images import load_image
    from entropatch.data.masks import alpha_mask

    for file in files:
        yield load_image(file), alpha_mask(file)


def _network(
    model: str | None, weights: Path | None, image_size: int | None, device: str
) -> tuple[Any, dict[str, str]]:
    from entropatch.extras import require
    from entropatch.models.pretrained import architecture, load_model

    require("scipy", "figures")
    network, source = load_model(
        model, weights=weights, image_size=image_size, on_message=lambda line: typer.echo(line, err=True)
    )
    return network.to(device), {"model": architecture(network), "weights": source}
