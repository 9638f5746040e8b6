"""A likelihood for each column is the sum of the columns' own likelihoods, each with parameters of its own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Laplace
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import DataError, SpecError
from hmoevae.nn.likelihoods import ColumnsModule, LikelihoodModule, likelihood_module
from hmoevae.nn.rows import rows_of

GROUPS, BATCH = 2, 4
NUMBER = hm.Gaussian("learned", "identity")
SORTS = (NUMBER, hm.Gaussian(2.0, "identity"), hm.LogNormal(), hm.Bernoulli(), hm.Categorical(3), hm.Categorical(4))
SORTS += (hm.Ordinal(3), hm.Poisson(), hm.NegativeBinomial(), hm.ZeroInflated(), Laplace())


def made(parts: tuple[hm.Likelihood, ...]) -> ColumnsModule:
    module = likelihood_module(hm.Columns(parts), GROUPS, len(parts)).double()
    assert isinstance(module, ColumnsModule)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def alone(module: ColumnsModule, column: int) -> tuple[LikelihoodModule, list[int]]:
    """The likelihood of one column with its own parameters, and the places of its raw outputs."""
    part = next(i for i, columns in enumerate(module.columns) if column in columns)
    columns = module.columns[part]
    place, start = columns.index(column), sum(module.raw_sizes[:part])
    own = rows_of(module.parts[part], slice(None))
    for each in own.modules():  # the last axis of every parameter counts the columns
        each._parameters = {name: p[..., place : place + 1] for name, p in each._parameters.items()}
    return own, list(range(start + place, start + module.raw_sizes[part], len(columns)))


@given(st.lists(st.sampled_from(SORTS), min_size=1, max_size=7).map(tuple), st.booleans())
def test_columns_are_their_parts_side_by_side(parts: tuple[hm.Likelihood, ...], shared: bool) -> None:
    module = made(parts)
    raw = torch.randn(
        GROUPS, *module.raw_shape((len(parts),)), BATCH, generator=torch.Generator().manual_seed(1)
    ).double()
    x = module.sample(raw, torch.Generator().manual_seed(2)).detach()
    x = x[0] if shared else x
    present = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    total, gaps = torch.zeros(GROUPS, BATCH).double(), torch.zeros(GROUPS, BATCH).double()
    for column in range(len(parts)):
        own, places = alone(module, column)
        here = (raw[:, places], x[..., column : column + 1, :])
        there = present[..., column : column + 1, :]
        torch.testing.assert_close(module.log_density(raw, x)[:, column], own.log_density(*here)[:, 0])
        torch.testing.assert_close(module.mean(raw)[:, column], own.mean(here[0])[:, 0])
        total += own.log_prob(*here)
        gaps += own.log_prob(*here, there)
    torch.testing.assert_close(module.log_prob(raw, x), total)
    torch.testing.assert_close(module.log_prob(raw, torch.where(present, x, torch.nan), present), gaps)
    rows = x.mT.reshape(-1, len(parts))
    assert module.contains(rows) or Laplace() in parts
    assert len(module.shown(x)[..., 0].flatten()) == (1 if shared else GROUPS) * module.shown_shape((len(parts),))[0]


def test_equal_columns_are_computed_together() -> None:
    module = made((NUMBER, hm.Categorical(3), NUMBER, hm.Categorical(4), hm.Categorical(3)))
    assert module.columns == [[0, 2], [1, 4], [3]]
    assert module.raw_shape((5,)) == (2 + 6 + 4,)
    assert module.shown_shape((5,)) == (2 + 6 + 4,)


# --- what is refused ------------------------------------------------------------------------------------------------

MIXED = hm.Columns.of(NUMBER, hm.Categorical(3), hm.Poisson(), hm.Categorical(3), hm.LogNormal(), hm.Gaussian(1.0))
GOOD = [-7.0, 2.0, 12.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (1, 3.0, "x: expected codes 0 to 2 in column 1, got values from 2 to 3"),
        (2, 0.5, "x: expected counts (whole numbers >= 0) in column 2, got values from 0.5 to 12"),
        (3, -1.0, "x: expected codes 0 to 2 in column 3, got values from -1 to 0"),
        (4, 0.0, "x: expected values > 0 in column 4, got values from 0 to 0.5"),
        (
            5,
            1.5,
            "x: expected values in [0, 1] (for others, Gaussian(mean='identity')) in column 5, "
            "got values from 1 to 1.5",
        ),
        (0, float("inf"), "x: expected finite values, got NaN or infinity in 1 samples, first 1"),
    ],
)
def test_the_column_is_named(column: int, value: float, message: str) -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, likelihood=MIXED), 2), (6,))
    x = torch.tensor([GOOD, GOOD])
    x[0, 5 if column != 5 else 2] += 1e-6  # rounding, which is put right and not meant
    assert model.check_input(x).max(0).values.tolist() == GOOD
    x[1, column] = value
    with pytest.raises(DataError) as caught:
        model.score_samples(x)
    assert str(caught.value) == message


def test_gates_are_warned_of_a_column() -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, likelihood=MIXED), 2), (6,))
    x = torch.tensor([GOOD, GOOD])
    x[1, 3] = 9.0
    with pytest.warns(
        UserWarning, match="x: expected codes 0 to 2 in column 3, or close to it, got values from 0 to 9"
    ):
        model.predict(x)


def test_the_shape_has_to_fit() -> None:
    with pytest.raises(
        SpecError, match=r"Columns.parts: expected a likelihood for each of the 5 entries of a sample, got 6"
    ):
        hm.HMoEVAE(hm.VAE(2, likelihood=MIXED), (5,))
    with pytest.raises(SpecError, match=r"Columns.parts: expected samples of shape \(6,\), got \(2, 3\)"):
        hm.HMoEVAE(hm.VAE(2, likelihood=MIXED), (2, 3))


class High(LikelihoodModule):
    """A user's, for large values alone."""

    support = "values > 5"
    example = 6.0

    def contains(self, x: Tensor) -> bool:
        return bool((x > 5).all())

    def log_density(self, raw: Tensor, x: Tensor) -> Tensor:
        return -(x - raw).square()

    def mean(self, raw: Tensor) -> Tensor:
        return raw

    def sample(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return raw


@hm.record(kind="tests.high")
class HighRecord(hm.Likelihood):
    def build(self, n_experts: int, n_features: int) -> LikelihoodModule:
        return High()


@hm.record(kind="tests.no_module_of_a_column")
class NoModule(hm.Likelihood):
    def build(self, n_experts: int, n_features: int) -> None:
        return None


def test_a_value_that_all_columns_may_have() -> None:
    assert made((NUMBER, HighRecord(), hm.Poisson())).example == 6
    with pytest.raises(
        SpecError, match=r"Columns.parts: expected a value that all columns may have, got values > 5 in column 0"
    ):
        made((HighRecord(), hm.Bernoulli()))


@pytest.mark.usefixtures("as_users_call")
def test_a_column_needs_a_module() -> None:
    with pytest.raises(
        SpecError, match=r"Columns.parts\[1\]: expected a LikelihoodModule from NoModule\(\).build, got NoneType"
    ):
        made((NUMBER, NoModule()))
