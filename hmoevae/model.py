"""HMoEVAE: a tree made runnable. Routes, encodes, reconstructs, samples and scores; saves and loads.

Axes of the public, batch-first interface: `batch`, then `leaf`, `edge` or `node` in the plan's depth-first order, or
the shape of a sample. Everything probabilistic is in nats.
"""

import json
from collections.abc import Callable
from textwrap import indent
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae import markup
from hmoevae.checks import check_integer, is_integer
from hmoevae.errors import (
    ArgumentError,
    ArgumentTypeError,
    ShapeError,
    mismatch,
    warn,
)
from hmoevae.nn.agreement import agreement
from hmoevae.nn.balance import Balances
from hmoevae.nn.draws import Share
from hmoevae.nn.experts import Draw, Experts
from hmoevae.nn.gates import Gates, looks_channels_last
from hmoevae.nn.objectives import OBJECTIVES, find_objective
from hmoevae.nn.paths import Paths
from hmoevae.nn.prior import Prior
from hmoevae.nn.routes import restricted
from hmoevae.nn.settings import USUAL, StepSettings
from hmoevae.output import Inputs, Output, Routing
from hmoevae.plan import PlannedNode, compile_tree
from hmoevae.samples import BATCH_SIZE, ArrayLike, Checked, Data, Door, in_order
from hmoevae.saving.card import ModelFacts
from hmoevae.saving.pretrained import Pretrained
from hmoevae.spec import VAE, Conv, Mixture, Tree, tree_from_json
from hmoevae.spec.record import modules_of

OBSERVED_AT_A_TIME = 128
"""Samples whose draws from p(x|z) are made in one go, whatever `batch_size`: so they do not depend on it."""


class HMoEVAE(Pretrained):
    """A hierarchical mixture of variational auto-encoders.

    The tree's leaves are VAEs, its inner nodes gates. p(x) = sum_l pi_l p_l(x) is the generative model, and
    q(l|x), the product of the gates on the way to leaf l, its recognition model (see `hmoevae.nn.objectives`).

    Args:
        tree: The tree to run, a `Mixture` or a lone `VAE`.
        input_shape: Shape of one sample, such as `(1, 28, 28)`.
        objective: What `forward` puts into the loss: `"expected"`, `"elbo"` or `"marginal"`.

    Raises:
        SpecError: The tree does not fit the samples.
        ArgumentError: Another argument cannot be used.

    >>> tree = Mixture.of(VAE(latent_dim=2), 3)
    >>> model = HMoEVAE(tree, input_shape=(4,))
    >>> model.tree == tree, model.device, model.dtype
    (True, device(type='cpu'), torch.float32)

    A training step, and one of the gates alone:

    >>> x = torch.rand(5, 4)
    >>> out = model(x)
    >>> out.loss.backward()
    >>> out.leaf_elbo.shape, list(model.agree(x, x).terms)
    (torch.Size([5, 3]), ['agreement', 'balance'])

    Kinds, and how sure the gates are:

    >>> model.predict(x).shape, model.predict_proba(x).shape, model.route(x).exp().sum(1).allclose(torch.ones(5))
    (torch.Size([5]), torch.Size([5, 3]), True)

    Latents, reconstructions, new samples:

    >>> z = model.encode(x)
    >>> mean, std = model.encode(x, return_std=True)  # of q(z|x)
    >>> model.reconstruct(x).allclose(model.decode(z, model.predict(x)), atol=1e-6)
    True
    >>> model.sample(2).shape, model.sample(2, node="root/1").shape
    (torch.Size([2, 4]), torch.Size([2, 4]))

    Scores, saving, loading:

    >>> model.score_samples(x, n_importance=8).shape, sorted(model.evaluate(x))
    (torch.Size([5]), ['distillation', 'elbo', 'expected', 'marginal'])
    >>> import tempfile
    >>> model.check_rebuilds()  # nothing was swapped in
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model.save_pretrained(folder)
    ...     same = HMoEVAE.from_pretrained(folder)
    >>> torch.equal(same.predict_proba(x), model.predict_proba(x))
    True
    >>> model.generate_model_card().data.library_name
    'hmoevae'
    >>> data = model.checked(x)  # once, for everything that follows
    >>> torch.equal(model.predict(data), model.predict(x)), model.door.shape
    (True, (4,))
    >>> model.check_input(torch.rand(5, 3))
    Traceback (most recent call last):
    ...
    hmoevae.errors.ShapeError: x: expected (batch, 4), got (5, 3)
    """

    def __init__(self, tree: Tree, input_shape: tuple[int, ...], *, objective: str = "expected") -> None:
        super().__init__()
        if not isinstance(tree, VAE | Mixture):
            raise ArgumentTypeError(mismatch("tree", "a VAE or a Mixture", type(tree).__name__))
        is_shape = isinstance(input_shape, tuple | list) and all(is_integer(n, least=1) for n in input_shape)
        if not is_shape or not input_shape:
            raise ArgumentError(mismatch("input_shape", "a tuple of integers > 0", repr(input_shape)))
        find_objective(objective)
        self.plan = compile_tree(tree)
        self.input_shape: tuple[int, ...] = tuple(int(n) for n in input_shape)
        self.objective = objective
        self.paths = Paths(self.plan)
        self.prior = Prior(self.plan)
        self.balances = Balances(self.plan)
        if self.prior.logits is not None and objective == "expected":
            expected = "'elbo' or 'marginal' for a tree with a learned prior, which 'expected' never reads"
            raise ArgumentError(mismatch("objective", expected, repr(objective)))
        self.gates = Gates(self.plan, self.input_shape)
        self.experts = Experts(self.plan, self.input_shape)
        is_outline = self.device.type == "meta"  # of a model that has been warned of itself
        if looks_channels_last(self.input_shape) and _convolves(tree) and not is_outline:
            height, width, channels = self.input_shape
            expected = f"(channels, height, width) for Conv, such as {(channels, height, width)} for "
            got = f"{self.input_shape}, which looks like (height, width, channels)"
            warn(mismatch("input_shape", f"{expected}x.permute(0, 3, 1, 2)", got))

    @property
    def tree(self) -> Tree:
        """The tree that the model runs."""
        return self.plan.tree

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.prior.fixed_leaf.device  # a buffer goes where they go; finding one of them takes ten times as long

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the parameters."""
        return self.prior.fixed_leaf.dtype

    def extra_repr(self) -> str:
        """The sizes and the tree, for `repr`."""
        return f"{self._sizes()}\n{self.tree}"

    def __repr__(self) -> str:
        """The sizes and the tree; the networks that run it have a `repr` of their own, as in `model.experts`."""
        return f"{self._get_name()}(\n{indent(self.extra_repr(), '  ')}\n)"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return markup.heading(f"{self._get_name()}({self._sizes()})") + self.tree._repr_html_()

    def _sizes(self) -> str:
        n_parameters = sum(p.numel() for p in self.parameters())
        sizes = f"input_shape={self.input_shape}, objective={self.objective!r}, leaves={self.plan.n_leaves}"
        return f"{sizes}, parameters={n_parameters:,}"

    # --- training ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        *,
        view: Tensor | None = None,
        other_view: Tensor | None = None,
        settings: StepSettings = USUAL,
        generator: torch.Generator | None = None,
        share: Share | None = None,
        validate: bool = True,
    ) -> Output:
        """Everything that a training step needs, in one pass.

        Args:
            x: Samples, `(batch, *input_shape)`, on the model's device.
            view: What the gates see of each sample in place of it, of the same shape; the experts model `x` itself.
            other_view: Another view of each sample, which the gates shall send the same way: the term `"agreement"`.
            settings: Weights, temperature and routes of this pass.
            generator: Source of the draws of z, on the model's device; torch's global one if `None`.
            share: What the samples are of a global batch, in a process of several.
            validate: Check the values too, not only the shape. Switch it off for data already checked.

        Raises:
            ShapeError: `x` does not have the shape of a batch of samples, or a view not the shape of `x`.
            DataError: `x` is empty, not finite, or outside the support of a leaf's likelihood; a view is not finite.
            ArgumentError: The tree has no such levels or leaves as the settings name.
        """
        how: dict[str, Any] = {"settings": settings, "generator": generator, "share": share, "validate": validate}
        return self.compute(self.prepare(x, view=view, other_view=other_view, **how), settings, share)

    def prepare(
        self,
        x: Tensor,
        *,
        view: Tensor | None = None,
        other_view: Tensor | None = None,
        settings: StepSettings = USUAL,
        generator: torch.Generator | None = None,
        share: Share | None = None,
        validate: bool = True,
    ) -> Inputs:
        """The first half of `forward`, with the same arguments: what has side effects, checks and random numbers."""
        _check_generator(generator)
        self.check_can_learn()
        x = self.check_input(x, values=validate)
        flat = self._features_first(x)
        seen = flat if view is None else self._view(view, "view", x, validate=validate)
        other = None if other_view is None else self._view(other_view, "other_view", x, validate=validate)
        n_slots = settings.routes.n_slots(self.plan.n_leaves)
        return Inputs(flat, seen, other, self.experts.noise(flat, generator, share, n_slots=n_slots))

    def compute(self, inputs: Inputs, settings: StepSettings = USUAL, share: Share | None = None) -> Output:
        """The other half of `forward`: arithmetic without side effects.

        Args:
            inputs: As `prepare` gives them.
            settings: As of `forward`.
            share: Likewise.

        >>> model, x = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,)), torch.rand(5, 4)
        >>> model.compute(model.prepare(x)).leaf_elbo.shape
        torch.Size([5, 3])
        """
        flat, seen, other, noise = inputs
        routing = self._routing(seen, other, flat, settings, share)
        objective = find_objective(self.objective)
        kl_weight = settings.kl_weight

        def estimate(draw: Draw) -> Float[Tensor, "_ _"]:
            return draw.log_weight(kl_weight) if objective.by_weight else draw.elbo(kl_weight)

        leaf_log_prob = routing.leaf_log_prob.t()
        log_prior = self.prior.leaf_log_prob()
        leaf = settings.routes.leaves(leaf_log_prob)
        elbo = self.experts.estimates(flat, noise, of=estimate, leaf=leaf)
        slot_log_prior = log_prior.unsqueeze(1) if leaf is None else log_prior[leaf]
        terms = objective.terms(elbo, restricted(leaf_log_prob, leaf), slot_log_prior) | routing.terms
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
        settings: StepSettings = USUAL,
        share: Share | None = None,
        validate: bool = True,
    ) -> Routing:
        """A training step of the gates without the experts: agreement on two views of each sample, and balance.

        Args:
            view: One view of each sample, `(batch, *input_shape)`, on the model's device.
            other_view: Another view of each sample, of the same shape.
            settings: As of `forward`; gates below the last of its levels learn from their balance only.
            share: As of `forward`.
            validate: Check the values too, not only the shape.

        Raises:
            ShapeError: A view does not have the shape of a batch of samples.
            DataError: A view is empty or not finite.
            ArgumentError: The tree has no such levels.
        """
        self.check_can_learn()
        view = self.check_input(view, name="view", values=False)
        seen = self._view(view, "view", view, validate=validate)
        other = self._view(other_view, "other_view", view, validate=validate)
        return self._routing(seen, other, seen, settings, share)

    def _routing(
        self,
        seen: Float[Tensor, "feature batch"],
        other: Float[Tensor, "feature batch"] | None,
        own: Float[Tensor, "feature batch"],
        settings: StepSettings,
        share: Share | None,
    ) -> Routing:
        """The gates' answers and their own terms; gates below the last of the settings' levels see `own`."""
        depth, temperature = self.plan.depth, settings.gate_temperature
        levels = range(1, depth + 1) if settings.agreement_levels is None else settings.agreement_levels
        if max(levels, default=0) > depth:
            expected = f"ascending levels from 1 to the tree's depth {depth}"
            raise ArgumentError(mismatch("agreement_levels", expected, levels))
        last = levels[-1] if levels else 0
        # One pass of the gates for both; put together as they lie, batch-first.
        both = seen if other is None else torch.cat([seen.t(), other.t()]).t()
        answers = self.gates(both, temperature) if last == depth else self.gates.split(both, own, last, temperature)
        edges = [answers] if other is None else answers.chunk(2, dim=1)
        importances = [self.paths.importance(edge_log_prob) for edge_log_prob in edges]
        if share is not None and share.importance_of_all is not None:
            importances = [share.importance_of_all(importance) for importance in importances]
        terms: dict[str, Tensor] = {}
        if other is not None:
            first, second = (self.paths.node_log_prob(edge_log_prob) for edge_log_prob in edges)
            terms["agreement"] = settings.agreement_weight * agreement((first, second), self.paths, levels)
        importance = importances[0] if other is None else (importances[0] + importances[1]) / 2
        terms["balance"] = self.balances(importance, self.prior.edge_log_prob().detach())
        return Routing(
            loss=_total(terms),
            terms=terms,
            leaf_log_prob=self.paths.leaf_log_prob(edges[0]).t(),
            edge_log_prob=edges[0].t(),
        )

    def _view(self, view: Tensor, name: str, x: Tensor, *, validate: bool) -> Float[Tensor, "feature batch"]:
        """A checked view, features first; unlike samples it may leave the support of a likelihood."""
        view = self.check_input(view, name=name, values=validate, support=False)
        if len(view) != len(x):
            raise ShapeError(mismatch(name, f"one a sample, {tuple(x.shape)}", tuple(view.shape)))
        return self._features_first(view)

    def check_can_learn(self) -> None:
        """Make sure, where gradients are wanted, that the model was not made inside `torch.inference_mode`.

        Raises:
            ArgumentError: It was, and torch refuses gradients of its parameters.

        >>> HMoEVAE(VAE(latent_dim=2), input_shape=(4,)).check_can_learn()
        """
        if torch.is_grad_enabled() and self.prior.fixed_leaf.is_inference():
            got = "one made inside (copy.deepcopy(model), called outside, is one that can be trained)"
            raise ArgumentError(mismatch("model", "one made outside torch.inference_mode, for gradients", got))

    def check_input(
        self, x: ArrayLike | Checked, *, name: str = "x", values: bool = True, support: bool = True
    ) -> Tensor:
        """Return `x` as a tensor, having made sure that it is a batch of samples for this model.

        What rounding has carried over the bound of a likelihood's support is returned as that bound.

        Args:
            x: Samples, `(batch, *input_shape)`.
            name: What to call it in an error.
            values: Check the values too, which on an accelerator waits for the device.
            support: Of the values, check too that they lie in the support of every leaf's likelihood, which gates and
                encoders do not need.

        Raises:
            ArgumentTypeError: `x` is not a floating point tensor or array.
            ShapeError: `x` does not have the shape of a batch of samples.
            DataError: `x` is empty, masked in part, not finite, or outside the support of a leaf's likelihood.
        """
        return self.door.check(x, name, values=values, support=support)

    def checked(self, x: ArrayLike | Checked, *, name: str = "x", support: bool = True) -> Checked:
        """Samples that have been checked, in the form in which `fit` and every method here take them unlooked.

        Worth it for data that are used many times. They are checked anew by a model of another shape, floating point
        type or likelihood.

        Args:
            x: Samples, `(batch, *input_shape)`.
            name: What to call them in an error.
            support: Make sure that they lie in the support of every leaf's likelihood; else only gates and encoders
                take them unlooked.

        Raises:
            ArgumentError: As `check_input` does.
        """
        return self.door.checked(x, name, support=support)

    @property
    def door(self) -> Door:
        """What samples are to be, for this model."""
        records = tuple(group.spec.likelihood for group in self.plan.expert_groups)
        likelihoods = tuple(group.likelihood for group in self.experts.groups)
        return Door(self.input_shape, self.dtype, records, likelihoods)

    def _seen(self, x: ArrayLike | Checked, *, name: str = "x") -> Tensor:
        return self.door.seen(x, name)

    # --- routing ----------------------------------------------------------------------------------------------------

    def route(self, x: Data, *, batch_size: int = BATCH_SIZE) -> Float[Tensor, "batch leaf"]:
        """Log q(leaf | x), from the gates alone; no expert is evaluated.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            batch_size: Samples evaluated at a time.
        """
        return self._route(x, self.paths.leaf_log_prob, batch_size)

    def predict_proba(
        self, x: Data, *, level: int | None = None, batch_size: int = BATCH_SIZE
    ) -> Float[Tensor, "batch node"]:
        """Probability of every node of a level; rows sum to one.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            level: How many gates down: 1 means the children of the root; a leaf above the level stands for itself.
                `None` means the leaves. `model.plan.level(level)` lists the nodes.
            batch_size: Samples evaluated at a time.

        Raises:
            ArgumentError: The tree has no such level.
        """
        if level is None:
            return self.route(x, batch_size=batch_size).exp()
        columns = [node.index for node in self.plan.level(level)]
        return self._route(x, self.paths.node_log_prob, batch_size)[:, columns].exp()

    def predict(self, x: Data, *, level: int | None = None, batch_size: int = BATCH_SIZE) -> Int[Tensor, " batch"]:
        """The most probable node of a level, as an index into `model.plan.level(level)`; a leaf index by default.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            level: As in `predict_proba`.
            batch_size: Samples evaluated at a time.
        """
        return self.predict_proba(x, level=level, batch_size=batch_size).argmax(1)

    # --- latents and images -----------------------------------------------------------------------------------------

    @overload
    def encode(
        self, x: Data, *, node: str = ..., return_std: Literal[False] = ..., batch_size: int = ...
    ) -> Float[Tensor, "batch latent"]: ...

    @overload
    def encode(
        self, x: Data, *, node: str = ..., return_std: Literal[True], batch_size: int = ...
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]: ...

    def encode(
        self, x: Data, *, node: str = "root", return_std: bool = False, batch_size: int = BATCH_SIZE
    ) -> Float[Tensor, "batch latent"] | tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Mean of q(z|x) of the leaf that each sample is routed to.

        Args:
            x: Samples, as `data` of `hmoevae.fit`; values outside a likelihood's support will do.
            node: Path of the subtree whose most probable leaf is used, such as `"root/3"`.
            return_std: Return its standard deviation too: q(z|x) = N(mean, diag(std^2)).
            batch_size: Samples evaluated at a time.

        Returns:
            The latents, or with `return_std` the pair of means and standard deviations, each `(batch, latent)`; where
            leaves differ in `latent_dim`, the shorter ones are filled up with zeros.
        """

        def encode(chunk: Tensor) -> Tensor:
            mean, std = self.experts.encode(chunk.flatten(1), self._best_leaf(chunk, self._node(node)))
            return torch.stack([mean, std], dim=1) if return_std else mean

        encoded = self._in_batches(encode, x, batch_size, check=self._seen)
        return (encoded[:, 0], encoded[:, 1]) if return_std else encoded

    def reconstruct(self, x: Data, *, node: str = "root", batch_size: int = BATCH_SIZE) -> Tensor:
        """Mean of p(x|z) at the mean of q(z|x), by the leaf that each sample is routed to.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            node: Path of the subtree whose most probable leaf is used, such as `"root/3"`.
            batch_size: Samples evaluated at a time.

        Returns:
            `(batch, *input_shape)`.
        """

        def reconstruct(chunk: Tensor) -> Tensor:
            leaf = self._best_leaf(chunk, self._node(node))
            mean, _ = self.experts.encode(chunk.flatten(1), leaf)
            return self.experts.decode(mean, leaf)

        flat = self._in_batches(reconstruct, x, batch_size, check=self._seen)
        return flat.unflatten(1, self.input_shape)

    def decode(
        self, z: Float[Tensor, "batch latent"], leaf: Int[Tensor, " batch"], *, batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """Mean of p(x|z) of the given leaves.

        Args:
            z: Latents, one a row; a leaf with a smaller `latent_dim` reads the first of them.
            leaf: Index of the leaf that decodes each row.
            batch_size: Samples evaluated at a time.

        Returns:
            `(batch, *input_shape)`.

        Raises:
            ShapeError: `z` is not `(batch, latent)` with the largest `latent_dim` of the tree, or the lengths differ.
            ArgumentError: `leaf` is not an index of a leaf.
        """
        for name, tensor in (("z", z), ("leaf", leaf)):
            if not isinstance(tensor, Tensor):
                raise ArgumentTypeError(mismatch(name, "a torch.Tensor", type(tensor).__name__))
        if leaf.is_floating_point() or leaf.is_complex() or leaf.dtype == torch.bool:
            raise ArgumentTypeError(mismatch("leaf", "integers", leaf.dtype))
        if z.ndim != 2 or z.shape[1] != self.experts.latent_dim:
            raise ShapeError(mismatch("z", f"(batch, {self.experts.latent_dim})", tuple(z.shape)))
        if leaf.shape != z.shape[:1]:
            raise ShapeError(mismatch("leaf", f"({len(z)},), one a row of z", tuple(leaf.shape)))
        if len(leaf):
            low, high = (int(end) for end in leaf.aminmax())
            if low < 0 or high >= self.plan.n_leaves:
                raise ArgumentError(mismatch("leaf", f"indices from 0 to {self.plan.n_leaves - 1}", f"{low} to {high}"))
        return self._decode(z, leaf.long(), batch_size).unflatten(1, self.input_shape)

    def sample(
        self,
        n: int,
        *,
        node: str = "root",
        observe: bool = False,
        generator: torch.Generator | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Tensor:
        """Draw new samples: a leaf from the prior below `node`, z from N(0, I), then the mean of p(x|z).

        Args:
            n: How many.
            node: Path of the subtree to draw from, such as `"root/3"` or one leaf's path.
            observe: Draw x from p(x|z) instead of returning its mean, so that the samples follow p(x).
            generator: Source of the draws, on the CPU unless `observe` is set, then on the model's device.
            batch_size: Samples evaluated at a time; the draws do not depend on it.

        Returns:
            `(n, *input_shape)`, on the model's device.
        """
        check_integer("n", n)
        _check_generator(generator)
        where = generator.device if generator is not None else torch.device("cpu")
        leaves = self._node(node).leaves
        with torch.no_grad():
            prior = self.prior.leaf_log_prob()[leaves.start : leaves.stop].softmax(0)
        leaf = leaves.start + torch.multinomial(prior.to(where), n, replacement=True, generator=generator)
        z = torch.randn(n, self.experts.latent_dim, generator=generator, device=where, dtype=self.dtype)
        leaf = leaf.to(self.device)
        at_a_time = OBSERVED_AT_A_TIME if observe else batch_size
        flat = self._decode(z, leaf, at_a_time, observe=observe, generator=generator)
        return flat.unflatten(1, self.input_shape)

    # --- scores -----------------------------------------------------------------------------------------------------

    def score_samples(
        self,
        x: Data,
        *,
        n_importance: int = 64,
        batch_size: int = BATCH_SIZE,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """Importance-weighted lower bound on log p(x), p(x) = sum_l pi_l p_l(x), in nats.

        log sum_l pi_l (1/K) sum_k w_lk with w = p(x|z) p(z) / q(z|x) and K draws of z from every leaf
        (Burda et al. 2016, equation 8); its expectation is at most log p(x) and grows with K. The gates play no part: a
        gate that looks at x is not a prior.

        Without a `generator` every call draws the same noise, and all samples share it: a sample's score depends on
        nothing but the sample, not on the others or `batch_size`.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            n_importance: K, the number of draws from every leaf.
            batch_size: Samples evaluated at a time.
            generator: Source of draws of z for each sample by itself, on the model's device.
        """
        check_integer("n_importance", n_importance)
        _check_generator(generator)
        log_prior = self.prior.leaf_log_prob().unsqueeze(1)

        def score(chunk: Tensor) -> Tensor:
            draws = self._same_draws() if generator is None else generator
            log_marginal = self.experts.log_marginal(
                self._features_first(chunk), n_importance, draws, shared_noise=generator is None
            )
            return (log_marginal + log_prior).logsumexp(0)

        return self._in_batches(score, x, batch_size)

    def evaluate(
        self,
        x: Data,
        *,
        batch_size: int = BATCH_SIZE,
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> dict[str, float]:
        """Means over `x` of every objective's terms (one draw of z for each leaf), in nats; balance is left out.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            batch_size: Samples evaluated at a time.
            generator: Source of the draws of z, on the model's device; without one every call draws the same.
            share: What the samples, a single batch of them, are of a global batch, in a process of several.
        """
        _check_generator(generator)
        generator = self._same_draws() if generator is None else generator
        names: list[str] = []

        def evaluate(chunk: Tensor) -> Tensor:
            flat = self._features_first(chunk)
            leaf_log_prob = self.paths.leaf_log_prob(self.gates(flat))
            draws = self.experts.draw(flat, self.experts.noise(flat, generator, share))
            elbo = self.experts.by_leaf([draw.elbo() for draw in draws])
            log_weight = self.experts.by_leaf([draw.log_weight() for draw in draws])
            log_prior = self.prior.leaf_log_prob().unsqueeze(1)
            terms: dict[str, Tensor] = {}
            for objective in OBJECTIVES.values():
                terms |= objective.terms(log_weight if objective.by_weight else elbo, leaf_log_prob, log_prior)
            names[:] = terms
            means = torch.stack(list(terms.values()))
            return (len(chunk) * torch.cat([means, means.new_ones(1)])).unsqueeze(0)

        by_chunk = self._in_batches(evaluate, x, batch_size, one_answer_each=False)
        *sums, n = by_chunk.cpu().sum(0, dtype=torch.float64)  # which not all devices have
        return dict(zip(names, [(total / n).item() for total in sums], strict=True))

    # --- saving -----------------------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        tree = json.loads(self.tree.to_json())
        config = {"tree": tree, "input_shape": list(self.input_shape), "objective": self.objective}
        modules = modules_of(tree) | find_objective(self.objective).modules(self.objective)
        return config | ({"modules": modules} if modules else {})

    @classmethod
    def _build(cls, config: dict[str, Any]) -> "HMoEVAE":
        tree, shape = tree_from_json(json.dumps(config["tree"])), config["input_shape"]
        return cls(tree, tuple(shape) if isinstance(shape, list) else shape, objective=config["objective"])

    def _facts(self) -> ModelFacts:
        n_parameters = sum(p.numel() for p in self.parameters())
        any_grey = self.door.takes(torch.tensor([0.25, 0.75], device="cpu"))
        example = None if any_grey else self.door.example
        return ModelFacts(self.tree, self.input_shape, self.objective, n_parameters, example)

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _node(self, node: str) -> PlannedNode:
        try:
            return self.plan.node(node)
        except ArgumentError as error:
            raise ArgumentError(f"node{str(error).removeprefix('path')}") from None

    def _same_draws(self) -> torch.Generator:
        """A generator for scores, in the same state each time."""
        return torch.Generator(self.device).manual_seed(0)

    def _features_first(self, x: Tensor) -> Float[Tensor, "feature batch"]:
        return x.to(self.dtype).flatten(1).t()

    def _in_batches(
        self,
        compute: Callable[[Tensor], Tensor],
        x: Data,
        batch_size: int,
        *,
        check: Callable[..., Tensor] | None = None,
        one_answer_each: bool = True,
    ) -> Tensor:
        """Run `compute` on batches of `x` on the model's device without gradients; the results are where `x` is."""
        check_integer("batch_size", batch_size)
        pieces = in_order(x, "x", check or self.check_input, int(batch_size), one_answer_each=one_answer_each)
        with torch.no_grad():
            return torch.cat([compute(piece.to(self.device, self.dtype)).to(piece.device) for piece in pieces])

    def _route(self, x: Data, along_paths: Callable[[Tensor], Tensor], batch_size: int) -> Float[Tensor, "batch path"]:
        def route(chunk: Tensor) -> Tensor:
            return along_paths(self.gates(self._features_first(chunk))).t()

        return self._in_batches(route, x, batch_size, check=self._seen)

    def _best_leaf(self, x: Tensor, node: PlannedNode) -> Int[Tensor, " batch"]:
        edge_log_prob = self.gates(self._features_first(x))
        edge_log_prob[list(node.edges)] = 0.0  # the way to the node, in which small differences would be rounded off
        leaf_log_prob = self.paths.leaf_log_prob(edge_log_prob)
        return node.leaves.start + leaf_log_prob[node.leaves.start : node.leaves.stop].argmax(0)

    def _decode(self, z: Tensor, leaf: Tensor, batch_size: int, **how: Any) -> Float[Tensor, "batch feature"]:
        z, leaf = z.to(self.device, self.dtype), leaf.to(self.device)
        check_integer("batch_size", batch_size)
        with torch.no_grad():
            pieces = zip(z.split(int(batch_size)), leaf.split(int(batch_size)), strict=True)
            return torch.cat([self.experts.decode(*piece, **how) for piece in pieces])


def _convolves(tree: Tree) -> bool:
    """Whether a network looks at samples as images, so that it matters which axis of them counts channels."""
    networks = (node.encoder if isinstance(node, VAE) else node.gate for _, node in tree.walk())
    return any(isinstance(network, Conv) for network in networks)


def _check_generator(generator: object) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ArgumentTypeError(mismatch("generator", "a torch.Generator or None", repr(generator)))


def _total(terms: dict[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """The sum of the terms, of which there is at least one."""
    first, *others = terms.values()
    return sum(others, first)
