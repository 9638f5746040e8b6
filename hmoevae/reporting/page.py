"""The page: facts and pictures in one HTML file that asks for nothing outside it.

What comes from users, such as names and labels, is in a JSON island, and the script makes text of it, never HTML. The
content security policy lets nothing but that one script run, and nothing be loaded.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from hmoevae.reporting.pictures import Sheet

ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What could end the island, or a line of it, in JSON's own words."""


def island(data: Any) -> str:
    r"""Data as JSON that may stand inside a script element.

    >>> print(island({"name": "</script><b>"}))
    {"name":"\u003c/script\u003e\u003cb\u003e"}
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return text


def page(title: str, data: Mapping[str, Any], sheets: Mapping[str, Sheet]) -> str:
    """The page as text.

    Args:
        title: What the page is of.
        data: What it shows.
        sheets: Its pictures.

    >>> text = page("a <tree>", {"kind": "table"}, {})
    >>> "<title>a &lt;tree&gt;</title>" in text
    True
    """
    from jinja2 import Environment, StrictUndefined

    templates = files("hmoevae.reporting") / "templates"
    html, style, script = (
        (templates / name).read_text(encoding="utf-8") for name in ("page.html.j2", "page.css", "page.js")
    )
    of_sheets = {name: {"columns": s.columns, "rows": s.rows, "mime": s.mime} for name, s in sheets.items()}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(html).render(
        title=title,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=island({"title": title, **data, "sheets": of_sheets}),
        sheets={name: s.data for name, s in sheets.items()},
    )


def _hash(text: str) -> str:
    """The hash by which a content security policy names a script or a style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
