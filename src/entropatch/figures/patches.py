"""Entropy heat maps over images, and the patches that remain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from entropatch.figures.pixels import heat, limits_of_each, remaining
from entropatch.figures.sheet import CELL, LABELS, LYING, STANDING, STRIP, Sheet
from entropatch.figures.style import LINE, MARGIN
from entropatch.methods import find_method, method_label, renyi_method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from entropatch.look.inspection import Inspection, Stages


PANEL_NOTE = (
    "The colours of each heat map span its own entropies, 1st to 99th percentile as written, since pruning ranks the "
    "patches within a block."
)


def entropy_and_stages(inspection: Inspection, *, scale: str = "panel", title: str = "", note: str = "") -> Figure:
    """One image: its entropy heat map at each pruning block, and what each method leaves after each.

    The first rows are heat maps, one row per order; they show the unpruned model. The rows below show each method's
    kept patches in colour, the pruned ones greyed and hatched, merged ones in the mean colour of what they are part of,
    with the count under each.

    Args:
        inspection: the arrays, as `entropatch.look.inspection.inspect_image` gives them.
        scale: "panel" for colours that span the entropies of each heat map, which are written below it; "shared" for
            one scale in nats.
        title: a line above, such as the file's name; taken literally.
        note: a line below, such as the model and the keep rate.

    Returns:
        A matplotlib Figure; `save_figure` writes it.

    Raises:
        ValueError: another `scale`.
        ImportError: matplotlib is not installed.
    """
    crop, entropy, stages = inspection.crop, inspection.entropy, inspection.stages
    own = scale == "panel"
    below = [LINE * own] * (len(entropy) - 1) + [LINE * own + 0.08] + [LINE] * len(stages)
    notes = [_about(inspection), *([PANEL_NOTE] if own else []), note]
    sheet = Sheet(below, len(inspection.blocks), CELL + STRIP, crop, title, notes, lowest=STANDING)
    sheet.picture(0, -CELL - STRIP, crop / 255)
    sheet.text(MARGIN + CELL / 2, sheet.top - 0.05, "as the model sees it", ha="center", va="bottom")
    limits = limits_of_each([one for maps in entropy.values() for one in maps], scale)
    for column, block in enumerate(inspection.blocks):
        sheet.head(column, f"block {block}")
        for row, maps in enumerate(entropy.values()):
            ends = limits[row * len(inspection.blocks) + column]
            sheet.picture(row, column, heat(crop, maps[column], ends), f"{range_text(ends)} nats" if own else "")
        for row, method in enumerate(stages.values(), len(entropy)):
            sheet.picture(
                row, column, remaining(crop, method.kept[column], method.stands[column]), count_text(method, column)
            )
    sheet.colour_bar(0, len(entropy), None if own else limits[0])
    for row, order in enumerate(entropy):
        sheet.side_label(row, entropy_label(order))
    for row, name in enumerate(stages, len(entropy)):
        sheet.side_label(row, method_label(name))
        sheet.paragraph(row, find_method(name).description)
    return sheet.figure


def overview(
    inspections: Mapping[str, Inspection],
    *,
    order: float | None = None,
    stage: int = -1,
    scale: str = "panel",
    title: str = "",
    note: str = "",
) -> Figure:
    """Several images side by side: each one, its entropy heat map, and what each method leaves of it.

    Args:
        inspections: one per image, by the name to write above it; all of the same methods and orders.
        order: order of the entropy shown; None means the last one that was measured.
        stage: which pruning stage to show; -1 is the last.
        scale: of the heat maps, as `entropy_and_stages` takes it.
        title, note: a line above, and one below.

    Returns:
        A matplotlib Figure; `save_figure` writes it.

    Raises:
        ValueError: no images, images of different methods, an order that was not measured, or another `scale`.
        ImportError: matplotlib is not installed.
    """
    if not inspections:
        raise ValueError("inspections must hold at least one image, but got none.")
    first, *others = inspections.values()
    if any(list(one.stages) != list(first.stages) or list(one.entropy) != list(first.entropy) for one in others):
        raise ValueError("all images of an overview must be inspected with the same methods and orders.")
    shown = list(first.entropy)[-1] if order is None else order
    if shown not in first.entropy:
        raise ValueError(f"order must be one that was measured, {list(first.entropy)}, but got {shown!r}.")
    own = scale == "panel"
    notes = [_about(first), *([PANEL_NOTE] if own else []), *([note] if note else [])]
    below = [0.0, LINE * own, *[0.0] * len(first.stages)]
    sheet = Sheet(below, len(inspections), LABELS, first.crop, title, notes, lowest=LYING)
    sheet.label(1, entropy_label(shown), f"block {first.blocks[stage]}")
    for row, (name, method) in enumerate(first.stages.items(), 2):
        sheet.label(row, method_label(name), count_text(method, stage))
    limits = limits_of_each([one.entropy[shown][stage] for one in inspections.values()], scale)
    for column, (name, one) in enumerate(inspections.items()):
        sheet.head(column, name)
        sheet.picture(0, column, one.crop / 255)
        below_it = f"{range_text(limits[column])} nats" if own else ""
        sheet.picture(1, column, heat(one.crop, one.entropy[shown][stage], limits[column]), below_it)
        for row, method in enumerate(one.stages.values(), 2):
            sheet.picture(row, column, remaining(one.crop, method.kept[stage], method.stands[stage]))
    sheet.colour_bar(1, 2, None if own else limits[0])
    return sheet.figure


def remaining_title(inspection: Inspection, keep_rate: float, stage: int = -1) -> str:
    """What an overview shows, in a line: what a stage leaves of how many patches, and what the rate means."""
    stages = next(iter(inspection.stages.values()))
    total = stages.kept[stage].size
    left = [int(one.kept[stage].sum()) for one in inspection.stages.values()]
    # A fused token may take a patch's place, so that methods differ by a few.
    ends = (min(left), max(left))
    patches = "–".join(dict.fromkeys(str(kept) for kept in ends))
    share = "–".join(dict.fromkeys(f"{100 * kept / total:.0f}" for kept in ends))
    count = len(stages.blocks) if stage == -1 else stage + 1
    each = f"keep rate {keep_rate:g} at each of {count} stages" if count > 1 else f"keep rate {keep_rate:g}"
    return f"{patches} of {total} patches ({share} %) after block {inspection.blocks[stage]}: {each}"


def range_text(limits: tuple[float, float]) -> str:
    """The ends of a colour scale: "4.12–5.30"."""
    return f"{limits[0]:.2f}–{limits[1]:.2f}"


def _about(inspection: Inspection) -> str:
    patches = math.prod(next(iter(inspection.entropy.values())).shape[1:])
    return (
        "Entropy of each patch's attention in the unpruned model, mean over heads: low where the patch attends to few "
        f"others, log {patches} = {math.log(patches):.2f} nats where it attends evenly to all."
    )


def count_text(stages: Stages, stage: int) -> str:
    """How many patches a stage left: "97 of 196 patches", "97 of 196 + 1 fused", "97 of 196, 99 merged" or waiting."""
    kept, fused = stages.kept[stage], stages.fused[stage]
    others = {"merged": stages.merged[stage].sum(), "waiting": stages.waiting[stage].sum()}
    added = (f" + {fused} fused" if fused else "") + "".join(f", {n} {what}" for what, n in others.items() if n)
    return f"{kept.sum()} of {kept.size}" + (added or " patches")


def entropy_label(order: float) -> str:
    """How figures call the entropy of an order."""
    name, comma, rest = renyi_method(order).label.partition(",")
    return f"{name} entropy{comma}{rest}"
