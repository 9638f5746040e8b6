"""The M-step: sets the decoders, noises and constant outcomes of all leaves from weighted samples.

Axes: `n` counts samples, `leaf` all leaves or those of a group, `feature` the entries of a sample, `linear` its
Gaussian features, `latent` the factors.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.em.covariances import first_factors, next_factors, pulled
from hmoevae.em.moments import Factors, Moments, filled_in, moments
from hmoevae.errors import SpecError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.grouped import GroupedLinear, GroupedMLP
from hmoevae.nn.likelihoods import LikelihoodModule
from hmoevae.nn.likelihoods.module import weighted_means
from hmoevae.nn.linear import LinearEncoder
from hmoevae.nn.posteriors import Rows, takes_part
from hmoevae.spec import Mixture, PosteriorGate

FILL_ROUNDS = 10
"""Number of EM iterations of the single factor analyser that fills gaps for the start."""


class Group(NamedTuple):
    """What the M-step sets in a group of equal leaves.

    Attributes:
        decoder: The linear decoders.
        likelihood: The likelihood, with its learned scales.
        latent_dim: Number of factors.
        members: The leaf of every row.
        features: The Gaussian features.
        raw: The decoders' outputs that are their means.
        are_all: Whether there are no other features.
    """

    decoder: GroupedLinear
    likelihood: LikelihoodModule
    latent_dim: int
    members: tuple[int, ...]
    features: Rows
    raw: Rows
    are_all: bool

    @property
    def floor(self) -> Float[Tensor, "leaf linear"]:
        """The least variances of the noise."""
        return self.likelihood.linear_floor().square()

    @property
    def noise(self) -> Float[Tensor, "leaf linear"]:
        """The variances of the noise."""
        linear = self.likelihood.linear_features()
        assert linear is not None
        assert isinstance(linear.scale, Tensor)  # it is learned
        return linear.scale.squeeze(2).square()

    def factors(self, row: int) -> Factors:
        """The factor analyser of a row."""
        mean, loadings = self.decoder.bias[row, self.raw], self.decoder.matrices[row, self.raw]
        return Factors(mean, loadings, self.noise[row])


def groups_of(model: HMoEVAE) -> list[Group]:
    """The groups of a model, all of whose leaves and gates EM can fit.

    Raises:
        SpecError: A leaf has no exact posterior, or another likelihood than the first leaf; a gate is a network.
        ArgumentError: The noise of a leaf is fixed.
    """
    plan, found = model.plan, []
    first = plan.expert_groups[0].spec
    for planned, experts in zip(plan.expert_groups, model.experts.groups, strict=True):
        place = plan.leaves[planned.members[0]].path
        linear = experts.likelihood.linear_features()
        if not isinstance(experts.encoder, LinearEncoder) or linear is None:
            expected = "LinearPosterior(), for which EM has a closed form (hmoevae.fit trains every other model)"
            raise SpecError(mismatch(f"{place}.encoder", expected, str(planned.spec.encoder)))
        if planned.spec.likelihood != first.likelihood:
            expected = f"{first.likelihood}, as in the first leaf"
            raise SpecError(mismatch(f"{place}.likelihood", expected, planned.spec.likelihood))
        if takes_part(linear):
            experts.likelihood.linear_floor()  # an error if the scales are not learned
        assert isinstance(experts.decoder, GroupedMLP)  # the encoder has checked it
        parts = experts.decoder.last, experts.likelihood, experts.latent_dim, planned.members
        found.append(Group(*parts, linear.features, linear.raw, linear.are_all))
    for mixture in plan.mixtures:
        assert isinstance(mixture.spec, Mixture)
        if not isinstance(mixture.spec.gate, PosteriorGate):
            expected = "PosteriorGate(), for which EM has a closed form (hmoevae.fit trains every other model)"
            raise SpecError(mismatch(f"{mixture.path}.gate", expected, str(mixture.spec.gate)))
    return found


class MStep:
    """Sets the weights of all leaves from responsibilities.

    Args:
        model: The model, in float64.
        x: All samples, in float64; gaps are NaN.
        weight: The weight of every sample.
        strength: The number of samples that the prior of a leaf's covariance is worth.

    Attributes:
        linear_x: The Gaussian features of the samples.
        filled: The same, with gaps filled for the start by one factor analyser of all samples.
    """

    def __init__(
        self, model: HMoEVAE, x: Float[Tensor, "n feature"], weight: Float[Tensor, " n"], strength: float
    ) -> None:
        self.groups = groups_of(model)
        self.x, self.weight, self.strength = x, weight, strength
        self.present = ~x.isnan() if x.isnan().any() else None
        self.linear_x = x[:, self.groups[0].features]
        self.has_gaps = bool(self.linear_x.isnan().any())
        self.started = False

    @torch.no_grad()
    def run(self, responsibility: Float[Tensor, "leaf n"]) -> None:
        """Set the weights of all leaves; the responsibilities of a sample sum to its weight."""
        if self.linear_x.shape[1]:
            self.set_linear(self.leaf_moments(responsibility))
        for group in self.groups:
            if not group.are_all:
                self.set_others(group, responsibility[list(group.members)])
        self.started = True

    def leaf_factors(self) -> list[Factors]:
        """The factor analyser of every leaf."""
        found = {leaf: group.factors(row) for group in self.groups for row, leaf in enumerate(group.members)}
        return [found[leaf] for leaf in range(len(found))]

    def leaf_moments(self, responsibility: Float[Tensor, "leaf n"]) -> list[Moments]:
        """The moments of the Gaussian features of every leaf."""
        if self.has_gaps and self.started:
            pairs = zip(responsibility, self.leaf_factors(), strict=True)
            return [moments(self.linear_x, weight, before) for weight, before in pairs]
        return [moments(self.filled, weight) for weight in responsibility]

    def set_linear(self, found: list[Moments]) -> None:
        """Set means, loadings and noise of the Gaussian features of all leaves."""
        weights, means, covariances = map(torch.stack, zip(*found, strict=True))
        covariances = pulled(covariances, weights, self.strength)
        for group in self.groups:
            rows = list(group.members)
            self._set(group, means[rows], weights[rows], covariances[rows])

    @cached_property
    def filled(self) -> Float[Tensor, "n linear"]:
        """The Gaussian features with their gaps filled by one factor analyser of all samples."""
        group, x = self.groups[0], self.linear_x
        if not self.has_gaps:
            return x
        floor, present = group.floor[:1], ~x.isnan()
        means = weighted_means(x.T, self.weight.unsqueeze(0), present.T)
        found = moments(torch.where(present, x, means), self.weight)
        loadings, noise = first_factors(found.covariance.unsqueeze(0), group.latent_dim, floor)
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
        decoder, raw, floor = group.decoder, group.raw, group.floor
        before = decoder.matrices[:, raw], group.noise
        if not self.started:
            before = first_factors(covariance, group.latent_dim, floor)
        loadings, noise = next_factors(covariance, *before, floor)
        decoder.matrices[:, raw] = loadings
        decoder.bias[:, raw] = torch.where(weight.unsqueeze(1) > 0, mean, decoder.bias[:, raw])
        group.likelihood.set_linear_scale_(noise.sqrt())

    def set_others(self, group: Group, responsibility: Float[Tensor, "leaf n"]) -> None:
        """Set the outputs of the other features, which do not depend on z."""
        present = None if self.present is None else self.present.T
        constant = group.likelihood.fit_constant_(self.x.T, responsibility, present)
        is_other = torch.ones(constant.shape[1], dtype=torch.bool, device="cpu")
        is_other[group.raw] = False
        group.decoder.matrices[:, is_other] = 0.0
        group.decoder.bias[:, is_other] = constant[:, is_other]
