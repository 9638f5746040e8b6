"""Experts whose rows are cut over processes train as those of one process do.

What the processes do is in expert_workers.py.
"""

import expert_workers
import pytest
import torch
from test_processes import answers_of, assert_same

import hmoevae as hm

pytestmark = [
    # After two epochs there may well be such leaves and gates.
    pytest.mark.filterwarnings("ignore::hmoevae.errors.DeadLeafWarning"),
    pytest.mark.filterwarnings("ignore::hmoevae.errors.ConstantGateWarning"),
]


def answers(job, count, factory):
    return answers_of(job, count, factory.mktemp(job), expert_workers.__file__)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return answers("quick", 2, tmp_path_factory)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return answers("two", 2, tmp_path_factory)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return answers("four", 4, tmp_path_factory)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return expert_workers.others(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("route", expert_workers.ROUTES)
def test_two_processes_with_half_of_the_experts_train_what_one_does(quick, route):
    expected = expert_workers.principle("elbo", "kl", route, "float64", epochs=2)
    for answer in quick:
        assert_same(answer[route], expected, 1e-12)


def test_each_process_holds_half_and_the_model_is_whole_in_the_end(quick):
    model = expert_workers.even_model()
    n_experts = sum(weight.numel() for weight in model.experts.parameters())
    n_others = sum(weight.numel() for weight in model.parameters()) - n_experts
    for answer in quick:
        held = answer["held"]
        assert held["weights"] == n_experts // 2
        assert held["gradients and moments"] == [n_experts // 2 + n_others] * 2
        assert held["whole again"] == n_experts
        assert held["same parameters"]
        for said in held["refused"].values():
            assert said.startswith("ArgumentError: model: expected one that holds all its experts, as when hm.fit has")
    assert torch.equal(quick[0]["held"]["scores"], quick[1]["held"]["scores"])


@pytest.mark.slow
@pytest.mark.parametrize("case", expert_workers.PRINCIPLES, ids=str)
def test_every_objective_and_balance_and_route(two, case):
    expected = expert_workers.principle(*case)
    assert [len(expected["rows"]), "start_gate" in expected["rows"][0]] == [3, True]
    for answer in two:
        assert_same(answer[str(case)], expected, 1e-12 if case[3] == "float64" else 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["2 x 2", "1 x 4"])
def test_four_processes(four, shape):
    cases = [case for case in expert_workers.PRINCIPLES if f"{shape} {case}" in four[0]]
    assert len(cases) >= 3
    for case in cases:
        for answer in four:
            assert_same(answer[f"{shape} {case}"], expert_workers.principle(*case), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("count", ["two", "four"])
def test_other_options(count, others, request):
    for answer in request.getfixturevalue(count):
        for name, expected in others.items():
            # Adam divides gradients of leaves that are nearly dead by their own size, and so raises their rounding.
            assert_same(answer[name], expected, 1e-9 if "revived" in name else 1e-11)


@pytest.mark.slow
def test_trouble_in_one_process_is_that_of_all(tmp_path_factory):
    both = answers("trouble", 2, tmp_path_factory)
    for answer in both:
        kept = "the model has the weights of the last good epoch"
        expected = f"loss: expected a finite loss at step 5, got 'elbo' = nan from the expert root/2; {kept}"
        assert answer["spoilt"] == f"NonFiniteError: {expected}"
        expected = (
            "weights: expected finite weights after step 4, got NaN or infinity in experts.groups.0.decoder.layers"
        )
        assert answer["spoilt again"] == f"NonFiniteError: {expected}.0.bias (the expert root/2); {kept}"
        assert answer["scores"].isfinite().all()
        assert answer["pressed"]["interrupted"]
        assert answer["failed"] == "DataError: no reason"
        assert answer["after"].startswith("ArgumentError: model: expected one that holds all its experts")
        assert answer["after"].endswith("(hm.fit ended with an error)")
        assert all(torch.equal(weight, both[0]["weights"][name]) for name, weight in answer["weights"].items())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return expert_workers.gone_on(tmp_path_factory.mktemp("uninterrupted"))


def by(count, job, folder):
    """What a job does in so many processes."""
    if count == 1:
        return [getattr(expert_workers, job)(folder)]
    return answers_of(job, count, folder, expert_workers.__file__)


@pytest.mark.slow
def test_a_tree_without_weights_at_its_gates_is_read_from_its_checkpoint(tmp_path, tmp_path_factory):
    expected = expert_workers.weightless(tmp_path)
    for answer in answers("weightless", 2, tmp_path_factory):
        assert_same(answer, expected, 1e-12)
        assert answer["read"].keys() == answer["weights"].keys()
        assert all(torch.equal(answer["read"][name], weight) for name, weight in answer["weights"].items())


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_another_number_of_processes_goes_on_from_a_checkpoint(before, after, uninterrupted, tmp_path):
    first = by(before, "begun", tmp_path)[0]
    for route in uninterrupted:
        path = hm.training.last_checkpoint(tmp_path / route)
        assert (path / "experts").is_dir() == (before > 1)
        for name, weight in hm.HMoEVAE.from_pretrained(path).state_dict().items():
            torch.testing.assert_close(weight, first[route]["weights"][name], atol=1e-12, rtol=0)
    for answer in by(after, "gone_on", tmp_path):
        for route, expected in uninterrupted.items():
            assert_same(answer[route], expected, 1e-12)


def test_experts_are_not_cut_over_more_processes_than_there_are():
    x = torch.rand(8, 1, 4, 4)
    with pytest.raises(
        hm.errors.ArgumentError, match="expert_parallel: expected a divisor of the number of processes, 1, got 2"
    ):
        hm.fit(expert_workers.even_model(), x, hm.Training(expert_parallel=2), progress=False)
