"""The number of components of a flat mixture: chosen by held-out samples, which each should fit one component well."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from hmoevae.checks import check_integer
from hmoevae.door import Checked
from hmoevae.em import EM, fit_em
from hmoevae.em.fitting import joint
from hmoevae.errors import ArgumentError, mismatch
from hmoevae.estimator.latents import MOST_ITERATIONS, distinct
from hmoevae.estimator.solvers import Weights
from hmoevae.model import HMoEVAE

AUTO = "auto"
"""What asks for a number that is chosen."""
MOST_COMPONENTS = 20
"""Largest number that is tried, unless another one is given."""
ROWS_EACH = 10
"""Number of samples that there have to be for each component that is tried."""
MOST_ROWS = 1200
"""Number of different samples that are enough for the choice."""
QUARTERS = 4
"""A quarter of the samples is held out; the quarters take turns until `ENOUGH` samples have been held out."""
ENOUGH = 300
LEAST_GAIN = 0.005
"""How many nats per cell each further component has to raise the score by."""
PATIENCE = 3
"""Larger numbers are tried until so many in a row have not raised the best score."""

Selection = dict[str, list[int] | list[float] | list[bool]]
"""What was tried, by column."""


def is_auto(n_components: object) -> bool:
    """Whether the number of components is to be chosen.

    Raises:
        ArgumentError: It is text, but not `"auto"`.

    >>> is_auto("auto"), is_auto(3)
    (True, False)
    >>> is_auto("many")
    Traceback (most recent call last):
    ...
    hmoevae.errors.ArgumentError: n_components: expected an integer > 0 or 'auto', got 'many'
    """
    if isinstance(n_components, str) and n_components != AUTO:
        raise ArgumentError(mismatch("n_components", f"an integer > 0 or {AUTO!r}", repr(n_components)))
    return isinstance(n_components, str)


def chosen_number(
    make: Callable[[int], HMoEVAE], data: Checked, weights: Weights, em: EM, most: int | None = None
) -> tuple[int, Selection]:
    """The smallest number of components whose score on held-out samples is as good as the best, within its error.

    score(k) = mean of log p(x) - H(q(.|x)) over held-out samples - 0.005 k * number of columns, where H is the entropy
    of the responsibilities: the density, less what it leaves open which component a sample is of, less what a component
    has to be worth. One that only improves the density, because kinds are skewed or have long tails, overlaps with
    another one and costs more than it earns (Biernacki, Celeux & Govaert 2000, Assessing a mixture model for clustering
    with the integrated completed likelihood; here held-out samples take the place of most of the penalty). A number is
    as good as the best one if the mean of the differences is not above its standard error (Breiman, Friedman, Olshen &
    Stone 1984, Classification and regression trees).

    Args:
        make: From a number of components to a model that `fit_em` can fit.
        data: The samples.
        weights: Their weights; integers equal repeated samples.
        em: The options of the fit.
        most: Largest number to try; `None` means one for ten samples, at most 20.

    Returns:
        The number, and what was tried: `n_components`, the means of `log_density` and `entropy` of held-out samples,
        the `score`, the `error` of its difference from the best score, and which one is `chosen`. Nothing is tried
        where 1 is the only possible number.

    Raises:
        ArgumentError: `most` is no integer > 0.

    >>> from hmoevae.spec import MLP, VAE, Gaussian, LinearPosterior, Mixture, PosteriorGate
    >>> leaf = VAE(1, LinearPosterior(), MLP(()), Gaussian("learned", "identity"))
    >>> def make(n):
    ...     tree = leaf if n == 1 else Mixture.of(leaf, n, gate=PosteriorGate(), balance=None, prior="learned")
    ...     return HMoEVAE(tree, (2,), objective="marginal")
    >>> x = torch.cat([torch.randn(50, 2) + 9 * centre for centre in range(3)])
    >>> number, tried = chosen_number(make, make(1).checked(x), None, EM())
    >>> number, tried["n_components"][:3], tried["chosen"][:3]
    (3, [1, 2, 3], [False, False, True])
    """
    if most is not None:
        check_integer("max_components", most)
    x, counts = distinct(data.x, weights)
    turns = list(_turns(replace(data, x=x), counts))
    usual = min(MOST_COMPONENTS, int(max(len(x), counts.sum())) // ROWS_EACH)
    possible = min((len(turn.fitted) for turn in turns), default=1)
    most = max(1, min(usual if most is None else int(most), possible))
    if most == 1:
        return 1, {}
    few = replace(em, max_iter=min(em.max_iter, MOST_ITERATIONS), n_init=1)
    tried: list[_Tried] = []
    best = 0
    for number in range(1, most + 1):
        tried.append(_tried(make, number, turns, few))
        if tried[-1].mean > tried[best].mean:
            best = number - 1
        if number - 1 - best >= PATIENCE:
            break
    errors = [each.error_from(tried[best]) for each in tried]
    number = next(i for i, each in enumerate(tried) if tried[best].mean - each.mean <= errors[i])
    columns: Selection = {
        "n_components": list(range(1, len(tried) + 1)),
        "log_density": [float(np.average(each.log_density, weights=each.weight)) for each in tried],
        "entropy": [float(np.average(each.entropy, weights=each.weight)) for each in tried],
        "score": [each.mean for each in tried],
        "error": errors,
        "chosen": [i == number for i in range(len(tried))],
    }
    return number + 1, columns


class _Turn(NamedTuple):
    """Samples that are fitted and samples that are held out, with their weights."""

    fitted: Checked
    held: Checked
    fitted_weight: Float[np.ndarray, " fitted"]
    held_weight: Float[np.ndarray, " held"]


class _Tried(NamedTuple):
    """What held-out samples say of a number of components."""

    log_density: Float[np.ndarray, " held"]
    entropy: Float[np.ndarray, " held"]
    weight: Float[np.ndarray, " held"]
    cost: float

    @property
    def score(self) -> Float[np.ndarray, " held"]:
        """The score of every sample."""
        return self.log_density - self.entropy - self.cost

    @property
    def mean(self) -> float:
        """The mean score."""
        return float(np.average(self.score, weights=self.weight))

    def error_from(self, other: "_Tried") -> float:
        """The standard error of the mean difference of the scores from another number's."""
        apart = other.score - self.score
        mean = np.average(apart, weights=self.weight)
        return math.sqrt(np.average((apart - mean) ** 2, weights=self.weight) / self.weight.sum())


def _turns(data: Checked, counts: Float[np.ndarray, " row"]) -> Iterator[_Turn]:
    """Turns of held-out samples, from different samples and how often each occurs.

    The samples are dealt to the quarters one by one, equal ones too, so that weights are worth the same as equal rows.
    """
    order = np.random.default_rng(0).permutation(len(counts))[:MOST_ROWS]
    counts = counts[order] * max(1.0, len(order) / counts[order].sum())  # where they sum to 1, say
    ends = np.cumsum(counts)
    n_held = 0.0
    for quarter in range(QUARTERS):
        held = np.diff(_dealt(ends, quarter), prepend=0.0)
        fitted = np.maximum(counts - held, 0.0)
        if held.any() and fitted.any():
            some, others = (replace(data, x=data.x[torch.from_numpy(order[part > 0])]) for part in (fitted, held))
            yield _Turn(some, others, fitted[fitted > 0], held[held > 0])
        n_held += held.sum()
        if n_held >= ENOUGH:
            return


def _dealt(ends: Float[np.ndarray, " row"], quarter: int) -> Float[np.ndarray, " row"]:
    """How many of the first samples up to each end a quarter gets, where the quarters take turns."""
    rounds, rest = np.divmod(ends, QUARTERS)
    return rounds + np.clip(rest - quarter, 0, 1)


@torch.no_grad()
def _tried(make: Callable[[int], HMoEVAE], number: int, turns: list[_Turn], em: EM) -> _Tried:
    """Fit so many components in every turn, and score what was held out."""
    parts = []
    for turn in turns:
        model = make(number).double()
        fit_em(model, turn.fitted, em, sample_weight=turn.fitted_weight)
        log_joint = joint(model, turn.held.x.double())
        log_density = log_joint.logsumexp(0)
        entropy = torch.special.entr((log_joint - log_density).exp()).sum(0)
        parts.append((log_density.numpy(), entropy.numpy(), turn.held_weight))
    cost = LEAST_GAIN * turns[0].held.x.shape[1] * number
    log_density, entropy, weight = map(np.concatenate, zip(*parts, strict=True))
    return _Tried(log_density, entropy, weight, cost)
