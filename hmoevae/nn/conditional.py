"""The missing cells given the observed ones, by importance sampling of the leaf and z (Mattei & Frellsen 2019).

Axes: as in `hmoevae.nn.experts`. A candidate is a leaf and a draw of z from its posterior. Its weight is
pi_l p(x_obs|z) p(z) / q(z|x_obs): normalised over all candidates, the weights are an estimate of p(l, z | x_obs).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.nn.experts import ExpertGroup, Experts
from hmoevae.nn.gaps import observed
from hmoevae.nn.likelihoods import LikelihoodModule
from hmoevae.nn.likelihoods.columns import ColumnsModule
from hmoevae.nn.posteriors import AnyPosterior
from hmoevae.nn.rows import rows_of
from hmoevae.plan import Plan

CELLS_AT_A_TIME = 1 << 24
"""Largest number of cells that are decoded at a time: those of a thousand experts do not fit in memory."""


class Candidates(NamedTuple):
    """One draw of z from every expert of a group.

    Attributes:
        z: The draws.
        log_ratio: Log p(z) / q(z|x_obs) of each, in nats.
    """

    z: Float[Tensor, "group latent batch"]
    log_ratio: Float[Tensor, "group batch"]


def candidates(
    group: ExpertGroup,
    x: Float[Tensor, "feature batch"],
    n_importance: int,
    generator: torch.Generator | None,
    *,
    shared_noise: bool = False,
) -> Iterator[Candidates]:
    """Draw z `n_importance` times from every expert of a group; one draw at a time, which bounds memory.

    Args:
        group: The experts.
        x: Samples, in which missing cells are NaN.
        n_importance: Number of draws from every expert.
        generator: Source of the draws, on the device of `x`.
        shared_noise: Use the same noise for all samples, so that a sample's result does not depend on the others.
    """
    posterior = group.posterior(x)
    for _ in range(n_importance):
        noise = group.noise(x[:, :1] if shared_noise else x, generator).expand_as(posterior.mean)
        yield _candidates(posterior, noise)


def central(group: ExpertGroup, x: Float[Tensor, "feature batch"]) -> Candidates:
    """The means of the posteriors, as one draw.

    Where posteriors are exact, all draws have the same weight, and E[x|z] is linear in z: no other draw is needed.
    """
    posterior = group.posterior(x)
    return _candidates(posterior, torch.zeros_like(posterior.mean))


def _candidates(posterior: AnyPosterior, noise: Float[Tensor, "group latent batch"]) -> Candidates:
    z = posterior.sample(noise)
    return Candidates(z, -posterior.kl_at(z, noise))


class Average:
    """A weighted mean of statistics, added up draw by draw with weights known by their logarithms.

    >>> average = Average()
    >>> average.add(torch.tensor([[[1.0]], [[4.0]]]), torch.tensor([[1.0], [2.0]]).log() + 1000)
    >>> average.mean.round(decimals=3), average.log_total.exp() / 3 == torch.inf
    (tensor([[3.]]), tensor([True]))
    """

    top: Float[Tensor, " batch"]
    total: Float[Tensor, " batch"]
    sums: Float[Tensor, "statistic batch"]

    def __init__(self) -> None:
        self.is_empty = True

    def add(self, values: Float[Tensor, "group statistic batch"], log_weight: Float[Tensor, "group batch"]) -> None:
        """Add the values of a group with their weights."""
        top = log_weight.amax(0)
        if not self.is_empty:
            top = torch.maximum(top, self.top)
        weight = (log_weight - top).exp()
        total, sums = weight.sum(0), torch.einsum("gb,gsb->sb", weight, values.to(weight.dtype))
        if not self.is_empty:
            rescaled = (self.top - top).exp()
            total, sums = total + rescaled * self.total, sums + rescaled * self.sums
        self.top, self.total, self.sums, self.is_empty = top, total, sums, False

    @property
    def mean(self) -> Float[Tensor, "statistic batch"]:
        """The weighted mean."""
        return self.sums / self.total

    @property
    def log_total(self) -> Float[Tensor, " batch"]:
        """The logarithm of the sum of all weights."""
        return self.top + self.total.log()


def conditional_mean(
    experts: Experts,
    plan: Plan,
    x: Float[Tensor, "feature batch"],
    log_prior: Float[Tensor, " leaf"],
    n_importance: int,
    generator: torch.Generator | None,
    *,
    shared_noise: bool = False,
) -> Float[Tensor, "feature batch"]:
    """E[x | x_obs] of every cell; for categories, the most probable code.

    Categories are averaged as probabilities. Where leaves have likelihoods that differ and that average something else
    than means, the likelihood with the most weight answers for a sample.

    Args:
        experts: The experts.
        plan: Their plan.
        x: Samples, in which missing cells are NaN.
        log_prior: log pi_l.
        n_importance: Number of draws of z from every leaf.
        generator: Source of the draws, on the device of `x`.
        shared_noise: As in `candidates`.
    """
    averages: dict[object, tuple[LikelihoodModule, Average]] = {}
    for group, planned in zip(experts.groups, plan.expert_groups, strict=True):
        _, average = averages.setdefault(planned.spec.likelihood, (group.likelihood, Average()))
        own = log_prior[list(planned.members)]
        if group.is_exact:
            _add(average, group, x, own, central(group, x))
            continue
        for drawn in candidates(group, x, n_importance, generator, shared_noise=shared_noise):
            _add(average, group, x, own - math.log(n_importance), drawn)
    log_totals = torch.stack([average.log_total for _, average in averages.values()])
    answers = torch.stack(
        [module.from_statistics(average.mean.unsqueeze(0)).squeeze(0) for module, average in averages.values()]
    )
    if len(answers) > 1 and any(_has_codes(module) for module, _ in averages.values()):
        return answers.gather(0, log_totals.argmax(0).expand(1, *answers.shape[1:])).squeeze(0)
    return (answers * log_totals.softmax(0).unsqueeze(1)).sum(0)


def _add(
    average: Average,
    group: ExpertGroup,
    x: Float[Tensor, "feature batch"],
    log_prior: Float[Tensor, " group"],
    drawn: Candidates,
) -> None:
    """Add the statistics of a draw from every expert, decoded for some experts at a time."""
    present, log_ratio = observed(x), drawn.log_ratio + log_prior.unsqueeze(1)
    step = max(1, CELLS_AT_A_TIME // x.numel())
    for start in range(0, group.n_experts, step):
        rows = slice(start, start + step)
        experts = rows_of(group, rows)
        raw = experts.decoder(drawn.z[rows].to(x.dtype))
        log_prob = experts.likelihood.log_prob(raw, x, present)
        average.add(experts.likelihood.statistics(raw), log_prob + log_ratio[rows])


def _has_codes(likelihood: LikelihoodModule) -> bool:
    """Whether a likelihood averages something else than means."""
    if isinstance(likelihood, ColumnsModule):
        return any(map(_has_codes, likelihood.parts))
    return type(likelihood).from_statistics is not LikelihoodModule.from_statistics


def conditional_latents(
    experts: Experts,
    plan: Plan,
    x: Float[Tensor, "feature batch"],
    log_prior: Float[Tensor, " leaf"],
    leaves: range,
    n: int,
    n_importance: int,
    generator: torch.Generator | None,
) -> tuple[Int[Tensor, "n batch"], Float[Tensor, "n batch latent"]]:
    """Draw leaves and latents given the observed cells: candidates, resampled by their weights.

    Args:
        experts: The experts.
        plan: Their plan.
        x: Samples, in which missing cells are NaN.
        log_prior: log pi_l.
        leaves: The leaves to draw from.
        n: Number of draws for every sample.
        n_importance: Number of candidates from every leaf.
        generator: Source of the draws, on the device of `x`.

    Returns:
        Leaves, and latents that are zero-padded to the largest latent size.
    """
    of_candidate: list[int] = []
    weights: list[Float[Tensor, "group batch"]] = []
    latents: list[Float[Tensor, "batch group latent"]] = []
    for group, planned in zip(experts.groups, plan.expert_groups, strict=True):
        rows = [row for row, leaf in enumerate(planned.members) if leaf in leaves]
        if not rows:
            continue
        some = rows_of(group, slice(rows[0], rows[-1] + 1))  # leaves of a group stand in the order of all leaves
        members = [planned.members[row] for row in rows]
        own = log_prior[members].unsqueeze(1)
        padding = (0, experts.latent_dim - group.latent_dim)
        for z, log_ratio in candidates(some, x, n_importance, generator):
            of_candidate += members
            weights.append(some.log_prob(z.to(x.dtype), x.to(z.dtype)) + log_ratio + own)
            latents.append(F.pad(z.permute(2, 0, 1), padding))
    probability = torch.cat(weights).softmax(0)
    chosen = torch.multinomial(probability.t(), n, replacement=True, generator=generator)  # (batch, n)
    z = torch.cat(latents, 1).gather(1, chosen.unsqueeze(2).expand(-1, -1, experts.latent_dim))
    return torch.tensor(of_candidate, device=x.device)[chosen].t(), z.transpose(0, 1)
