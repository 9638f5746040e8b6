"""Formulas as MathML, made when the pages are built: browsers draw it themselves, without a script or a network."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

FUNCTION = re.compile(r"(<mi>(?:log|exp)</mi>)(?!<mo)")
"""The name of a function and no bracket behind it."""


def mathml(formula: str, display: str) -> str:
    """A formula in TeX as MathML, functions apart from what they are of."""
    return FUNCTION.sub(r'\1<mspace width="0.17em"/>', convert(formula, display=display))


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    """A formula in a sentence."""
    translator.body.append(f'<span class="math">{mathml(node.astext(), "inline")}</span>')
    raise nodes.SkipNode


def display(translator: HTML5Translator, node: nodes.math_block) -> None:
    """A formula on a line of its own."""
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
