"""The page itself, laid out with Gradio, and its server."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from entropatch.app import panels
from entropatch.app.explorer import Explorer, Setting
from entropatch.data.images import load_image, printable
from entropatch.extras import require
from entropatch.methods import renyi_method

ORDERS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0, math.inf)
RENYI = "Rényi entropy (1: Shannon)"
CRITERIA = {RENYI: None, "EViT: class attention": "evit", "EViT without fused token": "evit-drop", "Random": "random"}
# Nothing but this server is ever asked for anything, whatever a version of Gradio or a picture's name may contain.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; form-action 'self'"
)
STYLE = Path(__file__).with_name("style.css")
# What the page may meet in a picture, a model or a setting; anything else is a fault of the program.
EXPECTED = (ValueError, ImportError, OSError, RuntimeError)


def method_name(criterion: str, place: float) -> str:
    """The method meant by a criterion of the menu and a place of the order's slider."""
    name = CRITERIA[criterion]
    if name is not None:
        return name
    order = ORDERS[int(place)]
    return "shannon" if order == 1 else renyi_method(order).name


def answers(
    explorer: Explorer, model: str, picture: str, settings: tuple[Setting, Setting]
) -> Iterator[tuple[str, str, str, str]]:
    """The image as seen, the table, and the two panels; first without the times not known yet, then with them."""
    crop = explorer.crop(model, picture)
    seen = [explorer.see(model, picture, setting) for setting in settings]
    limits = panels.colour_limits(*seen)
    left, right = (panels.panel(crop, one, ends) for one, ends in zip(seen, limits, strict=True))
    known = [explorer.known_latency(model, setting) for setting in settings]
    yield panels.as_seen(crop), panels.comparison(seen, known), left, right
    if None in known:
        yield panels.as_seen(crop), panels.comparison(seen, explorer.latency(model, settings)), left, right


def serve(
    explorer: Explorer,
    models: list[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    upload_mb: int = 20,
    wait: bool = True,
) -> tuple[Any, str]:
    """Serve the page until interrupted.

    Args:
        explorer: what answers.
        models: names to offer; the first is chosen. Any other may be typed in.
        host: address to listen on; 127.0.0.1 is reached from this machine only.
        port: 0 takes any free one.
        upload_mb: largest file that may be uploaded, in megabytes.
        wait: return only when interrupted.

    Returns:
        The Gradio page, which can be closed, and its address.

    Raises:
        ImportError: Gradio is not installed. OSError: the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    gr: Any = require("gradio", "app")
    from starlette.middleware import Middleware

    page = build(gr, explorer, models)
    fonts = ["system-ui", "Segoe UI", "DejaVu Sans", "sans-serif"]
    _, local, _ = page.launch(
        server_name=host,
        server_port=port or _free_port(host),
        share=False,
        inbrowser=False,
        quiet=True,
        show_error=True,
        max_file_size=upload_mb * 10**6,
        prevent_thread_lock=True,
        theme=gr.themes.Base(font=fonts, font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"]),
        css=STYLE.read_text(encoding="utf-8"),
        footer_links=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(_Policy)]},
    )
    if wait:
        page.block_thread()
    return page, local


def build(gr: Any, explorer: Explorer, models: list[str]) -> Any:
    """The page as Gradio's Blocks."""
    names = list(explorer.photographs)
    # Uploaded files are looked for every hour, and removed when an hour old.
    with gr.Blocks(title="entropatch", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        picture = gr.State(names[0])
        with gr.Row():
            with gr.Column(scale=1, min_width=270):
                upload = gr.File(label="Drop an image, or click", show_label=False, height=132, elem_id="ep-upload")
                gallery = gr.Gallery(
                    [(image.copy(), name) for name, image in explorer.photographs.items()],
                    columns=3,
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    show_label=False,
                    elem_id="ep-photographs",
                )
                model = gr.Dropdown(models, value=models[0], allow_custom_value=True, label="Model", elem_id="ep-model")
                rate = gr.Slider(0.1, 1.0, value=0.7, step=0.05, label="Keep rate", elem_id="ep-rate")
                crop = gr.HTML(elem_id="ep-crop")
            with gr.Column(scale=4):
                table = gr.HTML(elem_id="ep-comparison")
                with gr.Row():
                    sides = [_side(gr, number, start) for number, start in enumerate((RENYI, "EViT: class attention"))]
        inputs = [picture, model, rate, *(control for criterion, order, _ in sides for control in (criterion, order))]
        outputs = [crop, table, *(shown for _, _, shown in sides)]
        gr.on(
            [page.load, *(control.change for control in inputs)],
            _guarded(gr, explorer),
            inputs,
            outputs,
            # While one answer is on its way, only the latest of all further changes waits.
            trigger_mode="always_last",
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=table,  # an animation over each picture would take time from what is being timed
            api_visibility="private",
        )
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gallery.select(_chosen(gr, names), None, [picture], **quick)
        upload.upload(_checked(gr), [upload, picture], [picture], **quick)
    return page


def _side(gr: Any, number: int, criterion: str) -> tuple[Any, Any, Any]:
    """Criterion, order and panel of one side."""
    with gr.Column(min_width=320):
        with gr.Group(elem_classes="ep-controls"):
            menu = gr.Dropdown(list(CRITERIA), value=criterion, label="Criterion", elem_id=f"ep-criterion-{number}")
            order = gr.Slider(
                0,
                len(ORDERS) - 1,
                value=ORDERS.index(2.0),
                step=1,
                label="Order of the entropy",
                visible=criterion == RENYI,
                elem_id=f"ep-order-{number}",
                elem_classes="ep-order",
                buttons=[],
            )
            marks = gr.HTML(_marks(), visible=criterion == RENYI)
        shown = gr.HTML(elem_id=f"ep-panel-{number}")
        menu.change(
            lambda chosen: [gr.update(visible=chosen == RENYI)] * 2,
            menu,
            [order, marks],
            show_progress="hidden",
            api_visibility="private",
        )
    return menu, order, shown


def _marks() -> str:
    """The orders under the places of the slider, which are evenly spaced."""
    texts = ("∞" if math.isinf(order) else f"{order:g}" for order in ORDERS)
    return f'<div class="ep-marks">{"".join(f"<span>{text}</span>" for text in texts)}</div>'


def _guarded(gr: Any, explorer: Explorer) -> Callable[..., Iterator[Any]]:
    """The event handler: what it cannot do becomes a message, and the page stays as it was."""

    def show(
        picture: str, model: str, rate: float, *choices: Any
    ) -> Iterator[tuple[str, str, str, str] | dict[Any, Any]]:
        try:
            first, second = (Setting(method_name(*choices[i : i + 2]), rate) for i in (0, 2))
            yield from answers(explorer, model, picture, (first, second))
        except EXPECTED as error:
            gr.Warning(message(error, picture))
            yield gr.skip()

    return show


def _chosen(gr: Any, names: list[str]) -> Callable[..., str]:
    def chosen(event: Any) -> str:
        return names[event.index]

    chosen.__annotations__ = {"event": gr.SelectData}  # by which Gradio knows what to pass
    return chosen


def _checked(gr: Any) -> Callable[[str, str], str]:
    def checked(path: str, before: str) -> str:
        """The uploaded file if it is a picture; otherwise a message, and the picture there was before."""
        try:
            load_image(path)
        except EXPECTED as error:
            gr.Warning(message(error, path))
            return before
        return path

    return checked


def message(error: Exception, picture: str) -> str:
    """An error in a line, without the folder that an upload happens to lie in."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(printable(picture), printable(Path(picture).name))


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


class _Policy:
    """Adds the content security policy to every answer of the server."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(event: Any) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], (b"content-security-policy", POLICY.encode())]
            await send(event)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)
