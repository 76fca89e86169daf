"""One page from many runs: what it shows, that it is self-contained, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import training_case
from odd_files import bomb
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

import entropatch
from entropatch.bench import BenchSettings, run_bench
from entropatch.cli import app
from entropatch.cli import report as _command  # noqa: F401  # registers the command
from entropatch.config import method_config
from entropatch.figures.curves import training_curves
from entropatch.records.correct import CorrectImages, write_correct
from entropatch.records.tables import write_records
from entropatch.records.uncertainty import accuracy
from entropatch.report import ReportError, read_run, write_report
from entropatch.train.fine_tuning import Outcome

HOSTILE = '<script>alert("1")</script> & <img src=http://example.com/x.png>'
MACHINE = {"hardware": "a CPU", "torch": "2.15.0", "entropatch": "0.1.0", "date": "2026-02-01T10:00:00+00:00"}


class Page(HTMLParser):
    """The parts of a page: its tables as lists of rows of cells, addresses, tags and text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._cell: str | None = None
        self._hidden = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._cell = ""
        self._hidden = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.tables[-1][-1].append((self._cell or "").strip())
            self._cell = None
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell += data
        if not self._hidden:
            self.text += data

    @property
    def pictures(self) -> list[bytes]:
        return [base64.b64decode(a.partition(",")[2]) for a in self.addresses if a.startswith("data:")]


def png(path: Path, colour: str = "red", **metadata: str) -> bytes:
    info = PngInfo()
    for key, value in metadata.items():
        info.add_text(key.replace("_", "-"), value)
    Image.new("RGB", (12, 8), colour).save(path, pnginfo=info)
    return path.read_bytes()


def demo_folder(folder: Path, label: str = "Rényi, order ∞") -> Path:
    records = [
        {
            "method": "dense",
            "label": "Dense",
            "keep_rate": None,
            "accuracy": 97.44,
            "accuracy_error": 0.68,
            "gflops": 6.14,
        },
        {
            "method": "renyi-inf",
            "label": label,
            "keep_rate": 0.7,
            "accuracy": 93.3,
            "accuracy_error": 1.1,
            "gflops": 3.97,
        },
    ]
    about = {"made by": "entropatch demo", "keep rate 0.7": f"{label} is ahead.", "settings": '{"seed": 7}', **MACHINE}
    write_records(records, folder, "results", title="Digits", about=about)
    return folder


def seed_run(folder: Path, seed: int, top1: list[float], finished: bool = True) -> Path:
    folder.mkdir(parents=True)
    settings = {"model": {"kind": "test_vit"}, "data": {"name": "digits"}, "prune": None, "seed": seed}
    settings |= {"recipe": {"epochs": 3, "learning_rate": 0.004}, "entropatch": "0.1.0", "teacher": None, "about": {}}
    (folder / "run.json").write_text(json.dumps(settings))
    history = [
        {"epoch": i + 1, "loss": 2.0 - i, "top1": value, "top5": 99.0, "seconds": 30.0, "images_per_second": 100.0}
        for i, value in enumerate(top1)
    ]
    (folder / "epochs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    if finished:
        outcome = Outcome(top1[-1], 99.0, max(top1), 99.0, 1, len(top1), 90.0, 0, str(folder))
        (folder / "result.json").write_text(json.dumps(asdict(outcome)))
    return folder


def test_the_page_shows_the_records_the_pictures_and_the_machine(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path / "demo")
    data = png(folder / "cat.png")
    page = Page(write_report([folder], tmp_path / "report.html", title="My runs"))
    assert page.tables[1] == [
        ["method", "keep rate", "accuracy %", "GFLOPs"],
        ["Dense", "—", "97.4 ± 0.7", "6.14"],
        ["Rényi, order ∞", "0.7", "93.3 ± 1.1", "3.97"],
    ]
    assert page.pictures == [data]
    assert "keep rate 0.7: Rényi, order ∞ is ahead." in page.text
    assert ["seed", "7"] in page.tables[2]
    assert [list(pair) for pair in MACHINE.items()] == page.tables[3]
    assert page.tables[0][1] == ["Digits", "demo", "a CPU", "2.15.0", "0.1.0", "2026-02-01"]
    assert "My runs" in page.text


def test_nothing_in_the_page_leads_outside_and_nothing_runs(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path / "demo", HOSTILE)
    png(folder / "<img src=x onerror=alert(1)>.png")
    (folder / "curve.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    (folder / "table-1.md").write_text(f"| a |\n|---|\n| **1.5** {HOSTILE} ![x](http://example.com/y.png) <b>c</b> |\n")
    (folder / "recommended.json").write_text(json.dumps({"keep_rate": HOSTILE}))
    runs = seed_run(tmp_path / "<b>run</b>", 0, [50.0])
    page = Page(write_report([folder, runs], tmp_path / "report.html", title=HOSTILE))
    # But for what is in the page and places in it, there are links to the pictures' own files, which nothing follows.
    links = [address for address in page.addresses if not address.startswith(("data:image/", "#"))]
    assert sorted(unquote(address) for address in links) == ["demo/<img src=x onerror=alert(1)>.png", "demo/curve.svg"]
    assert not {"script", "iframe", "link", "object", "embed", "form", "b"} & set(page.tags)
    assert page.tags.count("img") == 3  # the two pictures and the training curve
    assert "default-src 'none'" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.tables[2][2][0] == HOSTILE  # and yet it is all there to be read
    assert "<img src=x onerror=alert(1)>" in page.text
    assert any("1.5" in cell for table in page.tables for row in table for cell in row)


def test_a_report_of_a_real_benchmark_and_a_real_training(tmp_path: Path) -> None:
    """The formats of the other commands as they are today, not as this file remembers them."""
    settings = BenchSettings(
        model="test_vit", methods=("dense", "random"), keep_rates=(0.5,), batch_sizes=(1,), image_size=48, repeats=1
    )
    result = run_bench(settings)
    write_records(result.records, tmp_path / "bench", "speed", title="Speed", about=result.about)
    outcome = training_case.run(tmp_path / "run", recipe=training_case.recipe(epochs=1))
    bench, run = read_run(tmp_path / "bench"), read_run(tmp_path / "run")
    assert (bench.kind, bench.title, run.kind) == ("bench", "Speed", "finetune")
    assert [row[0] for row in bench.tables[0].rows] == ["Dense", "Random"]
    assert bench.machine["torch"] == result.about["torch"]
    assert "hardware" in bench.machine
    assert bench.settings["model"] == "test_vit"
    row = dict(zip(run.tables[0].columns, run.tables[0].rows[0], strict=True))
    assert (row["state"], row["top-1 %"]) == ("finished", f"{outcome.top1:.2f} ± {outcome.top1_se:.2f}")
    assert run.settings["prune.criterion.order"] == "2"
    assert [picture.media_type for picture in run.pictures] == ["image/svg+xml"]
    alone = read_run(tmp_path / "bench" / "speed.json")
    assert alone.tables == bench.tables


def test_seeds_are_one_run_with_mean_and_spread(tmp_path: Path) -> None:
    for seed, top1 in ((0, [40.0, 50.0]), (1, [60.0, 54.0]), (10, [30.0])):
        seed_run(tmp_path / f"seed-{seed}", seed, top1, finished=seed != 10)
    run = read_run(tmp_path)
    table = [dict(zip(run.tables[0].columns, row, strict=True)) for row in run.tables[0].rows]
    assert [row["run"] for row in table] == ["seed 0", "seed 1", "seed 10", "2 seeds"]
    assert [row["state"] for row in table] == ["finished", "finished", "after epoch 1 of 3", "mean ± std"]
    assert table[3]["top-1 %"] == f"52.00 ± {np.std([50, 54], ddof=1):.2f}"
    assert [row["best top-1 %"] for row in table] == ["50.00", "60.00", "30.00", "60.00"]
    assert [row["minutes"] for row in table[:3]] == ["1.0", "1.0", "0.5"]
    assert "Not finished: seed 10." in run.findings
    assert (run.title, run.settings["seed"]) == ("test_vit on digits, dense", "0, 1, 10")


def test_seeds_that_note_which_images_came_out_right_have_standard_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    correct = rng.random((2, 200)) < 0.5
    for seed in (0, 1):
        folder = seed_run(tmp_path / "before" / f"seed-{seed}", seed, [100 * correct[seed].mean()])
        history = json.loads((folder / "epochs.jsonl").read_text()) | {"images_tested": 200}
        (folder / "epochs.jsonl").write_text(json.dumps(history) + "\n")
        write_correct(folder, CorrectImages("a", np.ones(200, bool), {"": correct[seed]}))
    (tmp_path / "before").rename(tmp_path / "moved")
    run = read_run(tmp_path / "moved")
    p = correct[0].mean()
    assert run.tables[0].rows[0][3] == f"{100 * p:.2f} ± {100 * (p * (1 - p) / 200) ** 0.5:.2f}"
    estimate = accuracy(correct)
    mean = f"Mean top-1 of 2 seeds: {estimate.value:.2f} ± {estimate.standard_error:.2f} %, one standard error over"
    assert run.findings[0] == f"{mean} images and seeds."


def test_a_check_is_a_table_of_scores_and_blocks_under_its_verdict(tmp_path: Path) -> None:
    head = {"images": 6}
    records: list[dict[str, Any]] = [
        {"score": name, "label": label, "block": block, "auroc": value, "standard_error": 0.1, **head}
        for name, label, values in (("shannon", "Shannon", (0.71, 0.8)), ("evit", "EViT", (0.6, 0.5)))
        for block, value in enumerate(values)
    ]
    records.append({"score": "pixels", "label": "Pixels", "block": None, "auroc": 0.55, "standard_error": 0.2, **head})
    write_records(records, tmp_path, "check", title="Foreground", about={"verdict": "do not trust it"})
    run = read_run(tmp_path)
    assert (run.kind, run.title, run.findings) == ("check", "Foreground", ("do not trust it",))
    assert run.tables[0].columns == ("block", "Shannon", "EViT", "Pixels")
    assert run.tables[0].rows == (
        ("0", "0.71 ± 0.10", "0.60 ± 0.10", ""),
        ("1", "0.80 ± 0.10", "0.50 ± 0.10", ""),
        ("all", "", "", "0.55 ± 0.20"),
    )


def test_long_tables_are_folded_away_and_complete(tmp_path: Path) -> None:
    write_records([{"x": i} for i in range(50)], tmp_path / "long", "x")
    page = Page(write_report([tmp_path / "long"], tmp_path / "report.html"))
    assert page.tables[1] == [["x"], *([str(i)] for i in range(50))]
    assert "50 records" in page.text


def test_a_training_run_says_on_which_machines_its_seeds_were_trained(tmp_path: Path) -> None:
    for seed, hardware in enumerate(("one GPU", "another")):
        folder = seed_run(tmp_path / f"seed-{seed}", seed, [50.0])
        (folder / "machine.json").write_text(json.dumps({"hardware": hardware, "torch": "2.15", "cuda": None}))
    machine = read_run(tmp_path).machine
    assert machine == {"entropatch": "0.1.0", "hardware": "seed-0: one GPU; seed-1: another", "torch": "2.15"}
    (tmp_path / "seed-1/machine.json").unlink()
    assert read_run(tmp_path).machine["torch"] == "seed-0: 2.15"


def test_an_evaluation_has_its_errors_and_says_what_is_not_told_apart(tmp_path: Path) -> None:
    base = {"name": "EViT, 0.7", "keep_rate": 0.7, "top1": 64.0, "gflops": 1.0, "images": 100, "damaged": 0}
    write_records([base], tmp_path, "old")
    old = read_run(tmp_path / "old.json")
    assert dict(zip(old.tables[0].columns, old.tables[0].rows[0], strict=True))["top-1 %"] == "64.00 ± 4.80"
    assert any("do not say which images came out right" in line for line in old.findings)
    paired = {
        f"top1_less_random{end}": value for end, value in (("", 2.0), ("_se", 1.5), ("_low", -1.0), ("_high", 5.0))
    }
    paired |= {"top1_se": 4.8, "top1_low": 54.0, "top1_high": 73.0, "against_random": "not told apart"}
    write_records([base | paired], tmp_path, "new")
    new = read_run(tmp_path / "new.json")
    row = dict(zip(new.tables[0].columns, new.tables[0].rows[0], strict=True))
    assert (row["top-1 %"], row["− random"], row["against random"]) == (
        "64.00 ± 4.80",
        "+2.00 ± 1.50",
        "not told apart",
    )
    assert not any("low" in column or "high" in column or column[-2:] == "se" for column in row)
    assert "Not told apart from random: EViT, 0.7." in new.findings


def test_ratios_have_their_intervals(tmp_path: Path) -> None:
    record = {"label": "EViT", "vs_random": 0.98412, "vs_random_low": 0.97111, "vs_random_high": 0.995, "vs_dense": 1.5}
    record |= {"vs_dense_low": None, "vs_dense_high": None, "peak_memory_mib": 3.0}
    write_records([record], tmp_path, "bench")
    (table,) = read_run(tmp_path).tables
    assert table.rows == (("EViT", "0.984 (0.971 … 0.995)", "1.50", "3.0"),)
    assert table.numeric == (False, True, True, True)


def test_several_record_files_of_a_folder_stay_apart(tmp_path: Path) -> None:
    for stem, torch, seed in (("a", "2.15", 1), ("b", "2.15", 2)):
        write_records([{"x": 1}], tmp_path, stem, about={"torch": torch, "seed": seed})
    run = read_run(tmp_path)
    assert [table.caption for table in run.tables] == ["a", "b"]
    assert run.machine == {"torch": "2.15"}
    assert run.settings == {"seed": "a: 1; b: 2"}


def test_values_as_they_are_read(tmp_path: Path) -> None:
    record = {"order": float("inf"), "keep_rate": (0.9, 0.5), "top1": 71.234, "top1_std": 0.5, "share": 0.78915}
    record |= {
        "note": "",
        "flag": True,
        "gflops": 0.0028,
        "p50_ms": 0.0,
        "nothing": None,
        "lost": float("nan"),
        "big": 123456.7,
        "trial": 3,
    }
    write_records([record], tmp_path, "x")
    table = read_run(tmp_path).tables[0]
    assert dict(zip(table.columns, table.rows[0], strict=True)) == {
        "order": "∞",
        "keep rate": "0.9, 0.5",
        "top-1 %": "71.23 ± 0.50",
        "share": "0.7892",
        "flag": "yes",
        "GFLOPs": "0.0028",
        "p50 ms": "0.0",
        "lost": "—",
        "big": "123457",
        "trial": "3",
    }


def test_pictures_smallest_format_and_at_most_so_many(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path / "demo")
    for name in ("a", "b", "c"):
        png(folder / f"{name}.png")
    small = '<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt"/>'
    (folder / "a.svg").write_text(small)
    (folder / "b.svg").write_text(small + " " * 5000)
    Image.new("RGB", (260, 130)).save(folder / "c.png", dpi=(260, 260))
    assert read_run(folder).pictures[2].size == (130, 65)
    run = read_run(folder, most_pictures=2)
    assert [(one.name, one.media_type, one.size) for one in run.pictures] == [
        ("a", "image/svg+xml", (130, 65)),
        ("b", "image/png", (12, 8)),  # it does not say how large an inch is
    ]
    assert run.pictures_left_out == 1
    page = Page(write_report([folder], tmp_path / "report.html", most_pictures=2))
    assert "1 more picture in the folder is not shown here" in " ".join(page.text.split())


def noise(path: Path, size: tuple[int, int], dpi: int = 175) -> Path:
    """A picture of which no byte can be saved."""
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, dpi=(dpi, dpi))
    return path


def test_pictures_have_as_many_pixels_as_are_shown_and_a_link_to_the_original(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path / "runs" / "a demo")
    noise(folder / "wide.png", (1750, 350))
    noise(folder / "small.png", (350, 175))
    noise(folder / "odd.png", (70, 70), dpi=0)
    page = Page(write_report([folder], tmp_path / "pages" / "report.html"))
    sizes = [Image.open(io.BytesIO(data)).size for data in page.pictures]
    assert sizes == [(70, 70), (260, 130), (1112, 222)]  # no wider than the page
    links = [address for address in page.addresses if address.endswith(".png")]
    assert [(tmp_path / "pages" / unquote(one)).resolve() for one in links] == [
        folder / "odd.png",
        folder / "small.png",
        folder / "wide.png",
    ]


def test_a_page_of_seven_runs_with_large_pictures_stays_small(tmp_path: Path) -> None:
    """Heat maps as `figures` draws them, 2,000 dots wide; kept as they are, the files would make 40 MB."""
    runs, drawn = [], Image.fromarray(np.random.default_rng(0).integers(0, 256, (34, 34, 3), np.uint8))
    grain = np.random.default_rng(1).integers(-6, 7, (1900, 1900, 1))
    heat = np.asarray(drawn.resize((1900, 1900), Image.Resampling.NEAREST)).astype(int) + grain
    buffer = io.BytesIO()
    Image.fromarray(heat.clip(0, 255).astype(np.uint8)).save(buffer, "PNG", dpi=(175, 175), compress_level=1)
    for number in range(7):
        runs.append(demo_folder(tmp_path / f"run-{number}"))
        (runs[-1] / "entropy-cat.png").write_bytes(buffer.getvalue())
    before = sum(path.stat().st_size for run in runs for path in run.glob("*.png"))
    after = write_report(runs, tmp_path / "report.html").stat().st_size
    assert before > 20e6
    assert after < 7 * 800_000


def test_a_folder_of_drawings_is_a_run_and_a_photo_album_is_none(tmp_path: Path) -> None:
    for name in ("numbers", "marked", "album"):
        (tmp_path / name).mkdir()
    png(tmp_path / "numbers" / "histogram.png")
    (tmp_path / "numbers" / "histogram.csv").write_text("a\n1\n")
    png(tmp_path / "marked" / "cat.png", entropatch_source="abc")
    png(tmp_path / "album" / "cat.png")
    assert [read_run(tmp_path / name).kind for name in ("numbers", "marked")] == ["figures", "visualize"]
    with pytest.raises(ReportError, match=r"album: holds no run"):
        read_run(tmp_path / "album")


def test_drawings_say_on_which_machine_and_when(tmp_path: Path) -> None:
    for name, day in (("a", "2026-02-01"), ("b", "2026-02-03")):
        about = {"model": "test_vit", "keep rate": 0.7, **MACHINE, "date": f"{day}T10:00:00+00:00"}
        png(tmp_path / f"{name}.png", entropatch_source="abc", entropatch_about=json.dumps(about))
    run = read_run(tmp_path)
    assert run.settings == {"model": "test_vit", "keep rate": "0.7"}
    assert run.machine["hardware"] == "a CPU"
    page = Page(write_report([tmp_path], tmp_path / "report.html"))
    assert page.tables[0][1][2:] == ["a CPU", "2.15.0", "0.1.0", "2026-02-01, 2026-02-03"]


def break_json(folder: Path) -> Path:
    path = folder / "results.json"
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    return path


def break_text(folder: Path) -> Path:
    (folder / "results.json").write_bytes(b'{"about": "\xff\xfe"}')
    return folder / "results.json"


def nest(folder: Path) -> Path:
    (folder / "results.json").write_text("[" * 100_000)
    return folder / "results.json"


def break_records(folder: Path) -> Path:
    (folder / "results.json").write_text('{"about": {}, "records": [1, 2]}')
    return folder / "results.json"


def break_png(folder: Path) -> Path:
    Image.effect_noise((64, 64), 50).save(folder / "cat.png")
    data = (folder / "cat.png").read_bytes()
    (folder / "cat.png").write_bytes(data[: len(data) // 2])
    return folder / "cat.png"


def disguise_png(folder: Path) -> Path:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    (folder / "cat.png").write_bytes(buffer.getvalue())
    return folder / "cat.png"


def break_svg(folder: Path) -> Path:
    (folder / "cat.svg").write_text("<svg><g></svg>")
    return folder / "cat.svg"


def html_as_svg(folder: Path) -> Path:
    (folder / "cat.svg").write_text("<html/>")
    return folder / "cat.svg"


@pytest.mark.parametrize(
    "damage", [break_json, break_text, nest, break_records, break_png, disguise_png, break_svg, html_as_svg]
)
def test_a_damaged_file_is_named_in_one_line_and_nothing_is_written(damage: Any, tmp_path: Path) -> None:
    broken = damage(demo_folder(tmp_path / "demo"))
    output = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["report", str(broken.parent), "--output", str(output)])
    assert result.exit_code == 1
    assert result.output.startswith(f"entropatch report: {broken}: damaged: ")
    assert result.output.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{}"),
        ("run.json", "{"),
        ("epochs.jsonl", '{"epoch": 1, "loss": 1.0, "top1": 2.0}\n{"epoch": 2'),
        ("epochs.jsonl", '{"epoch": 1}\n'),
        ("result.json", '{"top1": 1.0}'),
        ("machine.json", "[]"),
    ],
)
def test_a_damaged_training_run_is_named(name: str, content: str, tmp_path: Path) -> None:
    folder = seed_run(tmp_path / "run", 0, [50.0])
    (folder / name).write_text(content)
    with pytest.raises(ReportError, match=f"{name}: damaged: "):
        read_run(folder)


def check_folder_of_records(folder: Path) -> Path:
    records = [
        {"score": "shannon", "label": "Shannon", "block": block, "auroc": 0.7, "standard_error": 0.1, "images": 3}
        for block in range(3)
    ]
    write_records(records, folder, "check", title="Foreground", about={"made by": "entropatch check"})
    return folder


LONG = "1" + "0" * 400


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("run.json", '{"epochs": 3, "learning_rate": 0.004}', "[3]"),
        ("run.json", '{"epochs": 3, "learning_rate": 0.004}', "null"),
        ("run.json", '"prune": null', '"prune": {"criterion": [1]}'),
        ("epochs.jsonl", '"seconds": 30.0', '"seconds": "30"'),
        ("epochs.jsonl", '"top1": 50.0', '"top1": null'),
        ("epochs.jsonl", '"top1": 50.0', f'"top1": {LONG}'),
        ("epochs.jsonl", '"loss": 2.0', '"loss": "low"'),
        ("epochs.jsonl", '"epoch": 1', '"epoch": {}'),
        ("epochs.jsonl", '"epoch": 1', '"damaged_training": 3, "epoch": 1'),
        ("result.json", '"top1": 50.0', '"top1": null'),
        ("result.json", '"best_epoch": 1', f'"best_epoch": {LONG}'),
        ("check.json", '"label": "Shannon",', ""),
        ("check.json", '"auroc": 0.7', f'"auroc": {LONG}'),
        ("check.json", '"standard_error": 0.1', f'"standard_error": {LONG}'),
    ],
)
def test_damage_of_every_kind_is_one_line_that_names_the_file(name: str, old: str, new: str, tmp_path: Path) -> None:
    folder = check_folder_of_records(tmp_path / "run") if name == "check.json" else None
    folder = folder or seed_run(tmp_path / "run", 0, [50.0])
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    result = CliRunner().invoke(app, ["report", str(folder), "--output", str(tmp_path / "report.html")])
    assert result.exit_code == 1
    assert result.output.startswith(f"entropatch report: {folder / name}: damaged: ")
    assert result.output.count("\n") == 1


def test_a_decompression_bomb_is_named_or_not_looked_at(tmp_path: Path) -> None:
    bomb(tmp_path / "cat.png")
    with pytest.raises(ReportError, match=r"holds no run"):
        read_run(tmp_path, most_pictures=0)
    demo_folder(tmp_path)
    assert read_run(tmp_path, most_pictures=0).pictures_left_out == 1
    with pytest.raises(ReportError, match=r"cat\.png: damaged: Image size .* exceeds limit"):
        read_run(tmp_path)


class Damage:
    """Random damage to a file of JSON, the same for one seed."""

    VALUES = (None, True, [], {}, "", "text", "inf", "nan", -1, 0.5, 10**400, -(10**400), 1e308, [[]], {"a": {"b": []}})

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def __call__(self, path: Path) -> None:
        data = path.read_bytes()
        if self.random.random() < 0.3:
            path.write_bytes(self._bytes(data))
            return
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        place = self.random.randrange(len(lines))
        lines[place] = json.dumps(self._tree(json.loads(lines[place])))
        path.write_text("\n".join(lines), encoding="utf-8")

    def _bytes(self, data: bytes) -> bytes:
        start = self.random.randrange(len(data))
        if self.random.random() < 0.5:
            return data[:start]
        return data[:start] + self.random.randbytes(self.random.randrange(1, 5)) + data[start + 3 :]

    def _tree(self, tree: Any) -> Any:
        """The tree with one of its parts replaced or, in an object, removed."""
        if not isinstance(tree, (dict, list)) or not tree or self.random.random() < 0.15:
            return self.random.choice(self.VALUES)
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = self.random.choice(keys)
        if isinstance(tree, dict) and self.random.random() < 0.2:
            return {name: value for name, value in tree.items() if name != key}
        tree[key] = self._tree(tree[key])
        return tree


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_damaged_is_shown_or_named_in_a_line(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = png(tmp_path / "curve.png")
    monkeypatch.setattr("entropatch.report.training_files.save_figure", lambda figure, path: tmp_path / "curve.png")
    runs = {
        "demo": demo_folder(tmp_path / "demo"),
        "check": check_folder_of_records(tmp_path / "check"),
        "run": seed_run(tmp_path / "run", 0, [40.0, 50.0, 45.0]),
        "segment": segment_run(tmp_path / "segment"),
    }
    machine = runs["run"] / "machine.json"
    machine.write_text(json.dumps(MACHINE))
    damage, named = Damage(seed), 0
    files = [path for run in runs.values() for path in sorted(run.glob("*.json*"))]
    for _ in range(60):
        path = damage.random.choice(files)
        whole = path.read_bytes()
        damage(path)
        try:
            write_report([path.parent], tmp_path / "report.html", force=True)
        except ReportError as error:
            named += 1
            text = str(error)
            assert text.startswith(str(path.parent))
            assert "\n" not in text
            assert len(text) < 600
        path.write_bytes(whole)
    assert 10 < named < 60
    assert drawn


def test_titles_name_the_folder_of_the_data_and_the_method(tmp_path: Path) -> None:
    folder = seed_run(tmp_path / "run", 0, [50.0])
    settings = json.loads((folder / "run.json").read_text())
    settings["data"] = {"name": "folder", "root": "/data/moths", "options": {}}
    settings["prune"] = method_config("evit", (0.9, 0.7, 0.5), (4, 8, 10)).to_dict()
    (folder / "run.json").write_text(json.dumps(settings))
    assert read_run(folder).title == "test_vit on the folder moths, EViT, blocks 4, 8, 10, keep rate 0.9/0.7/0.5"
    settings["prune"]["criterion"] = {"name": "TheirOwn", "power": 2}
    (folder / "run.json").write_text(json.dumps(settings))
    assert read_run(folder).title == "test_vit on the folder moths, TheirOwn (power 2), fused, keep rate 0.9, 0.7, 0.5"


def test_what_is_no_run_is_refused_with_what_is_supported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "text.md").write_text("# x")
    seed_run(tmp_path / "several" / "first", 0, [50.0])
    for name in ("empty", "list.json", "text.md", "missing", "several"):
        with pytest.raises(ReportError, match=r"finetune, segment, calibrate, search") as error:
            read_run(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
    with pytest.raises(ReportError, match=r"It has the folders first: name those\."):
        read_run(tmp_path / "several")
    with pytest.raises(ReportError, match=r"name its folder"):
        read_run(tmp_path / "several" / "first" / "run.json")
    with pytest.raises(ReportError, match=r"at least one run"):
        write_report([], tmp_path / "report.html")


def segment_run(folder: Path, finished: bool = True) -> Path:
    folder.mkdir(parents=True)
    settings = {"task": "segmentation", "entropatch": "0.1.0", "data": {"name": "mask-folder"}, "recipe": {"epochs": 2}}
    settings |= {"prune": entropatch.PruneConfig(method="dtop", blocks=(6,)).to_dict(), "seed": 3}
    settings |= {"segmenter": {"classes": 11, "head": "linear"}, "about": {"model": {"name": "test_vit"}}}
    (folder / "run.json").write_text(json.dumps(settings))
    epoch = {"loss": 2.0, "miou": 40.0, "miou_se": 1.25, "patches_left": 12.0, "seconds": 30.0}
    lines = [json.dumps({"epoch": i + 1, **epoch}) + "\n" for i in range(1 + finished)]
    (folder / "epochs.jsonl").write_text("".join(lines))
    if finished:
        (folder / "result.json").write_text('{"miou": 40.0}')
        record = {"name": "DToP", "miou": 40.0, "miou_se": 1.25, "to_dense": -0.5, "to_dense_se": 0.2}
        write_records([record], folder, "segment", title="Segmentation", about=MACHINE)
    return folder


def test_a_segmentation_has_its_training_and_what_it_was_tested_at(tmp_path: Path) -> None:
    run = read_run(segment_run(tmp_path / "run"))
    assert (run.kind, run.title) == ("segment", "test_vit on mask-folder, DToP, blocks 6")
    training, tested = run.tables
    assert training.rows == (("seed 3", "finished", "2.0000", "40.00 ± 1.25", "12.0", "1.0"),)
    assert tested.columns == ("setting", "mIoU %", "− dense")
    assert tested.rows == (("DToP", "40.00 ± 1.25", "-0.50 ± 0.20"),)
    assert [picture.name for picture in run.pictures] == ["training curves"]
    assert run.machine["hardware"] == "a CPU"
    page = Page(write_report([tmp_path / "run"], tmp_path / "report.html"))
    assert ["DToP", "40.00 ± 1.25", "-0.50 ± 0.20"] in [row for table in page.tables for row in table]


def test_a_segmentation_at_work_says_how_far_it_is(tmp_path: Path) -> None:
    run = read_run(segment_run(tmp_path / "run", finished=False))
    assert run.findings == ("Not finished: 1 epochs are done.",)
    assert run.tables[0].rows[0][1] == "after epoch 1 of 2"
    (tmp_path / "run/epochs.jsonl").write_text('{"epoch": 1, "loss": 2.0, "miou": "high"}\n')
    with pytest.raises(ReportError, match=r"epochs\.jsonl: damaged: line 1: miou must be a number, but is 'high'"):
        read_run(tmp_path / "run")
    (tmp_path / "run/run.json").write_text('{"task": "segmentation", "data": 1}')
    with pytest.raises(ReportError, match=r"run\.json: damaged: .* data must be an object"):
        read_run(tmp_path / "run")


def calibration(folder: Path) -> Path:
    """What a calibration writes: its records at the budget and at another cost, and those of single blocks."""
    about = {"made by": "entropatch calibrate", "verdict": "It beats random.\nIt beats the default.", **MACHINE}
    about |= {"unit": "GFLOPs", "dense": 4.0}
    rest = {"loss": 0.1, "standard_error": 0.0123, "pruning": "ToMe, blocks 1, 2"}
    rows = [
        ("calibrated", "calibrated", "budget", 3.0, "0.533/0.855"),
        ("ToMe", "tome, falling", "budget", 2.5, "0.9/0.8"),
        ("calibrated", "calibrated", "curve", 2.0, 0.5),
        ("random", "random", "curve", 1.0, 0.5),
    ]
    records = [{**dict(zip(("label", "name", "part", "cost", "keep_rate"), row, strict=True)), **rest} for row in rows]
    write_records(records, folder, "calibration", title="a model", about=about)
    single = {"block": 3, "choice": "EViT", "keep_rate": 0.5, "loss": 0.1}
    title = "a model: one block pruned alone"
    write_records([single] * 50, folder, "single-blocks", title=title, about=about)
    entropatch.PruneConfig(keep_rate=0.5).save(folder / "calibrated.json")
    return folder


def test_a_calibration_has_its_setting_and_each_finding_once(tmp_path: Path) -> None:
    run = read_run(calibration(tmp_path))
    assert (run.kind, run.title) == ("calibrate", "a model")
    assert run.findings == ("It beats random.", "It beats the default.")
    assert list(run.texts) == ["calibrated.json"]
    beside = [f"calibration: {what}" for what in ("at the budget", "at other costs")]
    assert [table.caption for table in run.tables] == [*beside, "single-blocks: one block pruned alone"]


def test_a_calibration_s_tables_say_costs_of_the_dense_model_and_no_internal_names(tmp_path: Path) -> None:
    budget, curve, _ = read_run(calibration(tmp_path)).tables
    assert budget.columns == ("setting", "cost (GFLOPs)", "of dense", "loss", "prunes by", "keep rate")
    assert budget.rows == (
        ("calibrated", "3", "75%", "0.1 ± 0.012", "ToMe, blocks 1, 2", "0.533, 0.855"),
        ("ToMe", "2.5", "62%", "0.1 ± 0.012", "ToMe, blocks 1, 2", "0.9, 0.8"),
    )
    assert budget.numeric == (False, True, True, True, False, False)
    assert [row[:3] for row in curve.rows] == [("random", "1", "25%"), ("calibrated", "2", "50%")]
    page = write_report([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "tome, falling" not in page
    assert "<summary>single-blocks: one block pruned alone, 50 records</summary>" in page


def test_a_damaged_calibration_is_told(tmp_path: Path) -> None:
    record = {"label": "a", "name": "a", "part": "budget", "cost": "much", "loss": 0.1, "pruning": "…"}
    write_records([record], tmp_path, "calibration", about={"made by": "entropatch calibrate", "dense": 3.0})
    with pytest.raises(ReportError, match=r"calibration\.json: damaged"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ((), "it is empty;"),
        (("calibrating.json", "losses.jsonl"), "it is a calibration that is not finished; start the same command"),
        (("search.db",), "it is a search that has no report yet"),
        (("config.json", "model.safetensors"), "it is a model of transformers"),
        (("a", "b", "c", "d", "e"), "it is a folder of a, b, c and 2 more;"),
    ],
)
def test_a_folder_that_is_no_run_is_called_by_what_it_is(files: tuple[str, ...], what: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ReportError, match=re.escape(what)):
        read_run(tmp_path)


def test_only_reports_are_replaced(tmp_path: Path) -> None:
    folder, output = demo_folder(tmp_path / "demo"), tmp_path / "page.html"
    command = ["report", str(folder), "--output", str(output)]
    output.write_text("<html>my own page</html>")
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert "is no report" in refused.output
    assert output.read_text() == "<html>my own page</html>"
    written = CliRunner().invoke(app, [*command, "--force"])
    assert written.exit_code == 0
    assert re.search(r"page\.html: 1 run, [1-9]\d* kB\n|page\.html: 1 run, \d+\.\d MB\n", written.output)
    first = output.read_bytes()
    again = CliRunner().invoke(app, [*command, "--title", "Again"])
    assert again.exit_code == 0, again.output
    assert output.read_bytes() != first
    assert set(tmp_path.iterdir()) == {folder, output}
    refused = CliRunner().invoke(app, ["report", str(folder), "--output", str(folder), "--force"])
    assert refused.exit_code == 1
    assert "is a folder" in refused.output


def test_a_run_given_twice_is_shown_once(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path / "demo")
    page = Page(write_report([folder, str(folder), tmp_path / "demo"], tmp_path / "report.html"))
    assert page.tags.count("section") == 1


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run-\xff")
    try:
        demo_folder(folder)
    except OSError:
        pytest.skip("this file system takes text alone as file names")
    Page(write_report([folder], tmp_path / "report.html"))


def test_curves_draw_the_history_of_each_run() -> None:
    histories = {
        "seed 0": [{"epoch": 1, "loss": 2.0, "top1": 10.0}, {"epoch": 2, "loss": 1.0, "top1": 30.0}],
        "_odd name $x$": [{"epoch": 1, "loss": 3.0, "top1": 20.0}],
        "not begun": [],
    }
    loss, top1 = training_curves(histories, title="$title$").axes
    assert [line.get_xydata().tolist() for line in loss.lines] == [[[1, 2], [2, 1]], [[1, 3]]]
    assert [line.get_xydata().tolist() for line in top1.lines] == [[[1, 10], [2, 30]], [[1, 20]]]
    legend = top1.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 2
    with pytest.raises(ValueError, match="at least one finished epoch"):
        training_curves({"seed 0": []})
