"""The M-step: sets the decoders, noises and constant outputs of all leaves from weighted samples.

Axes: `n` counts samples, `leaf` all leaves, `feature` the entries of a sample, `linear` its Gaussian features.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.em.covariances import first_factors, next_factors, pulled
from hmoevae.em.moments import Factors, Moments, filled_in, moments
from hmoevae.errors import SpecError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.experts import ExpertGroup
from hmoevae.nn.linear import LinearEncoder
from hmoevae.nn.posteriors import LinearFeatures

FILL_ROUNDS = 10
"""Number of EM iterations of the single factor analyser that fills gaps for the start."""


class Group(NamedTuple):
    """A group of leaves of the model, with the parts that the M-step sets.

    Attributes:
        experts: The module.
        members: The leaves of its rows.
        linear: Its Gaussian features.
    """

    experts: ExpertGroup
    members: tuple[int, ...]
    linear: LinearFeatures

    @property
    def floor(self) -> Float[Tensor, "leaf linear"]:
        """The least variance of the noise of every leaf and Gaussian feature."""
        return self.experts.likelihood.linear_floor().square()


def groups_of(model: HMoEVAE) -> list[Group]:
    """The groups of a model, all of whose leaves EM can fit.

    Raises:
        SpecError: A leaf has no exact posterior, fixed noise, or another likelihood than the first leaf.
    """
    plan, found = model.plan, []
    first = plan.leaves[0].spec
    for planned, experts in zip(plan.expert_groups, model.experts.groups, strict=True):
        leaf = plan.leaves[planned.members[0]]
        place = "root" if leaf.path == "" else leaf.path
        if not isinstance(experts.encoder, LinearEncoder):
            expected = "LinearPosterior(), for which EM has a closed form (hmoevae.fit trains every other model)"
            raise SpecError(mismatch(f"{place}.encoder", expected, str(planned.spec.encoder)))
        if planned.spec.likelihood != first.likelihood:
            expected = f"{first.likelihood}, as in the first leaf"
            raise SpecError(mismatch(f"{place}.likelihood", expected, planned.spec.likelihood))
        linear = experts.likelihood.linear_features()
        assert linear is not None  # the encoder needs them
        found.append(Group(experts, planned.members, linear))
    return found


class MStep:
    """Sets the weights of all leaves from responsibilities.

    Args:
        model: The model, in float64.
        x: All samples, in float64; gaps are NaN.
        weight: The weight of every sample.
        strength: The number of samples that the prior of a leaf's covariance is worth.
    """

    def __init__(
        self, model: HMoEVAE, x: Float[Tensor, "n feature"], weight: Float[Tensor, " n"], strength: float
    ) -> None:
        self.groups = groups_of(model)
        self.x, self.weight, self.strength = x, weight, strength
        self.present = None if not x.isnan().any() else ~x.isnan()
        self.linear_x = x[:, self.groups[0].linear.features]
        self.has_gaps = bool(self.linear_x.isnan().any())
        self.filled = self._filled() if self.has_gaps else self.linear_x
        self.started = False

    @torch.no_grad()
    def run(self, responsibility: Float[Tensor, "leaf n"]) -> None:
        """Set the weights of all leaves; responsibilities sum to the weight of each sample."""
        found = {leaf: self._moments(group, row, responsibility[leaf]) for group, row, leaf in self._leaves()}
        order = range(len(found))
        weights = torch.stack([found[leaf].weight for leaf in order])
        covariances = pulled(torch.stack([found[leaf].covariance for leaf in order]), weights, self.strength)
        for group in self.groups:
            rows = list(group.members)
            self._set(group, torch.stack([found[leaf].mean for leaf in rows]), weights[rows], covariances[rows])
            if not group.linear.are_all:
                self._set_others(group, responsibility[rows])
        self.started = True

    def _leaves(self) -> Iterator[tuple[Group, int, int]]:
        for group in self.groups:
            for row, leaf in enumerate(group.members):
                yield group, row, leaf

    def _factors(self, group: Group, row: int) -> Factors:
        last, raw = group.experts.decoder.last, group.linear.raw
        scale = group.experts.likelihood.linear_features().scale
        return Factors(last.bias[row, raw], last.matrices[row, raw], scale[row].squeeze(1).square())

    def _moments(self, group: Group, row: int, weight: Float[Tensor, " n"]) -> Moments:
        if not (self.has_gaps and self.started):
            return moments(self.filled, weight)
        return moments(self.linear_x, weight, self._factors(group, row))

    def _filled(self) -> Float[Tensor, "n linear"]:
        """The Gaussian features with their gaps filled by one factor analyser of all samples, for the start."""
        group, x = self.groups[0], self.linear_x
        floor = group.floor[:1]
        mean = x.nanmean(0)
        found = moments(torch.where(x.isnan(), mean, x), self.weight)
        loadings, noise = first_factors(found.covariance.unsqueeze(0), group.experts.latent_dim, floor)
        for _ in range(FILL_ROUNDS):
            found = moments(x, self.weight, Factors(found.mean, loadings[0], noise[0]))
            loadings, noise = next_factors(found.covariance.unsqueeze(0), loadings, noise, floor)
        return filled_in(x, self.weight, Factors(found.mean, loadings[0], noise[0]))[0]

    def _set(
        self,
        group: Group,
        mean: Float[Tensor, "leaf linear"],
        weight: Float[Tensor, " leaf"],
        covariance: Float[Tensor, "leaf linear column"],
    ) -> None:
        """Set means, loadings and noise of a group. Leaves without samples keep their means."""
        last, raw, floor = group.experts.decoder.last, group.linear.raw, group.floor
        if self.started:
            scale = group.experts.likelihood.linear_features().scale.squeeze(2)
            factors = next_factors(covariance, last.matrices[:, raw], scale.square(), floor)
        else:
            factors = next_factors(covariance, *first_factors(covariance, group.experts.latent_dim, floor), floor)
        loadings, noise = factors
        last.matrices[:, raw] = loadings
        last.bias[:, raw] = torch.where(weight.unsqueeze(1) > 0, mean, last.bias[:, raw])
        group.experts.likelihood.set_linear_scale_(noise.sqrt())

    def _set_others(self, group: Group, responsibility: Float[Tensor, "leaf n"]) -> None:
        """Set the outputs of the other features, which do not depend on z."""
        last, raw = group.experts.decoder.last, group.linear.raw
        present = None if self.present is None else self.present.T
        constant = group.experts.likelihood.fit_constant_(self.x.T, responsibility, present)
        is_other = torch.ones(last.bias.shape[1], dtype=torch.bool)
        is_other[raw] = False
        last.matrices[:, is_other] = 0.0
        last.bias[:, is_other] = constant[:, is_other]
