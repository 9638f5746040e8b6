"""Reports in a real browser: one walks, searches and links; nothing is asked for, nothing runs that should not."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import hmoevae as hm

pytestmark = pytest.mark.slow

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NASTY = ["</script><script>window.ran = 1</script>", "<img src=x onerror='window.ran = 1'>", "\"quotes\" & 'more'"]
PHONE, DESK = (390, 844), (1400, 900)


@pytest.fixture(scope="module")
def browser() -> Iterator["object"]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the extra `test`")
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    """One of every kind, by kind."""
    folder = tmp_path_factory.mktemp("reports")
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    expert = hm.VAE(2, encoder=hm.MLP((8,)), decoder=hm.MLP((8,)))
    history = hm.History([{"epoch": i, "loss": 9.0 / i} for i in range(1, 9)])
    images = hm.HMoEVAE(hm.Mixture.of(hm.Mixture.of(expert, 3, name="style"), 10), (1, 8, 8))
    x, y = torch.rand(300, 1, 8, 8), np.arange(300) % 10
    made = {"images": hm.report(images, x, folder / "images.html", labels=y, history=history)}

    frame = {name: draw.normal(size=90) + 3 * i * (np.arange(90) % 3) for i, name in enumerate(NASTY)}
    frame |= {"kind": NASTY * 30, "gaps": [None, 1.0, 2.0] * 30}
    mixture = hm.VAEMixture(3, random_state=0).fit(frame)
    made["table"] = hm.report(mixture.model_, frame, folder / "table.html", labels=NASTY * 30, table=mixture.table_)

    counts = hm.VAE(2, likelihood=hm.Poisson(), name=NASTY[0])
    model = hm.HMoEVAE(hm.Mixture.of(counts, 3), (90,))
    genes = torch.from_numpy(draw.poisson(3, (200, 90)).astype(np.float32))
    made["counts"] = hm.report(model, genes, folder / "counts.html")

    wide = hm.HMoEVAE(hm.Mixture.of(hm.Mixture.of(expert, 50), 20), (1, 8, 8))
    with torch.no_grad():  # gates that use many leaves
        for parameter in wide.gates.parameters():
            parameter.mul_(20)
    made["thousand"] = hm.report(wide, torch.rand(3000, 1, 8, 8), folder / "thousand.html")
    return made


def visit(browser, path: Path, place: str = "/root", size: tuple[int, int] = DESK, *, dark: bool = False) -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(f"{path.as_uri()}#{place}")


def text_of(browser, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def assert_quiet(browser, path: Path) -> None:
    """No error, no request but for the file, nothing that users wrote has run."""
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    outside = [url for url in urls if not url.startswith(("data:", "blob:", "about:", path.as_uri()))]
    assert outside == []
    assert browser.execute_script("return window.ran === undefined")


@pytest.mark.parametrize("kind", ["images", "table", "counts", "thousand"])
def test_every_page_opens_and_is_quiet(browser, reports, kind):
    path = reports[kind]
    for place in ("/root", "/root/0", "/root/1", "/labels", "/training", "/made", "/root/nowhere"):
        visit(browser, path, place)
        assert text_of(browser, "h1")
        assert_quiet(browser, path)
    assert "There is no node at root/nowhere" in text_of(browser, "main")


@pytest.mark.parametrize("kind", ["images", "table", "counts", "thousand"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_a_page_is_as_wide_as_its_window_and_can_be_looked_at(browser, reports, kind, size, tmp_path):
    for place in ("/root", "/root/1", "/labels"):
        visit(browser, reports[kind], place, size, dark=size == PHONE)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), place
        assert browser.save_screenshot(str(tmp_path / "page.png"))
        assert (tmp_path / "page.png").stat().st_size > 5000


@pytest.mark.parametrize("kind", ["images", "table", "counts", "thousand"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_keeps_people_out(browser, reports, kind, dark):
    """axe-core finds no violation that is serious or worse."""
    axe = pytest.importorskip("axe_selenium_python", reason="needs axe-selenium-python, of the extra `test`").Axe
    for place in ("/root", "/root/1", "/labels", "/training", "/made"):
        visit(browser, reports[kind], place, PHONE if dark else DESK, dark=dark)
        checker = axe(browser)
        checker.inject()
        found = checker.run()["violations"]
        grave = [
            (v["id"], [node["html"] for node in v["nodes"]][:3])
            for v in found
            if v["impact"] in ("serious", "critical")
        ]
        assert grave == [], place


def test_one_walks_by_mouse_and_by_keyboard(browser, reports):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    visit(browser, reports["images"])
    browser.find_element(By.CSS_SELECTOR, '#tree [role="group"] .item').click()
    assert browser.execute_script("return location.hash") == "#/root/0"
    browser.find_element(By.CSS_SELECTOR, 'a.card[href="#/root/0/1"]').click()
    assert text_of(browser, "h1") == "0/1" or "0/1" in text_of(browser, ".hero")
    item = browser.find_element(By.CSS_SELECTOR, '[aria-selected="true"]')
    assert item.get_attribute("id") == "item-3"
    item.send_keys(Keys.ARROW_UP)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.execute_script("return location.hash") == "#/root/0/0"
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    parent = browser.switch_to.active_element
    assert parent.get_attribute("aria-expanded") == "true"
    parent.send_keys(Keys.ARROW_LEFT)
    assert parent.get_attribute("aria-expanded") == "false"
    parent.send_keys(Keys.ARROW_RIGHT)
    assert parent.get_attribute("aria-expanded") == "true"
    browser.back()
    assert browser.execute_script("return location.hash") == "#/root/0/1"
    assert_quiet(browser, reports["images"])


def test_a_link_leads_to_a_node_and_a_search_to_another(browser, reports):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    visit(browser, reports["thousand"], "/root/13/37")
    assert "13/37" in text_of(browser, ".hero")
    selected = browser.execute_script("return document.querySelector('[aria-selected=\"true\"] .label').textContent")
    assert selected == "13/37"
    search = browser.find_element(By.ID, "search")
    search.send_keys("7/42")
    assert "7/42" in text_of(browser, "#found li")
    search.send_keys(Keys.ENTER)
    assert browser.execute_script("return location.hash") == "#/root/7/42"
    assert_quiet(browser, reports["thousand"])


def test_a_slider_moves_along_a_latent(browser, reports):
    visit(browser, reports["images"], "/root/0/0")
    shown = "return document.querySelector('.way .pic').style.backgroundPosition"
    before = browser.execute_script(shown)
    move = "const s = document.getElementById('slide'); s.value = 6; s.dispatchEvent(new Event('input'))"
    browser.execute_script(move)
    assert browser.execute_script(shown) != before
    assert text_of(browser, "output") == "+3 standard deviations"


def test_the_page_computes_the_same_effects_as_the_report(browser, reports):
    """Against the one sibling there is, the page's own comparison is that of the report."""
    visit(browser, reports["table"], "/root/1")
    rows = (
        "return [...document.querySelectorAll('main table')[0].querySelectorAll('tbody tr')].map((r) => r.textContent)"
    )
    whole = browser.execute_script(rows)
    choose = (
        "const s = document.querySelector('[aria-label=\"Compare with\"]');"
        "s.value = arguments[0]; s.dispatchEvent(new Event('change'))"
    )
    browser.execute_script(choose, "1")
    pair = browser.execute_script(rows)
    assert len(pair) == len(whole) == 5
    assert pair != whole
    browser.execute_script(choose, "-1")
    assert browser.execute_script(rows) == whole


def test_a_thousand_leaves_paint_at_once(browser, reports):
    """Parts are drawn as one opens them: the first page has hundreds of elements, not thousands."""
    from selenium.webdriver.support.wait import WebDriverWait

    visit(browser, reports["thousand"])
    assert browser.execute_script("return document.querySelectorAll('*').length") < 1500
    painted = "return performance.getEntriesByName('first-contentful-paint').length > 0"
    WebDriverWait(browser, 60).until(lambda page: page.execute_script(painted))
