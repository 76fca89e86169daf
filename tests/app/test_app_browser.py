"""The interactive page in a real browser, with a small model: pick, slide, see the picture change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from test_app import photograph, serving

pytestmark = pytest.mark.slow

SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or its driver chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


def wait(browser: Any, until: Callable[[], Any], seconds: float = 60) -> Any:
    """What `until` gives as soon as that is true; elements may vanish meanwhile."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = [StaleElementReferenceException]
    return WebDriverWait(browser, seconds, 0.1, ignored_exceptions=ignored).until(lambda _: until())


def all_of(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def pictures(browser: Any, side: int) -> list[str]:
    return [image.get_attribute("src") for image in all_of(browser, f"#ep-panel-{side} img")]


def table(browser: Any) -> str:
    return " ".join(one.text for one in all_of(browser, "#ep-comparison"))


def settled(browser: Any, side: int = 0, unlike: list[str] | None = None) -> list[str]:
    """The pictures of a side, once they differ from those given and the times are there."""

    def done() -> list[str] | None:
        shown = pictures(browser, side)
        return shown if len(shown) == 7 and shown != unlike and "measuring" not in table(browser) else None

    return wait(browser, done)


def warning(browser: Any) -> str:
    """Gradio's own, which vanishes."""
    return wait(browser, lambda: " ".join(one.text for one in all_of(browser, ".toast-body")))


def notice(browser: Any) -> str:
    """The page's own, which stands."""
    return " ".join(one.text for one in all_of(browser, "#ep-notice .ep-notice"))


def move(browser: Any, slider: str, key: str, times: int = 1) -> None:
    from selenium.webdriver.common.keys import Keys

    for _ in range(times):
        all_of(browser, f"{slider} input[type=range]")[0].send_keys(getattr(Keys, key))


def test_pick_slide_and_see_the_picture_change(browser: Any, served: str, tmp_path: Path) -> None:
    browser.get(served)
    left, right = settled(browser, 0), pictures(browser, 1)
    assert left != right
    assert "36 → 26 → 19 → 14" in table(browser)

    move(browser, "#ep-order-0", "END")  # order ∞
    infinite = settled(browser, 0, unlike=left)
    wait(browser, lambda: "Rényi, order ∞" in table(browser))
    assert pictures(browser, 1)[4:] == right[4:]  # what EViT keeps has no order

    move(browser, "#ep-rate", "LEFT", 4)
    wait(browser, lambda: "36 → 18 → 9 → 5" in table(browser))
    settled(browser, 0, unlike=infinite)

    before = settled(browser, 0)
    all_of(browser, "#ep-photographs button.thumbnail-item, #ep-photographs .thumbnail-item")[1].click()
    second = settled(browser, 0, unlike=before)

    photograph(7).save(tmp_path / "mine.png")
    all_of(browser, "#ep-upload input[type=file]")[0].send_keys(str(tmp_path / "mine.png"))
    settled(browser, 0, unlike=second)
    nothing_went_wrong(browser, served)


def test_a_bad_file_and_an_unknown_model_are_messages_and_the_page_goes_on(
    browser: Any, served: str, tmp_path: Path
) -> None:
    browser.get(served)
    before = settled(browser)
    (tmp_path / "<b id=pwn>bad.png").write_text("no picture")
    all_of(browser, "#ep-upload input[type=file]")[0].send_keys(str(tmp_path / "<b id=pwn>bad.png"))
    wait(browser, lambda: "bad.png: not an image file that Pillow can read." in notice(browser))
    assert pictures(browser, 0) == before
    assert not all_of(browser, "#pwn")
    assert "bad.png" not in " ".join(one.text for one in all_of(browser, "#ep-upload"))
    assert "one, as the model sees it" in all_of(browser, "#ep-crop")[0].text
    # The next one can be chosen at once; the notice goes when it is there.
    photograph(7).save(tmp_path / "good.png")
    wait(browser, lambda: all_of(browser, "#ep-upload input[type=file]"))
    all_of(browser, "#ep-upload input[type=file]")[0].send_keys(str(tmp_path / "good.png"))
    wait(browser, lambda: "good.png, as the model sees it" in all_of(browser, "#ep-crop")[0].text)
    assert not notice(browser)
    before = settled(browser)

    from selenium.webdriver.common.keys import Keys

    box = all_of(browser, "#ep-model input")[0]
    box.clear()
    box.send_keys("missing", Keys.ENTER, Keys.TAB)
    wait(browser, lambda: "'missing' is no model that timm knows." in notice(browser))
    assert pictures(browser, 0) == before
    box.clear()
    box.send_keys("m", Keys.ENTER, Keys.TAB)
    move(browser, "#ep-order-0", "HOME")
    settled(browser, unlike=before)
    nothing_went_wrong(browser, served)


def test_a_large_file_is_refused_and_the_page_goes_on(browser: Any, served: str, tmp_path: Path) -> None:
    browser.get(served)
    before = settled(browser)
    Image.effect_noise((1500, 1500), 80).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 10**6
    all_of(browser, "#ep-upload input[type=file]")[0].send_keys(str(tmp_path / "large.png"))
    assert "size" in warning(browser)
    move(browser, "#ep-order-0", "HOME")
    settled(browser, unlike=before)


def test_a_calibration_is_chosen_and_shown(browser: Any, served: str) -> None:
    browser.get(served)
    before = settled(browser)
    all_of(browser, "#ep-calibrate button")[0].click()
    wait(browser, lambda: all_of(browser, "#ep-start") and all_of(browser, "#ep-start")[0].is_displayed())
    move(browser, "#ep-effort", "HOME")
    all_of(browser, "#ep-start")[0].click()
    wait(browser, lambda: "random" in all_of(browser, "#ep-result")[0].text, seconds=120)
    wait(browser, lambda: "Calibrated: 50% of the GFLOPs" in table(browser))
    wait(browser, lambda: pictures(browser, 0) != before and "measuring" not in table(browser))
    assert all_of(browser, "#ep-criterion-0 input")[0].get_attribute("value") == "Calibrated: 50% of the GFLOPs"
    assert "The pooled feature changes by" in all_of(browser, "#ep-panel-0")[0].text
    assert "config = entropatch.PruneConfig(" in all_of(browser, "#ep-panel-0 code")[0].get_attribute("textContent")
    assert not notice(browser)

    before = pictures(browser, 0)
    show_model(browser, "another")
    wait(browser, lambda: chosen(browser) == "Rényi entropy (1: Shannon)")
    settled(browser, unlike=before)
    assert "Calibrated" not in table(browser)
    assert not [one for one in offered(browser) if one.startswith("Calibrated")]
    assert not notice(browser)
    show_model(browser, "m")
    wait(browser, lambda: offered(browser)[0] == "Calibrated: 50% of the GFLOPs")
    assert chosen(browser) == "Rényi entropy (1: Shannon)"
    browser.refresh()  # and it is offered to who opens the page again
    settled(browser)
    wait(browser, lambda: offered(browser)[0] == "Calibrated: 50% of the GFLOPs")
    assert not notice(browser)
    nothing_went_wrong(browser, served)


def show_model(browser: Any, name: str) -> None:
    from selenium.webdriver.common.keys import Keys

    box = all_of(browser, "#ep-model input")[0]
    box.clear()
    box.send_keys(name, Keys.ENTER, Keys.TAB)


def chosen(browser: Any) -> str:
    return all_of(browser, "#ep-criterion-0 input")[0].get_attribute("value")


def offered(browser: Any) -> list[str]:
    """What the left menu offers, opened for a look."""
    from selenium.webdriver.common.keys import Keys

    box = all_of(browser, "#ep-criterion-0 input")[0]
    box.click()
    texts = [
        one.text.removeprefix("✓").strip()
        for one in wait(browser, lambda: all_of(browser, "#ep-criterion-0 [role=option]"))
    ]
    box.send_keys(Keys.ESCAPE, Keys.TAB)
    return texts


def nothing_went_wrong(browser: Any, served: str) -> None:
    """No request left for another host, and none was held back by the page's policy."""
    hosts = set()
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            address = urlsplit(event["params"]["request"]["url"])
            if address.scheme in ("http", "https", "ws", "wss"):  # the browser's own pages have other schemes
                hosts.add(address.netloc)
    assert hosts == {urlsplit(served).netloc}
    assert not [line for line in browser.get_log("browser") if "Content Security Policy" in line["message"]]
