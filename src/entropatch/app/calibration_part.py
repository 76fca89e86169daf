"""The controls of a calibration on the page, and what its button does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from entropatch.app import panels
from entropatch.app.calibrating import SHARE, SPEEDUP
from entropatch.app.explorer import Explorer
from entropatch.data.images import load_image

WORDS = (
    "Finds the blocks, criteria and keep rates that change this model's answers least, without labels, on the "
    "photographs here, your uploads and the files you add below, 64 or more at best. It takes some minutes; what is "
    "found joins both menus."
)


def controls(gr: Any) -> dict[str, Any]:
    """The controls, closed at first, by name, and where the result goes."""
    found: dict[str, Any] = {}
    with gr.Accordion("Calibrate: the best setting for this model under a budget", open=False, elem_id="ep-calibrate"):
        gr.HTML(f'<p class="ep-what">{WORDS}</p>')
        with gr.Row():
            found["kind"] = gr.Radio([SHARE, SPEEDUP], value=SHARE, label="Budget", elem_id="ep-budget", min_width=220)
            found["share"] = gr.Slider(
                0.3, 0.95, value=0.5, step=0.05, label="At most", elem_id="ep-share", min_width=220
            )
            found["speedup"] = gr.Slider(
                1.1, 4.0, value=1.5, step=0.1, label="At least", visible=False, elem_id="ep-speedup", min_width=220
            )
            found["effort"] = gr.Slider(
                0.0, 2.0, value=0.5, step=0.25, label="Effort", elem_id="ep-effort", min_width=220
            )
        with gr.Row():
            found["files"] = gr.File(
                label="Add images",
                show_label=False,
                file_count="multiple",
                height=132,
                scale=3,
                elem_id="ep-more",
            )
            found["start"] = gr.Button("Calibrate", variant="primary", elem_id="ep-start", scale=1)
        found["result"] = gr.HTML(elem_id="ep-result", min_height=60)
    found["kind"].change(
        lambda kind: [gr.update(visible=kind == SHARE), gr.update(visible=kind == SPEEDUP)],
        found["kind"],
        [found["share"], found["speedup"]],
        show_progress="hidden",
        api_visibility="private",
    )
    return found


def connect(
    gr: Any,
    explorer: Explorer,
    parts: dict[str, Any],
    model: Any,
    menus: list[Any],
    notice: Any,
    *,
    menus_for: Callable[..., list[Any]],
    message: Callable[[Exception, str], str],
    expected: tuple[type[Exception], ...],
) -> None:
    """Let the button calibrate, show the result, and choose the setting on the left side, if its model is still shown.

    Args:
        gr, explorer, parts, model: Gradio; what answers; `controls`; the menu of models.
        menus: of the criteria, the left one first.
        notice: where a message goes.
        menus_for: the menus for a model, given what is chosen in them.
        message, expected: of errors.
    """

    def run(
        name: str,
        kind: str,
        share: float,
        speedup: float,
        effort: float,
        paths: list[str] | None,
        progress: Any = gr.Progress(),  # noqa: B008  # by which Gradio knows that it is wanted
    ) -> tuple[Any, ...]:
        def tell(what: str, done: int, total: int) -> None:
            progress((done, total), desc=what, unit="batches")

        try:
            pictures = [load_image(path) for path in paths or ()]
            value = speedup if kind == SPEEDUP else share
            label, html = explorer.calibrate(name, kind, value, pictures=pictures, effort=effort, on_step=tell)
        except expected as error:
            text = message(error, (paths or [""])[0])
            return gr.skip(), None, None, panels.notice(text)
        finally:
            for path in paths or ():
                remove(Path(path), Path(parts["files"].GRADIO_CACHE))
        return html, (name, label), None, ""

    def choose(found: tuple[str, str] | None, name: str, *chosen: str) -> list[Any]:
        if found is None:
            return [gr.skip()] * len(chosen)
        of, label = found
        return menus_for(gr, explorer, name, *((label, *chosen[1:]) if of == name else chosen))

    latest = gr.State(None)  # the model that was calibrated last, and what its setting is called
    calibrating = parts["start"].click(
        run,
        [model, *(parts[name] for name in ("kind", "share", "speedup", "effort", "files"))],
        [parts["result"], latest, parts["files"], notice],
        concurrency_limit=1,
        show_progress="full",
        show_progress_on=parts["result"],
        api_visibility="private",
    )
    calibrating.then(choose, [latest, model, *menus], menus, show_progress="hidden", api_visibility="private")


def remove(file: Path, cache: Path) -> None:
    """Delete an uploaded file and the folder made for it, in Gradio's cache and nowhere else."""
    if cache.resolve() in file.resolve().parents:
        file.unlink(missing_ok=True)
        with suppress(OSError):
            file.parent.rmdir()
