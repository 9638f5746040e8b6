"""Pictures for dark pages: what is drawn on white is drawn on black, images of samples stay as they are.

Every picture is put on its page twice, and Furo shows one or the other (`only-light`, `only-dark`).
"""

from pathlib import Path

import numpy as np
from docutils import nodes
from jaxtyping import Bool, UInt8
from PIL import Image, ImageSequence
from scipy import ndimage
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

Rgb = UInt8[np.ndarray, "height width 3"]
PAGE = np.array([19, 20, 22])
"""Furo's dark background, which white becomes."""
WHITE, DARK = 235, 170
"""From what on a pixel is white, and up to what, in the mean, an area is an image of a sample and no ink."""
THIN, SMALL = 6, 8
"""Lines and letters are at most twice this thick; what an image measures without its rim of that width, at least."""


def darkened(picture: Rgb) -> Rgb:
    """The picture with its lightness turned over, hues kept, but for the images of samples in it."""
    inverted = 255 - picture.astype(np.int16)
    turned = inverted.max(-1, keepdims=True) + inverted.min(-1, keepdims=True) - inverted
    on_page = PAGE + turned * (255 - PAGE) / 255
    return np.where(_images(picture)[..., None], picture, on_page).astype(np.uint8)


def _images(picture: Rgb) -> Bool[np.ndarray, "height width"]:
    """Where the images of samples are: dark areas, thicker than any line, within the white that reaches the edge."""
    white, _ = ndimage.label(picture.min(-1) > WHITE)
    edge = np.concatenate([white[0], white[-1], white[:, 0], white[:, -1]])
    paper = np.isin(white, edge[edge > 0])
    areas, _ = ndimage.label(ndimage.binary_erosion(~paper, iterations=THIN))
    found = np.zeros_like(paper)
    for number, (rows, columns) in enumerate(ndimage.find_objects(areas), 1):
        large = min(rows.stop - rows.start, columns.stop - columns.start) >= SMALL
        if large and picture[areas == number].mean() < DARK:
            top, left = max(rows.start - THIN, 0), max(columns.start - THIN, 0)
            found[top : rows.stop + THIN, left : columns.stop + THIN] = True
    return found & ~paper


def name_of_dark(name: str) -> str:
    """`tree.png` is `tree.dark.png` on a dark page."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}.dark.{ending}"


def visit_image(translator: HTML5Translator, node: nodes.image) -> None:
    """The picture, and its dark twin."""
    name = translator.builder.images[node["uri"]]
    node["classes"].append("only-light")
    HTML5Translator.visit_image(translator, node)
    light = translator.body.pop()
    dark = light.replace(name, name_of_dark(name)).replace("only-light", "only-dark")
    translator.body.append(light + dark)


def write_dark(app: Sphinx, error: Exception | None) -> None:
    """The dark twin of every picture that the pages show."""
    if error is not None or app.builder.format != "html":
        return
    for name in app.builder.images.values():
        file = Path(app.outdir, app.builder.imagedir, name)
        with Image.open(file) as picture:
            frames = [
                Image.fromarray(darkened(np.asarray(frame.convert("RGB")))) for frame in ImageSequence.Iterator(picture)
            ]
            how = {"save_all": True, "append_images": frames[1:], **picture.info} if len(frames) > 1 else {}
        frames[0].save(file.with_name(name_of_dark(name)), **how)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it."""
    app.add_node(nodes.image, override=True, html=(visit_image, HTML5Translator.depart_image))
    app.connect("build-finished", write_dark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
