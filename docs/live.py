"""A Sphinx extension: the live report of the gallery, written anew with every build."""

from pathlib import Path

from palmerpenguins import load_penguins
from sphinx.application import Sphinx

import hmoevae as hm

FILE = "penguins.html"
NAMES = {
    "bill_length_mm": "bill length (mm)",
    "bill_depth_mm": "bill depth (mm)",
    "flipper_length_mm": "flipper length (mm)",
    "body_mass_g": "body mass (g)",
}


def write_report(app: Sphinx, error: Exception | None) -> None:
    """Fit the mixture of the tutorial on tables, and write its report beside the pages' other files."""
    if error is not None or app.builder.format != "html":
        return
    penguins = load_penguins()
    frame = penguins[["island", *NAMES]]
    mixture = hm.VAEMixture(3, random_state=0, device="cpu").fit(frame)
    hm.report(
        mixture.model_,
        frame,
        Path(app.outdir, "_static", FILE),
        labels=penguins["species"],
        names=[NAMES.get(name, name) for name in frame],
        table=mixture.table_,
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it."""
    app.connect("build-finished", write_report)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
