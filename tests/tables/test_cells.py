"""AnnData: what a model says of cells is written beside what is there, from sparse or dense counts."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, ShapeError

COUNTS = np.random.default_rng(0).poisson(0.5, (30, 6))
NET = hm.MLP((4,))


def make() -> hm.HMoEVAE:
    torch.manual_seed(0)
    leaf = hm.VAE(2, NET, NET, hm.NegativeBinomial())
    return hm.HMoEVAE(hm.Mixture((hm.Mixture.of(leaf, 2, gate=NET), leaf), gate=NET), (6,))


def cells(counts: Any = COUNTS) -> anndata.AnnData:
    obs = pd.DataFrame({"kind": ["a", "b"] * 15}, index=[f"cell {i}" for i in range(30)])
    return anndata.AnnData(X=np.zeros((30, 6), np.float32), obs=obs, layers={"counts": counts})


@pytest.mark.parametrize("form", [np.array, sp.csr_matrix, sp.csr_array, sp.csc_matrix])
def test_results_are_written_beside_what_is_there(form: Any) -> None:
    adata, model = cells(form(COUNTS)), make()
    x = torch.from_numpy(COUNTS).float()
    hm.annotate(adata, model, layer="counts", key="tree", batch_size=7)
    assert list(adata.obs) == ["kind", "tree", "tree_level1", "tree_probability"]
    paths = [leaf.path for leaf in model.plan.leaves]
    assert list(adata.obs["tree"].cat.categories) == paths
    assert list(adata.obs["tree"]) == [paths[i] for i in model.predict(x)]
    nodes = [node.path for node in model.plan.level(1)]
    assert list(adata.obs["tree_level1"]) == [nodes[i] for i in model.predict(x, level=1)]
    assert np.allclose(adata.obs["tree_probability"], model.predict_proba(x).max(1).values)
    assert np.allclose(adata.obsm["tree_probability"], model.predict_proba(x))
    assert np.allclose(adata.obsm["X_tree"], model.encode(x), atol=1e-6)


def test_a_view_and_a_file_keep_what_is_written(tmp_path: Path) -> None:
    adata = cells(sp.csr_matrix(COUNTS))
    some = adata[10:].copy()
    hm.annotate(some, make(), layer="counts")
    some.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert list(back.obs["hmoevae"]) == list(some.obs["hmoevae"])
    assert back.obsm["X_hmoevae"].shape == (20, 2)


def test_without_a_layer_it_is_x() -> None:
    one, other = cells(), anndata.AnnData(X=sp.csr_matrix(COUNTS))
    hm.annotate(one, make(), layer="counts")
    hm.annotate(other, make())
    assert list(one.obs["hmoevae"]) == list(other.obs["hmoevae"])


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hm.annotate(COUNTS, make()), ArgumentTypeError, "adata: expected an anndata.AnnData, got ndarray"),
        (lambda: hm.annotate(cells(), "model"), ArgumentTypeError, "model: expected an HMoEVAE or a .*, got str"),
        (
            lambda: hm.annotate(cells(), make(), layer="raw"),
            ArgumentError,
            r"layer: .* \(there are 'counts'\), got 'raw'",
        ),
        (lambda: hm.annotate(cells()[:, :4].copy(), make()), ShapeError, r"x: expected \(batch, 6\), got \(30, 4\)"),
        (
            lambda: hm.fit(make(), cells(), progress=False),
            ArgumentTypeError,
            r"AnnData \(pass its .X, or counts in a l",
        ),
    ],
)
def test_what_cannot_be_annotated_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_matrix_in_a_file_is_read_first(tmp_path: Path) -> None:
    anndata.AnnData(X=sp.csr_matrix(COUNTS.astype(np.float32))).write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(ArgumentError, match=r"adata.X: expected a matrix in memory \(adata.to_memory\(\) reads one"):
        hm.annotate(backed, make())
    backed.file.close()
