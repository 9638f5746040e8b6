"""The built site: it asks nobody for anything; formulas, signatures and dark pages are as they should be."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "embed": "src", "object": "data"}
"""Tags whose target a browser loads by itself, beside style sheets, icons and fonts."""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "docs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def pages(site: Path) -> list[Path]:
    """All but the listings of source code."""
    return [page for page in sorted(site.rglob("*.html")) if "_modules" not in page.parts]


class Loads(HTMLParser):
    """What a browser loads with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in LOADED:
            self.found.append(given.get(LOADED[tag]) or "")
        elif tag == "link" and given.get("rel") not in ("index", "search", "next", "prev", "author", "copyright"):
            self.found.append(given.get("href") or "")


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    checked = 0
    for page in pages(site):
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        for target in (target for target in filter(None, loads.found) if not target.startswith("data:")):
            checked += 1
            assert not re.match(r"\w+:|//", target), f"{page.name}: {target}"
            assert (page.parent / re.split(r"[?#]", target)[0]).exists(), f"{page.name}: {target}"
    for style in site.rglob("*.css"):
        for target in re.findall(
            r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", style.read_text(encoding="utf-8")
        ):
            assert not re.match(r"(?!data:)\w+:|//", "".join(target)), f"{style.name}: {target}"
    assert checked > 100


def test_every_picture_has_a_dark_twin_that_does_not_glare(site: Path) -> None:
    from PIL import Image

    for page in pages(site):
        shown = re.findall(r'<img [^>]*src="([^"]*_images/[^"]*)"[^>]*>', page.read_text(encoding="utf-8"))
        light, dark = shown[::2], shown[1::2]
        assert [re.sub(r"\.(\w+)$", r".dark.\1", name) for name in light] == dark
    twins = sorted((site / "_images").glob("*.dark.*"))
    assert len(twins) == len(list((ROOT / "docs" / "images").iterdir()))
    for twin in twins:
        with Image.open(twin) as picture, Image.open(twin.with_name(twin.name.replace(".dark", ""))) as light:
            assert (picture.size, getattr(picture, "n_frames", 1)) == (light.size, getattr(light, "n_frames", 1))
            assert np.asarray(picture.convert("L"))[0].mean() < 60, twin.name


def test_in_the_dark_ink_is_light_and_images_of_samples_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx", reason="needs the extra `docs`")
    monkeypatch.syspath_prepend(ROOT / "docs")
    import dark

    picture = np.full((80, 120, 3), 255, np.uint8)
    picture[20:60, 20:60] = 0  # an image of a sample
    picture[30:40, 30:40] = 250  # with something white in it
    picture[40:44, 70:110] = (0, 114, 178)  # a blue line
    picture[50:52, 70:110] = 0  # and a black one
    turned = dark.darkened(picture)
    assert (turned[20:60, 20:60] == picture[20:60, 20:60]).all()
    assert turned[0, 0].tolist() == dark.PAGE.tolist()
    assert turned[51, 90].tolist() == [255, 255, 255]
    red, green, blue = turned[42, 90].tolist()
    assert red < green < blue
    assert blue > 250


def test_formulas_are_formulas(site: Path) -> None:
    text = (site / "model.html").read_text(encoding="utf-8")
    assert text.count("<math") > 40
    for page in pages(site):
        shown = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"\\\(|\\\[|\\(?:sum|log|mathrm|frac)\b|\$\$", shown), page.name


def test_signatures_can_be_read(site: Path) -> None:
    seen = 0
    for page in pages(site):
        for signature in re.findall(r'<dt class="sig .*?</dt>', page.read_text(encoding="utf-8"), re.DOTALL):
            seen += 1
            plain = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", signature))
            for odd in (
                "Validator",
                "FieldInfo",
                "Annotated",
                " at 0x",
                "&lt;factory",
                "(*args, **kwargs)",
                "PydanticU",
            ):
                assert odd not in plain, plain
    assert seen > 100
