"""What was computed, as HTML: pictures, colour bar and numbers of one setting, and the table that compares them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from entropatch.app.explorer import Latency, Seen
from entropatch.figures.pixels import heat, remaining, scale_limits

# Above this share of the median the 95th percentile tells of a busy machine.
UNSTEADY = 0.25
BAR_STEPS, BAR_HEIGHT = 128, 6


def panel(crop: np.ndarray, seen: Seen, limits: tuple[float, float]) -> str:
    """One setting: at each pruning block the scores of the unpruned model, and below what is left after it.

    Args:
        crop: the pixels the model saw.
        seen: of `Explorer.see`.
        limits: ends of the colour scale, in units of the negated importance: nats, for an entropy.
    """
    maps = [
        _picture(heat(crop, -scores, limits), f"scores at block {block}", f"block {block}")
        for block, scores in zip(seen.stages.blocks, seen.importance, strict=True)
    ]
    left = [
        _picture(remaining(crop, kept), f"patches left after block {block}", _count(kept, fused))
        for block, kept, fused in zip(seen.stages.blocks, seen.stages.kept, seen.stages.fused, strict=True)
    ]
    return (
        f'<div class="ep-panel"><p class="ep-what">{escape(seen.method.description)}</p>'
        f'<div class="ep-row">{"".join(maps)}</div>{_bar(seen, limits)}<div class="ep-row">{"".join(left)}</div></div>'
    )


def colour_limits(*seen: Seen) -> list[tuple[float, float]]:
    """Ends of the colour scale of each: one scale for all entropies, so that colours compare; others have their own."""
    entropies = [-one.importance for one in seen if one.method.order is not None]
    shared = scale_limits(entropies) if entropies else (0.0, 1.0)
    return [shared if one.method.order is not None else _own_limits(-one.importance) for one in seen]


def comparison(seen: Sequence[Seen], latencies: Sequence[Latency | None]) -> str:
    """A row for the dense model and one per setting: tokens, multiply-adds, milliseconds. Times may be lacking."""
    first = seen[0]
    cells = ["Dense", f"{first.stages.tokens[0]}", f"{first.dense_gflops:.2f}", "", _dense_time(latencies), ""]
    rows = [_row("td", cells)]
    for one, latency in zip(seen, latencies, strict=True):
        tokens = " → ".join(str(count) for count in one.stages.tokens)
        saved = f"−{100 * (1 - one.gflops / one.dense_gflops):.0f} %"
        time, ratio = "measuring …", ""
        if latency is not None:
            time, ratio = f"{latency.pruned_ms:.0f}", f"{latency.dense_ms / latency.pruned_ms:.2f}"
        rows.append(_row("td", [one.method.label, tokens, f"{one.gflops:.2f}", saved, time, ratio]))
    head = _row("th", ["", "patch tokens", "GFLOPs", "saved", "ms per image", "× dense"])
    table = f'<table class="ep-table"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    spread = max((latency.spread for latency in latencies if latency is not None), default=0.0)
    if spread <= UNSTEADY:
        return table
    note = f"The times of one model differ by {100 * spread:.0f} %: this machine is busy, so trust only large ratios."
    return f'{table}<p class="ep-note">{note}</p>'


def as_seen(crop: np.ndarray) -> str:
    """The picture as the model sees it."""
    height, width = crop.shape[:2]
    return f'<div class="ep-row">{_picture(crop / 255, "as the model sees it", f"{width}×{height} pixels")}</div>'


def data_uri(pixels: np.ndarray) -> str:
    """Pixels (height, width, 3) in 0 … 1 as an address that holds them."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=92, subsampling=0)  # a fifth of the bytes of a PNG, in a tenth of its time
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _picture(pixels: np.ndarray, what: str, caption: str) -> str:
    return f'<figure><img src="{data_uri(pixels)}" alt="{escape(what)}"><figcaption>{caption}</figcaption></figure>'


def _count(kept: np.ndarray, fused: int) -> str:
    return f"{kept.sum()} of {kept.size}" + (f" + {fused} fused" if fused else " patches")


def _bar(seen: Seen, limits: tuple[float, float]) -> str:
    """The colours from what is kept first to what is dropped first, with their values where those mean something."""
    low, high = limits
    grey = np.full((BAR_HEIGHT, BAR_STEPS, 3), 128, np.uint8)
    colours = heat(grey, np.linspace(low, high, BAR_STEPS)[None], limits)
    if seen.method.order is not None:
        ends, unit = (f"{low:.2f}", f"{high:.2f}"), "nats of entropy"
    elif seen.method.criterion.needs_class_token:
        ends, unit = (f"{-100 * low:.2f}", f"{-100 * high:.2f}"), "% of class attention"
    else:
        ends, unit = ("", ""), "random numbers"
    return (
        f'<div class="ep-bar"><span>{ends[0]}</span><img src="{data_uri(colours)}" alt="colour scale">'
        f"<span>{ends[1]}</span><span>{unit}; blue is kept first</span></div>"
    )


def _own_limits(values: np.ndarray) -> tuple[float, float]:
    """As `scale_limits`, for values of any size."""
    size = float(np.abs(values).max()) or 1.0
    low, high = scale_limits([values / size])
    return low * size, high * size


def _dense_time(latencies: Sequence[Latency | None]) -> str:
    """The dense model's time; a range where it was measured beside each setting at another moment."""
    known = sorted({f"{latency.dense_ms:.0f}" for latency in latencies if latency is not None}, key=float)
    return "–".join(known)


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
