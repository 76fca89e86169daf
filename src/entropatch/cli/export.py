"""`entropatch export`: a model, pruned or dense, as a file that runs without this package."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entropatch.cli import app, parameters
from entropatch.cli.options import model_spec, pairs, pruning, weights_about
from entropatch.cli.terminal import fail

if TYPE_CHECKING:
    from torch import Tensor, nn

    from entropatch.train import ModelSpec


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="The file to write: .onnx, or .pt2.", metavar="FILE")],
    weights: Annotated[
        str, typer.Option(help="pretrained, none, bundled, or a file; the file of a run knows its model and pruning.")
    ] = "pretrained",
    model: Annotated[str | None, typer.Option(help="A model of --library; default what the file is of.")] = None,
    library: parameters.SpecLibrary = None,
    model_arg: parameters.ModelArguments = None,
    image_size: Annotated[
        int | None, typer.Option(help="In pixels; default the file's; else 224, or the model's own.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"{parameters.METHOD_HELP} Default: what the file was trained with, or what prune_ does alone."
        ),
    ] = None,
    keep_rate: Annotated[
        str | None,
        typer.Option(
            help="In (0, 1]; one, or one per block with commas between. Default: what the weights were trained with, "
            "else 0.7."
        ),
    ] = None,
    blocks: parameters.Blocks = None,
    config: Annotated[Path | None, typer.Option(help="A pruning config file instead.")] = None,
    imports: parameters.Imports = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            help="Image files or folders to check the file with, and to calibrate int8 with; repeatable. "
            "Default: the photographs of scikit-image and scikit-learn where installed, else noise."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="So many of them.", min=1)] = 16,
    format: Annotated[
        str | None, typer.Option(help="onnx, torch-export or aotinductor; default by the name of the file.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX's version of operators; default 20.")] = None,
    simplify: Annotated[bool, typer.Option("--simplify", help="Through onnxsim.")] = False,
    int8: Annotated[str | None, typer.Option(help="dynamic or static, by ONNX Runtime's quantiser.")] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Give the patches each block keeps as outputs too.")] = False,
    tolerance: Annotated[
        float, typer.Option(help="How far outputs may be from PyTorch's, per unit of the largest, at least 1.", min=0.0)
    ] = 1e-5,
) -> None:
    """Write a model as ONNX, as a torch.export program or as an AOTInductor package, and check what it computes.

    The file is run at two batch sizes in a process without entropatch, and compared with the model in PyTorch: kept
    sets, then outputs. A file that does not agree is not written, and the exit status is 1; for a setting that makes no
    sense it is 2.
    """
    from entropatch.export import export as run
    from entropatch.export.formats import find_format
    from entropatch.extras import require

    try:
        chosen = find_format(format, path)
        for package in ("onnx", "onnxscript", "onnxruntime") if chosen.name == "onnx" else ():
            require(package, "export")
        about = weights_about(weights, model, "photographs", library)
        spec = model_spec(about, weights, model, 0.0, pairs(model_arg or [], "--model-arg"), library)
        network = _network(spec, about, image_size, method, keep_rate, blocks, config)
        pictures = _images(network, images, limit)
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("export", error, 2)
    try:
        run(
            network,
            pictures,
            path,
            format=format,
            opset=opset,
            simplify=simplify,
            int8=int8,
            kept=kept,
            tolerance=tolerance,
            on_message=typer.echo,
        )
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        fail("export", error, 1)


def _network(
    spec: ModelSpec,
    about: dict[str, Any],
    image_size: int | None,
    method: str | None,
    keep_rate: str | None,
    blocks: str | None,
    config: Path | None,
) -> nn.Module:
    """The model with its weights, pruned as the options or the weights file say."""
    from entropatch.config import PruneConfig
    from entropatch.surgery import prune_

    size = image_size or about.get("image_size", 224 if spec.library == "timm" else None)
    network = spec.build(None, size, strict=True, say=partial(typer.echo, err=True)).eval()
    setting = pruning(method, keep_rate, blocks, config)
    if setting is None:
        return network
    if method is not None or config is not None:
        return prune_(network, setting)
    if not about.get("prune"):  # how is left to `prune_`
        return prune_(network, keep_rate=setting.keep_rate, blocks=setting.blocks)
    changes: dict[str, Any] = {} if keep_rate is None else {"keep_rate": setting.keep_rate}
    changes |= {} if blocks is None else {"blocks": setting.blocks}
    return prune_(network, PruneConfig.from_dict(about["prune"]).changed(**changes))


def _images(model: nn.Module, paths: list[Path] | None, limit: int) -> Tensor:
    """Images as the model takes them, (batch, 3, H, W)."""
    import torch

    from entropatch.data.images import data_config, image_files, load_image, sample_photographs, to_tensor

    if paths:
        pictures = [load_image(file) for file in image_files(paths)[:limit]]
    else:
        try:
            pictures = list(sample_photographs().values())[:limit]
        except ImportError:
            typer.echo("checked with noise, since no images were named; give --images for a better check.", err=True)
            size = data_config(model)["input_size"]
            return torch.randn(min(limit, 4), *size, generator=torch.Generator().manual_seed(0))
    return torch.stack([to_tensor(picture, model) for picture in pictures])
