"""`entropatch figures`: the paper's figures for any model and images, and accuracy against cost from records."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from entropatch.cli import app, parameters
from entropatch.cli.options import entries, named_methods, names_group, possible, remarks_on
from entropatch.cli.progress import progress_bar
from entropatch.cli.terminal import fail, printer
from entropatch.methods import pictured_methods

if TYPE_CHECKING:
    from entropatch.gallery import Gallery, GallerySettings


@app.command()
def figures(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files, or folders of them.", metavar="[IMAGE]...")
    ] = None,
    model: parameters.TimmModel = None,
    library: parameters.Library = "timm",
    weights: parameters.Checkpoint = None,
    image_size: parameters.ImageSize = None,
    orders: Annotated[
        str, typer.Option(help="Of the entropies, in (0, inf], commas between; 1 is Shannon.", metavar="O[,O]...")
    ] = "1,2,inf",
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Whose kept patches stand side by side, {parameters.PICTURED_HELP} Default: those "
            f"beside the entropies ({', '.join(pictured_methods(()))}), and each order.",
            metavar="M[,M]...",
        ),
    ] = None,
    keep_rates: Annotated[
        str,
        typer.Option(help="Share of the patches that each stage keeps, in (0, 1]; a picture each.", metavar="R,..."),
    ] = "0.7",
    blocks: parameters.Blocks = None,
    scale: parameters.Scale = "panel",
    imports: parameters.Imports = None,
    records: Annotated[
        list[Path] | None,
        typer.Option(help="JSON of evaluate, search or demo, for accuracy against GFLOPs and images/s; repeatable."),
    ] = None,
    pictures: Annotated[
        int | None, typer.Option(help="Draw only the first so many images; all count in the histograms.", min=0)
    ] = None,
    device: parameters.Device = "cpu",
    output: Annotated[Path, typer.Option(help="Folder for figures and numbers.")] = Path("entropatch-figures"),
) -> None:
    """Draw the paper's figures, each as PNG and SVG with the numbers behind it.

    Per image: the entropy of every patch in every block, and what remains after each pruning stage. Of all images:
    histograms of the entropy per block, and entropy against attention distance. From --records: accuracy against
    GFLOPs and images/s. Files of an earlier run in the same folder are replaced. An image that cannot be used is named
    on the error stream, and the exit status is 1; for a setting that makes no sense it is 2.
    """
    from entropatch.data.images import image_files, printable
    from entropatch.gallery import GallerySettings, accuracy_records
    from entropatch.methods import DENSE, parse_order
    from entropatch.models.pretrained import load_model

    console = Console(stderr=True)
    say = printer(console)

    try:
        if not images and not records:
            raise ValueError("give images to look at, --records to draw, or both.")
        settings = GallerySettings(
            tuple(dict.fromkeys(parse_order(text) for text in entries(orders, str, "--orders"))),
            None if methods is None else tuple(name for name in named_methods(methods) if name != DENSE),
            entries(keep_rates, float, "--keep-rates"),
            None if blocks is None else entries(blocks, int, "--blocks"),
            scale,
        )
        sources = {printable(path): _json(path) for path in records or []}
        points = [point for name, data in sources.items() for point in accuracy_records(data, name)]
        gallery, facts, files = None, {}, []
        if images:
            files = image_files(images)
            gallery, facts = _gallery(
                partial(load_model, model, weights=weights, image_size=image_size, library=library, on_message=say),
                settings,
                not names_group(methods),
                device,
                output,
                say,
            )
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("figures", error, 2)
    written, failed = 0, 0
    try:
        if points:
            from entropatch.gallery import draw_accuracy, measured_on

            written += len(draw_accuracy(points, output, about=measured_on(sources)))
        if gallery is not None:
            drawn, failed = _draw(gallery, files, pictures, console)
            written += drawn
            if failed < len(files):
                written += len(gallery.finish(facts))
    except (ImportError, ValueError, OSError) as error:
        fail("figures", error, 1)
    typer.echo(f"{written} files written to {output.resolve()}")
    if failed:
        raise typer.Exit(1)


def _json(path: Path) -> Any:
    from entropatch.data.images import printable

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{printable(path)} cannot be read as JSON: {error}") from error


def _gallery(
    load: Callable[[], tuple[Any, str]],
    settings: GallerySettings,
    insist: bool,
    device: str,
    output: Path,
    say: Callable[[str], None],
) -> tuple[Gallery, dict[str, Any]]:
    """The model loaded and ready to be drawn, and what is to be said of it beside the numbers."""
    from dataclasses import replace

    from entropatch.extras import require
    from entropatch.gallery import Gallery
    from entropatch.measure import environment
    from entropatch.models.pretrained import architecture

    require("matplotlib", "figures")
    require("scipy", "figures")
    output.mkdir(parents=True, exist_ok=True)
    network, source = load()
    methods = possible(network, settings.methods or (), insist, say)
    say(f"weights: {source}")
    name = architecture(network)
    settings = replace(settings, methods=tuple(methods))
    facts = {"model": name, "weights": source, **environment(device)}
    return Gallery(network.to(device), output, settings, name), facts


def _draw(gallery: Gallery, files: Sequence[Path], pictures: int | None, console: Console) -> tuple[int, int]:
    """How many files were written, and how many images could not be used."""
    from entropatch.data.images import ImageError, printable, read_image

    written, failed, say = 0, 0, printer(console)
    with progress_bar("drawing", len(files), console, unit="images") as step:
        for number, path in enumerate(files):
            wanted = pictures is None or number - failed < pictures
            try:
                image, remarks = read_image(path)
                name = path.stem.encode("utf-8", "replace").decode("utf-8")
                remarks = [*remarks, *remarks_on(image, gallery.model, name)]
                written += len(gallery.add(name, image, draw=wanted))
                for remark in remarks:
                    say(f"{printable(path)}: {remark}")
            except ImageError as error:
                say(f"entropatch figures: {error}")
                failed += 1
            step()
    return written, failed
