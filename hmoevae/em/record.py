"""EM: the options of a fit by expectation maximisation."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from hmoevae.checks import is_integer
from hmoevae.errors import ArgumentError
from hmoevae.spec.record import NonNegativeFloat, PositiveInt, expected, record


def _seed(value: Any) -> int:
    if not (is_integer(value) and 0 <= value < 1 << 64):
        raise expected("an integer >= 0 of at most 64 bits")
    return int(value)


@record(kind="em", error=ArgumentError)
class EM:
    """The options of `hmoevae.fit_em`.

    Args:
        max_iter: Largest number of iterations of a run.
        tol: A run has converged when an iteration lowers the loss by less, in nats per sample.
        n_init: Number of runs, with starts from different seeds. The one with the smallest loss is kept; a later one
            has to be better by `tol`.
        strength: The number of samples that the prior of every leaf's covariance is worth. Its centre is the mean
            covariance within the leaves, so that small leaves share what they cannot learn alone; 0 lets every leaf
            learn alone.
        init: The start: `"kmeans"`, `"umap"` or `"graph"`, as `init` of `hmoevae.Training`, or `"model"`: the weights
            that the model has.
        seed: Seed of the start.

    Raises:
        ArgumentError: A number is out of range, or there is no such field.

    >>> EM(tol=1e-4), EM().strength
    (EM(tol=0.0001), 10.0)
    """

    max_iter: PositiveInt = 100
    tol: NonNegativeFloat = 1e-3
    n_init: PositiveInt = 1
    strength: NonNegativeFloat = 10.0
    init: Literal["kmeans", "umap", "graph", "model"] = "kmeans"
    seed: Annotated[int, BeforeValidator(_seed)] = 0
