"""The built site: it asks nobody for anything, formulas are formulas, signatures can be read."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOADED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "embed": "src", "object": "data"}
"""Tags whose target a browser loads by itself, beside style sheets, icons and fonts."""


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
        for target in filter(None, loads.found):
            checked += 1
            assert not re.match(r"\w+:|//", target), f"{page.name}: {target}"
            assert (page.parent / re.split(r"[?#]", target)[0]).exists(), f"{page.name}: {target}"
    for style in site.rglob("*.css"):
        for target in re.findall(
            r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", style.read_text(encoding="utf-8")
        ):
            assert not re.match(r"(?!data:)\w+:|//", "".join(target)), f"{style.name}: {target}"
    assert checked > 100


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
