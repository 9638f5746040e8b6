"""HMoEVAE: the model. It predicts, encodes, reconstructs, samples and scores.

Axes of the public, batch-first interface: `batch`, then `leaf`, `edge` or `node` in the plan's depth-first order, or
the shape of a sample. All log-probabilities and losses are in nats.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.checks import check_integer
from hmoevae.errors import ArgumentError
from hmoevae.missing import drawn_given, filled
from hmoevae.nn.draws import Share
from hmoevae.nn.objectives import find_objective, measured_for
from hmoevae.plan import PlannedNode
from hmoevae.routing import best_leaf, best_node, width_of
from hmoevae.samples import BATCH_SIZE, Data, in_order
from hmoevae.saving.card import ModelFacts
from hmoevae.spec import tree_from_json
from hmoevae.spec.record import modules_of, write
from hmoevae.tables import table_from_json
from hmoevae.tree_module import TreeModule, check_generator

OBSERVED_AT_A_TIME = 128
"""Number of samples that are drawn from p(x|z) at a time, so that the draws do not depend on `batch_size`."""


class HMoEVAE(TreeModule):
    """A hierarchical mixture of variational auto-encoders.

    The tree's leaves are VAEs, and each inner node has a gate. The generative model is p(x) = sum_l pi_l p_l(x). Its
    recognition model is q(l|x), the product of the gates on the path to leaf l (see `hmoevae.nn.objectives`).

    Args:
        tree: The tree: a `Mixture`, or a single `VAE`.
        input_shape: Shape of one sample, such as `(1, 28, 28)`; or a `Table`, whose rows are the samples. A model with
            a table takes data frames as well as the samples that `table.encode` makes of them: tensors are such
            samples, everything else is a frame. Its methods return tensors; `table.decode` makes rows of them.
        objective: The objective that training minimises: `"expected"`, `"elbo"`, `"marginal"`, or one registered with
            `hmoevae.objective`.
        missing: Whether cells of samples may be missing. NaN then means that a cell was not observed: the bound leaves
            it out, and encoders and gates see a zero and, beside the values, a mask. They may be where the table has
            columns with gaps.

    Raises:
        SpecError: The tree does not fit the samples, or a leaf's likelihood a column of the table.
        ArgumentError: Another argument cannot be used.

    >>> from hmoevae import VAE, Mixture
    >>> tree = Mixture.of(VAE(latent_dim=2), 3)
    >>> model = HMoEVAE(tree, input_shape=(4,))
    >>> model.tree == tree, model.device, model.dtype
    (True, device(type='cpu'), torch.float32)

    A training step, and a step of the gates alone:

    >>> x = torch.rand(5, 4)
    >>> out = model(x)
    >>> out.loss.backward()
    >>> out.leaf_elbo.shape, list(model.agree(x, x).terms)
    (torch.Size([5, 3]), ['agreement', 'balance'])

    Clusters, and their probabilities:

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
    >>> model.check_rebuilds()  # no module was replaced
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model.save_pretrained(folder)
    ...     same = HMoEVAE.from_pretrained(folder)
    >>> torch.equal(same.predict_proba(x), model.predict_proba(x))
    True
    >>> model.generate_model_card().data.library_name
    'hmoevae'
    >>> data = model.checked(x)  # checked once for all methods
    >>> torch.equal(model.predict(data), model.predict(x)), model.door.shape
    (True, (4,))
    >>> model.check_input(torch.rand(5, 3))
    Traceback (most recent call last):
    ...
    hmoevae.errors.ShapeError: x: expected (batch, 4), got (5, 3)
    """

    # --- routing ----------------------------------------------------------------------------------------------------

    def route(self, x: Data, *, batch_size: int = BATCH_SIZE) -> Float[Tensor, "batch leaf"]:
        """Log q(leaf | x), computed by the gates without the experts.

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
            level: Depth of the nodes: 1 means the children of the root. A leaf above the level counts as a node of it.
                `None` means the leaves. `model.plan.level(level)` lists the nodes.
            batch_size: Samples evaluated at a time.

        Raises:
            ArgumentError: The tree has no such level.
        """
        if level is None:
            return self.route(x, batch_size=batch_size).exp()
        columns = [node.index for node in self.plan.level(level)]
        return self._route(x, self.paths.node_log_prob, batch_size)[:, columns].exp()

    def predict(
        self, x: Data, *, level: int | None = None, beam: int | None = None, batch_size: int = BATCH_SIZE
    ) -> Int[Tensor, " batch"]:
        """The most probable node of a level, as an index into `model.plan.level(level)`; a leaf index by default.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            level: As in `predict_proba`.
            beam: Number of gates that run on each level, those of a sample's most probable mixtures among the children
                of those that ran on the level above. The result is the most probable node below these, so the time
                grows with depth times `beam` instead of the number of mixtures. `None`: all run, and the result is the
                most probable node of all; so do they in trees with a `PosteriorGate`.
            batch_size: Samples evaluated at a time.

        Raises:
            ArgumentError: The tree has no such level, or `beam` is no integer > 0.
        """
        width = width_of(self, beam)
        if width is None or level == 0:
            return self.predict_proba(x, level=level, batch_size=batch_size).argmax(1)
        self.plan.level(level)  # checks it

        def best(chunk: Tensor) -> Tensor:
            return best_node(self, self._features_first(chunk), level, width)

        return self._in_batches(best, x, batch_size, check=self._seen)

    # --- latents and images -----------------------------------------------------------------------------------------

    @overload
    def encode(
        self,
        x: Data,
        *,
        node: str = ...,
        return_std: Literal[False] = ...,
        beam: int | None = ...,
        batch_size: int = ...,
    ) -> Float[Tensor, "batch latent"]: ...

    @overload
    def encode(
        self, x: Data, *, node: str = ..., return_std: Literal[True], beam: int | None = ..., batch_size: int = ...
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]: ...

    def encode(
        self,
        x: Data,
        *,
        node: str = "root",
        return_std: bool = False,
        beam: int | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Float[Tensor, "batch latent"] | tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Mean of q(z|x) by the most probable leaf of each sample.

        Args:
            x: Samples, as `data` of `hmoevae.fit`. Values outside a likelihood's support are allowed.
            node: Path of the subtree whose most probable leaf is used, such as `"root/3"`.
            return_std: Return the standard deviation too: q(z|x) = N(mean, diag(std^2)).
            beam: As in `predict`, from `node` down.
            batch_size: Samples evaluated at a time.

        Returns:
            The latents, or with `return_std` the pair of means and standard deviations, each `(batch, latent)`. Leaves
            with a smaller `latent_dim` are padded with zeros.
        """
        above, width = self._node(node), width_of(self, beam)

        def encode(chunk: Tensor) -> Tensor:
            leaf = best_leaf(self, self._features_first(chunk), above, width)
            mean, std = self.experts.encode(chunk.flatten(1), leaf)
            return torch.stack([mean, std], dim=1) if return_std else mean

        encoded = self._in_batches(encode, x, batch_size, check=self._seen)
        return (encoded[:, 0], encoded[:, 1]) if return_std else encoded

    def reconstruct(
        self, x: Data, *, node: str = "root", beam: int | None = None, batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """Mean of p(x|z) at the mean of q(z|x), by the most probable leaf of each sample.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            node: Path of the subtree whose most probable leaf is used, such as `"root/3"`.
            beam: As in `predict`, from `node` down.
            batch_size: Samples evaluated at a time.

        Returns:
            `(batch, *input_shape)`.
        """
        above, width = self._node(node), width_of(self, beam)

        def reconstruct(chunk: Tensor) -> Tensor:
            leaf = best_leaf(self, self._features_first(chunk), above, width)
            mean, _ = self.experts.encode(chunk.flatten(1), leaf)
            return self.experts.decode(mean, leaf)

        flat = self._in_batches(reconstruct, x, batch_size, check=self._seen)
        return flat.unflatten(1, self.input_shape)

    def decode(
        self, z: Float[Tensor, "batch latent"], leaf: Int[Tensor, " batch"], *, batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """Mean of p(x|z) of the given leaves.

        Args:
            z: One latent vector per row; a leaf with a smaller `latent_dim` reads its first entries.
            leaf: Index of the leaf that decodes each row.
            batch_size: Samples evaluated at a time.

        Returns:
            `(batch, *input_shape)`.

        Raises:
            ShapeError: `z` is not `(batch, latent)` with the largest `latent_dim` of the tree, or the lengths differ.
            ArgumentError: `leaf` is not an index of a leaf.
        """
        self.experts.check_latents(z, leaf)
        return self._decode(z, leaf.long(), batch_size).unflatten(1, self.input_shape)

    def sample(
        self,
        n: int,
        *,
        node: str = "root",
        observe: bool | None = None,
        given: Data | None = None,
        n_importance: int = 64,
        generator: torch.Generator | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Tensor:
        """Draw new samples: a leaf from the prior below `node`, z from N(0, I), then the mean of p(x|z).

        With `given`, draw the missing cells of samples from p(x_missing | x_observed): the leaf and z are drawn among
        importance samples by their weights, then the missing cells from p(x|z). Observed cells stay as they are.

        Args:
            n: Number of samples; with `given`, the number of draws for each of its samples.
            node: Path of the subtree to draw from, such as `"root/3"` or one leaf's path.
            observe: Draw x from p(x|z) instead of returning its mean, so that the samples follow p(x). The default is
                to do so for `given` samples only.
            given: Samples with missing cells, NaN, for a model made with `missing=True`.
            n_importance: Number of importance samples from every leaf, for `given` samples.
            generator: Source of the draws, on the model's device if x is drawn from p(x|z), else on the CPU.
            batch_size: Samples evaluated at a time; the draws do not depend on it.

        Returns:
            `(n, *input_shape)`, on the model's device; with `given` `(n, batch, *input_shape)`, as `given` is.
        """
        check_integer("n", n)
        check_integer("batch_size", batch_size)
        check_generator(generator)
        if given is not None:
            check_integer("n_importance", n_importance)
            leaves, how = self._node(node).leaves, {"observe": observe is not False, "generator": generator}
            pieces = self._pieces(given, OBSERVED_AT_A_TIME, name="given")
            with torch.no_grad():
                return torch.cat([drawn_given(self, piece, int(n), leaves, n_importance, **how) for piece in pieces], 1)
        observe = bool(observe)
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

    def impute(
        self,
        x: Data,
        *,
        n_importance: int = 64,
        batch_size: int = BATCH_SIZE,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Fill missing cells with their conditional mean E[x_missing | x_observed], or the most probable category.

        The mean is over leaves and latents, weighted by self-normalised importance sampling (Mattei & Frellsen 2019,
        MIWAE, section 3.2): a draw of z from leaf l has the weight pi_l p(x_observed|z) p(z) / q(z|x_observed). A leaf
        whose posterior is exact needs no draws.
        Without a `generator`, all samples share their draws, so that a sample's result does not depend on the others.

        Args:
            x: Samples, as `data` of `hmoevae.fit`; missing cells are NaN, for a model made with `missing=True`.
            n_importance: Number of draws of z from every leaf.
            batch_size: Samples evaluated at a time.
            generator: Source of separate draws of z for each sample, on the model's device.

        Returns:
            `(batch, *input_shape)`, where observed cells are those of `x`.

        >>> from hmoevae.spec import VAE
        >>> model = HMoEVAE(VAE(latent_dim=2), input_shape=(2,), missing=True)
        >>> x = torch.tensor([[0.5, torch.nan]])
        >>> full = model.impute(x)
        >>> full[0, 0].item(), bool(full.isnan().any())
        (0.5, False)
        """
        check_integer("n_importance", n_importance)
        check_generator(generator)

        def fill(piece: Tensor) -> Tensor:
            draws = self._same_draws() if generator is None else generator
            return filled(self, piece, n_importance, draws, shared_noise=generator is None)

        with torch.no_grad():
            return torch.cat([fill(piece) for piece in self._pieces(x, batch_size)])

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
        (Burda et al. 2016, equation 8). Its expectation is at most log p(x) and grows with K. The gates play no part,
        because a gate that reads x is not a prior. With a table, p(x) is the density of rows in the units of the table.

        Without a `generator`, every call draws the same noise and all samples share it. So a sample's score depends
        neither on the other samples nor on `batch_size`.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            n_importance: K, the number of draws from every leaf.
            batch_size: Samples evaluated at a time.
            generator: Source of separate draws of z for each sample, on the model's device.
        """
        check_integer("n_importance", n_importance)
        check_generator(generator)
        log_prior = self.prior.leaf_log_prob().unsqueeze(1)

        def score(chunk: Tensor) -> Tensor:
            draws = self._same_draws() if generator is None else generator
            log_marginal = self.experts.log_marginal(
                self._features_first(chunk), n_importance, draws, shared_noise=generator is None
            )
            score = (log_marginal + log_prior).logsumexp(0)
            return score if self.table is None else score + self.table.log_jacobian(chunk)

        return self._in_batches(score, x, batch_size)

    def evaluate(
        self,
        x: Data,
        *,
        batch_size: int = BATCH_SIZE,
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> dict[str, float]:
        """Means over `x` of the terms of the package's objectives and the model's own, in nats, without balance.

        Each leaf has one draw of z.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            batch_size: Samples evaluated at a time.
            generator: Source of the draws of z, on the model's device; without one, every call draws the same noise.
            share: Which samples of a global batch these are, in one of several processes; they have to be one batch.
        """
        check_generator(generator)
        generator = self._same_draws() if generator is None else generator
        names: list[str] = []

        def evaluate(chunk: Tensor) -> Tensor:
            flat = self._features_first(chunk)
            leaf_log_prob = self.paths.leaf_log_prob(self._edge_log_prob(flat))
            elbo, log_weight = self.experts.elbo_and_log_weight(flat, self.experts.noise(flat, generator, share))
            log_prior = self.prior.leaf_log_prob().unsqueeze(1)
            terms: dict[str, Tensor] = {}
            for objective in measured_for(self.objective):
                terms |= objective.terms(log_weight if objective.by_weight else elbo, leaf_log_prob, log_prior)
            names[:] = terms
            means = torch.stack([term.mean() for term in terms.values()])
            return (len(chunk) * torch.cat([means, means.new_ones(1)])).unsqueeze(0)

        by_chunk = self._in_batches(evaluate, x, batch_size, one_answer_each=False)
        *sums, n = by_chunk.cpu().sum(0, dtype=torch.float64)  # some devices have no float64
        return dict(zip(names, [(total / n).item() for total in sums], strict=True))

    # --- saving -----------------------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        tree = json.loads(self.tree.to_json())
        config = {"tree": tree, "input_shape": list(self.input_shape), "objective": self.objective}
        if self.table is not None:
            config["table"] = write(self.table)
        modules = modules_of(tree) | find_objective(self.objective).modules(self.objective)
        missing = {"missing": True} if self.missing else {}  # files of models without gaps are those of older versions
        return config | missing | ({"modules": modules} if modules else {})

    @classmethod
    def _build(cls, config: dict[str, Any]) -> "HMoEVAE":
        tree, shape = tree_from_json(json.dumps(config["tree"])), config["input_shape"]
        shape = tuple(shape) if isinstance(shape, list) else shape
        table = table_from_json(json.dumps(config["table"])) if "table" in config else None
        return cls(tree, table or shape, objective=config["objective"], missing=config.get("missing", False))

    def _facts(self) -> ModelFacts:
        n_parameters = sum(p.numel() for p in self.parameters())
        any_grey = self.door.takes(0.25) and self.door.takes(0.75)
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

    def _in_batches(
        self,
        compute: Callable[[Tensor], Tensor],
        x: Data,
        batch_size: int,
        *,
        check: Callable[..., Tensor] | None = None,
        one_answer_each: bool = True,
    ) -> Tensor:
        """Run `compute` on batches of `x` on the model's device, without gradients; results go to the device of `x`."""
        pieces = self._pieces(x, batch_size, check=check, one_answer_each=one_answer_each)
        with torch.no_grad():
            return torch.cat([compute(piece.to(self.device, self.dtype)).to(piece.device) for piece in pieces])

    def _pieces(
        self,
        x: Data,
        batch_size: int,
        *,
        name: str = "x",
        check: Callable[..., Tensor] | None = None,
        one_answer_each: bool = True,
    ) -> Iterator[Tensor]:
        """Checked batches of samples or of the rows of a frame, in order."""
        check_integer("batch_size", batch_size)
        data = self.door.encoded(x, name)
        return in_order(data, name, check or self.check_input, int(batch_size), one_answer_each=one_answer_each)

    def _route(self, x: Data, along_paths: Callable[[Tensor], Tensor], batch_size: int) -> Float[Tensor, "batch path"]:
        def route(chunk: Tensor) -> Tensor:
            return along_paths(self._edge_log_prob(self._features_first(chunk))).t()

        return self._in_batches(route, x, batch_size, check=self._seen)

    def _decode(self, z: Tensor, leaf: Tensor, batch_size: int, **how: Any) -> Float[Tensor, "batch feature"]:
        z, leaf = z.to(self.device, self.dtype), leaf.to(self.device)
        check_integer("batch_size", batch_size)
        with torch.no_grad():
            pieces = zip(z.split(int(batch_size)), leaf.split(int(batch_size)), strict=True)
            return torch.cat([self.experts.decode(*piece, **how) for piece in pieces])
