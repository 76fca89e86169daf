"""The page itself, laid out with Gradio."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from entropatch.app import calibration_part, panels
from entropatch.app.answering import said_html
from entropatch.app.explorer import Explorer, shown_name
from entropatch.app.setting import Setting
from entropatch.data.images import load_image, printable
from entropatch.methods import METHODS, find_method, pictured_methods, renyi_method

ORDERS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0, math.inf)
RENYI = "Rényi entropy (1: Shannon)"
HEADING = """<header class="ep-head"><h1>entropatch</h1><p>A Vision Transformer cuts an image into patches. Some
tell it little, and it gets faster without them: entropatch drops those whose attention is spread most evenly, that is,
of the highest entropy. Pick a photograph or drop your own, and compare two ways to choose: above, the score that each
patch has at the blocks that prune; below, what is left after each of them.</p></header>"""
SCALES = {"each its own colours": "panel", "all entropies alike": "shared"}
# What the page may meet in a picture, a model or a setting; anything else is a fault of the program.
EXPECTED = (ValueError, ImportError, OSError, RuntimeError)


def criteria() -> list[str]:
    """The menu: the entropies, whose order the slider says, then every other registered method by its label."""
    return [RENYI, *(method.label for method in METHODS.values() if not method.drops_by_entropy)]


def method_name(criterion: str, place: float) -> str:
    """The method meant by a criterion of the menu and a place of the order's slider."""
    if criterion == RENYI:
        return renyi_method(ORDERS[int(place)]).name
    return next(name for name, method in METHODS.items() if method.label == criterion)


def offered(explorer: Explorer, model: str) -> list[str]:
    """The menu with what was calibrated for a model, the latest first."""
    return [*reversed(explorer.calibrations(model)), *criteria()]


def setting_of(explorer: Explorer, model: str, rate: float, criterion: str, place: float) -> Setting:
    """The setting meant by the sliders and a criterion of the menu, which may be one that was calibrated.

    Raises:
        ValueError: it was calibrated for another model.
    """
    calibrations = explorer.calibrations(model)
    if criterion in calibrations:
        return Setting(criterion, None, calibrations[criterion])
    if criterion not in criteria():
        raise ValueError(
            f"a calibration counts for its own model only, but {criterion!r} is none of {model!r}; choose another "
            "criterion, or calibrate this model."
        )
    return Setting(method_name(criterion, place), rate)


def chosen_menus(gr: Any, explorer: Explorer, model: str, *chosen: str) -> list[Any]:
    """The menus for a model; what was chosen stays where it is offered, otherwise the entropy takes its place."""
    try:
        choices = offered(explorer, model)
    except EXPECTED:  # which is told where the pictures are made
        return [gr.skip()] * len(chosen)
    return [gr.update(choices=choices, value=one if one in choices else RENYI) for one in chosen]


def answers(
    explorer: Explorer, model: str, picture: str, settings: tuple[Setting, Setting], scale: str = "panel"
) -> Iterator[tuple[str, str, str, str]]:
    """The image as seen, the table, and the two panels; first without the times not known yet, then with them."""
    crop, code = explorer.crop(model, picture), explorer.code(model)
    seen = [explorer.see(model, picture, setting) for setting in settings]
    limits = panels.colour_limits(*seen, scale=scale)
    left, right = (
        panels.panel(crop, one, ends)
        + said_html(explorer.say(model, picture, setting))
        + panels.use(model, crop, setting, code)
        for one, ends, setting in zip(seen, limits, settings, strict=True)
    )
    known = [explorer.known_latency(model, setting) for setting in settings]
    shown = panels.as_seen(crop, shown_name(picture), explorer.remark(model, picture))
    yield shown, panels.comparison(seen, known), left, right
    if None in known:
        yield shown, panels.comparison(seen, explorer.latency(model, settings)), left, right


def build(gr: Any, explorer: Explorer, models: list[str]) -> Any:
    """The page as Gradio's Blocks."""
    names = list(explorer.photographs)
    beside = find_method(pictured_methods((1.0,))[0]).label
    # Uploaded files are removed as soon as they are read; those that nobody came for, after some minutes.
    with gr.Blocks(title="entropatch", analytics_enabled=False, delete_cache=(60, 300)) as page:
        picture = gr.State(names[0])
        gr.HTML(HEADING)
        notice = gr.HTML(elem_id="ep-notice")
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
                scale = gr.Radio(list(SCALES), value=next(iter(SCALES)), label="Heat maps", elem_id="ep-scale")
                crop = gr.HTML(elem_id="ep-crop")
            with gr.Column(scale=4):
                table = gr.HTML(elem_id="ep-comparison")
                calibration = calibration_part.controls(gr)
                with gr.Row():
                    sides = [_side(gr, number, start) for number, start in enumerate((RENYI, beside))]
        inputs = [
            picture,
            model,
            rate,
            scale,
            *(control for criterion, order, _ in sides for control in (criterion, order)),
        ]
        outputs = [crop, table, *(shown for _, _, shown in sides), notice]
        menus = [menu for menu, _, _ in sides]
        _connect_answers(gr, explorer, page, inputs, outputs, menus)
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gallery.select(_chosen(gr, names), None, [picture], **quick)
        about: dict[str, Any] = {"menus_for": chosen_menus, "message": message, "expected": EXPECTED}
        calibration_part.connect(gr, explorer, calibration, model, menus, notice, **about)
        upload.upload(_received(upload, explorer), [upload, picture], [picture, upload, notice], **quick)
    return page


def _connect_answers(
    gr: Any, explorer: Explorer, page: Any, inputs: list[Any], outputs: list[Any], menus: list[Any]
) -> None:
    """Let every change be answered; a model's first of all by menus that offer what was calibrated for it."""
    (_, model, *_), (_, table, *_) = inputs, outputs
    how: dict[str, Any] = {
        # While one answer is on its way, only the latest of all further changes waits.
        "trigger_mode": "always_last",
        "concurrency_limit": 1,
        "show_progress": "minimal",
        "show_progress_on": table,  # an animation over each picture would take time from what is being timed
        "api_visibility": "private",
    }
    answer = _guarded(gr, explorer)
    gr.on([control.change for control in inputs if control is not model], answer, inputs, outputs, **how)
    offering = gr.on([page.load, model.change], partial(chosen_menus, gr, explorer), [model, *menus], menus, **how)
    offering.then(answer, inputs, outputs, **how)


def _side(gr: Any, number: int, criterion: str) -> tuple[Any, Any, Any]:
    """Criterion, order and panel of one side."""
    with gr.Column(min_width=320):
        with gr.Group(elem_classes="ep-controls"):
            menu = gr.Dropdown(criteria(), value=criterion, label="Criterion", elem_id=f"ep-criterion-{number}")
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
    """The event handler: what it cannot do becomes a notice, and the pictures stay as they were."""

    def show(picture: str, model: str, rate: float, scale: str, *choices: Any) -> Iterator[tuple[Any, ...]]:
        try:
            first, second = (setting_of(explorer, model, rate, *choices[i : i + 2]) for i in (0, 2))
            for answer in answers(explorer, model, picture, (first, second), SCALES[scale]):
                yield *answer, ""
        except EXPECTED as error:
            yield *[gr.skip()] * 4, panels.notice(message(error, picture))

    return show


def _chosen(gr: Any, names: list[str]) -> Callable[..., str]:
    def chosen(event: Any) -> str:
        return names[event.index]

    chosen.__annotations__ = {"event": gr.SelectData}  # by which Gradio knows what to pass
    return chosen


def _received(upload: Any, explorer: Explorer) -> Callable[[str, str], tuple[str, None, str]]:
    """What takes an uploaded file: the picture to show, an empty field for the next one, and a notice or none."""

    def received(path: str, before: str) -> tuple[str, None, str]:
        try:
            return explorer.add(load_image(path), Path(path).name), None, ""
        except EXPECTED as error:
            return before, None, panels.notice(message(error, path))
        finally:
            calibration_part.remove(Path(path), Path(upload.GRADIO_CACHE))

    return received


def message(error: Exception, picture: str) -> str:
    """An error in a line, without the folder that an upload happens to lie in."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(printable(picture), printable(shown_name(picture)))
