"""`entropatch check`: whether low entropy marks the foreground, in this model and on these images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from entropatch.cli import app, parameters
from entropatch.cli.masked_images import masked_images
from entropatch.cli.options import entries, named_methods, pairs
from entropatch.cli.progress import progress_bar
from entropatch.cli.terminal import fail, printer

if TYPE_CHECKING:
    from entropatch.cli.masked_images import Pairs
    from entropatch.look.foreground import ForegroundCheck


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
    library: parameters.Library = "timm",
    weights: parameters.Checkpoint = None,
    image_size: parameters.ImageSize = None,
    orders: Annotated[
        str, typer.Option(help="Of the entropy, in (0, inf], commas between; 1 is Shannon.", metavar="O[,O]...")
    ] = "1,2,inf",
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Methods whose scores stand beside, {parameters.PICTURED_HELP} Default: every compared one that "
            "scores by more than entropy or chance. Those named have a verdict too.",
            metavar="M[,M]...",
        ),
    ] = None,
    imports: parameters.Imports = None,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks that would prune, 0-based; default ¼, ½, ¾ of the depth.")
    ] = None,
    save_config: Annotated[
        Path | None,
        typer.Option(help="File for the proposed setting, as prune_ and --config take it; an older one is replaced."),
    ] = None,
    most_blocks: Annotated[
        int | None, typer.Option(help="Propose at most so many blocks; default as many as would prune.", min=1)
    ] = None,
    keep_rate: Annotated[float, typer.Option(help="In (0, 1], of the proposed setting.")] = 0.7,
    device: parameters.Device = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder for check.md, .csv and .json, and a picture.")] = None,
) -> None:
    """Check whether patches of low entropy are the foreground, before trusting a pruning that keeps them.

    Prints, for each block, the AUROC of low entropy, of other methods' scores such as EViT's class attention, and of
    the pixel deviation (how far a patch's colour is from the whole image's, without any model); 0.5 is chance, below it
    the sign is reversed. Then a verdict on each order, and on order 2: whether the blocks that would
    prune can be trusted, and which are better. A patch is foreground if at least half of it is, by the mask.

    Each order proposes the blocks where it marks the foreground best, none that is not above chance by more than the
    error; --save-config writes the best proposal as a setting, or nothing, with exit status 1, where there is none.

    An image that cannot be used is named, the others are still checked, and the exit status is 1; for a setting that
    makes no sense it is 2.
    """
    from entropatch.config import PruneConfig
    from entropatch.criteria import Renyi
    from entropatch.look.foreground import check_foreground
    from entropatch.methods import find_method, parse_order

    console = Console(stderr=True)
    skipped = _Skipped(printer(console))
    try:
        asked = [parse_order(text) for text in entries(orders, str, "--orders")]
        wanted = tuple(dict.fromkeys((*asked, Renyi().order)))
        beside = named_methods(methods) or None
        for name in beside or ():
            find_method(name)
        places = None if blocks is None else entries(blocks, int, "--blocks")
        PruneConfig(keep_rate=keep_rate)  # refused before anything is looked at
        count, found, source = masked_images(
            images, masks, mask_level, alpha, data, root, pairs(data_option or [], "--data-option"), limit, skipped
        )
        network, about = _network(model, library, weights, image_size, device)
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("check", error, 2)
    try:
        with progress_bar("checking", count, console, unit="images") as skipped.step:
            result = check_foreground(
                network,
                skipped.noting(found, network),
                wanted,
                methods=beside,
                blocks=places,
                most_blocks=most_blocks,
                on_image=skipped.step,
            )
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("check", error, 1 if skipped.count else 2)
    table, written = foreground_table(result), []
    try:
        if output is not None:
            written = _write(result, output, table, {"masks": source, "skipped": skipped.count, **about}, device)
        if save_config is not None and result.proposal is not None:
            result.proposal.config(keep_rate).save(save_config)
            written.append(save_config)
    except (ValueError, OSError) as error:
        _show(result, table)
        fail("check", error, 1)
    _show(result, table)
    if written:
        typer.echo("Written: " + ", ".join(str(path) for path in written))
    if skipped.long:
        typer.echo(f"{skipped.long} images are so long that the model sees less than half of each.", err=True)
    if skipped.count:
        fail("check", f"{skipped.count} of {count} images could not be used; the result is of the others.", 1)
    if save_config is not None and result.proposal is None:
        fail("check", f"{save_config} is not written, since no block is proposed.", 1)


@dataclass
class _Skipped:
    """Names images that cannot be used, and counts them and those of which little is seen."""

    say: Callable[[str], None]
    step: Callable[[], None] = lambda: None
    count: int = 0
    long: int = 0

    def noting(self, pairs: Pairs, model: Any) -> Pairs:
        """The same pairs; images of which the model sees little are counted."""
        from entropatch.data.views import cropping_note

        for image, mask in pairs:
            self.long += cropping_note(image, model) is not None
            yield image, mask

    def __call__(self, error: Exception) -> None:
        self.say(f"entropatch check: {' '.join(str(error).split())}")
        self.count += 1
        self.step()


def _show(result: ForegroundCheck, table: str) -> None:
    typer.echo(table)
    if result.one_class:
        typer.echo(f"skipped, since all of their patches are foreground, or none: {result.one_class}", err=True)
    typer.echo(result.comparison)
    for verdict in result.verdicts:
        typer.echo(verdict.text)
    for proposal in result.proposals:
        typer.echo(proposal.text)
    if (best := result.proposal) is not None:
        where = ",".join(map(str, best.blocks))
        typer.echo(f"Proposed of all: {best.label} at blocks {where}; --method {best.score} --blocks {where}.")


def _write(result: ForegroundCheck, output: Path, table: str, about: dict[str, Any], device: str) -> list[Path]:
    """The records, and where matplotlib is there a picture of them."""
    from entropatch.measure import environment
    from entropatch.records.tables import write_records

    facts: dict[str, Any] = {"made by": "entropatch check", "comparison": result.comparison}
    facts |= {f"verdict, {one.score}": one.text for one in result.verdicts}
    facts |= {f"proposal, {one.score}": one.text for one in result.proposals}
    facts |= {"images": result.images, "one class only, skipped": result.one_class}
    facts |= {"pruning blocks": list(result.pruning_blocks), **about, **environment(device)}
    title = (
        f"{about['model']}: does low entropy mark the foreground? AUROC per block, mean over images ± standard error"
    )
    paths = write_records(result.records, output, "check", title=title, about=facts, table=table)
    if find_spec("matplotlib") is None:
        return paths
    from entropatch.figures import auroc_in_blocks
    from entropatch.gallery import write_figure

    images = f"{result.images} image{'s' * (result.images != 1)}"
    note = f"{about['model']}, {images}; a bar is one standard error over images, and chance is 0.5."
    title = "How well each score marks the foreground"
    proposed = {one.label: one.blocks for one in result.proposals}
    figure = auroc_in_blocks(result.records, result.pruning_blocks, proposed=proposed, title=title, note=note)
    return [*paths, *write_figure(figure, output, "check", None)]


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


def _network(
    model: str | None, library: str, weights: str | None, image_size: int | None, device: str
) -> tuple[Any, dict[str, str]]:
    from entropatch.extras import require
    from entropatch.models.pretrained import architecture, load_model

    require("scipy", "figures")
    say = partial(typer.echo, err=True)
    network, source = load_model(model, weights=weights, image_size=image_size, library=library, on_message=say)
    return network.to(device), {"model": architecture(network), "weights": source}
