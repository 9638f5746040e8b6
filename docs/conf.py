"""Sphinx configuration."""

import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import hmoevae

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from tables import MARK, fill

project = "hmoevae"
author = "The hmoevae developers"
copyright = "2026, The hmoevae developers"
release = hmoevae.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "hmoevae"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False


def fill_tables(_: Sphinx, __: str, content: list[str]) -> None:
    """Put in the tables of results that a page asks for."""
    content[0] = fill(content[0])


def pages_with_tables(_: Sphinx, env: BuildEnvironment, *__: set[str]) -> list[str]:
    """The pages to read anew at every build, for new results change them without a change of their own."""
    return [page for page in env.found_docs if MARK.search(Path(env.doc2path(page)).read_text(encoding="utf-8"))]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", fill_tables)
    app.connect("env-get-outdated", pages_with_tables)
