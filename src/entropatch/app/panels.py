"""What was computed, as HTML: pictures, colour bar and numbers of one setting, and the table that compares them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from entropatch.app.as_code import config_code
from entropatch.app.explorer import Latency, Seen
from entropatch.app.setting import Setting
from entropatch.config import PruneConfig
from entropatch.criteria import ClassAttention
from entropatch.figures.patches import count_text
from entropatch.figures.pixels import check_scale, heat, remaining, scale_limits

# Above this share of the median the 95th percentile tells of a busy machine.
UNSTEADY = 0.25
BAR_STEPS, BAR_HEIGHT = 128, 6


def panel(crop: np.ndarray, seen: Seen, limits: tuple[float, float] | None) -> str:
    """One setting: at each pruning block the scores of the unpruned model, and below what is left after it.

    Args:
        crop: the pixels the model saw.
        seen: of `Explorer.see`.
        limits: ends of the colour scale, in units of the negated importance: nats, for an entropy. None for maps that
            each span the colours with their own scores, since pruning ranks within a block; their ends are written
            below them.
    """
    importance = () if seen.importance is None else seen.importance
    ends = [limits or own_limits(-scores) for scores in importance]
    maps = [
        _picture(
            heat(crop, -scores, each) if np.ptp(scores) > 0 else crop / 255,
            f"scores at block {block}",
            _map_caption(seen, block, each, np.ptp(scores) > 0, limits is None),
        )
        for block, scores, each in zip(seen.stages.blocks if len(importance) else (), importance, ends, strict=True)
    ]
    left = [
        _picture(
            remaining(crop, seen.stages.kept[stage], seen.stages.stands[stage]),
            f"patches left after block {block}",
            count_text(seen.stages, stage),
        )
        for stage, block in enumerate(seen.stages.blocks)
    ]
    scores = f'<div class="ep-row">{"".join(maps)}</div>{_bar(seen, limits)}' if maps else ""
    return (
        f'<div class="ep-panel"><p class="ep-what">{escape(seen.method.description)}</p>'
        f'{scores}<div class="ep-row">{"".join(left)}</div></div>'
    )


def _map_caption(seen: Seen, block: int, limits: tuple[float, float], scored: bool, own: bool) -> str:
    if not scored:
        return f"block {block}: no scores"
    return f"block {block}" + (f": {'–'.join(_ends(seen, limits))}".rstrip(": –") if own else "")


def colour_limits(*seen: Seen, scale: str = "shared") -> list[tuple[float, float] | None]:
    """Ends of the colour scale of each: one scale for all entropies, so that colours compare; others have their own.

    None for each where `scale` is "panel": every map has its own.
    """
    check_scale(scale)
    if scale == "panel":
        return [None] * len(seen)
    entropies = [-one.importance for one in seen if one.importance is not None and one.method.order is not None]
    shared = scale_limits(entropies) if entropies else (0.0, 1.0)
    return [
        None if one.importance is None else (shared if one.method.order is not None else own_limits(-one.importance))
        for one in seen
    ]


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


def as_seen(crop: np.ndarray, name: str = "", remark: str = "") -> str:
    """The picture as the model sees it, with a remark below."""
    height, width = crop.shape[:2]
    caption = f"{name}, as the model sees it: {width}×{height} pixels".removeprefix(", ")
    caption += f"; {remark}" if remark else ""
    return f'<div class="ep-row">{_picture(crop / 255, "as the model sees it", caption)}</div>'


def notice(text: str) -> str:
    """A line that stands until something else is asked for; nothing for no text."""
    return f'<p class="ep-notice" role="alert">{escape(text)}</p>' if text else ""


def use(model: str, crop: np.ndarray, setting: Setting, loading: str | None = None) -> str:
    """How to go on with a setting: as Python to copy, and as a file for `PruneConfig.load`.

    `loading` is the program that loads the model, where it is not timm's.
    """
    config = setting.pruning()
    data = base64.b64encode(config.to_json().encode()).decode("ascii")
    code = escape(as_python(model, crop.shape[:2], config, loading))
    copy = (
        "const code = this.closest('.ep-use').querySelector('code'); getSelection().selectAllChildren(code); "
        "if (navigator.clipboard) { navigator.clipboard.writeText(code.textContent); this.textContent = 'Copied'; }"
    )
    name = setting.method + ("" if setting.keep_rate is None else f"-{setting.keep_rate:g}")
    name = name if setting.given is None else "calibrated"
    return (
        f'<details class="ep-use"><summary>Use this setting</summary><pre><code>{code}</code></pre>'
        f'<p><button type="button" onclick="{copy}">Copy as Python</button> '
        f'<a download="{name}.json" href="data:application/json;base64,{data}">'
        "Download the config</a></p></details>"
    )


def as_python(model: str, size: tuple[int, ...], config: PruneConfig, loading: str | None = None) -> str:
    """A program that prunes the model of that name so; `loading` as in `use`."""
    text, needed = config_code(config)
    side = repr(size[0]) if len(set(size)) == 1 else repr(tuple(size))
    first = "import math\n\n" if "math" in needed else ""
    modules = "".join(f"import {module}\n" for module in needed if module != "math")
    timms = f"import timm\n\nmodel = timm.create_model({json.dumps(model)}, pretrained=True, img_size={side})"
    library, _, made = (loading or timms).partition("\n\n")
    pruning = f"config = {text}\nentropatch.prune_(model, config)\n"
    return f"{first}{library}\n\nimport entropatch\n{modules}\n{made}.eval()\n{pruning}"


def data_uri(pixels: np.ndarray) -> str:
    """Pixels (height, width, 3) in 0 … 1 as an address that holds them."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=92, subsampling=0)  # a fifth of the bytes of a PNG, in a tenth of its time
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _picture(pixels: np.ndarray, what: str, caption: str) -> str:
    image = f'<img src="{data_uri(pixels)}" alt="{escape(what)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _bar(seen: Seen, limits: tuple[float, float] | None) -> str:
    """The colours from what is kept first to what is dropped first, with their values where all maps share them."""
    grey = np.full((BAR_HEIGHT, BAR_STEPS, 3), 128, np.uint8)
    colours = heat(grey, np.linspace(0, 1, BAR_STEPS)[None], (0.0, 1.0))
    ends = _ends(seen, limits) if limits else ("", "")
    if seen.method.order is not None:
        unit = "nats of entropy"
    elif isinstance(seen.method.criterion, ClassAttention):
        unit = "% of class attention"
    else:
        unit = "random numbers" if seen.method.is_random else "score, high to low"
    return (
        f'<div class="ep-bar"><span>{ends[0]}</span><img src="{data_uri(colours)}" alt="colour scale">'
        f"<span>{ends[1]}</span><span>{unit}; blue is kept first</span></div>"
    )


def _ends(seen: Seen, limits: tuple[float, float]) -> tuple[str, str]:
    """The ends of a colour scale, where they mean something."""
    low, high = limits
    if len(seen.method.parts) > 1:  # each map has a criterion of its own
        return "", ""
    if seen.method.order is not None:
        return f"{low:.2f}", f"{high:.2f}"
    if isinstance(seen.method.criterion, ClassAttention):
        return f"{-100 * low:.2f}", f"{-100 * high:.2f}"
    return ("", "") if seen.method.is_random else (f"{-low:.3g}", f"{-high:.3g}")


def own_limits(values: np.ndarray) -> tuple[float, float]:
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
