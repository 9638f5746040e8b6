"""Sphinx configuration."""

import sys
from pathlib import Path

import hmoevae

sys.path.append(str(Path(__file__).parent))

project = "hmoevae"
author = "The hmoevae developers"
copyright = "2026, The hmoevae developers"
release = hmoevae.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "dark",
    "live",
    "mathml",
    "signatures",
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "hmoevae"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
add_module_names = False
default_role = "py:obj"  # a name in a docstring leads to its place in the reference
maximum_signature_line_length = 100  # longer ones have a line for each parameter
