"""step_em: one step of EM on a batch, which goes a part of the way, so that batches may come one after another.

Axes: `n` counts samples, `leaf` all leaves, `linear` and `column` the Gaussian features.
"""

import copy
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.em.covariances import pulled
from hmoevae.em.leaves import Group, MStep
from hmoevae.em.moments import Moments
from hmoevae.em.record import EM
from hmoevae.model import HMoEVAE
from hmoevae.nn.sample_weights import SampleWeights
from hmoevae.samples import BATCH_SIZE, ArrayLike, Data, in_order

USUAL = EM()


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
        SpecError: A node has no closed form.
        DataError: The data do not fit the model.

    >>> import hmoevae as hm
    >>> leaf = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity"))
    >>> model = hm.HMoEVAE(leaf, input_shape=(3,))
    >>> x, later = torch.randn(500, 3), torch.randn(500, 3) + 1
    >>> _ = hm.fit_em(model, x)
    >>> before = step_em(model, later, Step(rate=0.5, n_seen=1000))
    >>> model.score_samples(later).mean() > -before
    tensor(True)
    """
    x = torch.cat([piece.flatten(1) for piece in in_order(data, "data", model.check_input, BATCH_SIZE)])
    x = x.to("cpu", torch.float64)
    weight = torch.ones(len(x), dtype=torch.float64)
    if sample_weight is not None:
        weight = SampleWeights.of(sample_weight, len(x)).counts.double().cpu()
    twin = copy.deepcopy(model).to("cpu", torch.float64)
    m_step = MStep(twin, x, weight, USUAL.strength)
    m_step.started = True
    log_prior = twin.prior.leaf_log_prob().unsqueeze(1)
    joint = torch.cat([twin.experts.evidence(chunk.T) for chunk in x.split(BATCH_SIZE)], 1) + log_prior
    responsibility = joint.softmax(0) * weight
    of_batch = responsibility.sum(1) / weight.sum()
    shares = torch.lerp(log_prior.squeeze(1).exp(), of_batch, step.rate)
    moved = step.rate * of_batch / shares.clamp_min(torch.finfo(shares.dtype).tiny)
    for group in m_step.groups:
        rows = list(group.members)
        if m_step.linear_x.shape[1]:
            found = [m_step._moments(group, row, responsibility[leaf]) for row, leaf in enumerate(rows)]
            mean, covariance = _averages(group, found, moved[rows])
            m_step._set(group, mean, shares[rows], pulled(covariance, shares[rows] * step.n_seen, USUAL.strength))
        if not group.are_all:
            _move_others_(m_step, group, responsibility[rows], moved[rows])
    twin.prior.set_shares_(shares)
    model.load_state_dict(twin.state_dict())
    return -float(weight @ joint.logsumexp(0) / weight.sum())


def _averages(
    group: Group, found: list[Moments], moved: Float[Tensor, " leaf"]
) -> tuple[Float[Tensor, "leaf linear"], Float[Tensor, "leaf linear column"]]:
    """Means and covariances of the samples so far and those of the batch together."""
    before, rate = [group.factors(row) for row in range(len(found))], moved.view(-1, 1, 1)
    own, new = torch.stack([each.mean for each in before]), torch.stack([each.mean for each in found])
    apart = new - own
    covariance = torch.lerp(
        torch.stack([each.covariance for each in before]), torch.stack([each.covariance for each in found]), rate
    )
    between = rate * (1 - rate) * apart.unsqueeze(2) * apart.unsqueeze(1)
    return own + moved.unsqueeze(1) * apart, covariance + between


def _move_others_(
    m_step: MStep, group: Group, responsibility: Float[Tensor, "leaf n"], moved: Float[Tensor, " leaf"]
) -> None:
    """Move the outputs and parameters of features that are not Gaussian."""
    tensors = [group.decoder.bias, *group.likelihood.parameters()]
    before = [tensor.clone() for tensor in tensors]
    m_step._set_others(group, responsibility)
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.lerp(old, tensor, moved.view(-1, *[1] * (tensor.ndim - 1))))
