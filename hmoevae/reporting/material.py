"""What a report is made of: checked samples, what their features are, and labels.

Axes: `n` counts samples, `feature` the entries of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.errors import ArgumentTypeError, ShapeError, mismatch
from hmoevae.labels import Labels, read_labels
from hmoevae.model import HMoEVAE
from hmoevae.samples import BATCH_SIZE, Data, in_order
from hmoevae.spec import Categorical, Columns, Likelihood, NegativeBinomial, Ordinal, Poisson, ZeroInflated
from hmoevae.tables import Column, Count, Number, Table

FeatureKind = Literal["number", "count", "category"]
Kind = Literal["images", "table", "counts"]


@dataclass(frozen=True, slots=True)
class Feature:
    """What one entry of a sample is, and how its code is read in the units of the data.

    Args:
        name: Its name, with its unit where it has one.
        kind: A number, a count, or the index of a category.
        mean: The number that the code 0 stands for.
        scale: By how much the number grows with the code.
        log: Whether it is the logarithm of the number that does.
        categories: The names of the categories.

    >>> Feature("mass (g)", "number", mean=4200.0, scale=800.0).units(np.array([1.0]))
    array([5000.])
    """

    name: str
    kind: FeatureKind
    mean: float = 0.0
    scale: float = 1.0
    log: bool = False
    categories: tuple[str, ...] = ()

    def units(self, codes: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Codes in the units of the data.

        >>> Feature("income", "number", log=True).units(np.array([0.0]))
        array([1.])
        """
        numbers = self.mean + self.scale * codes
        return np.exp(numbers) if self.log else numbers


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Everything that a report reads.

    Args:
        model: The model.
        x: The samples, checked, on the CPU.
        features: What the entries of a flattened sample are.
        kind: How samples are shown: as images, as rows of a table, or as counts, of which there are many.
        label: The label of every sample, as an index of `label_names`; `None` without labels.
        label_names: The labels.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,))
    >>> material = read(model, torch.rand(9, 4), labels=["a", "b", "a"] * 3, names=list("abcd"), table=None)
    >>> material.kind, material.label_names, material.columns.shape, material.features[0].name
    ('table', ('a', 'b'), (9, 4), 'a')
    """

    model: HMoEVAE
    x: Float[Tensor, "n *input_shape"]
    features: tuple[Feature, ...]
    kind: Kind
    label: Int[np.ndarray, " n"] | None
    label_names: tuple[str, ...]

    @property
    def columns(self) -> Float[np.ndarray, "n feature"]:
        """The samples as a matrix of codes, NaN where a cell was not observed."""
        return self.x.flatten(1).float().numpy()


def read(
    model: HMoEVAE, x: Data, *, labels: Labels | None, names: Sequence[str] | None, table: Table | None
) -> Material:
    """Check everything that a report is given.

    Args:
        model: The model.
        x: Samples, or rows of the table.
        labels: One per sample, or `None`.
        names: One per feature, or `None`.
        table: The table of the samples, or `None`.

    Raises:
        ArgumentTypeError: An argument has a type that cannot be used.
        ShapeError: The numbers of samples, labels or names differ.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.VAE(latent_dim=2), input_shape=(1, 8, 8))
    >>> read(model, torch.rand(9, 1, 8, 8), labels=None, names=None, table=None).kind
    'images'
    """
    if not isinstance(model, HMoEVAE):
        got = type(model).__name__ + (" (its model_ is one)" if hasattr(model, "model_") else "")
        raise ArgumentTypeError(mismatch("model", "an HMoEVAE", got))
    table = _table(model, table)
    door = replace(model.door, table=table)  # which takes rows of the table too
    pieces = in_order(door.encoded(x, "x"), "x", door.check, BATCH_SIZE)
    samples = torch.cat([piece.cpu() for piece in pieces]).detach()
    label, label_names = _labels(labels, len(samples))
    kind: Kind = "images" if is_image(model.input_shape) and table is None else "table"
    features = _features(model, table, names, kind)
    if kind == "table" and all(feature.kind == "count" for feature in features):
        kind = "counts"
    return Material(model, samples, features, kind, label, label_names)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples of a shape are shown as images, as `hmoevae.plot` does.

    >>> is_image((1, 28, 28)), is_image((3, 8, 8)), is_image((28, 28)), is_image((13,)), is_image((1, 1, 9))
    (True, True, True, False, False)
    """
    sides = shape if len(shape) == 2 else shape[1:] if len(shape) == 3 and shape[0] in (1, 3) else ()
    return bool(sides) and min(sides) > 1


def _table(model: HMoEVAE, table: Table | None) -> Table | None:
    if table is None:
        return model.table
    if not isinstance(table, Table):
        raise ArgumentTypeError(mismatch("table", "a Table, such as an estimator's table_", type(table).__name__))
    if model.input_shape != (len(table.columns),):
        raise ShapeError(mismatch("table", f"one of samples {model.input_shape}", f"{len(table.columns)} columns"))
    return table


def _labels(labels: Labels | None, n: int) -> tuple[Int[np.ndarray, " n"] | None, tuple[str, ...]]:
    if labels is None:
        return None, ()
    found, index = np.unique(read_labels("labels", labels), return_inverse=True)
    if len(index) != n:
        raise ShapeError(mismatch("labels", f"one per sample, ({n},)", f"({len(index)},)"))
    return index, tuple(str(label) for label in found.tolist())


def _features(model: HMoEVAE, table: Table | None, names: Sequence[str] | None, kind: Kind) -> tuple[Feature, ...]:
    n = int(np.prod(model.input_shape))
    if names is not None:
        if isinstance(names, str) or not isinstance(names, Sequence | np.ndarray):
            raise ArgumentTypeError(mismatch("names", "a sequence of names, one per feature", type(names).__name__))
        if len(names) != n:
            raise ShapeError(mismatch("names", f"{n} names, one per feature", len(names)))
        names = [str(name) for name in names]
    if table is not None:
        return tuple(_of_column(c, c.name if names is None else names[i]) for i, c in enumerate(table.columns))
    if kind == "images":
        return tuple(Feature(str(i), "number") for i in range(n))
    likelihoods = _likelihoods(model.plan.leaves[0].spec.likelihood, n)  # type: ignore[union-attr]  # a leaf's
    named = [f"x{i}" for i in range(n)] if names is None else names
    return tuple(_of_likelihood(name, likelihood) for name, likelihood in zip(named, likelihoods, strict=True))


def _of_column(column: Column, name: str) -> Feature:
    if isinstance(column, Number):
        return Feature(name, "number", column.mean, column.scale, column.log)
    if isinstance(column, Count):
        return Feature(name, "count")
    return Feature(name, "category", categories=tuple(map(str, getattr(column, "categories", ()))))


def _likelihoods(likelihood: Likelihood, n: int) -> Sequence[Likelihood]:
    """The likelihood of every feature, which is the same for all but in `Columns`."""
    return likelihood.parts if isinstance(likelihood, Columns) else [likelihood] * n


def _of_likelihood(name: str, likelihood: Any) -> Feature:
    if isinstance(likelihood, Poisson | NegativeBinomial | ZeroInflated):
        return Feature(name, "count")
    if isinstance(likelihood, Categorical | Ordinal):
        return Feature(name, "category", categories=tuple(map(str, range(likelihood.n))))
    return Feature(name, "number")
