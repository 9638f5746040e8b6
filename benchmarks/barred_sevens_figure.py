"""The picture of the barred sevens: what the barred leaf takes and what it leaves, of the changed and the real ones."""

from pathlib import Path

import numpy as np
from barred_sevens import Sevens
from einops import rearrange
from matplotlib.figure import Figure

import hmoevae as hm

ROWS, COLUMNS = 2, 20


def save_figure(model: hm.HMoEVAE, sevens: Sevens, leaf: int, file: Path) -> None:
    """Draw the first test sevens of each sort and write them to `file` in the format of its ending."""
    panels = {}
    for name, images in (("stroke drawn", sevens.changed[sevens.drawn]), ("unchanged", sevens.real)):
        taken = model.predict(images) == leaf
        panels[f"{name}: {taken.double().mean():.0%} go to the barred leaf, such as"] = images[taken]
        panels[f"{name}, others"] = images[~taken]
    figure = Figure(figsize=(8, 1.2 * len(panels)), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(len(panels), 1), panels.items(), strict=True):
        shown = images[: ROWS * COLUMNS, 0].numpy()
        shown = np.pad(shown, [(0, ROWS * COLUMNS - len(shown)), (0, 0), (0, 0)])
        tiled = rearrange(shown, "(row column) height width -> (row height) (column width)", row=ROWS)
        axes.imshow(tiled, cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize="small", loc="left")
        axes.set_axis_off()
    figure.savefig(file, dpi=150)
