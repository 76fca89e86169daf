"""The demo's pictures: one per photograph, and one of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from entropatch.demo.settings import MADE_BY, OVERVIEW, DemoSettings, Step, counter

if TYPE_CHECKING:
    from PIL.Image import Image


def chosen_photographs(settings: DemoSettings) -> dict[str, Image]:
    from entropatch.data.images import sample_photographs

    photographs = sample_photographs()
    return {name: photographs[name] for name in settings.photographs or photographs}


def several(photographs: Mapping[str, Image]) -> tuple[str, ...]:
    """The picture that shows all photographs side by side, if there are several."""
    return (OVERVIEW,) if len(photographs) > 1 else ()


def draw(
    model: nn.Module,
    photographs: Mapping[str, Image],
    paths: Mapping[str, Path],
    settings: DemoSettings,
    encoder: str,
    on_step: Step,
) -> None:
    """One picture per photograph, and one of all: `paths` names them, `encoder` the model."""
    from entropatch import figures
    from entropatch.look.inspection import inspect_image

    rate = settings.picture_keep_rate
    model_name = f"{encoder} at {settings.image_size} px"
    note = f"{model_name}, keep rate {rate:g} at each of the pruning blocks."
    step = counter("pictures", len(paths), on_step)
    inspections = {}
    for name, photograph in photographs.items():
        inspections[name] = inspect_image(model, photograph, settings.picture_methods, rate)
        figure = figures.entropy_and_stages(inspections[name], title=name, note=note)
        figures.save_figure(figure, paths[name], {"Software": MADE_BY})
        step()
    for name in several(photographs):
        title = figures.remaining_title(next(iter(inspections.values())), rate)
        figure = figures.overview(inspections, title=title, note=f"{model_name}.")
        figures.save_figure(figure, paths[name], {"Software": MADE_BY})
        step()
