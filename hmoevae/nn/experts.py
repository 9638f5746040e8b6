"""The VAE experts at a tree's leaves: every group of equal experts runs as one batched encoder and decoder.

Axes: `leaf` counts all leaves in the plan's order, `group` the leaves of one group, `feature` the entries of a sample,
`latent` a group's latent features; `slot` counts the leaves that are computed for a sample, `pair` the (slot, sample)
pairs; `batch` is last.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hmoevae.checks import is_integer
from hmoevae.errors import ArgumentError, ArgumentTypeError, ShapeError, SpecError, mismatch
from hmoevae.nn.draws import Share, borrowed_random_state, for_batch
from hmoevae.nn.gaps import observed, shown, shown_shape
from hmoevae.nn.grouped import AffineEnded
from hmoevae.nn.kernels import readout
from hmoevae.nn.kernels.precision import sum_dtype
from hmoevae.nn.likelihoods import LikelihoodModule, likelihood_module
from hmoevae.nn.linear import LinearEncoder
from hmoevae.nn.networks import grouped_network
from hmoevae.nn.paths import joined, permutation
from hmoevae.nn.posteriors import AnyPosterior, Draw, posterior_of, takes_part
from hmoevae.nn.routes import Packing, pack, packing, unpack
from hmoevae.nn.rows import Chosen, rows_of
from hmoevae.plan import Plan
from hmoevae.spec import VAE, LinearPosterior


class ExpertGroup(nn.Module):
    """Equal VAEs side by side.

    Args:
        spec: The record of the VAEs.
        groups: Number of VAEs.
        sample_shape: Shape of one sample.
        place: The first VAE's name in error messages, such as `"root/0"`.
        missing: Whether cells of samples may be missing, which are NaN. The encoder sees zeros for them and a mask
            beside the values, and the likelihood leaves them out.

    Raises:
        SpecError: A network of the VAE does not fit the samples, or its likelihood's record makes no
            `LikelihoodModule` for this number of VAEs.

    >>> group = ExpertGroup(VAE(latent_dim=2), 3, (4,), "root/0")
    >>> x = torch.rand(4, 5)
    >>> group.draw(x, group.posterior(x), group.noise(x)).elbo().shape
    torch.Size([3, 5])
    """

    def __init__(
        self, spec: VAE, groups: int, sample_shape: tuple[int, ...], place: str, *, missing: bool = False
    ) -> None:
        super().__init__()
        likelihood = _likelihood(spec, groups, sample_shape, f"{place}.likelihood")
        seen_shape = shown_shape(likelihood, sample_shape, f"{place}.likelihood", missing=missing)
        decoded_shape = likelihood.raw_shape(sample_shape)
        latent_shape, posterior_shape = (spec.latent_dim,), (2 * spec.latent_dim,)
        closed_form = isinstance(spec.encoder, LinearPosterior)
        if not closed_form:  # made before the decoder, so that seeds give the weights that they have always given
            self.encoder = grouped_network(spec.encoder, groups, seen_shape, posterior_shape, f"{place}.encoder")
        self.decoder = grouped_network(
            spec.decoder, groups, latent_shape, decoded_shape, f"{place}.decoder", is_decoder=True
        )
        if closed_form:
            self.encoder = LinearEncoder(spec, self.decoder, likelihood, math.prod(sample_shape), place)
        self.likelihood = likelihood
        self.latent_dim = spec.latent_dim
        self.missing = missing

    @property
    def n_experts(self) -> int:
        """Number of experts."""
        return len(next(self.parameters()))

    def at(self, rows: Chosen) -> "ExpertGroup":
        """The chosen experts."""
        return rows_of(self, rows)

    def shown(self, x: Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"]) -> Tensor:
        """What the encoders see of samples."""
        return shown(self.likelihood, x, missing=self.missing)

    def posterior(self, x: Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"]) -> AnyPosterior:
        """q(z|x) of every expert, for samples that all experts share (2-D) or samples of each expert's own (3-D)."""
        if isinstance(self.encoder, LinearEncoder):
            return self.encoder(x, self.decoder, self.likelihood, observed(x) if self.missing else None)
        # Under autocast and in half precision, exp and the sums of the KL need a higher precision than the network's.
        return posterior_of(self.encoder(self.shown(x)).to(sum_dtype(x)))

    def noise(
        self,
        x: Float[Tensor, "feature batch"],
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Float[Tensor, "group latent batch"]:
        """Standard normal noise for a draw of z from every expert for every sample."""
        return for_batch(lambda n: _normal((self.n_experts, self.latent_dim, n), x, generator), x.shape[-1], share)

    def draw(
        self,
        x: Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"],
        posterior: AnyPosterior,
        noise: Float[Tensor, "group latent batch"],
    ) -> Draw:
        """Draw z from the posterior of `x` and compute log p(x|z)."""
        z = posterior.sample(noise)
        return Draw(posterior, noise, z, self.log_prob(z.to(x.dtype), x.to(z.dtype)))

    @property
    def is_exact(self) -> bool:
        """Whether the posterior of every expert is p(z|x)."""
        return isinstance(self.encoder, LinearEncoder) and self.encoder.is_exact

    @property
    def is_constant(self) -> bool:
        """Whether no feature depends on z, whose posterior is its prior then; `hmoevae.fit_em` fits such experts."""
        return isinstance(self.encoder, LinearEncoder) and not takes_part(self.likelihood.linear_features())

    def evidence(self, x: Float[Tensor, "feature batch"]) -> Float[Tensor, "group batch"]:
        """Log p(x, z) - log q(z|x) at the mean of q(z|x): log p(x) where the posterior is exact, in nats."""
        if self.is_constant:
            assert isinstance(self.decoder, AffineEnded)
            return self.likelihood.log_prob_constant(
                self.decoder.last.offsets, x, observed(x) if self.missing else None
            )
        posterior = self.posterior(x)
        return self.draw(x, posterior, torch.zeros_like(posterior.mean)).log_weight()

    def log_prob(
        self,
        z: Float[Tensor, "group latent batch"],
        x: Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"],
    ) -> Float[Tensor, "group batch"]:
        """Log p(x|z) of the observed cells in nats. A decoder's last layer, if affine, is fused with the likelihood."""
        present = observed(x) if self.missing else None
        if not isinstance(self.decoder, AffineEnded):
            return self.likelihood.log_prob(self.decoder(z), x, present)
        last, hidden = self.decoder.last, self.decoder.hidden(z)
        layout = {"input_major": last.input_major, "chosen": last.chosen}
        return readout(self.likelihood, last.weight, last.bias, hidden, x, present, **layout)


def _likelihood(spec: VAE, groups: int, sample_shape: tuple[int, ...], place: str) -> LikelihoodModule:
    """The module of a VAE's likelihood, which is checked."""
    module = likelihood_module(spec.likelihood, groups, torch.Size(sample_shape).numel())
    _check_likelihood(module, spec, groups, place)
    return module


def gate_shape(plan: Plan, sample_shape: tuple[int, ...], *, missing: bool = False) -> tuple[int, ...]:
    """The shape of what gates see of one sample, which is what the likelihood of the first leaf shows.

    Args:
        plan: The compiled tree.
        sample_shape: Shape of one sample.
        missing: Whether cells of samples may be missing.

    Raises:
        SpecError: That likelihood cannot be used.

    >>> from hmoevae.plan import compile_tree
    >>> gate_shape(compile_tree(VAE(2)), (4,)), gate_shape(compile_tree(VAE(2)), (4,), missing=True)
    ((4,), (8,))
    """
    first = plan.expert_groups[plan.leaves[0].place.group]
    place = f"{plan.leaves[0].path}.likelihood"
    with borrowed_random_state():  # the module is not kept
        likelihood = _likelihood(first.spec, 1, sample_shape, place)
    return shown_shape(likelihood, sample_shape, place, missing=missing)


def _check_likelihood(module: object, spec: VAE, groups: int, place: str) -> None:
    """Refuse what is no likelihood, or has parameters or buffers without the group axis."""
    if not isinstance(module, LikelihoodModule):
        expected = f"a LikelihoodModule from {spec.likelihood}.build"
        raise SpecError(mismatch(place, expected, type(module).__name__))
    if not is_integer(module.outputs, least=1):
        raise SpecError(mismatch(f"{place}.outputs", "an integer > 0", repr(module.outputs)))
    if not isinstance(getattr(module, "support", None), str):
        raise SpecError(mismatch(f"{place}.support", "words", repr(getattr(module, "support", None))))
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.shape[:1] != (groups,):
            expected = f"the axis of the {groups} experts first in its parameters and buffers"
            raise SpecError(mismatch(place, expected, f"{name} of shape {tuple(tensor.shape)}"))


class Experts(nn.Module):
    """All leaves of a plan.

    Args:
        plan: The compiled tree.
        sample_shape: Shape of one sample.
        missing: Whether cells of samples may be missing, which are NaN.

    Raises:
        SpecError: A network of a leaf does not fit the samples.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import Mixture
    >>> experts = Experts(compile_tree(Mixture(children=(VAE(2), VAE(3), VAE(2)))), (4,))
    >>> x = torch.rand(4, 5)
    >>> experts.estimates(x, experts.noise(x), of=Draw.elbo).shape
    torch.Size([3, 5])

    Two leaves a sample instead of all:

    >>> leaf = torch.tensor([[0, 1, 2, 0, 1], [2, 0, 1, 1, 2]])
    >>> experts.estimates(x, experts.noise(x, n_slots=2), of=Draw.elbo, leaf=leaf).shape
    torch.Size([2, 5])
    """

    groups: Sequence[ExpertGroup]
    group_of_leaf: Int[Tensor, " leaf"]
    row_of_leaf: Int[Tensor, " leaf"]
    leaf_order: Int[Tensor, " leaf"] | None

    def __init__(self, plan: Plan, sample_shape: tuple[int, ...], *, missing: bool = False) -> None:
        super().__init__()
        self.n_features = torch.Size(sample_shape).numel()
        groups = nn.ModuleList(
            ExpertGroup(
                group.spec, len(group.members), sample_shape, plan.leaves[group.members[0]].path, missing=missing
            )
            for group in plan.expert_groups
        )
        self.groups = groups  # type: ignore[assignment]  # a ModuleList cannot say what it holds
        self.latent_dim = max(group.spec.latent_dim for group in plan.expert_groups)
        places = [leaf.place for leaf in plan.leaves]
        self._first = places[0].group
        self._sizes = [len(group.members) for group in plan.expert_groups]
        self.register_buffer("group_of_leaf", torch.tensor([place.group for place in places]), persistent=False)
        self.register_buffer("row_of_leaf", torch.tensor([place.row for place in places]), persistent=False)
        order = [leaf for group in plan.expert_groups for leaf in group.members]
        self.register_buffer("leaf_order", permutation(order), persistent=False)

    @property
    def first(self) -> ExpertGroup:
        """The group of the first leaf, whose likelihood says what gates see."""
        return self.groups[self._first]

    def row(self, group: int, row: int, own: Float[Tensor, "own *axes"]) -> Float[Tensor, "*axes"]:  # noqa: ARG002
        """One row of a tensor of a group, where not all processes hold all rows."""
        return own[row]

    # --- all leaves, or some, features first ------------------------------------------------------------------------

    def noise(
        self,
        x: Float[Tensor, "feature batch"],
        generator: torch.Generator | None = None,
        share: Share | None = None,
        *,
        n_slots: int | None = None,
    ) -> list[Float[Tensor, "_ _ batch"]]:
        """Standard normal noise for a draw of z: one tensor per group for all leaves, or one tensor for `n_slots`."""
        if n_slots is None:
            return [group.noise(x, generator, share) for group in self.groups]
        sizes = n_slots, self.latent_dim
        return [for_batch(lambda n: _normal((*sizes, n), x, generator), x.shape[-1], share)]

    def draw(self, x: Float[Tensor, "feature batch"], noise: list[Float[Tensor, "_ _ batch"]]) -> list[Draw]:
        """A draw of z from every leaf for every sample, group by group."""
        pairs = zip(self.groups, noise, strict=True)
        return [group.draw(x, group.posterior(x), drawn) for group, drawn in pairs]

    def by_leaf(self, by_group: list[Float[Tensor, "_ batch"]]) -> Float[Tensor, "leaf batch"]:
        """Concatenate the groups' values and put them in the order of the leaves."""
        return joined(by_group, self.leaf_order)

    def estimates(
        self,
        x: Float[Tensor, "feature batch"],
        noise: list[Float[Tensor, "_ _ batch"]],
        *,
        of: Callable[[Draw], Float[Tensor, "_ _"]],
        leaf: Int[Tensor, "slot batch"] | None = None,
    ) -> Float[Tensor, "slot batch"]:
        """Compute one number of every draw, such as its ELBO, for all leaves or for the leaves in each sample's slots.

        Args:
            x: Samples.
            noise: The result of `noise`, for all leaves or for the same number of slots.
            of: From draws to numbers, such as `Draw.elbo`.
            leaf: The leaf in every slot of every sample; `None` for all leaves in their order.
        """
        if leaf is None:
            return self.by_leaf([of(draw) for draw in self.draw(x, noise)])
        n_slots, batch = leaf.shape
        sample = torch.arange(batch, device=x.device).repeat(n_slots)
        by_pair = noise[0].mT.flatten(0, 1)
        found: list[Tensor] = []
        order: list[Tensor] = []
        for group, pairs, packed in self._packed(leaf.flatten()):
            own = pack(x.t()[sample[pairs]], packed, fill=group.likelihood.example)
            drawn = pack(by_pair[pairs, : group.latent_dim], packed)
            found.append(unpack(of(group.draw(own, group.posterior(own), drawn)), packed))
            order.append(pairs)
        return torch.cat(found).index_select(0, torch.cat(order).argsort()).unflatten(0, (n_slots, batch))

    def elbo_and_log_weight(
        self, x: Float[Tensor, "feature batch"], noise: list[Float[Tensor, "_ _ batch"]]
    ) -> tuple[Float[Tensor, "leaf batch"], Float[Tensor, "leaf batch"]]:
        """The ELBO and the log-weight of one draw from every leaf."""
        draws = self.draw(x, noise)
        return self.by_leaf([draw.elbo() for draw in draws]), self.by_leaf([draw.log_weight() for draw in draws])

    def check_whole(self) -> None:
        """Check that this process holds all experts.

        Raises:
            ArgumentError: Their rows are cut over several processes.
        """

    def evidence(self, x: Float[Tensor, "feature batch"]) -> Float[Tensor, "leaf batch"]:
        """Log p_l(x) of every leaf with a `LinearPosterior`, as in `ExpertGroup.evidence`; zero of the others."""
        by_group = [
            group.evidence(x) if isinstance(group.encoder, LinearEncoder) else x.new_zeros(size, x.shape[1])
            for group, size in zip(self.groups, self._sizes, strict=True)
        ]
        return self.by_leaf(by_group)

    def log_marginal(
        self,
        x: Float[Tensor, "feature batch"],
        n_importance: int,
        generator: torch.Generator | None = None,
        *,
        shared_noise: bool = False,
    ) -> Float[Tensor, "leaf batch"]:
        """Importance-weighted bound on log p_l(x) of every leaf, in nats (Burda et al. 2016, equation 8).

        With `shared_noise` all samples use the same noise, so that the bound of a sample does not depend on the others.
        """
        drawn_for = x[:, :1] if shared_noise else x
        bounds = []
        for group in self.groups:
            if group.is_exact:  # every draw has the same weight
                bounds.append(group.evidence(x))
                continue
            posterior = group.posterior(x)
            total = posterior.mean.new_full((group.n_experts, x.shape[1]), -torch.inf)
            for _ in range(n_importance):  # one draw at a time: memory does not grow with n_importance
                noise = group.noise(drawn_for, generator).expand_as(posterior.mean)
                total = torch.logaddexp(total, group.draw(x, posterior, noise).log_weight())
            bounds.append(total - math.log(n_importance))
        return self.by_leaf(bounds)

    # --- one given leaf a sample, batch first -----------------------------------------------------------------------

    def encode(
        self, x: Float[Tensor, "batch feature"], leaf: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Mean and standard deviation of q(z|x) by each sample's own leaf, zero-padded to the largest latent size."""

        def run(group: ExpertGroup, own: Tensor) -> Tensor:
            posterior = group.posterior(own)
            padding = (0, 0, 0, self.latent_dim - group.latent_dim)
            return torch.cat([F.pad(posterior.mean, padding), F.pad(posterior.variance.sqrt(), padding)], dim=1)

        mean, std = self._given(run, x, leaf, 2 * self.latent_dim).chunk(2, dim=1)
        return mean, std

    def decode(
        self,
        z: Float[Tensor, "batch latent"],
        leaf: Int[Tensor, " batch"],
        *,
        generator: Any = None,
        observe: bool = False,
    ) -> Float[Tensor, "batch feature"]:
        """Mean of p(x|z) by each sample's own leaf; with `observe`, a draw from p(x|z)."""

        def run(group: ExpertGroup, own: Tensor) -> Tensor:
            return group.likelihood.mean(group.decoder(own[:, : group.latent_dim]))

        def draw(group: ExpertGroup, own: Tensor) -> Tensor:
            return group.likelihood.sample(group.decoder(own[:, : group.latent_dim]), generator)

        return self._given(draw if observe else run, z, leaf, self.n_features)

    def check_latents(self, z: Tensor, leaf: Tensor) -> None:
        """Check latents that a user gives, and the leaves that decode them.

        Args:
            z: One latent vector per row.
            leaf: Index of the leaf that decodes each row.

        Raises:
            ArgumentTypeError: One of them is no tensor, or `leaf` does not hold integers.
            ShapeError: `z` is not `(batch, latent)` with the largest `latent_dim` of the tree, or the lengths differ.
            ArgumentError: `leaf` is not an index of a leaf.
        """
        for name, tensor in (("z", z), ("leaf", leaf)):
            if not isinstance(tensor, Tensor):
                raise ArgumentTypeError(mismatch(name, "a torch.Tensor", type(tensor).__name__))
        if leaf.is_floating_point() or leaf.is_complex() or leaf.dtype == torch.bool:
            raise ArgumentTypeError(mismatch("leaf", "integers", leaf.dtype))
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ShapeError(mismatch("z", f"(batch, {self.latent_dim})", tuple(z.shape)))
        if leaf.shape != z.shape[:1]:
            raise ShapeError(mismatch("leaf", f"({len(z)},), one per row of z", tuple(leaf.shape)))
        n_leaves = len(self.group_of_leaf)
        if len(leaf):
            low, high = (int(end) for end in leaf.aminmax())
            if low < 0 or high >= n_leaves:
                raise ArgumentError(mismatch("leaf", f"indices from 0 to {n_leaves - 1}", f"{low} to {high}"))

    def _given(
        self,
        run: Callable[[ExpertGroup, Float[Tensor, "row inp column"]], Float[Tensor, "row out column"]],
        values: Float[Tensor, "batch inp"],
        leaf: Int[Tensor, " batch"],
        n_outputs: int,
    ) -> Float[Tensor, "batch out"]:
        """Run every sample through its own leaf."""
        result = values.new_zeros(len(leaf), n_outputs)
        for group, samples, packed in self._packed(leaf):
            outputs = unpack(run(group, pack(values[samples], packed)), packed)
            result[samples] = outputs.to(result.dtype)
        return result

    def _packed(self, leaf: Int[Tensor, " pair"]) -> Iterator[tuple[ExpertGroup, Int[Tensor, " own"], Packing]]:
        """For every group with at least one pair: the experts of the packed rows, the pairs, and their packing."""
        of_pair = self.group_of_leaf[leaf]
        for i, group in enumerate(self.groups):
            pairs = (of_pair == i).nonzero().squeeze(1)
            if len(pairs):
                packed = packing(self.row_of_leaf[leaf[pairs]], group.n_experts)
                yield group.at(packed.experts), pairs, packed


def _normal(
    sizes: tuple[int, int, int], x: Tensor, generator: torch.Generator | None
) -> Float[Tensor, "group latent batch"]:
    """Standard normal numbers in the precision of sums over `x`."""
    # `torch.compile` refuses `generator=None` where the batch size is dynamic.
    how: dict[str, Any] = {} if generator is None else {"generator": generator}
    return torch.randn(sizes, device=x.device, dtype=sum_dtype(x), **how)
