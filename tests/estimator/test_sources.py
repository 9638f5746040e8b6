"""VAEMixture on sparse matrices and observations of AnnData."""

import anndata
import numpy as np
import pytest
from scipy import sparse

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError
from hmoevae.estimator import rows, solvers

pytestmark = [
    pytest.mark.filterwarnings("ignore::hmoevae.errors.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::hmoevae.errors.DeadLeafWarning"),
]
FORMATS = [
    sparse.csr_array,
    sparse.csc_matrix,
    sparse.coo_array,
    sparse.lil_matrix,
    sparse.dok_array,
    sparse.bsr_matrix,
    sparse.dia_array,
]


def counts(n: int = 90, d: int = 7) -> np.ndarray:
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.5, 4, (3, d))[np.repeat([0, 1, 2], n // 3)]
    return rng.poisson(rates).astype(float)


def mixture(**options) -> hm.VAEMixture:
    return hm.VAEMixture(3, **{"random_state": 0, "device": "cpu", "max_iter": 20, "n_importance": 4, **options})


SOLVERS = [
    {"likelihood": "counts"},
    {"likelihood": hm.NegativeBinomial(total=30), "hidden": (8,), "max_iter": 3},
    {},
    {"solver": "sgd", "latent_dim": 2, "max_iter": 3},
    {"likelihood": hm.Gaussian("learned", "identity"), "kinds": {"x1": "count", "x2": "category"}},
    {"kinds": {"x1": "count"}, "hidden": (4,), "max_iter": 3, "init": "random"},
]


@pytest.mark.parametrize("options", SOLVERS, ids=str)
def test_a_sparse_matrix_gives_what_its_array_does(options):
    x = counts()
    dense, thin = mixture(**options).fit(x), mixture(**options).fit(sparse.csc_array(x))
    assert thin.table_ == dense.table_
    assert thin.model_.tree == dense.model_.tree
    assert (thin.labels_ == dense.labels_).all()
    assert thin.loss_ == pytest.approx(dense.loss_, rel=1e-9)
    rows = sparse.coo_matrix(x[::2])
    for method in ("predict", "predict_proba", "transform", "score_samples", "impute"):
        assert getattr(thin, method)(rows) == pytest.approx(getattr(dense, method)(x[::2]), rel=1e-9), method
    assert thin.partial_fit(rows).loss_ == pytest.approx(dense.partial_fit(x[::2]).loss_, rel=1e-9)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)
def test_every_format(form):
    x = counts()
    fitted = mixture(likelihood="counts").fit(x)
    assert (mixture(likelihood="counts").fit(form(x)).labels_ == fitted.labels_).all()
    assert (fitted.predict(form(x)) == fitted.labels_).all()


def test_integers_and_float32():
    x = counts()
    fitted = mixture(likelihood="counts").fit(sparse.csr_array(x.astype(np.int32)))
    assert fitted.loss_ == mixture(likelihood="counts").fit(x).loss_
    assert fitted.score_samples(sparse.csr_array(x)).dtype == np.float64
    assert fitted.score_samples(sparse.csr_array(x.astype(np.float32))).dtype == np.float32


def test_gaps_that_are_stored():
    x = counts()
    x[::5, 2] = np.nan
    for options in ({"likelihood": "counts"}, {}):
        dense, thin = mixture(**options).fit(x), mixture(**options).fit(sparse.csr_array(x))
        assert thin.model_.tree == dense.model_.tree
        assert thin.loss_ == pytest.approx(dense.loss_, rel=1e-9)
        assert thin.impute(sparse.csr_array(x)) == pytest.approx(dense.impute(x))


def test_columns_are_described_in_blocks(monkeypatch):
    x = counts()
    monkeypatch.setattr(rows, "BLOCK_ENTRIES", 2 * len(x))
    weight = np.arange(len(x)) % 3.0
    kinds = {"x6": "count"}
    assert rows.table_of(sparse.csr_array(x), kinds, weight) == rows.table_of(x, kinds, weight)
    with pytest.raises(ArgumentError, match=r"kinds: expected names of columns.*, got 'genes'"):
        rows.table_of(sparse.csr_array(x), {"genes": "count"})


def test_gradients_never_hold_the_matrix_dense(monkeypatch):
    x = sparse.random_array((1100, 400), density=0.01, rng=np.random.default_rng(0)).tocsr()
    x.data = np.ceil(5 * x.data)
    sizes = []
    to_array = sparse.csr_array.toarray

    def spied(self, *args, **kwargs):
        sizes.append(self.shape[0])
        return to_array(self, *args, **kwargs)

    fitted = mixture(likelihood=hm.Poisson(), hidden=(4,), max_iter=2, init="random")
    monkeypatch.setattr(sparse.csr_array, "toarray", spied)
    fitted.fit(x)
    assert len(fitted.predict_proba(x)) == 1100
    assert max(sizes) <= 1024  # rows


def test_a_matrix_that_memory_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(solvers.os, "sysconf", lambda _: 100)
    with pytest.raises(DataError, match=r"X: expected a matrix that can be held dense, got \(90, 7\).*init='random'"):
        mixture().fit(sparse.csr_array(counts()))
    mixture(solver="sgd", max_iter=2, init="random").fit(sparse.csr_array(counts()))


def test_another_number_of_columns():
    fitted = mixture(likelihood="counts").fit(sparse.csr_array(counts()))
    with pytest.raises(ValueError, match="X has 6 features, but VAEMixture is expecting 7"):
        fitted.predict(sparse.csr_array(counts()[:, :6]))


def test_annotate_takes_an_estimator():
    x = counts()
    adata = anndata.AnnData(layers={"counts": sparse.csr_array(x)})
    for options in ({"likelihood": "counts"}, {}):
        fitted = mixture(**options).fit(adata.layers["counts"])
        hm.annotate(adata, fitted, layer="counts", key="found")
        assert (adata.obs["found"].cat.codes == fitted.labels_).all()
        assert adata.obsm["found_probability"] == pytest.approx(fitted.predict_proba(x))
    with pytest.raises(ArgumentTypeError, match="model: expected an HMoEVAE or a fitted VAEMixture, got VAEMixture"):
        hm.annotate(adata, mixture(), layer="counts")


def test_an_anndata_object_is_refused_with_the_remedy():
    with pytest.raises(ArgumentTypeError, match=r"X: expected .*, got an AnnData \(pass its .X, or counts in a layer"):
        mixture().fit(anndata.AnnData(counts()))
