"""How far apart two groups of samples are in a feature: effect sizes.

Axes: `feature` counts features. A difference of `d` standard deviations between two normal distributions means that a
share 2 Phi(d / 2) - 1 of either lies outside the other, their total-variation distance; numbers and categories are
ranked on that scale.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from hmoevae.reporting.moments import Moments


class Group(NamedTuple):
    """The moments of one group of samples.

    >>> Group(np.array([2.0]), np.array([0.5]), np.array([0.1])).mean
    array([0.5])
    """

    observed: Float[np.ndarray, " feature"]
    mean: Float[np.ndarray, " feature"]
    std: Float[np.ndarray, " feature"]


def of_node(moments: Moments, node: int) -> Group:
    """The samples of a node.

    >>> of_node(Moments(*(np.array([[i], [2 * i]]) for i in (1.0, 2.0, 3.0))), 1)
    Group(observed=array([2.]), mean=array([4.]), std=array([6.]))
    """
    return Group(moments.observed[node], moments.mean[node], moments.std[node])


def without(whole: Group, part: Group) -> Group:
    """The samples of a group that are not in a part of it.

    >>> without(Group(*map(np.array, ([2.0], [1.0], [1.0]))), Group(*map(np.array, ([1.0], [0.0], [0.0]))))
    Group(observed=array([1.]), mean=array([2.]), std=array([0.]))
    """
    observed = whole.observed - part.observed
    with np.errstate(invalid="ignore", divide="ignore"):
        n, own = np.where(observed > 0, part.observed / observed, 0.0), np.nan_to_num(part.mean)
        mean = whole.mean + n * (whole.mean - own)
        squares = (whole.observed * (whole.std**2 + whole.mean**2)) / observed
        squares -= n * (np.nan_to_num(part.std) ** 2 + own**2)
        std = np.sqrt(np.maximum(squares - mean**2, 0.0))
    none = observed == 0
    return Group(observed, np.where(none, np.nan, mean), np.where(none, np.nan, std))


def standardised(one: Group, other: Group, floor: float = 1e-9) -> Float[np.ndarray, " feature"]:
    """The difference of means in standard deviations (Cohen's d, with the mean of the two variances).

    Zero where a group has no observed cell, or the means are equal.

    Args:
        one: One group.
        other: The other.
        floor: Least standard deviation, against differences in features that hardly vary.

    >>> standardised(Group(*map(np.array, ([5.0], [1.0], [2.0]))), Group(*map(np.array, ([5.0], [0.0], [2.0]))))
    array([0.5])
    """
    spread = np.sqrt((one.std**2 + other.std**2) / 2)
    return np.nan_to_num((one.mean - other.mean) / np.maximum(spread, floor))


def overlap_lost(d: Float[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes"]:
    """The total-variation distance of two normal distributions that are `d` standard deviations apart, from 0 to 1.

    >>> overlap_lost(np.array([0.0, 2.0])).round(3)
    array([0.   , 0.683])
    """
    from scipy.special import erf

    return erf(np.abs(d) / np.sqrt(8))


def total_variation(one: Num[np.ndarray, " bin"], other: Num[np.ndarray, " bin"]) -> float:
    """Half the sum of the absolute differences of two distributions, given as counts; zero if one is empty.

    >>> total_variation(np.array([3.0, 1.0]), np.array([1.0, 1.0]))
    0.25
    """
    if not (one.sum() > 0 and other.sum() > 0):
        return 0.0
    return float(np.abs(one / one.sum() - other / other.sum()).sum() / 2)
