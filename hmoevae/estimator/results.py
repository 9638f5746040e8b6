"""What a fitted estimator says of rows: clusters, latents, densities, draws, values in gaps."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from hmoevae.checks import check_integer
from hmoevae.errors import ArgumentTypeError, mismatch
from hmoevae.estimator.leaves import leaf_means, n_parameters
from hmoevae.estimator.rows import FLOATS, Samples, decoded, filled, is_frame, is_narrow, samples_of
from hmoevae.hints import what_came
from hmoevae.model import HMoEVAE
from hmoevae.tables import Table
from hmoevae.tables.sparse import SparseRows


def seed_of(random: np.random.RandomState) -> int:
    """A seed drawn from a source of random numbers.

    >>> seed_of(np.random.RandomState(0))
    209652396
    """
    return int(random.randint(np.iinfo(np.int32).max))


class Results(TransformerMixin, ClusterMixin, BaseEstimator):
    """The methods of a fitted estimator; see `VAEMixture`."""

    model_: HMoEVAE
    table_: Table
    weights_: np.ndarray
    n_importance: int
    random_state: int | np.random.RandomState | None

    # --- rows -------------------------------------------------------------------------------------------------------

    def _read(self, X: Any, *, reset: bool) -> Any:
        """Rows as a frame or an array: scikit-learn checks arrays, without their values, and tables check frames."""
        if is_frame(X) and (reset or self.table_.library != "numpy"):
            return X
        if isinstance(X, np.ma.MaskedArray) and X.dtype.kind in "biuf":  # scikit-learn would read what masks hide
            X = np.ma.filled(X.astype(X.dtype if X.dtype.kind == "f" else np.float64), np.nan)
        if hasattr(X, "obs") and hasattr(X, "layers"):
            raise ArgumentTypeError(mismatch("X", "an array, a sparse matrix or a frame", what_came(X)))
        options: Any = {"dtype": FLOATS, "ensure_all_finite": False, "accept_sparse": "csr"}
        return validate_data(self, X, reset=reset, **options)  # type: ignore[arg-type]  # X is not always a string

    def _checked(self, X: Any, *, support: bool = True) -> Samples:
        """Check rows that have been read for the fitted model; sparse ones are checked when they become dense."""
        samples = samples_of(self.table_, X, coded=self.model_.table is not None)
        if isinstance(samples, SparseRows):
            return samples
        return self.model_.checked(samples, name="X", support=support)

    def _samples(self, X: Any, *, support: bool = False) -> tuple[Samples, torch.dtype]:
        """Check rows for the fitted model, and say in which type results are."""
        check_is_fitted(self)
        X = self._read(X, reset=False)
        return self._checked(X, support=support), torch.float32 if is_narrow(X) else torch.float64

    # --- clusters and latents ---------------------------------------------------------------------------------------

    def predict(self, X: Any, level: int | None = None) -> Int[np.ndarray, " n_samples"]:
        """The most probable leaf of every sample.

        Args:
            X: Samples, as in `fit`.
            level: Depth of the nodes to choose from, as in `HMoEVAE.predict`; `None` means the leaves. The result then
                is an index into `model_.plan.level(level)`.
        """
        data, _ = self._samples(X)
        return self.model_.predict(data, level=level).numpy()

    def predict_proba(self, X: Any, level: int | None = None) -> Float[np.ndarray, "n_samples node"]:
        """q(leaf | x), the product of the gates on the path to every leaf; rows sum to one.

        Args:
            X: Samples, as in `fit`.
            level: Depth of the nodes, as in `predict`.
        """
        data, dtype = self._samples(X)
        return self.model_.predict_proba(data, level=level).to(dtype).numpy()

    def transform(self, X: Any) -> Float[np.ndarray, "n_samples feature"]:
        """What the model knows of every sample: the probability of every leaf, then the latents.

        The latents are the mean of q(z|x) by the most probable leaf. Every leaf has its own latent space, so compare
        them among samples with the same most probable leaf only. Leaves with a smaller `latent_dim` are padded with
        zeros.
        """
        data, dtype = self._samples(X)
        parts = self.model_.predict_proba(data).to(dtype), self.model_.encode(data).to(dtype)
        return torch.cat(parts, 1).numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:  # noqa: ARG002
        """Names of the columns of `transform`, such as `vaemixture_leaf0` and `vaemixture_latent0`.

        Args:
            input_features: Not used.
        """
        check_is_fitted(self)
        prefix, sizes = type(self).__name__.lower(), (self.model_.plan.n_leaves, self.model_.experts.latent_dim)
        parts = zip(("leaf", "latent"), sizes, strict=True)
        return np.array([f"{prefix}_{name}{i}" for name, size in parts for i in range(size)], dtype=object)

    @property
    def node_paths_(self) -> list[str]:
        """The paths of the leaves, such as `"root/0"`, in the order of the labels."""
        check_is_fitted(self)
        return [leaf.path for leaf in self.model_.plan.leaves]

    @property
    def means_(self) -> Any:
        """The mean sample of every leaf, in the units and the type of the `X` of `fit`: a row for each leaf.

        A category is the most probable one. Of columns whose logarithm is modelled, it is the exponential of the mean.
        """
        check_is_fitted(self)
        return decoded(self.table_, leaf_means(self.model_))

    # --- density ----------------------------------------------------------------------------------------------------

    def score_samples(self, X: Any) -> Float[np.ndarray, " n_samples"]:
        """Log-density of every sample in nats, in the units of the columns of `X`; gaps are left out.

        It is exact where every leaf is linear and every column Gaussian, else the importance-weighted lower bound of
        `HMoEVAE.score_samples`. All samples share their draws of z and every call draws the same, so a sample's score
        does not depend on the other samples.
        """
        data, dtype = self._samples(X, support=True)
        check_integer("n_importance", self.n_importance)
        return self.model_.score_samples(data, n_importance=self.n_importance).to(dtype).numpy()

    def score(self, X: Any, y: object = None) -> float:  # noqa: ARG002
        """Mean of `score_samples` over `X`, in nats; `y` is not used."""
        return float(self.score_samples(X).mean())

    def bic(self, X: Any) -> float:
        """The Bayesian information criterion of `X`: -2 log p(X) + n_parameters log(n_samples); less is better.

        See `hmoevae.estimator.leaves.n_parameters` for what counts as a parameter.
        """
        scores = self.score_samples(X)
        return float(-2 * scores.sum() + n_parameters(self.model_) * math.log(len(scores)))

    def aic(self, X: Any) -> float:
        """The Akaike information criterion of `X`: -2 log p(X) + 2 n_parameters; less is better."""
        return float(-2 * self.score_samples(X).sum() + 2 * n_parameters(self.model_))

    # --- draws and gaps ---------------------------------------------------------------------------------------------

    def sample(self, n_samples: int = 1) -> tuple[Any, Int[np.ndarray, " n_samples"]]:
        """Draw rows from p(x), ordered by leaf; returns the rows, in the type of the `X` of `fit`, and their leaves.

        With an integer `random_state` every call draws the same.
        """
        check_is_fitted(self)
        check_integer("n_samples", n_samples)
        random = check_random_state(self.random_state)
        weights = self.weights_.astype(np.float64)
        counts = random.multinomial(n_samples, weights / weights.sum())
        generator = torch.Generator(self.model_.device).manual_seed(seed_of(random))
        rows: list[Tensor] = [
            self.model_.sample(int(n), node=leaf.path, observe=True, generator=generator)
            for leaf, n in zip(self.model_.plan.leaves, counts, strict=True)
            if n > 0
        ]
        return decoded(self.table_, torch.cat(rows)), np.repeat(np.arange(len(counts)), counts)

    def impute(self, X: Any) -> Any:
        """The rows of `X` with their gaps filled by what the model expects of them given the other cells.

        That is the mean, or the most probable category. Other cells stay as they are; columns that the table does not
        have are left out.

        Args:
            X: Samples, as in `fit`.

        Returns:
            Rows in the type of the `X` of `fit`; those of a sparse matrix are an array.
        """
        check_is_fitted(self)
        check_integer("n_importance", self.n_importance)
        X = self._read(X, reset=False)
        return filled(self.table_, X, self.model_.impute(self._checked(X), n_importance=self.n_importance))
