"""Weights of samples: integers are repeated samples, and batches are unbiased estimates of the whole."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import Case, build, cases, data_for, fit
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError
from hmoevae.nn.sample_weights import SampleWeights

LEAF = hm.VAE(2, hm.MLP((4,)), hm.MLP((4,)))
TREE = hm.Mixture(children=(LEAF, hm.Mixture.of(LEAF, 2, prior="learned")), gate=hm.MLP((4,)))


@pytest.fixture(scope="module", autouse=True)
def no_noise() -> Any:
    """Every draw of z is the mean of q(z|x), the same for a sample and its repetitions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmoevae.nn.experts._normal", lambda size, x, generator: x.new_zeros(size))
        yield


def gradients(model: hm.HMoEVAE, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def random_counts(n: int, seed: int) -> Tensor:
    """Some samples count twice and more, some do not count; the first one does."""
    counts = torch.randint(4, (n,), generator=torch.Generator().manual_seed(seed))
    counts[0] += 1
    return counts


def repeated(x: Tensor, counts: Tensor) -> Tensor:
    return x.repeat_interleave(counts, 0)


# --- one pass -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(cases(max_leaves=4), st.booleans(), st.integers(0, 99))
def test_integer_weights_are_repeated_samples(case: Case, agree: bool, seed: int) -> None:
    """The loss, every term and every gradient, balance and agreement among them."""
    model, x, counts = case.model, case.x, random_counts(case.batch, seed)
    other = x.flip(-1)
    views = {"view": x, "other_view": other} if agree else {}
    weighted = model(x, sample_weight=counts, **views)
    twins = model(repeated(x, counts), **{name: repeated(view, counts) for name, view in views.items()})
    for name, term in twins.terms.items():
        torch.testing.assert_close(weighted.terms[name], term)
    ours, theirs = gradients(model, weighted.loss), gradients(model, twins.loss)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-9, rtol=1e-6)


def test_gates_alone_weigh_too() -> None:
    model, x, counts = build(TREE, (3,)), data_for(TREE, (3,), 5), torch.tensor([3, 0, 1, 1, 2])
    weighted = model.agree(x, x.flip(1), sample_weight=counts)
    twins = model.agree(repeated(x, counts), repeated(x.flip(1), counts))
    assert list(twins.terms) == ["agreement", "balance"]
    for name, term in twins.terms.items():
        torch.testing.assert_close(weighted.terms[name], term)


@pytest.mark.parametrize("objective", ["expected", "elbo", "marginal"])
def test_chosen_leaves_weigh_too(objective: str) -> None:
    tree, counts = hm.Mixture.of(LEAF, 3), torch.tensor([3, 0, 1, 1, 2])
    model, x = build(tree, (3,), objective=objective), data_for(tree, (3,), 5)
    settings = hm.StepSettings(routes=hm.nn.routes.TopK(2))
    weighted, twins = model(x, sample_weight=counts, settings=settings), model(repeated(x, counts), settings=settings)
    for name, term in twins.terms.items():
        torch.testing.assert_close(weighted.terms[name], term)


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 99))
def test_batches_are_unbiased(n: int, batch_size: int, seed: int) -> None:
    """Means over all batches, each by its number of samples, are those over the whole: of terms and gradients."""
    tree = hm.Mixture.of(LEAF, 3, balance=hm.Balance("kl", 0.0))  # a balance is not a mean over samples
    model, x = build(tree, (3,), seed=seed), data_for(tree, (3,), n, seed)
    w = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = SampleWeights.of(w, n)
    whole = gradients(model, model(x, sample_weight=w).loss)
    parts = torch.arange(n).split(batch_size)
    losses = [model(x[i], sample_weight=weights.at(i)).loss * len(i) / n for i in parts]
    by_batch = gradients(model, torch.stack(losses).sum())
    for name, gradient in whole.items():
        torch.testing.assert_close(by_batch[name], gradient)


def test_weights_of_other_samples_are_refused() -> None:
    model, x = build(hm.Mixture.of(LEAF, 3), (3,)), data_for(LEAF, (3,), 5)
    weights = SampleWeights.of(torch.ones(8), 8)
    with pytest.raises(ShapeError, match=r"sample_weight: expected one per sample, \(5,\), got \(8,\)"):
        model(x, sample_weight=weights)


def test_equal_weights_are_none() -> None:
    """Of terms and gradients; twice the weight is twice the importance, in samples."""
    tree = hm.Mixture.of(LEAF, 3, balance=hm.Balance("variance", 1.0))
    model, x = build(tree, (3,)), data_for(tree, (3,), 5)
    plain, ones, twos = model(x), model(x, sample_weight=torch.ones(5)), model(x, sample_weight=torch.full((5,), 2.0))
    torch.testing.assert_close(ones.loss, plain.loss)
    torch.testing.assert_close(twos.terms["elbo"], plain.terms["elbo"])
    torch.testing.assert_close(twos.terms["balance"], 4 * plain.terms["balance"])


NO_WEIGHTS: list[tuple[Any, type[Exception], str]] = [
    ([1.0] * 5, ArgumentTypeError, "a tensor or array of numbers, got list"),
    (np.full(5, "a"), ArgumentTypeError, "a tensor or array of numbers, got <U1"),
    (torch.ones(5, dtype=torch.complex64), ArgumentTypeError, "a tensor or array of numbers, got torch.complex64"),
    (np.ma.masked_equal([1.0, 2.0, 3.0, 4.0, 5.0], 3.0), ArgumentTypeError, "a tensor or array .*, got MaskedArray"),
    (torch.ones(4), ShapeError, r"one per sample, \(5,\), got \(4,\)"),
    (torch.ones(5, 1), ShapeError, r"one per sample, \(5,\), got \(5, 1\)"),
    (torch.zeros(5), DataError, "finite numbers >= 0, not all zero, got values from 0.0 to 0.0"),
    (np.array([1, 2, -3, 4, 5]), DataError, "finite numbers >= 0, not all zero, got values from -3.0 to 5.0"),
    (torch.tensor([1.0, torch.inf, 1.0, 1.0, 1.0]), DataError, "finite numbers .*, got values from 1.0 to inf"),
    (torch.tensor([1.0, torch.nan, 1.0, 1.0, 1.0]), DataError, "finite numbers .*, got values from nan to nan"),
]


@pytest.mark.parametrize(("weights", "error", "message"), NO_WEIGHTS)
@pytest.mark.usefixtures("as_users_call")
def test_weights_that_are_none_are_refused(weights: Any, error: type[Exception], message: str) -> None:
    model, x = build(TREE, (3,)), data_for(TREE, (3,), 5)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    calls = (
        lambda: model(x, sample_weight=weights),
        lambda: model.agree(x, x, sample_weight=weights),
        lambda: fit(model, x, sample_weight=weights, epochs=1),
    )
    for call in calls:
        with pytest.raises(error, match=f"^sample_weight: expected {message}"):
            call()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


# --- training -------------------------------------------------------------------------------------------------------


def trained(x: Tensor, sample_weight: Any = None, **options: Any) -> tuple[hm.HMoEVAE, list[dict[str, float]]]:
    """A model trained on batches of everything, and the rows of its history without the clock."""
    tree = hm.Mixture(children=(LEAF, hm.Mixture.of(LEAF, 2)), gate=hm.MLP((4,)), balance=hm.Balance("variance", 0.3))
    model = build(tree, (3,), objective="marginal")
    options = {"epochs": 4, "batch_size": 1000, "seed": 0, "lr": 1e-2} | options
    history = fit(model, x, sample_weight=sample_weight, **options)
    return model, [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]


def assert_same(ours: tuple[hm.HMoEVAE, list[Any]], theirs: tuple[hm.HMoEVAE, list[Any]]) -> None:
    for name, weight in theirs[0].state_dict().items():
        torch.testing.assert_close(ours[0].state_dict()[name], weight, atol=1e-9, rtol=1e-6)
    for row, other in zip(ours[1], theirs[1], strict=True):
        assert row == pytest.approx(other, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("start", "kind"), [(False, "tensor"), (True, "tensor"), (True, "integers"), (False, "float32"), (True, "truth")]
)
def test_training_with_integer_weights_is_that_on_repeated_samples(start: bool, kind: str) -> None:
    """Weights after several steps, and all that the history says: terms, usage and information."""
    x, counts = data_for(TREE, (3,), 20), random_counts(20, seed=1)
    counts = counts.clamp_max(1) if kind == "truth" else counts
    as_given = {
        "tensor": counts,
        "integers": counts.numpy().astype(np.int8),
        "float32": counts.numpy().astype(np.float32),
        "truth": counts.bool(),
    }
    leaf = torch.arange(20) % 3
    ours = trained(x, as_given[kind], **({"init": leaf, "init_epochs": 2} if start else {}))
    twins = {"init": repeated(leaf, counts), "init_epochs": 2} if start else {}
    theirs = trained(repeated(x, counts), **twins)
    assert ("start_gate" in ours[1][0]) == start
    assert_same(ours, theirs)
    plain = trained(x, **({"init": leaf, "init_epochs": 2} if start else {}))
    assert plain[1][-1]["loss"] != pytest.approx(ours[1][-1]["loss"], rel=1e-4)


def test_a_files_samples_weigh_as_those_in_memory(tmp_path: Any) -> None:
    x, w = data_for(TREE, (3,), 20), torch.rand(20)
    np.save(tmp_path / "x.npy", x.numpy())
    in_file = trained(np.load(tmp_path / "x.npy", mmap_mode="r"), w, batch_size=6)
    assert_same(in_file, trained(x, w, batch_size=6))
    assert_same(trained(TensorDataset(x), w.numpy(), batch_size=6), in_file)


def test_samples_keep_their_weights_when_they_are_shuffled() -> None:
    """With a rate of zero, the means of an epoch are those of one pass over everything."""
    x, w = data_for(TREE, (3,), 23), torch.rand(23, dtype=torch.float64)
    model, rows = trained(x, w, batch_size=5, epochs=1, lr=1e-300)
    out = model(x, sample_weight=w)
    assert rows[0]["marginal"] == pytest.approx(out.terms["marginal"].item())
    share = (w.unsqueeze(1) * out.leaf_log_prob.exp()).sum(0) / w.sum()
    assert [rows[0][f"usage/{leaf.path}"] for leaf in model.plan.leaves] == pytest.approx(share.tolist())


def test_a_leaf_of_samples_without_weight_is_dead() -> None:
    """The share that a leaf is the most probable one of counts weights, not samples."""
    tree = hm.Mixture.of(hm.VAE(2, likelihood=hm.Gaussian(mean="identity")), 2, gate=hm.MLP(()))
    x = torch.cat([torch.full((6, 1), -1.0), torch.full((6, 1), 1.0)])
    model = hm.HMoEVAE(tree, (1,), objective="elbo")
    with torch.no_grad():
        model.gates.groups[0].last.weight.copy_(torch.tensor([[[-9.0], [9.0]]]))
    with pytest.warns(hm.errors.DeadLeafWarning, match="root/0"):
        fit(model, x, sample_weight=(x[:, 0] > 0), epochs=1, lr=1e-9, seed=0)


class Items(Dataset[Any]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> Tensor:
        return torch.zeros(3)


@pytest.mark.parametrize("source", [Items(), DataLoader(Items())], ids=["items", "loader"])
def test_samples_without_an_index_have_no_weights(source: Any) -> None:
    with pytest.raises(
        ArgumentTypeError, match=r"^sample_weight: expected None for a Dataset or a DataLoader; .*Tensor"
    ):
        fit(build(TREE, (3,)), source, sample_weight=torch.ones(5), epochs=1)


@pytest.mark.slow
def test_a_run_resumes_with_its_weights_only(tmp_path: Any) -> None:
    x, w = data_for(TREE, (3,), 20), torch.rand(20)
    whole = trained(x, w, batch_size=6)
    trained(x, w, batch_size=6, epochs=2, checkpoint_dir=tmp_path)
    for other in (None, w.flip(0)):
        with pytest.raises(
            ArgumentError, match=r"^sample_weight: expected 20 weights with sha256 \w+, as in the check"
        ):
            trained(x, other, batch_size=6, checkpoint_dir=tmp_path)
    assert_same(trained(x, w.numpy(), batch_size=6, checkpoint_dir=tmp_path), whole)


def test_kmeans_starts_from_the_weighted_samples() -> None:
    """Two near groups of heavy samples, and light ones far away that would get a cluster of their own."""
    x = torch.tensor([0.0, 0.1, 1.0, 1.1, 9.0]).unsqueeze(1).double()
    plan = build(hm.Mixture.of(hm.VAE(2, likelihood=hm.Gaussian(mean="identity")), 2), (1,)).plan
    first_leaves = hm.starts.first_leaves
    plain = first_leaves(plan, x, "kmeans", 0).tolist()
    weighed = first_leaves(plan, x, "kmeans", 0, torch.tensor([9.0, 9.0, 9.0, 9.0, 1e-3]).double()).tolist()
    assert plain[0] == plain[1] == plain[2] == plain[3] != plain[4]
    assert weighed[0] == weighed[1] != weighed[2] == weighed[3] == weighed[4]


def test_kmeans_starts_where_a_group_has_no_weight() -> None:
    """Its samples are clustered as samples of equal weight."""
    x = torch.tensor([0.0, 0.1, 1.0, 1.1, 8.0, 8.1, 9.0, 9.1]).unsqueeze(1).double()
    tree = hm.Mixture.of(hm.Mixture.of(hm.VAE(2, likelihood=hm.Gaussian(mean="identity")), 2), 2)
    w = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]).double()
    leaf = hm.starts.first_leaves(build(tree, (1,)).plan, x, "kmeans", 0, w)
    assert leaf.min() >= 0
