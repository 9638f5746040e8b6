"""Cells that were not observed: the bound leaves them out, networks see a mask, and no NaN reaches a weight."""

import math
from pathlib import Path

import numpy as np
import pytest
import test_contract
import test_export
import torch
from conftest import Case, build, cases, data_for, fit, fixed_noise, with_gaps
from hypothesis import given
from test_contract import SORTS
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentTypeError, CheckpointError, DataError
from hmoevae.nn.experts import ExpertGroup
from hmoevae.nn.posteriors import Draw

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


# --- the door -------------------------------------------------------------------------------------------------------

LEAF = hm.VAE(2, hm.MLP((3,)), hm.MLP((3,)), hm.ContinuousBernoulli())


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
