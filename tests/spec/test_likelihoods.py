"""The records of likelihoods: JSON, text and errors."""

from collections.abc import Callable

import pytest

import hmoevae as hm
from hmoevae.errors import SpecError

RECORDS = {
    "Gaussian(learned)": hm.Gaussian("learned", floor=0.01),
    "LogNormal(learned)": hm.LogNormal(),
    "LogNormal(0.25)": hm.LogNormal(0.25),
    "Categorical(3)": hm.Categorical(3),
    "Ordinal(5)": hm.Ordinal(5),
    "Poisson": hm.Poisson(),
    "Poisson(total=1000)": hm.Poisson(total=1000),
    "NegativeBinomial": hm.NegativeBinomial(),
    "NegativeBinomial(total=0.5)": hm.NegativeBinomial(0.5),
    "ZeroInflated(NegativeBinomial)": hm.ZeroInflated(),
    "ZeroInflated(Poisson(total=7))": hm.ZeroInflated(hm.Poisson(7)),
    "Columns(2 x LogNormal(learned), Categorical(2), LogNormal(learned))": hm.Columns.of(
        hm.LogNormal(), hm.LogNormal(), hm.Categorical(2), hm.LogNormal()
    ),
}


@pytest.mark.parametrize(("text", "record"), RECORDS.items(), ids=RECORDS)
def test_records_go_through_json_and_are_told_apart(text: str, record: hm.Likelihood) -> None:
    leaf = hm.VAE(2, likelihood=record)
    assert hm.tree_from_json(leaf.to_json()) == leaf
    assert str(record) == text
    assert eval(repr(record), vars(hm)) == record
    assert [other == record for other in RECORDS.values()].count(True) == 1


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: hm.Gaussian("learned", floor=0), "Gaussian.floor: expected a finite number > 0, got 0"),
    (lambda: hm.LogNormal(-1.0), "LogNormal.scale: expected a finite number > 0, got -1.0"),
    (lambda: hm.Categorical(), "Categorical.n: expected a value, got nothing"),
    (lambda: hm.Categorical(1), "Categorical.n: expected an integer > 1, got 1"),
    (lambda: hm.Ordinal(2.0), "Ordinal.n: expected an integer > 1, got 2.0"),
    (lambda: hm.Poisson(0), "Poisson.total: expected None or a finite number > 0, got 0"),
    (lambda: hm.NegativeBinomial(True), "NegativeBinomial.total: expected None or a finite number > 0, got True"),
    (
        lambda: hm.ZeroInflated(hm.Bernoulli()),
        "ZeroInflated.count: expected Poisson(...) or NegativeBinomial(...), got Bernoulli()",
    ),
    (lambda: hm.Columns(()), "Columns.parts: expected at least 1 items, got 0"),
    (
        lambda: hm.Columns.of(hm.Poisson(), hm.Columns.of(hm.Poisson())),
        "Columns.parts[1]: expected the likelihood of one column, got Columns(parts=(Poisson(),))",
    ),
    (
        lambda: hm.Columns.of(hm.LogNormal(floor=(0.1,))),
        "Columns.parts[0]: expected a number as the floor of one column, got LogNormal(floor=(0.1,))",
    ),
]


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(("make", "message"), WRONG)
def test_bad_fields_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.usefixtures("as_users_call")
def test_a_column_takes_the_record_of_a_likelihood() -> None:
    with pytest.raises(SpecError, match=r"^Columns.parts\[0\]: expected Gaussian\(...\), .* got 'poisson'$"):
        hm.Columns.of("poisson")


def test_records_of_earlier_versions_have_no_floor() -> None:
    assert hm.tree_from_json('{"kind": "vae", "likelihood": {"kind": "gaussian", "scale": "learned"}}') == hm.VAE(
        likelihood=hm.Gaussian("learned")
    )
