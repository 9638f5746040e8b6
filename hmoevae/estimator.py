"""VAEMixture: the model as a scikit-learn estimator, for tables, pipelines and searches."""

import copy
import inspect
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from hmoevae import training
from hmoevae.checks import check_integer
from hmoevae.door import Checked, refuse_masked
from hmoevae.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    MissingExtraError,
    VersionWarning,
    from_extra,
    mismatch,
    warn,
)
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import borrowed_random_state
from hmoevae.nn.rows import reorder_
from hmoevae.spec import MLP, VAE, Balance, Gaussian, Likelihood, Mixture, Tree
from hmoevae.starts import StartName
from hmoevae.training.fitting import fit_quietly
from hmoevae.training.usage import warn_of_collapse
from hmoevae.version import __version__

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
    from sklearn.utils import Tags, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as missing:
    raise MissingExtraError(
        mismatch("hmoevae.VAEMixture", from_extra("scikit-learn>=1.6", "sklearn"), missing)
    ) from None

FLOATS = (np.float64, np.float32)
"""The types in which samples are read; others are converted to the first."""
NEVER = -1000.0
"""Prior logit of a child without samples; its probability is zero in every floating point type."""


class VAEMixture(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """A mixture of variational auto-encoders as a scikit-learn estimator, with the names of `GaussianMixture`.

    It clusters (`predict`, by the gates), reduces dimensions (`transform`, the latents), estimates densities
    (`score_samples`) and generates samples (`sample`). The defaults are for tables whose columns have about unit
    variance: put a `StandardScaler` before it. On the CPU it computes in the floating point type of `X`, elsewhere in
    float32.

    Args:
        n_components: Number of experts of a flat mixture; 1 means a single VAE. Not used if `tree` is given.
        tree: A tree of any shape instead of the flat mixture; `latent_dim`, `hidden`, `likelihood` and `balance` are
            then not used.
        latent_dim: Size of every expert's latent.
        hidden: Widths of the hidden layers of every encoder, decoder and gate.
        likelihood: The observation model p(x|z); `None` means `Gaussian(scale=0.5, mean="identity")`.
        balance: The term that keeps the gate from sending all samples to one expert; `None` means `Balance("kl", 1.0)`.
        objective: The objective that training minimises: `"expected"`, `"elbo"` or `"marginal"` (see
            `hmoevae.nn.objectives`). With the last two, the flat mixture learns its weights; with `"expected"` they are
            uniform.
        max_iter: Number of passes over the data.
        batch_size: Samples per step.
        lr: Learning rate of Adam.
        init: The start, which gates and experts learn in the first tenth of the epochs: the clusters of `"kmeans"`,
            level by level down a tree, as in `GaussianMixture`, or of `"umap"` (extra `umap`); `"random"` has none.
        n_init: Number of trainings from fresh weights; the one with the smallest `loss_` is kept.
        n_importance: Number of draws of z from every leaf for each value of `score_samples`.
        warm_start: Let `fit` continue from the weights of the last fit, with a fresh optimiser; `n_init` is not used.
        random_state: Seed of weights, order of the data and draws, as everywhere in scikit-learn.
        device: The device to train and predict on; `"auto"` takes an accelerator if there is one. A pickle holds the
            weights on the CPU.
        verbose: Above 0, training shows a progress bar.

    Attributes:
        model_: The trained `HMoEVAE`, with all its methods.
        labels_: The most probable leaf of every sample of the last fit, `(n_samples,)`. In a mixture of `n_components`,
            leaves without a sample come last, so that the labels have no gaps; in a `tree` the leaves keep their order.
        weights_: The prior of every leaf, `(n_leaves,)`. A learned prior is set to the shares of `labels_`.
        loss_: The objective on the data of the last fit, without balance, in nats per sample.
        history_: The `History` of the training that was kept.
        n_iter_: The number of epochs of that training.
        n_features_in_: Number of columns of `X`.
        feature_names_in_: Names of the columns, if `X` had names that are all strings.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = np.concatenate([rng.normal(-1, 0.1, (50, 2)), rng.normal(1, 0.1, (50, 2))])
    >>> mixture = VAEMixture(2, max_iter=20, lr=1e-2, random_state=0, device="cpu").fit(X)
    >>> mixture.transform(X).shape, mixture.predict_proba(X).shape, mixture.sample(3)[0].shape
    ((100, 2), (100, 2), (3, 2))
    >>> np.array_equal(mixture.predict(X), mixture.labels_), bool(mixture.score(X) == mixture.score_samples(X).mean())
    (True, True)
    """

    def __init__(
        self,
        n_components: int = 10,
        *,
        tree: Tree | None = None,
        latent_dim: int = 2,
        hidden: tuple[int, ...] = (32,),
        likelihood: Likelihood | None = None,
        balance: Balance | None = None,
        objective: str = "marginal",
        max_iter: int = 100,
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
        self.n_components = n_components
        self.tree = tree
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.likelihood = likelihood
        self.balance = balance
        self.objective: str = objective
        self.max_iter = max_iter
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

    def fit(self, X: Any, y: object = None) -> "VAEMixture":  # noqa: ARG002
        """Train on the rows of `X`.

        Ctrl-C ends training with a warning and keeps the weights so far. A `DeadLeafWarning` names dead leaves and all
        leaves that are not in `labels_`. A `ConstantGateWarning` names gates that give all samples nearly the same
        probabilities.

        Args:
            X: Samples, `(n_samples, n_features)`, at least as many as leaves.
            y: Not used.

        Raises:
            SpecError: The tree is not valid.
            ArgumentError: Another argument cannot be used; `DataError` for data that the likelihood cannot model.
            NonFiniteError: The loss became NaN or infinite, as it may if the columns of `X` are far from unit scale.
        """
        for name in ("max_iter", "n_init"):
            check_integer(name, getattr(self, name))
        X = self._validated(X, reset=True)
        tree = self._make_tree()
        if len(X) < tree.n_leaves:
            expected = f"n_samples >= {tree.n_leaves}, the number of leaves"
            raise DataError(mismatch("X", expected, f"n_samples = {len(X)}"))
        shape = (X.shape[1],)
        goes_on = self.warm_start and hasattr(self, "model_")
        if goes_on:
            now = {"tree": tree, "number of features": shape, "objective": self.objective}
            before = (self.model_.tree, self.model_.input_shape, self.model_.objective)
            others = [name for (name, value), was in zip(now.items(), before, strict=True) if value != was]
            if others:
                expected = "the tree, the number of features and the objective of the last fit"
                raise ArgumentError(mismatch("warm_start", expected, f"another {' and another '.join(others)}"))
        where = training.resolve_device(self.device)
        dtype = torch.float64 if X.dtype == np.float64 and where.type == "cpu" else torch.float32
        random = check_random_state(self.random_state)
        with torch.device("meta"):  # checking samples needs the tree only, no weights
            outline = self.model_ if goes_on else HMoEVAE(tree, shape, objective=self.objective)
        data = outline.to(dtype).checked(X, name="X")

        usual = training.Training(
            epochs=self.max_iter,
            batch_size=self.batch_size,
            lr=self.lr,
            init="random" if goes_on or tree.n_leaves == 1 else self.init,
            init_epochs=max(1, self.max_iter // 10),
            device=where,
        )

        def train(seed: int) -> tuple[HMoEVAE, History]:
            if goes_on:
                model = self.model_
            else:
                with borrowed_random_state(seed):
                    model = HMoEVAE(tree, shape, objective=self.objective).to(dtype)
            return model, fit_quietly(model, data, replace(usual, seed=seed), progress=self.verbose > 0)

        seeds = (_seed(random) for _ in range(1 if goes_on else int(self.n_init)))
        best = training.best_of(train, data, seeds=seeds)
        self.model_, self.history_, self.loss_ = best.model, best.history, best.losses[best.seed]
        if best.interrupted:
            warn("Training interrupted by the user.")
        self.n_iter_ = len(self.history_)
        counts = self._count(data)
        if self.tree is None and 0 in counts:
            _put_empty_leaves_last(self.model_, self.history_, counts)
            counts = self._count(data)
        _make_priors_shares(self.model_, counts)
        self.weights_ = self.model_.prior.leaf_log_prob().exp().detach().cpu().numpy()
        if self.n_iter_:
            warn_of_collapse(self.model_.plan, self.history_.rows[-1], counts.astype(float).tolist())
        return self

    def _count(self, data: Checked) -> Int[np.ndarray, " leaf"]:
        """Label the samples, and count those of every leaf."""
        self.labels_ = self.model_.predict(data).numpy()
        return np.bincount(self.labels_, minlength=self.model_.plan.n_leaves)

    def _make_tree(self) -> Tree:
        if self.tree is not None:
            if not isinstance(self.tree, VAE | Mixture):
                raise ArgumentTypeError(mismatch("tree", "a VAE or a Mixture", type(self.tree).__name__))
            return self.tree
        check_integer("n_components", self.n_components)
        network = MLP(self.hidden)
        likelihood = Gaussian(mean="identity") if self.likelihood is None else self.likelihood
        expert = VAE(self.latent_dim, network, network, likelihood)
        if self.n_components == 1:
            return expert
        balance = Balance("kl", 1.0) if self.balance is None else self.balance
        prior = "uniform" if self.objective == "expected" else "learned"
        return Mixture.of(expert, self.n_components, gate=network, balance=balance, prior=prior)

    # --- clusters and latents ---------------------------------------------------------------------------------------

    def predict(self, X: Any) -> Int[np.ndarray, " n_samples"]:
        """The most probable leaf of every sample, by the gates."""
        check_is_fitted(self)
        return self.model_.predict(self._check(X)).numpy()

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n_samples leaf"]:
        """q(leaf | x), the product of the gates on the path to every leaf; rows sum to one."""
        check_is_fitted(self)
        data = self._check(X)
        return self.model_.predict_proba(data).to(data.x.dtype).numpy()

    def transform(self, X: Any) -> Float[np.ndarray, "n_samples latent"]:
        """Mean of q(z|x) by the most probable leaf of each sample.

        Every leaf has its own latent space, so compare rows within a cluster only. Leaves with a smaller `latent_dim`
        are padded with zeros.
        """
        check_is_fitted(self)
        data = self._check(X)
        return self.model_.encode(data).to(data.x.dtype).numpy()

    @property
    def _n_features_out(self) -> int:
        return self.model_.experts.latent_dim

    # --- density ----------------------------------------------------------------------------------------------------

    def score_samples(self, X: Any) -> Float[np.ndarray, " n_samples"]:
        """Importance-weighted lower bound on log p(x) of every sample, as in `HMoEVAE.score_samples`.

        All samples share their draws of z and every call draws the same, so a sample's score does not depend on the
        other samples.
        """
        check_is_fitted(self)
        data = self._check(X, support=True)
        check_integer("n_importance", self.n_importance)
        return self.model_.score_samples(data, n_importance=self.n_importance).to(data.x.dtype).numpy()

    def score(self, X: Any, y: object = None) -> float:  # noqa: ARG002
        """Mean of `score_samples` over `X`, in nats; `y` is not used."""
        return float(self.score_samples(X).mean())

    def sample(
        self, n_samples: int = 1
    ) -> tuple[Float[np.ndarray, "n_samples feature"], Int[np.ndarray, " n_samples"]]:
        """Draw rows from p(x), ordered by leaf; returns the rows and the leaf of each.

        With an integer `random_state` every call draws the same.
        """
        check_is_fitted(self)
        check_integer("n_samples", n_samples)
        random = check_random_state(self.random_state)
        weights = self.weights_.astype(np.float64)
        counts = random.multinomial(n_samples, weights / weights.sum())
        generator = torch.Generator(self.model_.device).manual_seed(_seed(random))
        rows = [
            self.model_.sample(int(n), node=leaf.path, observe=True, generator=generator)
            for leaf, n in zip(self.model_.plan.leaves, counts, strict=True)
            if n > 0
        ]
        return torch.cat(rows).cpu().numpy(), np.repeat(np.arange(len(counts)), counts)

    # --- scikit-learn's conventions ---------------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        assert tags.transformer_tags is not None
        tags.transformer_tags.preserves_dtype = [np.dtype(dtype).name for dtype in FLOATS]
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]  # object's may be None
        if "model_" in state:  # machines without this accelerator have to be able to load the pickle
            state["model_"] = copy.deepcopy(state["model_"]).cpu()
        return state | {"_hmoevae_version": __version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle, which may be from another version; parameters that it lacks take their defaults."""
        parameters = inspect.signature(type(self)).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in state}
        pickled = {name: value for name, value in state.items() if name != "_hmoevae_version"}
        super().__setstate__(pickled | defaults)
        version = state.get("_hmoevae_version", "an unknown version")
        if version != __version__:
            added = f", with the defaults of {', '.join(defaults)}" if defaults else ""
            expected = f"a pickle of hmoevae {__version__}"
            remedy = "fit again, or save models with model_.save_pretrained, which all versions read"
            got = f"one of {version}{added}; {remedy}"
            warn(mismatch(type(self).__name__, expected, got), VersionWarning)

    def _check(self, X: Any, *, support: bool = False) -> Checked:
        """Check samples for the trained model; without `support`, for its gates and encoders only."""
        return self.model_.checked(self._validated(X, reset=False), name="X", support=support)

    def _validated(self, X: Any, *, reset: bool) -> np.ndarray:
        """Check an array as scikit-learn does, without its values, which the model checks."""
        refuse_masked(X, "X")  # scikit-learn ignores masks and reads the values under them
        return validate_data(self, X, reset=reset, dtype=FLOATS, ensure_all_finite=False)  # type: ignore[return-value]


def _seed(random: np.random.RandomState) -> int:
    return int(random.randint(np.iinfo(np.int32).max))


@torch.no_grad()
def _put_empty_leaves_last(model: HMoEVAE, history: History, counts: Int[np.ndarray, " leaf"]) -> None:
    """Renumber the leaves of a flat mixture, in weights and history, so that empty ones come last."""
    order = np.argsort(counts == 0, kind="stable")
    index = torch.from_numpy(order).to(model.device)
    gate = model.gates.groups[0].last
    reorder_(model.experts.groups[0], index)
    for parameter in () if gate is None else (gate.weight, gate.bias):  # a posterior gate follows the leaves
        parameter.copy_(parameter[:, index])
    if model.prior.logits is not None:
        model.prior.logits.copy_(model.prior.logits[index])
    columns = [f"usage/{leaf.path}" for leaf in model.plan.leaves]
    for row in history.rows:
        row.update(zip(columns, [row[columns[i]] for i in order], strict=True))


@torch.no_grad()
def _make_priors_shares(model: HMoEVAE, counts: Int[np.ndarray, " leaf"]) -> None:
    """Set learned priors to the shares of the samples, which training from a uniform prior may not have reached."""
    for mixture in model.plan.mixtures:
        edges = list(mixture.child_edges)
        children = [model.plan.nodes[model.plan.edge_child[edge]].leaves for edge in edges]
        n = np.array([counts[leaves.start : leaves.stop].sum() for leaves in children])
        if isinstance(mixture.spec, Mixture) and mixture.spec.prior == "learned" and n.any():
            assert model.prior.logits is not None
            logits = [math.log(share) if share > 0 else NEVER for share in n / n.sum()]
            model.prior.logits[edges] = model.prior.logits.new_tensor(logits)
