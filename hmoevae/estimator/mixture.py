"""VAEMixture: the model as a scikit-learn estimator, for tables, pipelines and searches."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from hmoevae import training
from hmoevae.checks import check_choice, check_integer
from hmoevae.door import Checked
from hmoevae.em import EM, Step, step_em
from hmoevae.errors import (
    ArgumentError,
    ConvergenceWarning,
    DataError,
    mismatch,
    warn,
)
from hmoevae.estimator import pickles
from hmoevae.estimator.folder import load, save
from hmoevae.estimator.latents import chosen_latents
from hmoevae.estimator.leaves import by_size, leaf_means, reorder_leaves_
from hmoevae.estimator.number import Selection, chosen_number, is_auto
from hmoevae.estimator.results import Results, seed_of
from hmoevae.estimator.rows import (
    FLOATS,
    Samples,
    as_they_are,
    is_frame,
    is_narrow,
    n_rows,
    samples_of,
    table_of,
    totals_of,
    with_gaps,
)
from hmoevae.estimator.solvers import (
    ClosedForm,
    Gradients,
    Solver,
    SolverName,
    Weights,
    check_fits_in_memory,
    has_closed_form,
)
from hmoevae.estimator.trees import Options, counts_like, has_numbers, n_numbers
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import borrowed_random_state
from hmoevae.nn.sample_weights import SampleWeights
from hmoevae.spec import Balance, Likelihood, Tree
from hmoevae.starts import StartName
from hmoevae.tables import Column, Table
from hmoevae.tables.sparse import SparseRows, is_sparse
from hmoevae.training.fitting import fit_quietly
from hmoevae.training.usage import warn_of_collapse

STEP_POWER = 0.7
"""The steps of `partial_fit` become smaller with this power of their number, between 0.5 and 1 as convergence asks."""


class VAEMixture(Results):
    """A mixture of variational auto-encoders as a scikit-learn estimator, with the names of `GaussianMixture`.

    It clusters (`predict`), reduces dimensions (`transform`), estimates densities (`score_samples`) and generates rows
    (`sample`). Tables are taken as they come: arrays and sparse matrices of numbers of any scale, and frames whose
    columns may be numbers, categories and counts, with gaps. Columns are standardised and coded inside (`table_`);
    densities, means and draws are in the units of `X`.

    Args:
        n_components: Number of experts of a flat mixture; 1 means a single VAE. `"auto"`: the number is chosen by how
            dense held-out samples are, and how clearly each belongs to one component (`selection_`); only for models in
            closed form. Not used if `tree` is given.
        max_components: Largest number that `"auto"` tries; `None` means one for ten samples, at most 20.
        tree: A tree of any shape instead of the flat mixture; `latent_dim`, `hidden`, `likelihood` and `balance` are
            then not used.
        latent_dim: Size of every expert's latent; `None` means one less than the number of columns (of numbers, in
            closed form), at most 8. The solver `"em"` then doubles it as long as that raises the density of held-out
            samples (one in four, of at most 2,000) by 0.02 nats a cell, if there are no gaps. In closed form, only
            columns of numbers depend on the latents: without any, `None` means 1, which is not used, and a number asks
            for gradients.
        hidden: Widths of the hidden layers of every encoder, decoder and gate. Without hidden layers, decoders are
            linear, encoders and gates are the exact posteriors, and all of it is fitted in closed form.
        likelihood: The observation model p(x|z); `None` means one for each column that suits its kind, with learned
            noise; `"counts"`, for counts of genes or words given the total of their row, means
            `NegativeBinomial(total=T)`, where T is the median of these totals. Where it is given, numbers are modelled
            as they are, and not standardised; so they are in a `tree` whose leaves do not have the likelihood of the
            table of `X`.
        kinds: What columns are where that is not what is inferred, such as `{"visits": "count"}`, as in `Table.of`. The
            columns of an array are called x0, x1, ... and are numbers unless this says otherwise.
        balance: The term that keeps the gate from sending all samples to one expert; `None` means `Balance("kl", 1.0)`.
        objective: The objective that training minimises: `"expected"`, `"elbo"` or `"marginal"` (see
            `hmoevae.nn.objectives`). With the last two, the flat mixture learns its weights; with `"expected"` they are
            uniform.
        solver: `"em"`: expectation maximisation, `hmoevae.fit_em`, for models with linear leaves, `LinearPosterior()`
            and `PosteriorGate()`. `"sgd"`: gradients, `hmoevae.fit`, which ends when the objective of held-out samples
            (one in ten; all samples, of fewer than 200) has not fallen for ten epochs, and keeps the best weights.
            `"auto"`: the first where it can be, else the second.
        max_iter: Largest number of iterations or epochs.
        tol: By how much an iteration, or one of the last ten epochs, has to lower the loss for the fit to go on, in
            nats per sample.
        batch_size: Samples per step of gradients.
        lr: Learning rate of gradients, by Adam.
        init: The start: the clusters of `"kmeans"`, level by level down a tree, as in `GaussianMixture`, of `"umap"`
            (extra `umap`) or of `"graph"`, the graph of neighbours. Gradients learn it in the first tenth of the
            epochs; `"random"` has none and is theirs only.
        n_init: Number of fits from different seeds; the one with the smallest `loss_` is kept.
        n_importance: Number of draws of z from every leaf for each value of `score_samples`, where it is not exact.
        warm_start: Let `fit` continue from the weights and with the table of the last fit; `n_init` is not used.
        random_state: Seed of weights, order of the data and draws, as everywhere in scikit-learn.
        device: The device to train and predict on; `"auto"` takes an accelerator if there is one. EM runs on the CPU
            in float64, and the model is then moved. On the CPU, arrays of
            float32 are computed in float32 and all others in float64. A pickle holds the weights on the CPU.
        verbose: Above 0, training shows a progress bar.

    Attributes:
        model_: The trained `HMoEVAE`, of rows as `table_` encodes them.
        table_: The `Table` of `X`, which standardises and codes.
        n_components_: Number of leaves of the model.
        selection_: What `n_components="auto"` tried, by column, such as for a `pandas.DataFrame`: `n_components`, the
            mean `log_density` of held-out samples and the mean `entropy` of their responsibilities, in nats, as
            `table_` encodes them; `score`, the first less the second, less 0.005 nats a column for each component; the
            standard `error` of its difference from the best score; and which one is `chosen`: the smallest that is
            within its error of the best. Larger numbers are tried until three in a row have not raised the best score.
            Empty where nothing was tried.
        labels_: The most probable leaf of every sample of the last fit, `(n_samples,)`. In a mixture of `n_components`,
            the leaf with most of these samples is 0, and so on; equal ones are in the order of their mean samples,
            compared column by column. So labels do not depend on the seed where the clusters do not. In a `tree` the
            leaves keep their order.
        weights_: The prior of every leaf, `(n_leaves,)`: where it is learned, the mean probability of the leaf (`"em"`)
            or the shares of `labels_` (`"sgd"`).
        loss_: The objective on the samples of the last fit, as `table_` encodes them, without balance, in nats per
            sample.
        history_: The `History` of the fit that was kept.
        n_iter_: Its number of iterations or epochs.
        converged_: Whether it ended by `tol`.
        n_samples_seen_: Number of samples of `fit` and all calls of `partial_fit` after it, or the sum of weights.
        n_steps_: Number of calls of `partial_fit` after the first fit.
        n_features_in_: Number of columns of `X`.
        feature_names_in_: Names of the columns, if `X` was a frame.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = np.concatenate([rng.normal(-1, 0.1, (50, 2)), rng.normal(1, 0.1, (50, 2))])
    >>> mixture = VAEMixture(2, random_state=0, device="cpu").fit(X)
    >>> mixture.transform(X).shape, mixture.predict_proba(X).shape, mixture.sample(3)[0].shape
    ((100, 3), (100, 2), (3, 2))
    >>> mixture.means_.round(), mixture.node_paths_
    (array([[-1., -1.],
           [ 1.,  1.]]), ['root/0', 'root/1'])
    >>> np.array_equal(mixture.predict(X), mixture.labels_), bool(mixture.score(X) == mixture.score_samples(X).mean())
    (True, True)

    A frame with a category and a gap, which is filled; more rows; saving:

    >>> frame = {"size": [1.0, 1.2, 1.1, 7.9, 8.2, None], "kind": ["a", "a", "a", "b", "b", "b"]}
    >>> mixture = VAEMixture(2, random_state=0, device="cpu").fit(frame)
    >>> mixture.labels_.tolist(), mixture.impute(frame)["size"].round(1).tolist()
    ([0, 0, 0, 1, 1, 1], [1.0, 1.2, 1.1, 7.9, 8.2, 6.9])
    >>> len(mixture.get_feature_names_out()), mixture.aic(frame) > 0
    (3, True)
    >>> mixture.partial_fit({"size": [1.3, 8.0], "kind": ["a", "b"]}).n_samples_seen_
    8
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mixture.save_pretrained(folder)
    ...     VAEMixture.from_pretrained(folder).score(frame) == mixture.score(frame)
    True
    """

    def __init__(
        self,
        n_components: int | Literal["auto"] = 10,
        *,
        max_components: int | None = None,
        tree: Tree | None = None,
        latent_dim: int | None = None,
        hidden: tuple[int, ...] = (),
        likelihood: Likelihood | Literal["counts"] | None = None,
        kinds: Mapping[str, str | Column] | None = None,
        balance: Balance | None = None,
        objective: str = "marginal",
        solver: SolverName = "auto",
        max_iter: int = 300,
        tol: float = 1e-3,
        batch_size: int = 64,
        lr: float = 3e-3,
        init: StartName = "kmeans",
        n_init: int = 1,
        n_importance: int = 64,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components: int | Literal["auto"] = n_components
        self.max_components = max_components
        self.tree = tree
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.likelihood: Likelihood | Literal["counts"] | None = likelihood
        self.kinds = kinds
        self.balance = balance
        self.objective: str = objective
        self.solver: SolverName = solver
        self.max_iter = max_iter
        self.tol = tol
        self.batch_size = batch_size
        self.lr = lr
        self.init: StartName = init
        self.n_init = n_init
        self.n_importance = n_importance
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    # --- training ---------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: object = None, sample_weight: Any = None) -> "VAEMixture":  # noqa: ARG002
        """Fit the rows of `X`.

        A `ConvergenceWarning` says that `max_iter` ended the fit. A `DeadLeafWarning` names leaves next to without
        probability and leaves that are not in `labels_`; a `ConstantGateWarning` names gates that give all samples
        nearly the same probabilities. Ctrl-C ends a training by gradients with a warning and keeps the weights so far.

        Args:
            X: Samples, at least as many as leaves: an array or a sparse matrix of scipy of numbers `(n_samples,
                n_features)`, or a frame of any library or a dict of columns, whose columns may be categories and counts
                too. NaN is a gap. A sparse matrix gives what its dense array does. EM, and a start from k-means, hold
                it dense in float64; gradients from `init="random"`, and all methods of a fitted estimator, make it
                dense batch by batch.
            y: Not used.
            sample_weight: How many samples each sample counts for, `(n_samples,)`, >= 0 and not all zero. Integers
                equal repeated samples, but that gradients end, and `loss_` is, by samples of equal weights; those of
                weight zero are left out.

        Raises:
            SpecError: The tree is not valid.
            ArgumentError: Another argument cannot be used, such as `n_components="auto"` for a model that is trained by
                gradients; `DataError` for data that the table or the likelihood cannot model, as `Table.of` says.
            NonFiniteError: The loss became NaN or infinite.
        """
        for name in ("max_iter", "n_init"):
            check_integer(name, getattr(self, name))
        check_choice("solver", self.solver, get_args(SolverName))
        goes_on = self.warm_start and hasattr(self, "model_")
        X = self._read(X, reset=not goes_on)
        weights = None if sample_weight is None else _weights(sample_weight, n_rows(X))
        table, tree = self._described(X, self.table_ if goes_on else None, weights)
        outline = self.model_ if goes_on else self._outline(tree, table)
        if has_closed_form(outline) and not goes_on:
            table = with_gaps(table)  # exact with gaps too, whether or not there are some now
            outline = self._outline(tree, table)
        where = training.resolve_device(self.device)
        solver = self._solver(outline, where, goes_on=goes_on)
        whole, coded = isinstance(solver, ClosedForm) or solver.training.start_epochs > 0, not self._is_plain(table)
        if whole and is_sparse(X):
            check_fits_in_memory(X.shape)
        samples = samples_of(table, X, whole=whole, coded=coded)
        if len(samples) < tree.n_leaves:
            expected = f"n_samples >= {tree.n_leaves}, the number of leaves"
            raise DataError(mismatch("X", expected, f"n_samples = {len(samples)}"))
        if goes_on:
            self._check_goes_on(tree)
        dtype = torch.float32 if is_narrow(X) or where.type != "cpu" else torch.float64

        def make(seed: int) -> HMoEVAE:
            if goes_on:
                return self.model_
            with borrowed_random_state(seed):
                return self._model(tree, table).to(dtype)

        data = samples if isinstance(samples, SparseRows) else outline.to(dtype).checked(samples, name="X")
        selection: Selection = self.selection_ if goes_on else {}
        if self.tree is None and not goes_on and isinstance(solver, ClosedForm) and isinstance(data, Checked):
            tree, selection = self._sized(outline, table, data, weights, solver.em)
        fitted = solver.fit(make, data, weights)
        self.table_, self.model_ = table, fitted.model.to(where)
        self.n_components_, self.selection_ = self.model_.plan.n_leaves, selection
        self.history_, self.loss_, self.converged_ = fitted.history, fitted.loss, fitted.converged
        self.n_steps_, self.n_samples_seen_ = 0, len(data) if weights is None else float(weights.sum())
        self._tell(data, weights)
        return self

    def partial_fit(self, X: Any, y: object = None, sample_weight: Any = None) -> "VAEMixture":  # noqa: ARG002
        """Go on with more samples, which may come batch by batch. The first call, without a fit before it, is `fit`.

        The table, the tree and the order of the labels stay those of the first samples, whose columns, categories and
        standard deviations later ones should share. EM takes one step, of size (t + 2)^-0.7 in the t-th call
        (`hmoevae.em.step_em`); gradients take one epoch.

        Args:
            X: Samples, as in `fit`.
            y: Not used.
            sample_weight: As in `fit`.

        Raises:
            ArgumentError: As `fit`.
        """
        if not hasattr(self, "model_"):
            return self.fit(X, sample_weight=sample_weight)
        X = self._read(X, reset=False)
        weights = None if sample_weight is None else _weights(sample_weight, n_rows(X))
        data = self._checked(X)
        n_steps = self.n_steps_ + 1
        n_seen = self.n_samples_seen_ + (len(data) if weights is None else float(weights.sum()))
        if self.solver != "sgd" and has_closed_form(self.model_):
            step = Step((n_steps + 2) ** -STEP_POWER, n_seen)
            self.loss_ = step_em(self.model_, data, step, sample_weight=weights)
        else:
            seed = seed_of(check_random_state(self.random_state))
            where = training.resolve_device(self.device)
            one = training.Training(epochs=1, batch_size=self.batch_size, lr=self.lr, seed=seed, device=where)
            history = fit_quietly(self.model_, data, one, sample_weight=weights, progress=self.verbose > 0)
            self.loss_ = history["loss"][-1]
        self.n_steps_, self.n_samples_seen_ = n_steps, n_seen
        self._count(data, weights)
        self.weights_ = self.model_.prior.leaf_log_prob().exp().detach().cpu().numpy()
        return self

    def _sized(self, outline: HMoEVAE, table: Table, data: Checked, weights: Weights, em: EM) -> tuple[Tree, Selection]:
        """The tree with the numbers of components and latents that held-out samples choose, where none are given."""
        likelihood, n = outline.plan.expert_groups[0].spec.likelihood, len(table.columns)
        options, selection = self._options, {}

        def of_number(n_components: int) -> HMoEVAE:
            return self._model(replace(options, n_components=n_components).planted(likelihood, n), table)

        if is_auto(self.n_components):
            number, selection = chosen_number(of_number, data, weights, em, self.max_components)
            options = replace(options, n_components=number)

        def of_size(latent_dim: int) -> HMoEVAE:
            return self._model(options.planted(likelihood, n, latent_dim), table).to(outline.dtype)

        if self.latent_dim is not None or not has_numbers(likelihood):
            return options.planted(likelihood, n), selection
        return of_size(chosen_latents(of_size, data, weights, em, n_numbers(likelihood, n))).tree, selection

    def _solver(self, outline: HMoEVAE, where: torch.device, *, goes_on: bool) -> Solver:
        """What fits the model: EM where all of it has a closed form, or gradients."""
        random = check_random_state(self.random_state)
        if self.solver == "em" or (self.solver == "auto" and has_closed_form(outline)):
            init: Any = "model" if goes_on else self.init
            return ClosedForm(
                EM(self.max_iter, self.tol, 1 if goes_on else self.n_init, init=init, seed=seed_of(random))
            )
        if self.tree is None and is_auto(self.n_components) and not goes_on:
            remedy = "'auto' for a model that is trained by gradients: give the number, or fit several and compare bic"
            raise ArgumentError(mismatch("n_components", "an integer > 0", remedy))
        usual = training.Training(
            epochs=self.max_iter,
            batch_size=self.batch_size,
            lr=self.lr,
            init="random" if goes_on or outline.plan.n_leaves == 1 else self.init,
            init_epochs=max(1, self.max_iter // 10),
            device=where,
        )
        seeds = (seed_of(random) for _ in range(1 if goes_on else int(self.n_init)))
        return Gradients(usual, seeds, self.tol, progress=self.verbose > 0)

    def _described(self, X: Any, table: Table | None, weights: Weights) -> tuple[Table, Tree]:
        """The table of `X`, if there is none yet, and the tree."""
        options = self._options
        if table is None:
            table = table_of(X, self.kinds, weights)
            if self._is_plain(table):
                table = as_they_are(table)
            self.n_features_in_ = len(table.columns)
            if is_frame(X):
                self.feature_names_in_ = np.array(table.names, dtype=object)
        likelihood, chosen = self.likelihood or table.likelihood(), None
        if self.warm_start and hasattr(self, "model_"):
            chosen = self.model_.experts.latent_dim
        if isinstance(likelihood, str):
            likelihood = self._counts(X, table, weights)
        return table, options.planted(likelihood, len(table.columns), chosen)

    def _counts(self, X: Any, table: Table, weights: Weights) -> Likelihood:
        """The likelihood of counts: that of the model that goes on, or a new one for `X`."""
        if self.warm_start and hasattr(self, "model_"):
            return self.model_.plan.expert_groups[0].spec.likelihood
        return counts_like(totals_of(table, X), weights)

    @property
    def _options(self) -> Options:
        """The options of the tree; a number of components that is to be chosen is that of the last fit, or 1."""
        given = {name: getattr(self, name) for name in Options.__slots__}
        if is_auto(self.n_components):
            given["n_components"] = self.n_components_ if self.warm_start and hasattr(self, "model_") else 1
        return Options(**given)

    def _check_goes_on(self, tree: Tree) -> None:
        """Check that a warm start has the same model."""
        given = {"tree": tree, "objective": self.objective}
        others = [name for name, value in given.items() if value != getattr(self.model_, name)]
        if others:
            expected = "the tree and the objective of the last fit"
            raise ArgumentError(mismatch("warm_start", expected, f"another {' and another '.join(others)}"))

    def _is_plain(self, table: Table) -> bool:
        """Whether numbers stay as they are, because leaves have a likelihood that is not that of the table."""
        return bool(self._options.likelihoods - ({table.likelihood()} if self.tree is not None else set()))

    def _model(self, tree: Tree, table: Table) -> HMoEVAE:
        shape = (len(table.columns),) if self._is_plain(table) else table
        return HMoEVAE(tree, shape, objective=self.objective, missing=table.missing)

    def _outline(self, tree: Tree, table: Table) -> HMoEVAE:
        """The model without weights: checking samples needs the tree only."""
        with torch.device("meta"):
            return self._model(tree, table)

    def _tell(self, data: Samples, weights: Weights) -> None:
        """Set what is said of the last fit, warn of what went wrong, put the leaves of a flat mixture in order."""
        self.n_iter_ = len(self.history_)
        if self.history_.interrupted:
            warn("Training interrupted by the user.")
        elif not self.converged_:
            remedy = f"{self.max_iter} were not enough (raise max_iter or tol)"
            warn(mismatch("max_iter", "iterations until the loss stops falling", remedy), ConvergenceWarning)
        counts = self._count(data, weights)
        if self.tree is None and len(counts) > 1:
            order = by_size(counts, leaf_means(self.model_).double().cpu().numpy())
            if (order != np.arange(len(order))).any():
                reorder_leaves_(self.model_, self.history_, order)
                counts = self._count(data, weights)
        if self.history_.training is not None:  # EM has set the prior to the shares of the leaves' probabilities
            self.model_.prior.set_shares_(torch.from_numpy(counts).to(self.model_.device, self.model_.dtype))
        self.weights_ = self.model_.prior.leaf_log_prob().exp().detach().cpu().numpy()
        if self.n_iter_:
            warn_of_collapse(self.model_.plan, self.history_.rows[-1], counts.tolist())

    def _count(self, data: Samples, weights: Weights) -> Float[np.ndarray, " leaf"]:
        """Label the samples, and add up the weights of every leaf's."""
        self.labels_ = self.model_.predict(data).numpy()
        return np.bincount(self.labels_, weights, minlength=self.model_.plan.n_leaves).astype(float)

    # --- saving -----------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the estimator to a folder, without a pickle: parameters, table, model, and attributes of the last fit.

        The model's own files are among them, so that `HMoEVAE.from_pretrained` reads it too.

        Args:
            save_directory: The folder. It is created if missing; other files in it are not touched.

        Raises:
            ArgumentError: A parameter cannot be written, such as a `random_state` that is no integer, or the folder
                cannot.
        """
        check_is_fitted(self)
        save(self, Path(save_directory))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "VAEMixture":
        """Read an estimator that `save_pretrained` wrote; it predicts the same, to the last bit.

        Args:
            folder: The folder.

        Raises:
            CheckpointError: A file is missing, damaged, or of a newer version, or the files do not belong together.
        """
        return load(cls, Path(folder))

    # --- scikit-learn's conventions ---------------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        assert tags.transformer_tags is not None
        tags.transformer_tags.preserves_dtype = [np.dtype(dtype).name for dtype in FLOATS]
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        return pickles.written(super().__getstate__())  # type: ignore[arg-type]  # object's may be None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle, which may be from another version; parameters that it lacks take their defaults."""
        super().__setstate__(pickles.read(type(self), state))


def _weights(given: Any, n: int) -> Float[np.ndarray, " n_samples"]:
    """Check the weights of `n` samples."""
    array = np.asarray(given)
    return SampleWeights.of(array, n).counts.numpy()
