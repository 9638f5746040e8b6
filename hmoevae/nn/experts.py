"""The leaves of a tree: every group of equal VAE experts runs as one batched encoder and decoder.

Axes: `leaf` counts all leaves in the plan's order, `group` the leaves of one group, `feature` the entries of a sample,
`latent` a group's latent features, `slot` the places that routed samples are packed into; `batch` is last.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from hmoevae.nn.draws import for_batch
from hmoevae.nn.grouped import GroupedMLP
from hmoevae.nn.kernels import readout
from hmoevae.nn.kernels.precision import sum_dtype
from hmoevae.nn.likelihoods import likelihood_model
from hmoevae.nn.paths import joined, permutation
from hmoevae.plan import Plan
from hmoevae.spec import VAE

MIN_VARIANCE = 1e-5
"""Floor of the posterior's variance, var = MIN_VARIANCE + exp(raw)."""
LARGE_LOG_VARIANCE = 10.0
"""Of raw, which grows without bound far from all data: from here on the variance follows the exponential's tangent.

An infinite variance would spoil other leaves' scores too, one without a gradient would stay as large as it is, and one
with the exponential's own would make Adam's steps tiny for thousands to come.
"""

SPARE = 4
"""How many times its samples a group may run with what fills up its experts' rows, before the rows are made even."""


class Posterior(NamedTuple):
    """q(z|x) = N(mean, diag(variance)) of every expert of a group, in single precision or more.

    >>> Posterior(mean=torch.zeros(1, 2, 3), variance=torch.ones(1, 2, 3)).kl()
    tensor([[0., 0., 0.]])
    """

    mean: Float[Tensor, "group latent batch"]
    variance: Float[Tensor, "group latent batch"]

    def sample(self, noise: Float[Tensor, "group latent batch"]) -> Float[Tensor, "group latent batch"]:
        """A draw of z from standard normal noise, differentiable in mean and variance (Kingma & Welling 2014, 2.4)."""
        return torch.addcmul(self.mean, self.variance.sqrt(), noise)

    def kl(self) -> Float[Tensor, "group batch"]:
        """KL(q(z|x) || N(0, I)) in nats (Kingma & Welling 2014, appendix B)."""
        return 0.5 * torch.addcmul(self.variance - self.variance.log() - 1, self.mean, self.mean).sum(1)

    def kl_at(
        self, z: Float[Tensor, "group latent batch"], noise: Float[Tensor, "group latent batch"]
    ) -> Float[Tensor, "group batch"]:
        """Log q(z|x) - log p(z) in nats at the draw of z from `noise`; its mean over draws is the KL."""
        return 0.5 * (z.square() - noise.square() - self.variance.log()).sum(1)


def posterior_of(raw: Float[Tensor, "group two_latent batch"]) -> Posterior:
    """What an encoder's outputs say: means, and below them logarithms of variances.

    >>> posterior_of(torch.tensor([[[0.5], [0.0]]])).variance  # beyond the floor, exp(0)
    tensor([[[1.0000]]])
    """
    mean, log_variance = raw.chunk(2, dim=1)
    small = log_variance.clamp_max(LARGE_LOG_VARIANCE)
    slope = small.exp()
    return Posterior(mean, torch.addcmul(MIN_VARIANCE + slope, slope, log_variance - small))


class Draw(NamedTuple):
    """One draw of z from every expert of a group for every sample, and what it says of the samples.

    Attributes:
        posterior: q(z|x), which z is from.
        noise: The standard normal numbers that made it.
        z: The draw.
        log_prob: log p(x|z) in nats.

    >>> noise = torch.zeros(1, 2, 3)
    >>> draw = Draw(Posterior(torch.zeros(1, 2, 3), torch.ones(1, 2, 3)), noise, noise, log_prob=torch.ones(1, 3))
    >>> draw.elbo(), draw.log_weight()
    (tensor([[1., 1., 1.]]), tensor([[1., 1., 1.]]))
    """

    posterior: Posterior
    noise: Float[Tensor, "group latent batch"]
    z: Float[Tensor, "group latent batch"]
    log_prob: Float[Tensor, "group batch"]

    def elbo(self, kl_weight: float = 1.0) -> Float[Tensor, "group batch"]:
        """The ELBO with its KL in closed form (Kingma & Welling 2014, equation 7), which varies less with the draw."""
        return self.log_prob - _weighed(self.posterior.kl(), kl_weight)

    def log_weight(self, kl_weight: float = 1.0) -> Float[Tensor, "group batch"]:
        """Log p(x, z) - log q(z|x): its mean is the ELBO too (equation 6), and that of its exponential p(x)."""
        return self.log_prob - _weighed(self.posterior.kl_at(self.z, self.noise), kl_weight)


def _weighed(kl: Float[Tensor, "group batch"], weight: float) -> Float[Tensor, "group batch"]:
    return kl if weight == 1 else weight * kl


class ExpertGroup(nn.Module):
    """Equal VAEs side by side.

    Args:
        spec: The VAE that all of them are.
        groups: How many there are.
        n_features: Entries of a sample.

    >>> group = ExpertGroup(VAE(latent_dim=2), groups=3, n_features=4)
    >>> x = torch.rand(4, 5)
    >>> group.draw(x, group.posterior(x), group.noise(x)).elbo().shape
    torch.Size([3, 5])
    """

    def __init__(self, spec: VAE, groups: int, n_features: int) -> None:
        super().__init__()
        self.encoder = GroupedMLP(groups, n_features, 2 * spec.latent_dim, spec.encoder)
        self.decoder = GroupedMLP(groups, spec.latent_dim, n_features, spec.decoder, input_major=True)
        self.likelihood = likelihood_model(spec.likelihood)
        self.n_experts = groups
        self.latent_dim = spec.latent_dim

    def posterior(self, x: Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"]) -> Posterior:
        """q(z|x) of every expert, for samples that all share (2-D) or for each its own (3-D)."""
        # Under autocast, or in half precision, exp and the sums of the KL need more than the network answers in.
        return posterior_of(self.encoder(x).to(sum_dtype(x)))

    def noise(
        self, x: Float[Tensor, "feature batch"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "group latent batch"]:
        """Standard normal noise for a draw of z from every expert for every sample."""
        # `torch.compile` refuses `generator=None` where the size of a batch is left open.
        how: dict[str, Any] = {} if generator is None else {"generator": generator}

        def draw(n: int) -> Tensor:
            return torch.randn(self.n_experts, self.latent_dim, n, device=x.device, dtype=sum_dtype(x), **how)

        return for_batch(draw, x.shape[-1], generator)

    def draw(
        self, x: Float[Tensor, "feature batch"], posterior: Posterior, noise: Float[Tensor, "group latent batch"]
    ) -> Draw:
        """A draw of z from the posterior of `x`, and log p(x|z)."""
        z = posterior.sample(noise)
        hidden = self.decoder.hidden(z.to(x.dtype))
        last = self.decoder.layers[-1]
        x = x.to(z.dtype)
        log_prob = readout(self.likelihood, last.weight, last.bias, hidden, x, input_major=last.input_major)
        return Draw(posterior, noise, z, log_prob)


class Experts(nn.Module):
    """All leaves of a plan.

    Args:
        plan: The compiled tree.
        n_features: Entries of a sample.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import Mixture
    >>> experts = Experts(compile_tree(Mixture(children=(VAE(2), VAE(3), VAE(2)))), n_features=4)
    >>> x = torch.rand(4, 5)
    >>> len(experts.groups), experts.by_leaf([draw.elbo() for draw in experts.draw(x, experts.noise(x))]).shape
    (2, torch.Size([3, 5]))
    """

    groups: Sequence[ExpertGroup]
    group_of_leaf: Int[Tensor, " leaf"]
    place_of_leaf: Int[Tensor, " leaf"]
    leaf_order: Int[Tensor, " leaf"] | None

    def __init__(self, plan: Plan, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.members = [group.members for group in plan.expert_groups]
        groups = nn.ModuleList(ExpertGroup(g.spec, len(g.members), n_features) for g in plan.expert_groups)
        self.groups = groups  # type: ignore[assignment]  # a ModuleList cannot say what it holds
        self.latent_dim = max(group.spec.latent_dim for group in plan.expert_groups)
        group_of_leaf = torch.empty(plan.n_leaves, dtype=torch.long)
        place_of_leaf = torch.empty(plan.n_leaves, dtype=torch.long)
        for i, members in enumerate(self.members):
            group_of_leaf[list(members)] = i
            place_of_leaf[list(members)] = torch.arange(len(members))
        self.register_buffer("group_of_leaf", group_of_leaf, persistent=False)
        self.register_buffer("place_of_leaf", place_of_leaf, persistent=False)
        order = [leaf for members in self.members for leaf in members]
        self.register_buffer("leaf_order", permutation(order), persistent=False)

    def noise(
        self, x: Float[Tensor, "feature batch"], generator: torch.Generator | None = None
    ) -> list[Float[Tensor, "_ _ batch"]]:
        """Standard normal noise for a draw of z from every leaf for every sample, group by group."""
        return [group.noise(x, generator) for group in self.groups]

    def draw(self, x: Float[Tensor, "feature batch"], noise: list[Float[Tensor, "_ _ batch"]]) -> list[Draw]:
        """A draw of z from every leaf for every sample, group by group."""
        pairs = zip(self.groups, noise, strict=True)
        return [group.draw(x, group.posterior(x), drawn) for group, drawn in pairs]

    def by_leaf(self, by_group: list[Float[Tensor, "_ batch"]]) -> Float[Tensor, "leaf batch"]:
        """What is given for the experts of each group, in the order of the leaves."""
        return joined(by_group, self.leaf_order)

    def log_marginal(
        self,
        x: Float[Tensor, "feature batch"],
        n_importance: int,
        generator: torch.Generator | None = None,
        *,
        shared_noise: bool = False,
    ) -> Float[Tensor, "leaf batch"]:
        """Importance-weighted bound on log p_l(x) of every leaf, in nats (Burda et al. 2016, equation 8).

        With `shared_noise` all samples have the same, so that what a sample gets depends on itself alone.
        """
        drawn_for = x[:, :1] if shared_noise else x
        bounds = []
        for group in self.groups:
            posterior = group.posterior(x)
            total = posterior.mean.new_full((group.n_experts, x.shape[1]), -torch.inf)
            for _ in range(n_importance):  # one draw at a time: memory does not grow with n_importance
                noise = group.noise(drawn_for, generator).expand_as(posterior.mean)
                total = torch.logaddexp(total, group.draw(x, posterior, noise).log_weight())
            bounds.append(total)
        return self.by_leaf(bounds) - math.log(n_importance)

    def encode(
        self, x: Float[Tensor, "batch feature"], leaf: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Mean and standard deviation of q(z|x) of each sample's own leaf, shorter ones filled up with zeros."""

        def read(group: ExpertGroup, raw: Tensor) -> Tensor:
            mean, variance = posterior_of(raw.to(sum_dtype(raw)))
            fill = (0, 0, 0, self.latent_dim - group.latent_dim)
            return torch.cat([F.pad(mean, fill), F.pad(variance.sqrt(), fill)], dim=1)

        mean, std = self._routed("encoder", read, x, leaf, 2 * self.latent_dim).chunk(2, dim=1)
        return mean, std

    def decode(
        self, z: Float[Tensor, "batch latent"], leaf: Int[Tensor, " batch"], *, raw: bool = False
    ) -> Float[Tensor, "batch feature"]:
        """Mean of p(x|z) of each sample's own leaf, or the decoder's outputs as they are (`raw`), for `observe`."""

        def read(group: ExpertGroup, outputs: Tensor) -> Tensor:
            return outputs if raw else group.likelihood.mean(outputs)

        return self._routed("decoder", read, z, leaf, self.n_features)

    def observe(
        self,
        raw: Float[Tensor, "batch feature"],
        leaf: Int[Tensor, " batch"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch feature"]:
        """A draw from p(x|z) of each sample's own leaf, given its decoder's outputs."""
        result = torch.empty_like(raw)
        for i, group in enumerate(self.groups):
            mine = (self.group_of_leaf[leaf] == i).nonzero().squeeze(1)
            drawn = group.likelihood.sample(raw[mine].t().unsqueeze(0), generator)
            result[mine] = drawn.squeeze(0).t().to(result.dtype)
        return result

    def _routed(
        self,
        network: Literal["encoder", "decoder"],
        read: Callable[[ExpertGroup, Tensor], Tensor],
        values: Float[Tensor, "batch inp"],
        leaf: Int[Tensor, " batch"],
        out_features: int,
    ) -> Float[Tensor, "batch out"]:
        """Run a network of each sample's own leaf: pack the samples of a leaf side by side, run, read, unpack."""
        counts = leaf.bincount(minlength=len(self.group_of_leaf))
        order = leaf.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        slot = torch.empty_like(leaf)
        slot[order] = torch.arange(len(leaf), device=leaf.device) - starts[leaf[order]]
        result = values.new_zeros(len(leaf), out_features)
        for i, (group, members) in enumerate(zip(self.groups, self.members, strict=True)):
            mine = (self.group_of_leaf[leaf] == i).nonzero().squeeze(1)
            if len(mine) == 0:
                continue
            row, column = self.place_of_leaf[leaf[mine]], slot[mine]
            layers: GroupedMLP = getattr(group, network)
            n_rows, width = len(members), int(column.max()) + 1
            run: Callable[[Tensor], Tensor] = layers
            if n_rows * width > SPARE * len(mine):  # uneven: busy leaves run as several, idle ones not at all
                width = math.ceil(len(mine) / len(row.unique()))
                pieces = torch.stack([row, column // width])
                (experts, _), row = pieces.unique(dim=1, return_inverse=True)
                column, n_rows = column % width, len(experts)
                run = partial(functional_call, layers, {name: p[experts] for name, p in layers.named_parameters()})
            n_inputs = layers.layers[0].matrices.shape[-1]  # of latents that are filled up, the group's own
            packed = values.new_zeros(n_rows, n_inputs, width)
            packed[row, :, column] = values[mine, :n_inputs]
            result[mine] = read(group, run(packed))[row, :, column].to(result.dtype)
        return result
