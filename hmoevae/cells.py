"""Cells: what a model says of the observations of an AnnData object, written into it."""

from typing import Any

import numpy as np

from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.samples import BATCH_SIZE, Data
from hmoevae.tables.sparse import is_sparse


def annotate(
    adata: Any, model: Any, *, layer: str | None = None, key: str = "hmoevae", batch_size: int = BATCH_SIZE
) -> None:
    """Write clusters, their probabilities and latents of every observation into an `anndata.AnnData`.

    `hmoevae.fit` and `VAEMixture.fit` take the matrix itself, such as `adata.layers["counts"]`. A sparse one is made
    dense batch by batch here and in training by gradients.

    Written are, beside what is there:

    - `obs[key]`: the path of the most probable leaf, such as `"root/0/1"`, as a category;
    - `obs[f"{key}_level1"]` and so on: the path of the most probable node of each level above the deepest;
    - `obs[f"{key}_probability"]`: the probability of the leaf;
    - `obsm[f"{key}_probability"]`: the probability of every leaf, `(n_obs, leaf)`;
    - `obsm[f"X_{key}"]`: the mean of q(z|x) by the most probable leaf, `(n_obs, latent)`.

    Args:
        adata: The object, in memory; its variables are the columns that the model was trained on, in the same order.
        model: An `HMoEVAE` or a fitted `VAEMixture`.
        layer: The layer with the samples, such as `"counts"`; `adata.X` if `None`.
        key: What the new names begin with.
        batch_size: Observations evaluated at a time.

    Raises:
        ArgumentTypeError: `adata` is no AnnData object, or `model` neither of the two.
        ArgumentError: There is no such layer, or the matrix is in a file.
        ShapeError: The matrix does not have the model's number of columns.

    >>> import anndata
    >>> import scipy.sparse
    >>> import hmoevae as hm
    >>> counts = scipy.sparse.csr_array(np.random.default_rng(0).poisson(0.3, (20, 5)))
    >>> adata = anndata.AnnData(layers={"counts": counts})
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2, likelihood=hm.Poisson()), 3), input_shape=(5,))
    >>> annotate(adata, model, layer="counts")
    >>> list(adata.obs), adata.obsm["X_hmoevae"].shape, adata.obsm["hmoevae_probability"].shape
    (['hmoevae', 'hmoevae_probability'], (20, 2), (20, 3))
    >>> list(adata.obs["hmoevae"].cat.categories)
    ['root/0', 'root/1', 'root/2']
    """
    model = getattr(model, "model_", model)  # an estimator's
    if not isinstance(model, HMoEVAE):
        raise ArgumentTypeError(mismatch("model", "an HMoEVAE or a fitted VAEMixture", type(model).__name__))
    x = _samples(adata, layer)
    import pandas as pd  # anndata brings it

    leaf_proba = model.predict_proba(x, batch_size=batch_size).cpu().numpy()
    latents = model.encode(x, batch_size=batch_size).cpu().numpy()
    levels = {f"{key}_level{level}": model.plan.level(level) for level in range(1, model.plan.depth)}
    for name, nodes in {key: model.plan.leaves, **levels}.items():
        proba = np.stack([leaf_proba[:, node.leaves.start : node.leaves.stop].sum(1) for node in nodes], axis=1)
        adata.obs[name] = pd.Categorical.from_codes(proba.argmax(1), categories=[node.path for node in nodes])
    adata.obs[f"{key}_probability"] = leaf_proba.max(1)
    adata.obsm[f"{key}_probability"] = leaf_proba
    adata.obsm[f"X_{key}"] = latents


def _samples(adata: Any, layer: str | None) -> Data:
    """The matrix of an AnnData object, floating point where it is dense."""
    if not all(hasattr(adata, name) for name in ("obs", "obsm", "layers", "X")):
        raise ArgumentTypeError(mismatch("adata", "an anndata.AnnData", type(adata).__name__))
    if layer is not None and layer not in adata.layers:
        names = ", ".join(map(repr, adata.layers)) or "none"
        raise ArgumentError(mismatch("layer", f"the name of a layer (there are {names})", repr(layer)))
    x = adata.X if layer is None else adata.layers[layer]
    if is_sparse(x):
        return x
    if not isinstance(x, np.ndarray):
        words = "a matrix in memory (adata.to_memory() reads one from a file)"
        raise ArgumentError(
            mismatch("adata.X" if layer is None else f"adata.layers[{layer!r}]", words, type(x).__name__)
        )
    return x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32)
