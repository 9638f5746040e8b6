"""Gaps: cells that were not observed, which samples mark by NaN, and what networks see in their place.

Axes: `group` counts experts, `feature` the entries of a sample, `shown` the entries that networks see; `batch` is last.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hmoevae.errors import SpecError, mismatch
from hmoevae.nn.likelihoods import LikelihoodModule

Sample = Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"]
Present = Bool[Tensor, "feature batch"] | Bool[Tensor, "group feature batch"]


def observed(x: Sample) -> Present:
    """Which cells of samples were observed.

    >>> observed(torch.tensor([[1.0], [torch.nan]])).flatten()
    tensor([ True, False])
    """
    return ~x.isnan()


def shown_shape(
    likelihood: LikelihoodModule, sample_shape: tuple[int, ...], place: str, *, missing: bool
) -> tuple[int, ...]:
    """The shape of what networks see of one sample: with `missing`, the mask is beside it, along the first axis.

    Args:
        likelihood: The likelihood that says what networks see of the values.
        sample_shape: Shape of one sample.
        place: The likelihood's name in error messages, such as `"root/0.likelihood"`.
        missing: Whether cells may be missing.

    Raises:
        SpecError: The mask does not fit beside the values.

    >>> from hmoevae.nn.likelihoods import likelihood_module
    >>> from hmoevae.spec import Bernoulli
    >>> shown_shape(likelihood_module(Bernoulli(), 1, 784), (1, 28, 28), "root.likelihood", missing=True)
    (2, 28, 28)
    """
    shape = likelihood.shown_shape(sample_shape)
    if not missing:
        return shape
    if shape[1:] != sample_shape[1:]:
        expected = f"a mask of the samples beside it, (any, {', '.join(map(str, sample_shape[1:]))})"
        raise SpecError(mismatch(f"{place}.shown_shape", expected, shape))
    return (shape[0] + sample_shape[0], *shape[1:])


def shown(likelihood: LikelihoodModule, x: Sample, *, missing: bool) -> Tensor:
    """What networks see of samples: with `missing`, zeros for the gaps and, beside the values, 1 for what was observed.

    Args:
        likelihood: The likelihood that says what networks see of the values.
        x: Samples, in which gaps are NaN.
        missing: Whether cells may be missing; without it, what the likelihood shows, which is most often `x` itself.

    >>> from hmoevae.nn.likelihoods import likelihood_module
    >>> from hmoevae.spec import Bernoulli
    >>> coins, x = likelihood_module(Bernoulli(), 1, 2), torch.tensor([[1.0], [torch.nan]])
    >>> shown(coins, x, missing=True).flatten(), shown(coins, x, missing=False) is x
    (tensor([1., 0., 1., 0.]), True)
    """
    if not missing:
        return likelihood.shown(x)
    present = observed(x)
    # Batch-first, because that is the memory layout of samples.
    return torch.cat([likelihood.shown(x, present).mT, present.mT.to(x.dtype)], dim=-1).mT
