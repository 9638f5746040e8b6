"""Cells that were not observed: the bound leaves them out, networks see a mask, and no NaN reaches a weight."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_contract
import test_export
import torch
from conftest import Case, build, cases, data_for, fit, fixed_noise, with_gaps
from hypothesis import given
from test_contract import SORTS
from torch import Tensor

import hmoevae as hm
from hmoevae import views
from hmoevae.errors import ArgumentError, ArgumentTypeError, CheckpointError, DataError, ShapeError
from hmoevae.nn.experts import ExpertGroup
from hmoevae.nn.posteriors import Draw

LEAF = hm.VAE(2, hm.MLP((3,)), hm.MLP((3,)), hm.ContinuousBernoulli())

# --- the contract of every model holds with gaps --------------------------------------------------------------------

CHOSEN = (
    "lone leaf",
    "unequal",
    "marginal",
    "convolutional gates",
    "mixed likelihoods",
    "convolutional experts",
    "a user's networks and likelihood",
    "learned scales",
    "exact posteriors",
)


@pytest.fixture(params=CHOSEN)
def sort(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(sort: str) -> hm.HMoEVAE:
    tree, shape, objective = SORTS[sort]
    return build(tree, shape, objective=objective, missing=True).float()


@pytest.fixture
def x(sort: str) -> Tensor:
    tree, shape, _ = SORTS[sort]
    return with_gaps(data_for(tree, shape, max(test_export.BATCHES))[: test_contract.BATCH].float())


test_shapes = test_contract.test_shapes_and_types
test_gradients = test_contract.test_every_parameter_of_every_network_gets_a_gradient
test_rows = test_contract.test_row_r_is_the_node
test_routes = test_contract.test_routes_give_the_numbers_of_the_dense_pass
test_saving = test_contract.test_saving_and_loading
test_states = test_contract.test_state_dict_goes_round
test_training = test_contract.test_training_lowers_the_loss
test_bfloat16 = test_contract.test_training_under_bfloat16_autocast


class TestExport:
    """Exported modules take NaN as the model does."""

    @pytest.fixture
    def x(self, sort: str) -> Tensor:
        tree, shape, _ = SORTS[sort]
        return with_gaps(data_for(tree, shape, max(test_export.BATCHES)).float())

    test_same = staticmethod(test_export.test_modules_do_what_the_model_does)
    test_copies = staticmethod(test_export.test_modules_are_copies_of_what_they_need)
    test_export = staticmethod(test_export.test_torch_export_runs_any_batch_equal_to_eager)


# --- the law --------------------------------------------------------------------------------------------------------


def without(group: ExpertGroup, spec: hm.VAE, kept: Tensor) -> ExpertGroup:
    """The same experts in a model that has only the columns in `kept`; their encoders are not used."""
    small = ExpertGroup(spec, group.n_experts, (int(kept.sum()),), "root").double()
    n_outputs = group.likelihood.outputs
    with torch.no_grad():
        *others, last = group.decoder.layers
        *own, own_last = small.decoder.layers
        for mine, theirs in zip(own, others, strict=True):
            mine.load_state_dict(theirs.state_dict())
        own_last.weight.copy_(last.weight[:, :, kept.repeat(n_outputs)])
        own_last.bias.copy_(last.bias[:, kept.repeat(n_outputs)])
        for mine, theirs in zip(small.likelihood.parameters(), group.likelihood.parameters(), strict=True):
            mine.copy_(theirs[:, kept])
    return small


@given(case=cases(max_leaves=6))
def test_the_bound_is_that_of_the_model_without_the_columns(case: Case) -> None:
    model = build(case.tree, case.shape, objective=case.objective, seed=case.seed, missing=True)
    x = with_gaps(case.x, 0.4, case.seed).flatten(1)
    for group, planned in zip(model.experts.groups, model.plan.expert_groups, strict=True):
        for row in x:
            kept, sample = ~row.isnan(), row.unsqueeze(1)
            posterior = group.posterior(sample)  # of the same encoder input
            noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
            found = group.draw(sample, posterior, noise)
            if kept.any():
                small = without(group, planned.spec, kept)
                expected = small.draw(sample[kept], posterior, noise)
            else:
                expected = Draw(posterior, noise, found.z, torch.zeros_like(found.log_prob))
            torch.testing.assert_close(found.elbo(), expected.elbo(), rtol=0, atol=1e-6)
            torch.testing.assert_close(found.log_weight(), expected.log_weight(), rtol=0, atol=1e-6)


@given(case=cases(max_leaves=6))
def test_a_sample_does_not_depend_on_the_gaps_of_others(case: Case) -> None:
    model = build(case.tree, case.shape, objective=case.objective, seed=case.seed, missing=True)
    x = with_gaps(case.x, 0.4, case.seed)
    with fixed_noise():
        together, alone = model(x), model(x[-1:])  # the last one has no gap
        scores = model.score_samples(x, n_importance=2), model.score_samples(x[-1:], n_importance=2)
    torch.testing.assert_close(together.leaf_log_prob[-1:], alone.leaf_log_prob)
    if len(x) == 1:
        torch.testing.assert_close(together.leaf_elbo[-1:], alone.leaf_elbo)
    torch.testing.assert_close(scores[0][-1:], scores[1])


@pytest.mark.parametrize("objective", ["expected", "elbo", "marginal"])
def test_gradients_are_finite(objective: str) -> None:
    """Of samples with gaps, and of one of which nothing is known."""
    tree, shape, _ = SORTS["unequal"]
    model = build(tree, shape, objective=objective, missing=True)
    x = data_for(tree, shape, 8)
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    gaps[0] = True  # a sample of which nothing is known
    x[gaps] = torch.nan
    model(x, generator=torch.Generator().manual_seed(0)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_nothing_known_of_a_sample_is_nothing_learned() -> None:
    """Its log-density is 0: the bound is minus the KL, and comes close to 0 with more draws."""
    tree, shape, _ = SORTS["flat"]
    model = build(tree, shape, missing=True)
    x = torch.full((1, *shape), math.nan, dtype=torch.float64)
    out = model(x)
    assert (out.leaf_elbo < 0).all()
    assert model.score_samples(x, n_importance=256).item() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("options", [{"init": "random"}, {"init": "random", "precision": "bf16"}, {"revive": True}])
@pytest.mark.usefixtures("bfloat16")
def test_no_gap_reaches_a_weight(options: dict, recwarn: pytest.WarningsRecorder) -> None:
    tree = hm.Mixture.of(hm.VAE(2, hm.MLP((6,)), hm.MLP((6,)), hm.Gaussian("learned", "identity")), 3)
    torch.manual_seed(0)
    model = hm.HMoEVAE(tree, (5,), objective="marginal", missing=True)
    x = with_gaps(torch.randn(40, 5, generator=torch.Generator().manual_seed(0)))
    history = fit(model, x, epochs=3, batch_size=16, seed=0, validation_data=x[:8], **options)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert all(math.isfinite(value) for value in history["loss"])
    assert all(math.isfinite(value) for value in model.evaluate(x).values())
    recwarn.clear()


def test_a_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    x = with_gaps(torch.rand(40, 4))

    def run(epochs: int, folder: Path | None = None, *, missing: bool = True) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = hm.HMoEVAE(hm.Mixture.of(LEAF, 2), (4,), missing=missing)
        fit(model, x if missing else x.nan_to_num(), epochs=epochs, batch_size=16, seed=0, checkpoint_dir=folder)
        return model.state_dict()

    whole = run(4)
    run(2, tmp_path)
    with pytest.raises(ArgumentError, match=r"missing: expected True, as in the checkpoint .*, got None"):
        run(4, tmp_path, missing=False)
    assert all(map(torch.equal, run(4, tmp_path).values(), whole.values()))


def test_views_pass_gaps_on() -> None:
    x = torch.rand(2, 1, 6, 6)
    x[0, 0, 2, 2] = torch.nan
    still = views.RandomAffine(degrees=0.0, translate=(0.0, 0.0), scale=(1.0, 1.0), shear=0.0)
    seen = still(x)
    assert seen[0, 0, 2, 2].isnan()
    torch.testing.assert_close(seen[1], x[1])
    near = views.Neighbour(k=1).prepare(x)(x, index=torch.arange(2))
    torch.testing.assert_close(near, x.flip(0), equal_nan=True)
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 2), (1, 6, 6), missing=True)
    agreement = hm.Agreement(partner=views.Neighbour(k=1))
    history = fit(model, x.repeat(8, 1, 1, 1), epochs=2, seed=0, view=views.RandomAffine(), agreement=agreement)
    assert all(math.isfinite(value) for value in history["loss"])


# --- the door -------------------------------------------------------------------------------------------------------


def test_a_model_without_gaps_says_which_has() -> None:
    x = torch.rand(3, 4)
    x[1, 2] = math.nan
    model = hm.HMoEVAE(LEAF, (4,))
    hint = r"first 1 \(a model made with missing=True takes NaN as not observed\)"
    with pytest.raises(DataError, match=f"x: expected finite values, got NaN or infinity in 1 samples, {hint}"):
        model.encode(x)
    x[1, 2] = math.inf
    with pytest.raises(DataError, match=r"x: expected finite values, got NaN or infinity in 1 samples, first 1$"):
        model.encode(x)


def test_infinity_is_not_missing() -> None:
    x = torch.rand(3, 4)
    x[0, 0], x[1, 2] = math.nan, -math.inf
    model = hm.HMoEVAE(LEAF, (4,), missing=True)
    expected = "x: expected finite values, or NaN for missing cells, got infinity in 1 samples, first 1"
    for method in (model.encode, model.score_samples, model.checked):
        with pytest.raises(DataError, match=expected):
            method(x)


def test_what_was_observed_is_in_the_support() -> None:
    model, x = hm.HMoEVAE(LEAF, (4,), missing=True), torch.rand(3, 4)
    x[0, 0], x[1, 2], x[:, 3] = math.nan, 1 + 1e-6, math.nan
    checked = model.checked(x).x
    assert torch.equal(checked.isnan(), x.isnan())
    assert checked[1, 2] == 1
    x[1, 2] = 3
    with pytest.raises(DataError, match=r"x: expected values in \[0, 1\], got values from 0\.\d+ to 3"):
        model.score_samples(x)
    with pytest.warns(UserWarning, match=r"x: expected values in \[0, 1\], or close to it, got values from "):
        model.predict(x)


def test_a_mask_of_numpy_is_a_gap() -> None:
    model = hm.HMoEVAE(LEAF, (4,), missing=True)
    values = np.ma.masked_less(np.array([[0.5, -9999.0, 0.25, 0.5]]), 0)
    expected = torch.tensor([[0.5, math.nan, 0.25, 0.5]])
    torch.testing.assert_close(model.check_input(values).float(), expected, equal_nan=True)
    assert values.data[0, 1] == -9999  # the user's own stay as they are


def test_samples_checked_for_gaps_are_checked_again_without() -> None:
    x = torch.rand(3, 4)
    x[0, 0] = math.nan
    data = hm.HMoEVAE(LEAF, (4,), missing=True).checked(x)
    with pytest.raises(DataError, match="x: expected finite values"):
        hm.HMoEVAE(LEAF, (4,)).encode(data)


@pytest.mark.usefixtures("as_users_call")
def test_bad_arguments(tmp_path: Path) -> None:
    for wrong in (1, None, "yes"):
        with pytest.raises(ArgumentTypeError, match=f"missing: expected True or False, got {wrong!r}"):
            hm.HMoEVAE(LEAF, (4,), missing=wrong)
    hm.HMoEVAE(LEAF, (4,), missing=True).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert '"missing": true' in text
    (tmp_path / "config.json").write_text(text.replace('"missing": true', '"missing": false'), encoding="utf-8")
    with pytest.raises(CheckpointError):
        hm.HMoEVAE.from_pretrained(tmp_path)


# --- the missing given the observed ---------------------------------------------------------------------------------


AFFINE = hm.MLP(())
NORMAL = hm.Gaussian(0.5, "identity")


def linear_model(n_features: int = 4, encoder: hm.Network = AFFINE) -> hm.HMoEVAE:
    """A mixture of two factor analysers, whose conditionals are known; encoders start as the prior N(0, I)."""
    leaf = hm.VAE(2, encoder, AFFINE, NORMAL)
    model = build(hm.Mixture.of(leaf, 2, gate=AFFINE, prior="learned"), (n_features,), missing=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        (group,) = model.experts.groups
        for parameter in group.encoder.parameters():
            parameter.zero_()
        group.decoder.last.weight.copy_(0.5 * torch.randn(2, 2, n_features, generator=generator))
        group.decoder.last.bias.copy_(torch.randn(2, n_features, generator=generator))
    return model


def conditional(model: hm.HMoEVAE, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the missing cells: p(leaf | observed), and the mean and covariance given the observed cells and the leaf."""
    (group,) = model.experts.groups
    known, prior = ~row.isnan(), model.prior.leaf_log_prob().detach()
    log_joint, means, covariances = [], [], []
    for leaf in range(2):
        loading, mean = group.decoder.last.weight[leaf].detach().t(), group.decoder.last.bias[leaf].detach()
        covariance = loading @ loading.t() + 0.25 * torch.eye(len(row), dtype=row.dtype)
        of_known, across = covariance[known][:, known], covariance[~known][:, known]
        density = torch.distributions.MultivariateNormal(mean[known], of_known)
        log_joint.append(prior[leaf] + density.log_prob(row[known]))
        slope = across @ torch.linalg.inv(of_known)
        means.append(mean[~known] + slope @ (row[known] - mean[known]))
        covariances.append(covariance[~known][:, ~known] - slope @ across.t())
    return torch.stack(log_joint).softmax(0), torch.stack(means), torch.stack(covariances)


def seeded() -> dict[str, torch.Generator]:
    """A generator in the same state each time."""
    return {"generator": torch.Generator().manual_seed(0)}


ROWS = torch.tensor([[0.3, math.nan, -0.5, math.nan], [math.nan, 1.0, 0.2, 0.7]], dtype=torch.float64)


@pytest.mark.slow
def test_imputed_cells_are_the_conditional_mean() -> None:
    model = linear_model()
    found = model.impute(ROWS, n_importance=600)
    known = ~ROWS.isnan()
    assert torch.equal(found[known], ROWS[known])
    for row, own in zip(ROWS, found, strict=True):
        weight, means, _ = conditional(model, row)
        torch.testing.assert_close(own[row.isnan()], weight @ means, rtol=0, atol=0.06)


def test_imputed_cells_are_exact_where_posteriors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear_model(encoder=hm.LinearPosterior())
    found = model.impute(ROWS, n_importance=1)
    for row, own in zip(ROWS, found, strict=True):
        weight, means, _ = conditional(model, row)
        torch.testing.assert_close(own[row.isnan()], weight @ means)
    monkeypatch.setattr("hmoevae.nn.conditional.CELLS_AT_A_TIME", 1)  # one leaf at a time
    torch.testing.assert_close(model.impute(ROWS, n_importance=1), found)


@pytest.mark.parametrize(
    "others",
    [
        {"encoder": AFFINE},  # with draws, where the first leaf needs none
        {"likelihood": hm.Columns.of(hm.Gaussian(0.6, "identity"), NORMAL)},
    ],
)
def test_leaves_of_two_sorts_are_averaged_by_their_priors(others: dict) -> None:
    leaf = hm.VAE(2, hm.LinearPosterior(), AFFINE, hm.Columns.of(NORMAL, NORMAL))
    model = build(hm.Mixture((leaf, dataclasses.replace(leaf, **others))), (2,), missing=True)
    with torch.no_grad():
        for group, bias in zip(model.experts.groups, (1.0, 3.0), strict=True):
            for parameter in group.parameters():
                parameter.zero_()
            group.decoder.last.bias.fill_(bias)
    found = model.impute(torch.full((1, 2), torch.nan, dtype=torch.float64))
    torch.testing.assert_close(found, torch.full_like(found, 2.0), rtol=0, atol=1e-5)


def test_rows_of_a_frame_are_filled() -> None:
    frame = pd.DataFrame({"size": [1.0, None, 3.0, 4.0], "colour": ["red", "blue", None, "red"]})
    table = hm.Table.of(frame)
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, likelihood=table.likelihood()), 2), table)
    samples = table.encode(frame)
    assert torch.equal(model.impute(frame), model.impute(samples))
    assert torch.equal(model.sample(3, given=frame, **seeded()), model.sample(3, given=samples, **seeded()))


@pytest.mark.slow
def test_draws_given_the_observed_have_their_moments() -> None:
    model = linear_model()
    drawn = model.sample(4000, given=ROWS, n_importance=600, **seeded())
    assert drawn.shape == (4000, *ROWS.shape)
    known = ~ROWS.isnan()
    assert torch.equal(drawn[:, known], ROWS[known].expand(4000, -1))
    row, own = ROWS[0], drawn[:, 0, ROWS[0].isnan()]
    weight, means, covariances = conditional(model, row)
    mean = weight @ means
    apart = means - mean
    covariance = torch.einsum("l,lij->ij", weight, covariances + apart.unsqueeze(2) * apart.unsqueeze(1))
    torch.testing.assert_close(own.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(own.t().cov(), covariance, rtol=0.1, atol=0.1)
    centres = model.sample(4000, given=ROWS, n_importance=600, observe=False, **seeded())[:, 0]
    assert (centres[:, row.isnan()].var(0) < own.var(0)).all()  # without the noise of p(x|z)


@pytest.mark.slow
def test_draws_from_a_node_are_of_its_leaves() -> None:
    model = linear_model()
    how = {"given": ROWS[:1], "n_importance": 600, "generator": torch.Generator().manual_seed(0)}
    drawn = model.sample(4000, node="root/1", **how)[:, 0, ROWS[0].isnan()]
    _, means, covariances = conditional(model, ROWS[0])
    torch.testing.assert_close(drawn.mean(0), means[1], rtol=0, atol=0.15)
    torch.testing.assert_close(drawn.var(0), covariances[1].diagonal(), rtol=0.1, atol=0.15)


@pytest.mark.slow
def test_scores_of_samples_with_gaps_are_densities_of_the_observed() -> None:
    model = linear_model()
    found = model.score_samples(ROWS, n_importance=600)
    (group,) = model.experts.groups
    for row, score in zip(ROWS, found, strict=True):
        known = ~row.isnan()
        log_joint = []
        for leaf in range(2):
            loading, mean = group.decoder.last.weight[leaf].t()[known], group.decoder.last.bias[leaf][known]
            covariance = loading @ loading.t() + 0.25 * torch.eye(int(known.sum()), dtype=row.dtype)
            log_joint.append(torch.distributions.MultivariateNormal(mean, covariance).log_prob(row[known]))
        expected = (torch.stack(log_joint) + model.prior.leaf_log_prob()).logsumexp(0)
        assert score.item() == pytest.approx(expected.item(), abs=0.1)


def test_imputing_is_batched_and_reproducible() -> None:
    model, x = linear_model(), with_gaps(torch.randn(9, 4, dtype=torch.float64))
    whole = model.impute(x, n_importance=8)
    torch.testing.assert_close(model.impute(x, n_importance=8, batch_size=2), whole)
    torch.testing.assert_close(model.impute(x[3:4], n_importance=8), whole[3:4])
    seeded = [model.impute(x, n_importance=8, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*seeded)
    assert not torch.equal(seeded[0], whole)
    one, two = (model.sample(3, given=x, batch_size=n, generator=torch.Generator().manual_seed(1)) for n in (1, 9))
    assert torch.equal(one, two)


def test_samples_without_gaps_come_back() -> None:
    x = torch.rand(5, 4, dtype=torch.float64)
    model = linear_model()
    assert torch.equal(model.impute(x), x)
    assert torch.equal(model.sample(2, given=x), x.expand(2, -1, -1))
    assert torch.equal(build(LEAF, (4,)).impute(x), x)  # and so in a model that takes none with gaps


def test_imputing_in_the_shape_and_the_support_of_samples(model: hm.HMoEVAE, x: Tensor) -> None:
    filled = model.impute(x, n_importance=4)
    drawn = model.sample(2, given=x, n_importance=4)
    assert filled.shape == x.shape
    assert drawn.shape == (2, *x.shape)
    for result in (filled, drawn[0], drawn[1]):
        known = ~x.isnan()
        assert torch.isfinite(result).all()
        assert torch.equal(result[known], x[known])


@pytest.mark.usefixtures("as_users_call")
def test_bad_arguments_of_imputing() -> None:
    model = linear_model()
    with pytest.raises(ArgumentError, match="n_importance: expected an integer > 0, got 0"):
        model.impute(ROWS, n_importance=0)
    with pytest.raises(ArgumentError, match="n_importance: expected an integer > 0, got 0"):
        model.sample(1, given=ROWS, n_importance=0)
    with pytest.raises(DataError, match="given: expected finite values"):
        build(LEAF, (4,)).sample(1, given=ROWS)
    with pytest.raises(ShapeError, match=r"given: expected \(batch, 4\), got \(2, 3\)"):
        model.sample(1, given=ROWS[:, :3])
