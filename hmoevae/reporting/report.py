"""The report: reads everything, and writes the page."""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from hmoevae.errors import ArgumentTypeError, MissingExtraError, from_extra, mismatch
from hmoevae.growth import Grown
from hmoevae.history import History
from hmoevae.labels import Labels
from hmoevae.model import HMoEVAE
from hmoevae.reporting.facts import facts
from hmoevae.reporting.material import read
from hmoevae.reporting.page import page
from hmoevae.reporting.training import made, of_history, warnings_of
from hmoevae.samples import Data
from hmoevae.saving.files import write_text
from hmoevae.tables import Table


def report(
    model: HMoEVAE,
    x: Data,
    path: str | os.PathLike[str],
    *,
    labels: Labels | None = None,
    names: Sequence[str] | None = None,
    table: Table | None = None,
    history: History | Grown | None = None,
) -> Path:
    """Write a report of a model: one HTML file in which one walks through the tree.

    The page shows each node: its share, its typical, unsure and odd samples, new samples and the nearest real ones,
    what tells it from its siblings, and what its latents change; how sure the gates are; labels by node; the training;
    and how the model was made. It opens from a folder without a network, in any browser. The same arguments give the
    same file.

    Give samples that training has not seen: differences between siblings are tested, and tests on the training samples
    find too many of them (see `hmoevae.reporting.evidence`).

    Args:
        model: The model, such as an estimator's `model_`.
        x: Samples, `(n, *input_shape)`; or rows of the table.
        path: The file to write.
        labels: A label for every sample, to compare the nodes with.
        names: A name for every feature, with its unit where it has one, such as `"mass (g)"`; by default those of the
            table.
        table: The table of the samples, such as an estimator's `table_`; by default the model's.
        history: The history of the training, such as `hmoevae.fit` returns; or what `hmoevae.grow` returns, whose
            decisions are shown too.

    Returns:
        The path of the file.

    Raises:
        ArgumentTypeError: An argument has a type that cannot be used.
        ShapeError: The samples do not have the model's shape, or there is not one label per sample or name per feature.
        DataError: `x` is empty, not finite, or outside the support of a leaf's likelihood; a label is missing.
        ArgumentError: The file cannot be written.
        MissingExtraError: jinja2, pillow or scipy is not installed.

    >>> import tempfile, torch
    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = hm.report(model, torch.rand(60, 1, 8, 8), f"{folder}/report.html", labels=["a", "b"] * 30)
    ...     path.name, path.read_text(encoding="utf-8")[:15]
    ('report.html', '<!doctype html>')
    """
    _check_extras()
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(mismatch("path", "the path of a file, such as 'report.html'", type(path).__name__))
    material = read(model, x, labels=labels, names=names, table=table)
    training = of_history(history)
    found = facts(material)
    plan = model.plan
    leaf_counts = np.array([found.data["count"][leaf.index] for leaf in plan.leaves])
    leaves = "1 leaf" if plan.n_leaves == 1 else f"{plan.n_leaves:,} leaves"
    title = plan.nodes[0].spec.name or f"A tree of {leaves}"
    more = {
        "leaves": plan.n_leaves,
        "training": training,
        "warnings": warnings_of(model, leaf_counts / leaf_counts.sum()),
        "made": made(model, material.x),
    }
    write_text(path, page(title, found.data | more, found.sheets))
    return Path(path)


def _check_extras() -> None:
    """Find out before the work, not after, that the libraries are there."""
    for module, package in (("jinja2", "jinja2"), ("PIL", "pillow"), ("scipy", "scipy")):
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError(mismatch("hmoevae.report", from_extra(package, "report"), error)) from None
