"""step_em: one step of EM on a batch, which goes a part of the way, so that batches may come one after another.

Axes: `n` counts samples, `leaf` the leaves of a group.
"""

import copy
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.em.fitting import USUAL, joint, read
from hmoevae.em.leaves import Group, MStep
from hmoevae.em.moments import Factors, Moments
from hmoevae.errors import ArgumentError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.samples import ArrayLike, Data


class Step(NamedTuple):
    """How far a step goes.

    Attributes:
        rate: The weight of the batch in all moments; that of the model so far is 1 - `rate`.
        n_seen: Number of samples that the model has seen with this batch, beside which the prior of the covariances
            (`EM.strength`) counts.
    """

    rate: float
    n_seen: float


@torch.no_grad()
def step_em(model: HMoEVAE, data: Data, step: Step, *, sample_weight: ArrayLike | None = None) -> float:
    """Move `model` in place towards a batch (Cappé & Moulines 2009, On-line EM for latent data models).

    The weights, means and covariances of the leaves become averages of the model's own and of the batch's, and the
    M-step of `fit_em` follows. The model itself is the summary of earlier batches: with a rate that falls, such as
    (t + 2)^-0.7, the leaves move towards a stationary point of the likelihood of all of them. Outputs of features that
    are not Gaussian move by the same part of the way to those of the batch.

    Args:
        model: A model that `hmoevae.fit_em` can fit, and has been fitted to earlier samples.
        data: Samples, in any form that `hmoevae.fit` takes.
        step: How far to go.
        sample_weight: How many samples each sample counts for, `(n,)`.

    Returns:
        The mean of -log p(x) of the batch before the step, in nats.

    Raises:
        SpecError: A node has no closed form, as for `fit_em`.
        DataError: The data do not fit the model.
        ArgumentError: The rate is not from 0 to 1, or `n_seen` is negative.

    >>> import hmoevae as hm
    >>> leaf = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity"))
    >>> model = hm.HMoEVAE(leaf, input_shape=(3,))
    >>> x, later = torch.randn(500, 3), torch.randn(500, 3) + 1
    >>> _ = hm.fit_em(model, x)
    >>> before = step_em(model, later, Step(rate=0.5, n_seen=1000))
    >>> model.score_samples(later).mean() > -before
    tensor(True)
    """
    if not (0 <= step.rate <= 1 and step.n_seen >= 0):
        raise ArgumentError(mismatch("step", "a rate from 0 to 1 and n_seen >= 0", step))
    x, weight = read(model, data, sample_weight)
    twin = copy.deepcopy(model).to("cpu", torch.float64)
    m_step = MStep(twin, x, weight, USUAL.strength)
    m_step.started = True
    log_joint = joint(twin, x)
    responsibility = log_joint.softmax(0) * weight
    of_batch = responsibility.sum(1) / weight.sum()
    shares = torch.lerp(twin.prior.leaf_log_prob().exp(), of_batch, step.rate)
    moved = step.rate * of_batch / shares.clamp_min(torch.finfo(shares.dtype).tiny)
    if m_step.linear_x.shape[1]:
        parts = m_step.leaf_factors(), m_step.leaf_moments(responsibility), moved, shares * step.n_seen
        m_step.set_linear([_average(*of_leaf) for of_leaf in zip(*parts, strict=True)])
    for group in m_step.groups:
        if not group.are_all:
            rows = list(group.members)
            _move_others_(m_step, group, responsibility[rows], moved[rows])
    twin.prior.set_shares_(shares)
    model.load_state_dict(twin.state_dict())
    return -float(weight @ log_joint.logsumexp(0) / weight.sum())


def _average(before: Factors, found: Moments, rate: Float[Tensor, ""], weight: Float[Tensor, ""]) -> Moments:
    """The moments of a leaf's samples so far and of those of the batch together, with their `weight`."""
    apart = found.mean - before.mean
    covariance = torch.lerp(before.covariance, found.covariance, rate)
    return Moments(weight, before.mean + rate * apart, covariance + rate * (1 - rate) * apart.outer(apart))


def _move_others_(
    m_step: MStep, group: Group, responsibility: Float[Tensor, "leaf n"], moved: Float[Tensor, " leaf"]
) -> None:
    """Move the outputs and parameters of features that are not Gaussian."""
    tensors = [group.decoder.bias, *group.likelihood.parameters()]
    before = [tensor.clone() for tensor in tensors]
    m_step.set_others(group, responsibility)
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.lerp(old, tensor, moved.view(-1, *[1] * (tensor.ndim - 1))))
