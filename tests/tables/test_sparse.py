"""Sparse matrices: every method and training reads them batch by batch, as if they were dense, and never as a whole."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError
from hmoevae.tables.sparse import SparseRows

N_ROWS, N_COLUMNS = 60, 7
NET = hm.MLP((3,))
COUNTS = np.random.default_rng(0).poisson(0.4, (N_ROWS, N_COLUMNS))


def make(n_columns: int = N_COLUMNS) -> hm.HMoEVAE:
    torch.manual_seed(0)
    return hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, NET, NET, hm.Gaussian(mean="identity")), 3, gate=NET), (n_columns,))


def dense() -> torch.Tensor:
    return torch.from_numpy(COUNTS).float()


FORMATS = [sp.csr_array, sp.csc_array, sp.coo_array, sp.csr_matrix, sp.lil_array]


@pytest.mark.parametrize(
    ("form", "dtype"),
    [(form, np.int64) for form in FORMATS]
    + [(sp.csr_array, dtype) for dtype in (np.uint8, np.float32, np.float64, bool)],
)
def test_methods_read_rows_as_if_they_were_dense(form: Any, dtype: type) -> None:
    model, x = make(), form(COUNTS.astype(dtype))
    same = torch.from_numpy(COUNTS.astype(dtype).astype(np.float32))
    score = partial(model.score_samples, n_importance=4)
    for method in (model.predict_proba, score, model.encode, model.reconstruct):
        assert torch.allclose(method(x, batch_size=7), method(same, batch_size=7))
    assert model.evaluate(x) == pytest.approx(model.evaluate(same), rel=1e-5)


@pytest.mark.parametrize("form", [sp.csr_array, sp.csc_matrix])
def test_training_is_that_of_the_dense_table(form: Any) -> None:
    models = [make(), make()]
    training = hm.Training(epochs=3, batch_size=16, seed=0)
    held_out = form(COUNTS[:20]), dense()[:20]
    losses = [
        hm.fit(model, x, training, validation_data=held, progress=False).rows
        for model, x, held in zip(models, (form(COUNTS), dense()), held_out, strict=True)
    ]
    assert [row["loss"] for row in losses[0]] == [row["loss"] for row in losses[1]]
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, other)


def test_weights_of_samples_go_with_rows() -> None:
    weight = np.arange(N_ROWS, dtype=float)
    models = [make(), make()]
    for model, x in zip(models, (sp.csr_array(COUNTS), dense()), strict=True):
        hm.fit(model, x, hm.Training(epochs=2, batch_size=16, seed=0), sample_weight=weight, progress=False)
    assert torch.equal(models[0].prior.leaf_log_prob(), models[1].prior.leaf_log_prob())
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, other)


def test_training_resumes_with_the_same_matrix_only(tmp_path: Path) -> None:
    x = sp.csr_array(COUNTS)
    whole, parts = make(), make()
    hm.fit(whole, x, hm.Training(epochs=3, batch_size=16, seed=0), progress=False)
    hm.fit(parts, x, hm.Training(epochs=2, batch_size=16, seed=0), progress=False, checkpoint_dir=tmp_path)
    other = sp.csr_array(COUNTS + np.eye(N_ROWS, N_COLUMNS))
    with pytest.raises(ArgumentError, match="data: expected 60 samples with"):
        hm.fit(make(), other, hm.Training(epochs=3, batch_size=16, seed=0), progress=False, checkpoint_dir=tmp_path)
    parts = make()
    hm.fit(parts, x, hm.Training(epochs=3, batch_size=16, seed=0), progress=False, checkpoint_dir=tmp_path)
    for one, other in zip(*(model.state_dict().values() for model in (whole, parts)), strict=True):
        assert torch.equal(one, other)


def test_a_start_needs_samples_in_memory() -> None:
    with pytest.raises(ArgumentTypeError, match="data: expected a tensor or array in memory, for a start"):
        hm.fit(make(), sp.csr_array(COUNTS), hm.Training(epochs=1, init="kmeans", init_epochs=1), progress=False)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (sp.csr_array((3, 4)), ShapeError, r"x\[0:3\]: expected \(batch, 7\), got \(3, 4\)"),
        (sp.csr_array((0, 7)), DataError, r"x: expected a sparse matrix .* of at least one row, got \(0, 7\)"),
        (sp.coo_array(np.zeros(7)), DataError, r"x: expected a sparse matrix \(rows, columns\) .*, got \(7,\)"),
        (sp.csr_array(np.eye(7) * 1j), ArgumentTypeError, "x: expected numbers, got a sparse matrix of complex128"),
        (sp.csr_array(np.diag([1.0, np.inf, 1, 1, 1, 1, 1])), DataError, r"x\[0:7\]: expected finite values"),
    ],
)
def test_what_cannot_be_samples_is_refused(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make().predict(x)


def test_values_are_checked_before_training() -> None:
    bad = sp.csr_array(np.where(np.arange(N_ROWS)[:, None] == 50, np.inf, COUNTS))
    with pytest.raises(
        DataError, match=r"data\[0:60\]: expected finite values, got NaN or infinity in 1 samples, first 50"
    ):
        hm.fit(make(), bad, progress=False)


def test_counts_keep_their_digits() -> None:
    large = sp.csr_array([[(1 << 24) + 1, 1]])
    assert SparseRows(large)[:].tolist() == [[(1 << 24) + 1, 1]]
    assert SparseRows(sp.csr_array([[1 << 24, 1]])).dtype == np.float32


def test_no_more_rows_than_a_batch_are_dense_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    read, get = [], SparseRows.__getitem__

    def counting(self: SparseRows, index: Any) -> np.ndarray:
        rows = get(self, index)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(SparseRows, "__getitem__", counting)
    model, x = make(), sp.csr_array(COUNTS)
    model.score_samples(x, batch_size=16, n_importance=1)
    assert read == [16, 16, 16, 12]
    read.clear()
    hm.fit(model, x, hm.Training(epochs=2, batch_size=16, seed=0), progress=False)
    assert read[-8:] == [16, 16, 16, 12] * 2


MEASURE = """
import resource
import hmoevae as hm, numpy as np, scipy.sparse as sp
rng = np.random.default_rng(0)
x = sp.random_array((20_000, 20_000), density=1e-4, format="csr", random_state=rng, dtype=np.float32)
net = hm.MLP((2,))
tree = hm.Mixture.of(hm.VAE(2, net, net, hm.Gaussian(mean="identity")), 2, gate=net)
model = hm.HMoEVAE(tree, (20_000,))
model.predict(x[:100], batch_size=100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model.predict(x, batch_size=256)
hm.fit(model, x[:1000], hm.Training(epochs=1, batch_size=256), progress=False)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_is_that_of_a_batch() -> None:
    """The matrix would take 1.6 GB."""
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert float(run.stdout.split()[-1]) < 800
