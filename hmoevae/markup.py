"""HTML that notebooks show in place of a `repr`. All text is escaped here.

Styles are inline, because some viewers drop style sheets. Colours are the page's own, for dark viewers.
"""

from collections.abc import Iterable, Sequence
from html import escape

LINE = "#9ecae1"
"""The colour of a tree's edges, as in the pictures."""


def heading(text: str) -> str:
    """A heading of one line.

    >>> heading("1 < 2")
    '<div style="font-weight: bold">1 &lt; 2</div>'
    """
    return f'<div style="font-weight: bold">{escape(text)}</div>'


def branch(label: str, children: Iterable[str] = ()) -> str:
    """A node of a tree, with its children below it on a line that joins them. Each child is a branch too.

    >>> branch("a", [branch("b")]).count("<div")
    3
    """
    below = "".join(children)
    box = f"display: inline-block; border: 1px solid {LINE}; border-radius: 4px; padding: 0 0.5em; margin: 1px 0"
    line = f"border-left: 2px solid {LINE}; margin-left: 1em; padding-left: 1em"
    node = f'<div style="text-align: left"><span style="{box}">{escape(label)}</span></div>'
    return node + (f'<div style="{line}">{below}</div>' if below else "")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A table of text, and a line below it.

    >>> table(["loss"], [["<nan>"]])
    '<table><thead><tr><th>loss</th></tr></thead><tbody><tr><td>&lt;nan&gt;</td></tr></tbody></table>'
    """

    def line(cells: Iterable[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    end = f"<div>{escape(note)}</div>" if note else ""
    return f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>{end}"
