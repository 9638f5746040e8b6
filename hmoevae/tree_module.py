"""TreeModule: the modules of a tree, and one pass of them over a batch, with gradients.

Axes of the public, batch-first interface: `batch`, then `leaf`, `edge` or `node` in the plan's depth-first order, or
the shape of a sample. All log-probabilities and losses are in nats.
"""

from collections.abc import Sequence
from textwrap import indent
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae import markup
from hmoevae.checks import is_integer
from hmoevae.door import Checked, Door, Samples
from hmoevae.errors import ArgumentError, ArgumentTypeError, ShapeError, SpecError, mismatch, warn
from hmoevae.nn.agreement import agreement
from hmoevae.nn.balance import Balances
from hmoevae.nn.beam import Beam, Seen
from hmoevae.nn.draws import Share
from hmoevae.nn.experts import Experts, gate_shape
from hmoevae.nn.gates import Gates, looks_channels_last
from hmoevae.nn.kernels.precision import full_precision
from hmoevae.nn.objectives import find_objective
from hmoevae.nn.paths import Paths
from hmoevae.nn.posteriors import Draw
from hmoevae.nn.prior import Prior
from hmoevae.nn.routes import Routes, restricted
from hmoevae.nn.sample_weights import SampleWeights, weighted_mean
from hmoevae.nn.settings import USUAL, StepSettings, check_settings
from hmoevae.output import Inputs, Output, Routing
from hmoevae.plan import compile_tree
from hmoevae.saving.pretrained import Pretrained
from hmoevae.spec import VAE, Conv, Mixture, Tree
from hmoevae.tables import Table


class TreeModule(Pretrained):
    """The modules of a tree, and one pass of them over a batch. Base class of `HMoEVAE`, which is the class to use.

    >>> import hmoevae as hm
    >>> isinstance(hm.HMoEVAE(VAE(latent_dim=2), input_shape=(4,)), TreeModule)
    True
    """

    def __init__(
        self, tree: Tree, input_shape: tuple[int, ...] | Table, *, objective: str = "expected", missing: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(tree, VAE | Mixture):
            raise ArgumentTypeError(mismatch("tree", "a VAE or a Mixture", type(tree).__name__))
        self.table = input_shape if isinstance(input_shape, Table) else None
        shape = (len(input_shape.columns),) if isinstance(input_shape, Table) else input_shape
        is_shape = isinstance(shape, tuple | list) and all(is_integer(n, least=1) for n in shape)
        if not is_shape or not shape:
            raise ArgumentError(mismatch("input_shape", "a tuple of integers > 0", repr(input_shape)))
        find_objective(objective)
        if not isinstance(missing, bool):
            raise ArgumentTypeError(mismatch("missing", "True or False", repr(missing)))
        self.plan = compile_tree(tree)
        self.input_shape: tuple[int, ...] = tuple(int(n) for n in shape)
        self.objective = objective
        missing = missing or (self.table is not None and self.table.missing)
        self.missing = missing
        self.paths = Paths(self.plan)
        self.beam = Beam(self.plan)
        self.prior = Prior(self.plan)
        self.balances = Balances(self.plan)
        if self.prior.logits is not None and objective == "expected":
            expected = "'elbo' or 'marginal' for a tree with a learned prior, which 'expected' does not use"
            raise ArgumentError(mismatch("objective", expected, repr(objective)))
        self.gates = Gates(self.plan, gate_shape(self.plan, self.input_shape, missing=missing))
        self.experts = Experts(self.plan, self.input_shape, missing=missing)
        self._check_table()
        is_outline = self.device.type == "meta"  # a copy without weights of a model that has warned already
        if looks_channels_last(self.input_shape) and _convolves(tree) and not is_outline:
            height, width, channels = self.input_shape
            expected = f"(channels, height, width) for Conv, such as {(channels, height, width)} for "
            got = f"{self.input_shape}, which looks like (height, width, channels)"
            warn(mismatch("input_shape", f"{expected}x.permute(0, 3, 1, 2)", got))

    def _check_table(self) -> None:
        """Check that every likelihood has the support that the table's columns have."""
        if self.table is None:
            return
        for group, experts in zip(self.plan.expert_groups, self.experts.groups, strict=True):
            column = self.table.misfit(experts.likelihood.contains)
            if column is not None:
                path = self.plan.leaves[group.members[0]].path
                expected = f"one that fits the column {column!r}, as likelihood=table.likelihood() does"
                raise SpecError(mismatch(f"{path}.likelihood", expected, group.spec.likelihood))

    @property
    def tree(self) -> Tree:
        """The tree that the model runs."""
        return self.plan.tree

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.prior.fixed_leaf.device  # a buffer goes where they go; finding one of them takes ten times as long

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the parameters."""
        return self.prior.fixed_leaf.dtype

    def extra_repr(self) -> str:
        """The sizes and the tree, for `repr`."""
        return f"{self._sizes()}\n{self.tree}"

    def __repr__(self) -> str:
        """The sizes and the tree; `repr(model.experts)` and `repr(model.gates)` list the networks."""
        return f"{self._get_name()}(\n{indent(self.extra_repr(), '  ')}\n)"

    def _repr_html_(self) -> str:
        """HTML for notebooks."""
        return markup.heading(f"{self._get_name()}({self._sizes()})") + self.tree._repr_html_()

    def _sizes(self) -> str:
        n_parameters = sum(p.numel() for p in self.parameters())
        sizes = f"input_shape={self.input_shape}, objective={self.objective!r}, leaves={self.plan.n_leaves}"
        return f"{sizes}, parameters={n_parameters:,}{', missing=True' if self.missing else ''}"

    # --- training ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        *,
        view: Tensor | None = None,
        other_view: Tensor | None = None,
        sample_weight: Tensor | SampleWeights | None = None,
        settings: StepSettings = USUAL,
        generator: torch.Generator | None = None,
        share: Share | None = None,
        validate: bool = True,
    ) -> Output:
        """Compute the loss, its terms and the probabilities of a batch in one pass, with gradients.

        Args:
            x: Samples, `(batch, *input_shape)`, on the model's device.
            view: What the gates see instead of `x`, of the same shape; the experts model `x` itself.
            other_view: A second view of each sample. The term `"agreement"` teaches the gates to send both views to the
                same node.
            sample_weight: How many samples each sample counts for, `(batch,)`, >= 0 and not all zero. Terms are means
                weighted by them, and the balance is that of the counts. `SampleWeights` of a whole data set, at the
                indices of the batch, make the terms unbiased estimates for that data set.
            settings: Weights, temperature and routes of this pass.
            generator: Source of the draws of z, on the model's device; torch's global one if `None`.
            share: Which samples of a global batch these are, in one of several processes.
            validate: Check the values too, not only the shape. Switch it off for checked data.

        Raises:
            ShapeError: `x` does not have the shape of a batch of samples, or a view does not have the shape of `x`.
            DataError: `x` is empty, not finite, or outside the support of a leaf's likelihood; a view is not finite; a
                weight is negative or not finite.
            ArgumentError: The settings name a level or a leaf that the tree does not have.
        """
        how: dict[str, Any] = {"settings": settings, "generator": generator, "share": share, "validate": validate}
        inputs = self.prepare(x, view=view, other_view=other_view, sample_weight=sample_weight, **how)
        return self.compute(inputs, settings, share)

    def prepare(
        self,
        x: Tensor,
        *,
        view: Tensor | None = None,
        other_view: Tensor | None = None,
        sample_weight: Tensor | SampleWeights | None = None,
        settings: StepSettings = USUAL,
        generator: torch.Generator | None = None,
        share: Share | None = None,
        validate: bool = True,
    ) -> Inputs:
        """The first half of `forward`, with the same arguments: checks and random numbers."""
        check_generator(generator)
        check_settings(settings)
        self.check_can_learn()
        x = self.check_input(x, values=validate)
        flat = self._features_first(x)
        seen = flat if view is None else self._view(view, "view", x, validate=validate)
        other = None if other_view is None else self._view(other_view, "other_view", x, validate=validate)
        routes = settings.routes
        n_leaves = self.plan.n_leaves
        n_slots = routes.n_slots(n_leaves)
        noise = self.experts.noise(flat, generator, share, n_slots=n_slots)
        weights = self._weights(sample_weight, x, validate=validate)
        return Inputs(flat, seen, other, noise, weights, routes.draws(n_leaves, flat, generator, share))

    def compute(self, inputs: Inputs, settings: StepSettings = USUAL, share: Share | None = None) -> Output:
        """The second half of `forward`: arithmetic without side effects.

        Args:
            inputs: The result of `prepare`.
            settings: As in `forward`.
            share: As in `forward`.

        >>> import hmoevae as hm
        >>> model, x = hm.HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,)), torch.rand(5, 4)
        >>> model.compute(model.prepare(x)).leaf_elbo.shape
        torch.Size([5, 3])
        """
        flat, seen, other, noise, weights, draws = inputs
        answers, leaf = self._run_gates(seen, other, flat, settings, draws)
        routing = self._routing(answers, settings, share, weights)
        objective = find_objective(self.objective)
        kl_weight = settings.kl_weight

        def estimate(draw: Draw) -> Float[Tensor, "_ _"]:
            return draw.log_weight(kl_weight) if objective.by_weight else draw.elbo(kl_weight)

        leaf_log_prob = routing.leaf_log_prob.t()
        log_prior = self.prior.leaf_log_prob()
        leaf = settings.routes.leaves(leaf_log_prob, draws) if leaf is None else leaf
        elbo = self.experts.estimates(flat, noise, of=estimate, leaf=leaf)
        slot_log_prior = log_prior.unsqueeze(1) if leaf is None else log_prior[leaf]
        own = objective.terms(elbo, restricted(leaf_log_prob, leaf), slot_log_prior)
        terms = {name: weighted_mean(term, weights) for name, term in own.items()} | routing.terms
        return Output(
            loss=_total(terms),
            terms=terms,
            leaf_log_prob=routing.leaf_log_prob,
            edge_log_prob=routing.edge_log_prob,
            leaf_elbo=elbo.t(),
            leaf=None if leaf is None else leaf.t(),
        )

    def agree(
        self,
        view: Tensor,
        other_view: Tensor,
        *,
        sample_weight: Tensor | SampleWeights | None = None,
        settings: StepSettings = USUAL,
        share: Share | None = None,
        validate: bool = True,
    ) -> Routing:
        """Compute the loss of the gates without the experts: agreement of two views of each sample, and balance.

        Args:
            view: One view of each sample, `(batch, *input_shape)`, on the model's device.
            other_view: Another view of each sample, of the same shape.
            sample_weight: As in `forward`.
            settings: As in `forward`. Gates below the last of its agreement levels learn from their balance only.
            share: As in `forward`.
            validate: Check the values too, not only the shape.

        Raises:
            ShapeError: A view does not have the shape of a batch of samples.
            DataError: A view is empty or not finite; a weight is negative or not finite.
            ArgumentError: The settings name a level that the tree does not have.
        """
        check_settings(settings)
        self.check_can_learn()
        view = self.check_input(view, name="view", values=False)
        seen = self._view(view, "view", view, validate=validate)
        other = self._view(other_view, "other_view", view, validate=validate)
        weights = self._weights(sample_weight, view, validate=validate)
        answers, _ = self._run_gates(seen, other, seen, settings)
        return self._routing(answers, settings, share, weights)

    def beam_of(self, routes: Routes) -> int | None:
        """How many gates of a level run for each sample; `None` if all do, as in trees with a `PosteriorGate`.

        Args:
            routes: The routes of a pass.

        >>> import hmoevae as hm
        >>> from hmoevae.nn.routes import ALL, TopK
        >>> model = hm.HMoEVAE(Mixture.of(Mixture.of(VAE(latent_dim=2), 2), 3), input_shape=(4,))
        >>> model.beam_of(TopK(2)), model.beam_of(TopK(3)), model.beam_of(ALL)
        (2, None, None)
        """
        width = routes.beam()
        return None if width is None or self.gates.have_posteriors or self.beam.is_all(width) else width

    def _run_gates(
        self,
        seen: Float[Tensor, "feature batch"],
        other: Float[Tensor, "feature batch"] | None,
        own: Float[Tensor, "feature batch"],
        settings: StepSettings,
        draws: Tensor | None = None,
    ) -> tuple[list[Float[Tensor, "edge batch"]], Int[Tensor, "slot batch"] | None]:
        """Log g(child | x) on every edge for each view, and each sample's leaves, where some gates run only.

        Gates below the last agreement level see `own`.
        """
        depth, temperature, n = self.plan.depth, settings.gate_temperature, seen.shape[1]
        levels = self._levels(settings)
        last = levels[-1] if levels else 0
        # One pass of the gates for both views, concatenated batch-first because that is their memory layout.
        both = seen if other is None else torch.cat([seen.t(), other.t()]).t()
        if other is not None and self.gates.have_posteriors and not self.gates.learn:
            expected = "a tree with a gate that learns, for agreement"
            raise ArgumentError(mismatch("other_view", expected, "one with PosteriorGate everywhere"))
        width, leaf = self.beam_of(settings.routes), None
        if width is not None:
            explored = settings.routes.explored(self.plan.n_leaves, draws)
            if explored is not None and other is not None:  # the experts compute one view
                explored = torch.cat([explored, torch.full_like(explored, -1)])
            how: dict[str, Any] = {"temperature": temperature, "explored": explored}
            shown = Seen(self._shown(both), self._shown(own), last)
            met = list(self.beam.follow(self.gates, shown, width, **how))
            answers, leaf = self.beam.edges(met), self.beam.leaves(met, width, explored)[:, :n]
        elif last == depth:
            answers = self._edge_log_prob(both, temperature)
        else:
            joints = self._log_joint(both), self._log_joint(own)
            answers = self.gates.split(self._shown(both), self._shown(own), last, temperature, joints)
        return [answers] if other is None else list(answers.chunk(2, dim=1)), leaf

    def _levels(self, settings: StepSettings) -> Sequence[int]:
        """The levels of agreement, which are checked."""
        depth = self.plan.depth
        levels = range(1, depth + 1) if settings.agreement_levels is None else settings.agreement_levels
        if max(levels, default=0) > depth:
            expected = f"ascending levels from 1 to the tree's depth {depth}"
            raise ArgumentError(mismatch("agreement_levels", expected, levels))
        return levels

    def _routing(
        self,
        edges: list[Float[Tensor, "edge batch"]],
        settings: StepSettings,
        share: Share | None,
        weights: SampleWeights | None,
    ) -> Routing:
        """The terms of the gates, from their answers to one view or two."""
        counts = None if weights is None else weights.counts
        importances = [self.paths.importance(edge_log_prob, counts) for edge_log_prob in edges]
        if share is not None and share.importance_of_all is not None:
            importances = [share.importance_of_all(importance) for importance in importances]
        terms: dict[str, Tensor] = {}
        if len(edges) == 2:
            first, second = (self.paths.node_log_prob(edge_log_prob) for edge_log_prob in edges)
            apart = agreement((first, second), self.paths, self._levels(settings))
            terms["agreement"] = settings.agreement_weight * weighted_mean(apart, weights)
        importance = importances[0] if len(edges) == 1 else (importances[0] + importances[1]) / 2
        terms["balance"] = self.balances(importance, self.prior.edge_log_prob().detach())
        return Routing(
            loss=_total(terms),
            terms=terms,
            leaf_log_prob=self.paths.leaf_log_prob(edges[0]).t(),
            edge_log_prob=edges[0].t(),
        )

    def _view(self, view: Tensor, name: str, x: Tensor, *, validate: bool) -> Float[Tensor, "feature batch"]:
        """Check a view and return it features-first; its values may lie outside a support that no gate reads."""
        view = self.check_input(view, name=name, values=validate, support=self.gates.have_posteriors)
        if len(view) != len(x):
            raise ShapeError(mismatch(name, f"one per sample, {tuple(x.shape)}", tuple(view.shape)))
        return self._features_first(view)

    def _weights(self, given: Tensor | SampleWeights | None, x: Tensor, *, validate: bool) -> SampleWeights | None:
        """Check the weights of samples."""
        if given is None:
            return None
        weights = given if isinstance(given, SampleWeights) else SampleWeights.of(given, len(x), values=validate)
        if len(weights.counts) != len(x):
            raise ShapeError(mismatch("sample_weight", f"one per sample, ({len(x)},)", tuple(weights.counts.shape)))
        return weights.like(self.prior.fixed_leaf)

    def check_can_learn(self) -> None:
        """Check, where gradients are enabled, that the model was not made inside `torch.inference_mode`.

        Raises:
            ArgumentError: It was, so torch refuses gradients of its parameters.

        >>> import hmoevae as hm
        >>> hm.HMoEVAE(VAE(latent_dim=2), input_shape=(4,)).check_can_learn()
        """
        if torch.is_grad_enabled() and self.prior.fixed_leaf.is_inference():
            got = "a model made inside (copy.deepcopy(model), called outside, can be trained)"
            raise ArgumentError(mismatch("model", "a model made outside torch.inference_mode, for gradients", got))

    def check_rebuilds(self) -> None:
        """As in `Pretrained`.

        Raises:
            ArgumentError: Loading would not rebuild the model, or its experts are cut over several processes.
        """
        self.experts.check_whole()
        super().check_rebuilds()

    def check_input(self, x: Samples, *, name: str = "x", values: bool = True, support: bool = True) -> Tensor:
        """Check that `x` is a batch of samples for this model, and return it as a tensor.

        Values that rounding has carried past a bound of a likelihood's support are set to that bound.

        Args:
            x: Samples, `(batch, *input_shape)`; or a frame, if the model has a table.
            name: The name of `x` in error messages.
            values: Check the values too, which on a GPU waits for the device.
            support: Check too that the values lie in the support of every leaf's likelihood. Gates and encoders do not
                need that.

        Raises:
            ArgumentTypeError: `x` is not a floating point tensor or array.
            ShapeError: `x` does not have the shape of a batch of samples.
            DataError: `x` is empty, partly masked, not finite, or outside the support of a leaf's likelihood.
        """
        return self.door.check(x, name, values=values, support=support)

    def checked(self, x: Samples, *, name: str = "x", support: bool = True) -> Checked:
        """Check samples once, so that `fit` and the methods of this model do not check them again.

        This saves time for data that are used many times. A model with another sample shape, floating point type or
        likelihood checks them again.

        Args:
            x: Samples, `(batch, *input_shape)`; or a frame, if the model has a table.
            name: The name of `x` in error messages.
            support: Check that the values lie in the support of every leaf's likelihood. Without this check, only gates
                and encoders take the result unchecked.

        Raises:
            ArgumentError: As in `check_input`.
        """
        return self.door.checked(x, name, support=support)

    @property
    def door(self) -> Door:
        """The checks of samples for this model."""
        records = tuple(group.spec.likelihood for group in self.plan.expert_groups)
        likelihoods = tuple(group.likelihood for group in self.experts.groups)
        return Door(self.input_shape, self.dtype, records, likelihoods, self.missing, self.table)

    def _seen(self, x: Samples, *, name: str = "x") -> Tensor:
        return self.door.check(x, name) if self.gates.have_posteriors else self.door.seen(x, name)

    def _edge_log_prob(
        self, x: Float[Tensor, "feature batch"], temperature: float = 1.0
    ) -> Float[Tensor, "edge batch"]:
        """Log g(child | x) on every edge, features first, in nats; posterior gates pass no gradient."""
        return self.gates(self._shown(x), temperature, self._log_joint(x))

    @torch.no_grad()
    def _log_joint(self, x: Float[Tensor, "feature batch"]) -> Float[Tensor, "leaf batch"] | None:
        """Log pi_l + log p_l(x) of every leaf, which posterior gates read."""
        if not self.gates.have_posteriors:
            return None
        with full_precision(x):  # autocast would also keep these weights, without gradients, for the whole pass
            return self.experts.evidence(x) + self.prior.leaf_log_prob().unsqueeze(1)

    def _shown(self, x: Float[Tensor, "feature batch"]) -> Float[Tensor, "shown batch"]:
        """What the gates see of samples: what the first leaf's encoder does."""
        return self.experts.first.shown(x)

    def _features_first(self, x: Tensor) -> Float[Tensor, "feature batch"]:
        return x.to(self.dtype).flatten(1).t()


def _convolves(tree: Tree) -> bool:
    """Whether a network is convolutional, so that it matters which axis of a sample counts channels."""
    networks = (node.encoder if isinstance(node, VAE) else node.gate for _, node in tree.walk())
    return any(isinstance(network, Conv) for network in networks)


def check_generator(generator: object) -> None:
    """Check that a source of random numbers is a generator or `None`.

    Raises:
        ArgumentTypeError: It is something else.

    >>> check_generator(torch.Generator())
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ArgumentTypeError(mismatch("generator", "a torch.Generator or None", repr(generator)))


def _total(terms: dict[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """The sum of the terms, of which there is at least one."""
    first, *others = terms.values()
    return sum(others, first)
