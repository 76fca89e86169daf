"""The manual's pictures, drawn anew: `python docs/make/pictures.py methods`, or overview, accuracy or app, or all.

Drawn with the weights and photographs that the extra `demo` brings, so nothing is downloaded; minutes on two cores.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # the weights of the package, so that the pictures are the same everywhere

import numpy as np
from accuracy_tables import SETTINGS
from evidence import DATA, FREE, runs
from facts import needs_training
from PIL import Image

from entropatch import figures
from entropatch.data.images import cropped, sample_photographs, to_tensor
from entropatch.demo.settings import OVERVIEW, DemoSettings
from entropatch.figures.pixels import remaining
from entropatch.look.inspection import inspect_image, pruning_stages, stage_config
from entropatch.methods import METHODS, default_method, method_label
from entropatch.models.encoder import encoder_name, load_bundled_encoder
from entropatch.records.uncertainty import accuracy

DOCS = Path(__file__).parents[1]
FOLDER = DOCS / "pictures"
USUAL = default_method(class_token=True)  # what `prune_` does where nothing says how
BLOCKS, RATE, SIDE, GAP = (3, 6, 9), 0.7, 168, 6
SHOWN = ("cat", "rocket")  # of scikit-image, in the public domain


def methods() -> None:
    """For every registered method that needs no training, what it keeps of two photographs after blocks 3, 6 and 9."""
    model, _ = load_bundled_encoder(224)
    photographs = sample_photographs()
    (FOLDER / "methods").mkdir(parents=True, exist_ok=True)
    for name, method in METHODS.items():
        if needs_training(method):
            continue
        row: list[np.ndarray] = []
        for photograph in SHOWN:
            image = photographs[photograph]
            crop = np.asarray(cropped(image, model))
            found = pruning_stages(model, to_tensor(image, model)[None], stage_config(name, RATE))[0].at(BLOCKS)
            left = [remaining(crop, *one) for one in zip(found.kept, found.stands, strict=True)]
            row += [crop / 255, *left]
        strip(row).save(FOLDER / f"methods/{name}.webp", quality=80, method=6)


def strip(pictures: list[np.ndarray]) -> Image.Image:
    """Pictures side by side, with nothing between them, on which any background shows."""
    sheet = Image.new("RGBA", (len(pictures) * (SIDE + GAP) - GAP, SIDE))
    for place, pixels in enumerate(pictures):
        picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (place * (SIDE + GAP), 0))
    return sheet


def overview() -> None:
    """The picture at the head of the README: what `entropatch demo` draws, in fewer colours."""
    settings = DemoSettings()
    model, source = load_bundled_encoder(settings.image_size)
    rate = settings.picture_keep_rate
    seen = {
        name: inspect_image(model, image, settings.picture_methods, rate)
        for name, image in sample_photographs().items()
    }
    title = figures.remaining_title(next(iter(seen.values())), rate)
    note = f"{encoder_name(source)} at {settings.image_size} px."
    path = DOCS / f"{OVERVIEW}.png"
    figures.save_figure(figures.overview(seen, title=title, note=note), path)
    shrink(path)


def accuracy_pictures() -> None:
    """Accuracy against the keep rate, from the records, in one picture for light pages and one for dark ones."""
    import matplotlib.pyplot as plt

    for scheme, ink in (("light", "#222222"), ("dark", "#dddddd")):
        names = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
        with plt.rc_context(
            {**dict.fromkeys(names, ink), "svg.hashsalt": "entropatch", "svg.fonttype": "none", "font.size": 9}
        ):
            figure, axes = plt.subplots(1, len(DATA), figsize=(8, 3.4), sharex=True)
            for axis, (data, label) in zip(axes, DATA.items(), strict=True):
                panel(axis, data)
                axis.set(title=label, xlabel="keep rate at blocks 3, 6, 9 (ToMe, calibrated: same cost)")
                axis.spines[["top", "right"]].set_visible(False)
            axes[0].set_ylabel("top-1, %, without training")
            axes[0].legend(frameon=False, fontsize=8)
            figure.tight_layout()
            figure.savefig(FOLDER / f"accuracy-{scheme}.svg", transparent=True, metadata={"Date": None})
            plt.close(figure)


def panel(axis: Any, data: str) -> None:
    """One data set: a line per method, with one standard error to either side; dense as a line across."""
    shown = {"random": "#888888", "evit": "#d95f02", "shannon": "#1b9e77", "renyi-inf": "#3b82c4"}
    shown |= {USUAL: "#7b4fb5", "tome-falling": "#8d6e3f", "calibrated": "#c2338f"}
    found = runs(FREE)
    dense = accuracy(found[data, None]["dense"]).value
    axis.axhline(dense, color="#888888", linestyle=":", linewidth=1)
    for name, colour in shown.items():
        rates = sorted(rate for one, rate in found if one == data and rate and name in found[one, rate])
        tops = [accuracy(found[data, rate][name]) for rate in rates]
        label = "prune_ alone" if name == USUAL else SETTINGS.get(name) or method_label(name)
        values, errors = [one.value for one in tops], [one.standard_error for one in tops]
        axis.errorbar(rates, values, errors, marker="o", markersize=3, capsize=2, color=colour, label=label)


def app() -> None:
    """The page of `entropatch app`, as Chromium shows it; needs chromium and chromedriver."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    command = [sys.executable, "-m", "entropatch.cli", "app", "--port", "0"]
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1100"):
        options.add_argument(switch)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as serving:
        assert serving.stdout is not None
        address = next(found[0] for line in serving.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            browser.get(address)
            WebDriverWait(browser, 120).until(lambda page: _settled(page))
            height = browser.execute_script("return document.documentElement.scrollHeight")
            browser.set_window_size(1280, height)
            path = DOCS / "app.png"
            browser.save_screenshot(str(path))
        finally:
            browser.quit()
            serving.terminate()
    shrink(path)


def _settled(browser: Any) -> bool:
    pictures = browser.find_elements("css selector", "#ep-panel-1 img")
    text = " ".join(one.text for one in browser.find_elements("css selector", "#ep-comparison"))
    return len(pictures) == 7 and bool(text) and "measuring" not in text


def shrink(path: Path) -> None:
    """A PNG in 256 colours."""
    with Image.open(path) as image:
        smaller = image.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    smaller.save(path, optimize=True)


WHAT = {"methods": methods, "overview": overview, "accuracy": accuracy_pictures, "app": app}

if __name__ == "__main__":
    for what in sys.argv[1:] or WHAT:
        WHAT[what]()
