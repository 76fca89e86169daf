"""The interactive page: what it computes and keeps, what it shows, and its server."""

from __future__ import annotations

import base64
import io
import math
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from entropatch import PruneConfig, UnsupportedModelError, pruning_config
from entropatch.app import Explorer, Latency, Setting, interface, panels
from entropatch.app.doors import Doors, free_port
from entropatch.app.interface import ORDERS, RENYI, answers, criteria, message, method_name
from entropatch.app.serving import serve
from entropatch.cli import app
from entropatch.cli import app_command as _registered  # noqa: F401
from entropatch.config import method_config
from entropatch.data.images import ImageError, to_tensor
from entropatch.figures.pixels import heat, remaining, scale_limits
from entropatch.look.inspection import entropy_maps, inspect_image, pruning_stages
from entropatch.measure import count_flops
from entropatch.methods import METHODS
from entropatch.models.pretrained import ModelError
from entropatch.surgery import prune_
from entropatch.surgery.adapters.timm.model_classes import SplitModel

NAMES = ("random", "evit", "evit-drop", "shannon", "renyi-2", "renyi-inf", "renyi-0.5")


def photograph(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((200, 150), Image.Resampling.BICUBIC)


def load(name: str) -> tuple[nn.Module, str]:
    """A small model with weights of its own; "plain" has no class token, "missing" does not exist."""
    if name == "missing":
        raise ModelError("'missing' is no model that timm knows.")
    extra: dict[str, Any] = {"class_token": False, "global_pool": "avg"} if name == "plain" else {}
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=0, depth=8, img_size=96, **extra).eval()
    for block in model.blocks:
        block.attn.qkv.weight.data *= 12  # as a trained model, it should not attend to all patches alike
    return model, f"weights of {name}"


@pytest.fixture
def explorer() -> Explorer:
    return Explorer(load, {"one": photograph(0), "two": photograph(1)}, repeats=2)


@contextmanager
def counted_passes() -> Iterator[list[int]]:
    """The number of patch tokens that leave the trunk, for each forward pass while the block runs."""
    seen: list[int] = []

    def counting(forward: Any) -> Any:
        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = forward(self, *args, **kwargs)
            seen.append(out.shape[1] - self.num_prefix_tokens)
            return out

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for kind in (timm.models.VisionTransformer, SplitModel):  # stock, and pruned
            patch.setattr(kind, "forward_features", counting(kind.forward_features))
        yield seen


# ---------------------------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_is_seen_as_a_fresh_model_shows_it(name: str, explorer: Explorer) -> None:
    seen = explorer.see("m", "one", Setting(name, 0.5))
    model = load("m")[0]
    fresh = inspect_image(model, photograph(0), [name], 0.5)
    stages = fresh.stages[name]
    np.testing.assert_array_equal(seen.stages.kept, stages.kept)
    assert (seen.stages.tokens, seen.stages.fused, seen.stages.blocks) == (stages.tokens, stages.fused, (2, 4, 6))
    images = to_tensor(photograph(0), model)[None]
    whole = pruning_stages(model, images, method_config(name, 1.0))[0]
    np.testing.assert_allclose(seen.importance, whole.scores, rtol=1e-4, atol=1e-5)
    order = METHODS[name].order if name in METHODS else 0.5
    if order is not None:
        np.testing.assert_allclose(-seen.importance, entropy_maps(model, images, [order])[0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(explorer.crop("m", "one"), fresh.crop)


@pytest.mark.parametrize("name", ["tome", "shannon-merge"])
def test_a_merging_method_is_shown_with_what_it_merged(name: str, explorer: Explorer) -> None:
    seen, crop = explorer.see("m", "one", Setting(name, 0.5)), explorer.crop("m", "one")
    html = panels.panel(crop, seen, None)
    assert (seen.importance is None) == (name == "tome")  # which asks for no scores
    assert seen.stages.blocks == ((2, 4, 6, 7) if name == "tome" else (2, 4, 6))
    assert seen.stages.tokens[-1] + seen.stages.merged[-1].sum() == 36
    assert f"{seen.stages.tokens[-1]} of 36, {seen.stages.merged[-1].sum()} merged" in html
    shown = pictures(html)
    assert len(shown) == len(seen.stages.blocks) + (0 if name == "tome" else 4)  # maps, and the colour bar
    model = load("m")[0]
    assert seen.gflops == count_flops(prune_(model, method_config(name, 0.5)), torch.zeros(1, 3, 96, 96)).total / 1e9
    assert panels.colour_limits(seen, seen) == [None, None] or name != "tome"


@pytest.mark.parametrize("name", NAMES)
def test_multiply_adds_are_those_of_the_pruned_model(name: str, explorer: Explorer) -> None:
    """They are counted once for all orders; each must be what counting the model itself gives."""
    explorer.see("m", "one", Setting("renyi-2", 0.3))
    seen = explorer.see("m", "one", Setting(name, 0.3))
    model = load("m")[0]
    images = torch.zeros(1, 3, 96, 96)
    assert seen.dense_gflops == count_flops(model, images).total / 1e9
    assert seen.gflops == count_flops(prune_(model, method_config(name, 0.3)), images).total / 1e9


def test_what_a_slider_does_not_change_is_not_computed_again(explorer: Explorer) -> None:
    explorer.see("m", "one", Setting("renyi-2", 0.5))
    with counted_passes() as passes:
        explorer.see("m", "one", Setting("renyi-3", 0.5))
        explorer.see("m", "one", Setting("renyi-inf", 0.5))
        assert passes == [5, 5]  # 36 -> 18 -> 9 -> 5: a pruned pass each, and no other
        explorer.see("m", "two", Setting("renyi-inf", 0.5))
        assert passes == [5, 5, 5, 36]  # a new picture is looked at once, unpruned
        explorer.crop("m", "two")
        explorer.source("m")
    loads: list[str] = []
    counting = Explorer(lambda name: (loads.append(name), load(name))[1], {"one": photograph()})
    for name in ("a", "b", "a", "b", "a"):
        counting.see(name, "one", Setting("shannon", 0.5))
    assert loads == ["a", "b"]


def test_times_are_measured_once_per_setting_in_turns_with_the_dense_model(explorer: Explorer) -> None:
    settings = [Setting("evit", 0.5), Setting("renyi-2", 0.5)]
    assert explorer.known_latency("m", settings[0]) is None
    with counted_passes() as passes:
        first = explorer.latency("m", settings)
        assert passes[-9:] == [36, 7, 5] * 3  # dense, EViT with its fused tokens, Rényi; a warm-up and two repeats
        assert set(passes[:-9]) <= {36}  # surgery's own check of the copies
        passes.clear()
        assert explorer.latency("m", [settings[1], settings[0]]) == first[::-1]
        assert not passes
        explorer.latency("m", [settings[0], Setting("renyi-2", 0.3)])
        assert passes == [36, 2] * 3
    assert explorer.known_latency("m", settings[0]) == first[0]
    assert explorer.known_latency("other", settings[0]) is None
    assert all(one.pruned_ms > 0 and one.dense_ms > 0 for one in first)


def test_nothing_of_one_question_is_left_in_the_next(explorer: Explorer) -> None:
    """Copies are pruned anew all the time, the model itself never."""
    order = [("one", "evit", 0.5), ("two", "renyi-2", 1.0), ("one", "random", 0.3), ("one", "evit", 0.5)]
    answers = [explorer.see("m", picture, Setting(name, rate)) for picture, name, rate in order]
    explorer.latency("m", [Setting("evit", 0.3), Setting("random", 0.3)])
    again = [explorer.see("m", picture, Setting(name, rate)) for picture, name, rate in order]
    for a, b in zip(answers, again, strict=True):
        np.testing.assert_array_equal(a.importance, b.importance)
        np.testing.assert_array_equal(a.stages.kept, b.stages.kept)
        assert (a.gflops, a.stages.tokens) == (b.gflops, b.stages.tokens)
    assert answers[1].stages.tokens == (36, 36, 36, 36)
    assert answers[1].gflops == answers[1].dense_gflops


def test_files_are_read_and_errors_leave_everything_as_it_was(explorer: Explorer, tmp_path: Path) -> None:
    before = explorer.see("m", "one", Setting("shannon", 0.5))
    path = tmp_path / "two.png"
    photograph(1).save(path)
    from_file = explorer.see("m", str(path), Setting("shannon", 0.5))
    named = explorer.see("m", "two", Setting("shannon", 0.5))
    np.testing.assert_array_equal(from_file.importance, named.importance)
    (tmp_path / "bad.png").write_text("no picture")
    for arguments, error in (
        (("m", str(tmp_path / "bad.png"), Setting("shannon", 0.5)), ImageError),
        (("m", "three", Setting("shannon", 0.5)), ImageError),
        (("missing", "one", Setting("shannon", 0.5)), ModelError),
        (("plain", "one", Setting("evit", 0.5)), UnsupportedModelError),
    ):
        with pytest.raises(error):
            explorer.see(*arguments)
    assert explorer.see("plain", "one", Setting("shannon", 0.5)).stages.tokens == (36, 18, 9, 5)
    after = explorer.see("m", "one", Setting("shannon", 0.5))
    np.testing.assert_array_equal(before.stages.kept, after.stages.kept)


def test_settings_are_checked() -> None:
    for method, rate in (("nonsense", 0.5), ("renyi-0", 0.5), ("evit", 0.0), ("evit", 1.5)):
        with pytest.raises(ValueError):
            Setting(method, rate)


# --------------------------------------------------------------------------------------------------- what is shown


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) / 255 for text in found]


def test_a_panel_shows_scores_and_what_is_left(explorer: Explorer) -> None:
    crop, seen = explorer.crop("m", "one"), explorer.see("m", "one", Setting("evit", 0.5))
    limits = panels.colour_limits(seen)[0]
    html = panels.panel(crop, seen, limits)
    shown = pictures(html)
    assert len(shown) == 7  # three maps, the colour bar, three remainders
    for place, importance, kept in zip(range(3), seen.importance, seen.stages.kept, strict=True):
        for got, expected in (
            (shown[place], heat(crop, -importance, limits)),
            (shown[place + 4], remaining(crop, kept)),
        ):
            assert np.abs(got - expected).mean() < 0.02  # JPEG
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions[:3] == ["block 2", "block 4", "block 6"]  # one scale; its ends stand beside the bar
    counts = [int(text.split()[0]) for text in captions[3:]]
    assert counts == [int(kept.sum()) for kept in seen.stages.kept]


def test_entropies_share_a_colour_scale_and_others_have_their_own(explorer: Explorer) -> None:
    low, high, other = (explorer.see("m", "one", Setting(name, 0.5)) for name in ("renyi-inf", "shannon", "evit"))
    a, b, c = panels.colour_limits(low, high, other)
    assert a == b == scale_limits([-low.importance, -high.importance])
    assert c != a
    assert other.importance.min() <= -c[1] < -c[0] <= other.importance.max()
    assert "nats of entropy" in panels.panel(explorer.crop("m", "one"), low, a)
    assert "% of class attention" in panels.panel(explorer.crop("m", "one"), other, c)


def test_blue_is_kept_first(explorer: Explorer) -> None:
    """Whether the criterion keeps what is high, as EViT's, or what is low, as an entropy."""
    crop = np.full((96, 96, 3), 128, np.uint8)
    importance = np.tile(np.linspace(0.1, 0.9, 36, dtype=np.float32).reshape(6, 6), (3, 1, 1))
    for name, sign in (("evit", 1), ("shannon", -1)):
        seen = replace(
            explorer.see("m", "one", Setting(name, 0.5)), importance=importance if sign > 0 else importance - 1
        )
        html = panels.panel(crop, seen, panels.colour_limits(seen)[0])
        shown = pictures(html)
        map_, bar = shown[0], shown[3]
        blue = (map_[..., 2] - map_[..., 0]).reshape(6, 16, 6, 16).mean((1, 3)).ravel()
        assert np.corrcoef(blue, importance[0].ravel())[0, 1] > 0.95
        blue = (bar[..., 2] - bar[..., 0]).mean(0)
        assert blue[:20].mean() > 0.3 > -0.3 > blue[-20:].mean()
        first, last = (float(text) for text in re.findall(r"<span>([\d.]+)</span>", html))
        assert (first > last) == (sign > 0)


def test_the_table_compares(explorer: Explorer) -> None:
    seen = [explorer.see("m", "one", Setting(name, 0.5)) for name in ("renyi-2", "evit")]
    html = panels.comparison(seen, [Latency(50.0, 100.0), None])
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in html.split("<tr>")[2:]]
    dense, renyi, evit = rows
    assert dense[:3] == ["Dense", "36", f"{seen[0].dense_gflops:.2f}"]
    assert dense[4] == "100"
    saved = 100 * (1 - seen[0].gflops / seen[0].dense_gflops)
    assert renyi == ["Rényi, order 2", "36 → 18 → 9 → 5", f"{seen[0].gflops:.2f}", f"−{saved:.0f} %", "50", "2.00"]
    assert evit[4] == "measuring …"
    times = panels.comparison(seen, [Latency(50.0, 100.0), Latency(60.0, 140.0)])
    assert "<td>100–140</td>" in times
    assert "busy" not in times
    assert "differ by 60 %: this machine is busy" in panels.comparison(seen, [Latency(50.0, 100.0, 0.6), None])


def test_answers_come_first_without_times_then_with_them(explorer: Explorer) -> None:
    settings = (Setting("renyi-2", 0.5), Setting("evit", 0.5))
    first, second = answers(explorer, "m", "one", settings)
    assert first[1].count("measuring") == 2
    assert "measuring" not in second[1]
    assert (first[0], first[2:]) == (second[0], second[2:])
    assert len(list(answers(explorer, "m", "two", settings))) == 1  # times do not depend on the picture


def test_the_slider_reaches_every_order_and_the_menu_every_criterion() -> None:
    assert ORDERS[-1] == math.inf
    assert list(ORDERS) == sorted(set(ORDERS))
    assert method_name(RENYI, ORDERS.index(1.0)) == "shannon"
    assert method_name(RENYI, float(ORDERS.index(2.0))) == "renyi-2"
    assert method_name(RENYI, len(ORDERS) - 1) == "renyi-inf"
    for criterion in criteria():
        for place in range(len(ORDERS)):
            Setting(method_name(criterion, place), 0.5)


def test_messages_name_the_file_and_not_the_folder_of_uploads(tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_text("no picture")
    with pytest.raises(ImageError) as error:
        Explorer(load, {}).crop("m", str(path))
    assert message(error.value, str(path)) == "bad.png: not an image file that Pillow can read."


# -------------------------------------------------------------------------------------------------------- the server


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[str]:
    """The address of the page while the block runs."""
    pytest.importorskip("gradio", reason="Gradio is not installed")
    explorer = Explorer(load, {"one": photograph(0), "two": photograph(1)}, repeats=1)
    page, address = serve(explorer, ["m", "plain"], host=host, port=0, upload_mb=1, wait=False)
    yield address
    page.close(verbose=False)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with serving() as address:
        yield address


def fetch(url: str, **arguments: Any) -> Any:
    httpx = pytest.importorskip("httpx")
    return httpx.get(url, **arguments)


def test_the_server_listens_on_this_machine_only_and_forbids_all_other_addresses(served: str) -> None:
    assert served.startswith("http://127.0.0.1:")
    answer = fetch(served)
    assert answer.status_code == 200
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    port = int(served.rstrip("/").rpartition(":")[2])
    addresses = listening_addresses(port)
    assert addresses is None or addresses == {"0100007F"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "localhost:8888"}, 200),  # through a tunnel
        ({"Host": "{own}", "Origin": "http://{own}"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://{own}.evil.example"}, 403),
        ({"Origin": "http://localhost:1"}, 403),  # another program's page on this machine
    ],
)
def test_only_this_page_and_no_page_may_ask(served: str, headers: dict[str, str], status: int) -> None:
    httpx = pytest.importorskip("httpx")
    own = served.rstrip("/").removeprefix("http://")
    sent = {key: value.format(own=own, port=own.partition(":")[2]) for key, value in headers.items()}
    answer = fetch(served, headers=sent)
    assert answer.status_code == status
    upload = httpx.post(served.rstrip("/") + "/gradio_api/upload", files={"files": ("a.png", b"x")}, headers=sent)
    assert upload.status_code == status
    asked = httpx.options(served, headers={"Access-Control-Request-Method": "POST", **sent})
    for one in (answer, upload, asked):
        allowed = one.headers.get("access-control-allow-origin")
        assert allowed is None or (status == 200 and allowed == sent["Origin"])


def test_who_is_let_in_depends_on_what_is_listened_on() -> None:
    def lets_in(host: str, name: str, *names: str) -> bool:
        return Doors(None, host, names).lets_in({b"host": name.encode()})

    here = socket.gethostname().lower()
    for host in ("127.0.0.1", "::1", "localhost"):
        assert all(
            lets_in(host, name) for name in ("localhost", "LOCALHOST:1", "127.0.0.1:7860", "127.5.0.1", "[::1]:7")
        )
        assert not any(
            lets_in(host, name) for name in ("", "evil.example", "192.168.0.7", "0.0.0.0", "[fd00::1]", "x@y")
        )
    for host in ("0.0.0.0", "::", "192.168.0.7"):
        assert all(lets_in(host, name) for name in ("192.168.0.7:7860", "[fd00::1]:80", f"{here}:7860", "localhost"))
        assert not lets_in(host, "evil.example:7860")
    assert lets_in("127.0.0.1", "hub.example.org", "hub.example.org")
    assert lets_in("gpu.lab", "gpu.lab:7860")


def test_the_sixth_version_of_the_address_serves_too() -> None:
    try:
        free_port("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving("::1") as address:
        assert address.startswith("http://[::1]:")
        assert fetch(address).status_code == 200
        assert fetch(address, headers={"Host": "evil.example"}).status_code == 403


def test_an_upload_is_gone_as_soon_as_it_is_read(explorer: Explorer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    received = interface._received(SimpleNamespace(GRADIO_CACHE=str(cache)), explorer)
    good, bad, elsewhere = cache / "1" / "good.png", cache / "2" / "<b id=pwn>.png", tmp_path / "mine.png"
    for path in (good, bad):
        path.parent.mkdir(parents=True)
    photograph(1).save(good)
    photograph(1).save(elsewhere)
    bad.write_text("no picture")
    picture, field, shown = received(str(good), "one")
    assert (field, shown) == (None, "")
    assert not good.parent.exists()
    assert (
        "<figcaption>good.png, as the model sees it: 96×96 pixels"
        in next(answers(explorer, "m", picture, (Setting("evit", 0.5), Setting("random", 0.5))))[0]
    )
    two = explorer.see("m", "two", Setting("shannon", 0.5))
    np.testing.assert_array_equal(explorer.see("m", picture, Setting("shannon", 0.5)).importance, two.importance)
    # A bad one leaves the picture there was, no name, and a notice in which nothing is HTML.
    assert received(str(bad), picture)[:2] == (picture, None)
    bad.parent.mkdir()
    bad.write_text("no picture")
    shown = received(str(bad), picture)[2]
    assert "&lt;b id=pwn&gt;.png: not an image file that Pillow can read." in shown
    assert "<b" not in shown
    assert not bad.parent.exists()
    received(str(elsewhere), "one")
    assert elsewhere.exists()  # nothing outside of the cache is ever deleted


def test_only_the_latest_uploads_are_held(explorer: Explorer) -> None:
    keys = [explorer.add(photograph(1), f"{number}/a.png") for number in range(20)]
    assert len(set(keys)) == 20
    explorer.crop("m", keys[-1])
    with pytest.raises(ImageError, match=r"^0/a\.png: no longer held"):
        explorer.crop("m", keys[0])


def test_names_of_models_and_pictures_are_no_html(explorer: Explorer) -> None:
    hostile = "<b id=pwn>&amp;"
    key = explorer.add(photograph(), f"{hostile}.png")
    settings = (Setting("evit", 0.5), Setting("random", 0.5))
    for answer in answers(explorer, hostile, key, settings):
        assert not any("<b id" in part for part in answer)
    shown = interface._guarded(SimpleNamespace(skip=lambda: None), explorer)
    scale = next(iter(interface.SCALES))
    *_, last = shown(hostile + ".png", "m", 0.5, scale, RENYI, 0, RENYI, 1)
    assert last[:4] == (None,) * 4
    assert "&lt;b id=pwn&gt;" in last[4]
    assert "<b" not in last[4]


@pytest.mark.parametrize("name", [*NAMES, "tome", "shannon-merge"])
@pytest.mark.parametrize("rate", [0.7, 1.0])
def test_the_python_to_copy_and_the_file_to_download_are_the_setting(
    name: str, rate: float, explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(name, rate)
    html = panels.use("m", explorer.crop("m", "one"), setting)
    code = unescape(re.findall(r"<code>(.*?)</code>", html, re.DOTALL)[0])
    made, model = [], load("m")[0]
    monkeypatch.setattr(timm, "create_model", lambda *given, **how: made.append((given, how)) or model)
    space: dict[str, Any] = {}
    exec(code, space)
    assert made == [(("m",), {"pretrained": True, "img_size": 96})]
    assert pruning_config(space["model"]) == setting.config()
    data = re.findall(r'href="data:application/json;base64,(.*?)"', html)[0]
    assert PruneConfig.from_json(base64.b64decode(data).decode()) == setting.config()


def test_each_map_has_colours_of_its_own_unless_they_are_to_compare(explorer: Explorer) -> None:
    crop = np.full((96, 96, 3), 128, np.uint8)
    seen = explorer.see("m", "one", Setting("shannon", 0.5))
    apart = replace(seen, importance=seen.importance / 10 - np.arange(3, dtype=np.float32)[:, None, None])
    assert panels.colour_limits(apart, apart, scale="panel") == [None, None]
    html = panels.panel(crop, apart, None)
    for got, importance in zip(pictures(html), apart.importance, strict=False):
        assert np.abs(got - heat(crop, -importance, scale_limits([-importance]))).mean() < 0.03
    low, high = scale_limits([-apart.importance[0]])
    assert f"<figcaption>block 2: {low:.2f}–{high:.2f}</figcaption>" in html
    with pytest.raises(ValueError, match="scale must be one of"):
        panels.colour_limits(apart, scale="all")


def listening_addresses(port: int) -> set[str] | None:
    """Local addresses on which some process listens at that port, as Linux writes them; None elsewhere."""
    tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
    if not tables[0].is_file():
        return None
    lines = [line.split() for table in tables if table.is_file() for line in table.read_text().splitlines()[1:]]
    places = [line[1].split(":") for line in lines if line[3] == "0A"]
    return {address for address, number in places if int(number, 16) == port}


def test_the_server_takes_no_large_files_and_gives_none_of_its_own(served: str) -> None:
    httpx = pytest.importorskip("httpx")
    url = served.rstrip("/") + "/gradio_api"
    small = httpx.post(f"{url}/upload", files={"files": ("a.png", b"x" * 1000)})
    large = httpx.post(f"{url}/upload", files={"files": ("a.png", b"x" * 1_500_000)})
    assert (small.status_code, large.status_code) == (200, 413)
    for path in ("/etc/passwd", str(Path(__file__))):
        assert fetch(f"{url}/file={path}").status_code in (403, 404)


def test_the_command_ends_with_a_line_where_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["app"])
    assert result.exit_code == 1
    assert "pip install '.[app]'" in result.output
    monkeypatch.undo()
    pytest.importorskip("gradio", reason="Gradio is not installed")
    result = CliRunner().invoke(app, ["app", "--model", "no_such_model"])
    assert result.exit_code == 1
    assert "no_such_model" in result.output
