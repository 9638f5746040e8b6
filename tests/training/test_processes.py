"""Several processes: they train what one does, end together, and speak up when one of them has gone.

What they do is in workers.py; a module-wide fixture starts two of them once, as a process takes seconds to start.
"""

import os
import socket
import subprocess
import sys

import pytest
import torch
import workers

import hmoevae as hm
from hmoevae.errors import ArgumentError
from hmoevae.nn.draws import Share, for_batch
from hmoevae.training import resolve_device
from hmoevae.training.processes import Processes

pytestmark = [
    pytest.mark.slow,
    # After two epochs there may well be such leaves and gates.
    pytest.mark.filterwarnings("ignore::hmoevae.errors.DeadLeafWarning"),
    pytest.mark.filterwarnings("ignore::hmoevae.errors.ConstantGateWarning"),
]
TIMEOUT = 300  # seconds; a hang, not a slow machine


def run_together(job, count, folder, file=workers.__file__):
    """Run a job of workers.py, or of another file, in `count` processes; their exit statuses and their stderr."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    running = []
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        environment = os.environ | address | place | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", file, job, str(folder)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=TIMEOUT)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stderr.close()
    return [process.returncode for process in running], said


def answers_of(job, count, folder, file=workers.__file__):
    statuses, said = run_together(job, count, folder, file)
    assert statuses == [0] * count, "\n".join(said)
    return [torch.load(folder / f"{job}-{rank}.pt") for rank in range(count)]


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder_of_two):
    return answers_of("two", 2, folder_of_two)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return answers_of("three", 3, tmp_path_factory.mktemp("three"))


def assert_same(answer, expected, tolerance):
    assert answer["interrupted"] == expected["interrupted"]
    assert answer["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(answer["weights"][name], weight, atol=tolerance, rtol=tolerance)
    assert [list(row) for row in answer["rows"]] == [list(row) for row in expected["rows"]]
    for row, other in zip(answer["rows"], expected["rows"], strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("case", workers.PRINCIPLES, ids=str)
def test_two_processes_train_what_one_does(two, case):
    """In double precision nothing is left to hide behind; in single precision, the last digits."""
    expected = workers.principle(*case)
    assert [len(expected["rows"]), "agreement" in expected["rows"][0]] == [2, case[2]]
    assert_same(two[0][str(case)], expected, 1e-12 if case[3] == torch.float64 else 2e-6)


@pytest.mark.parametrize("case", [c for c in workers.PRINCIPLES if c[2:] == (True, torch.float64)], ids=str)
def test_three_processes_train_what_one_does(three, case):
    assert_same(three[0][str(case)], workers.principle(*case), 1e-12)


def test_two_processes_weigh_as_one_does(two):
    assert_same(two[0]["weighted"], workers.weighted(), 1e-12)
    assert "sample_weight: expected the same in every process" in two[0]["other weights"]


@pytest.mark.parametrize("case", workers.ROUTED, ids=str)
def test_two_processes_train_over_chosen_leaves_as_one_does(two, case):
    assert_same(two[0][f"routed {case}"], workers.routed(*case), 1e-11)


@pytest.mark.parametrize("missing", [False, True])
def test_two_processes_train_exact_posteriors_as_one_does(two, missing):
    assert_same(two[0][f"posteriors {missing}"], workers.posteriors(missing=missing), 1e-11)


def test_two_processes_train_with_gaps_as_one_does(two):
    assert_same(two[0]["gaps"], workers.gaps(), 1e-12)


def test_two_processes_train_down_the_tree_as_one_does(two):
    assert_same(two[0]["down the tree"], workers.down_the_tree(), 1e-12)


@pytest.mark.parametrize("name", workers.SOURCES)
def test_every_source_is_divided(two, name, tmp_path):
    assert_same(two[0][name], workers.source(name, tmp_path), 2e-6)


def test_a_run_of_two_goes_on_by_two_or_by_one(two, folder_of_two):
    expected = workers.trained(workers.new_model(), workers.samples(), epochs=4)
    assert_same(two[0]["resumed"], expected, 2e-6)
    assert_same(workers.gone_on(folder_of_two / "half"), expected, 2e-6)


def test_networks_and_likelihoods_of_a_users_own_are_those_of_one(two):
    expected = workers.trained(workers.model_of_own_parts(), workers.samples().double())
    assert_same(two[0]["own parts"], expected, 1e-12)


def test_all_processes_return_the_same(two, three):
    for answers in (two, three):
        for name, answer in answers[0].items():
            if isinstance(answer, dict) and "rows" in answer:
                for other in answers[1:]:
                    assert_same(other[name], answer, 0.0)


@pytest.mark.parametrize("options", [{"init": "kmeans"}, {"lr_schedule": "cosine"}], ids=["kmeans", "cosine"])
def test_starts_and_schedules_are_those_of_one(two, options):
    name = next(iter(options.values()))
    assert_same(two[0][name], workers.trained(workers.new_model(), workers.samples(), **options), 2e-6)


def test_a_loader_of_accelerate_may_end_unevenly(two):
    """Batches 0 and 1 meet in the first step, and so on; the last has one sample and no partner."""
    expected = workers.trained(workers.new_model(), torch.utils.data.DataLoader(workers.Items(), 12), epochs=1)
    assert_same(two[0]["prepared"], expected, 2e-6)


def test_a_stop_in_any_process_ends_all(two):
    assert [len(answers["stopped"]["rows"]) for answers in two] == [2, 2]
    assert [answers["ends"] for answers in two] == [[(1, True), (2, True)], [(1, False), (2, False)]]


def test_ctrl_c_in_any_process_ends_all(two):
    assert [(len(a["ctrl-c"]["rows"]), a["ctrl-c"]["interrupted"]) for a in two] == [(2, True)] * 2


def test_a_non_finite_loss_in_one_process_is_named_in_all(two):
    expected = (
        "NonFiniteError: loss: expected a finite loss at step 5, got 'elbo' = nan from the expert root/1/0; "
        "the model has the weights of the last good epoch"
    )
    assert [answers["spoilt"] for answers in two] == [expected] * 2
    for name, weight in two[0]["weights after"].items():
        assert torch.isfinite(weight).all()
        assert torch.equal(weight, two[1]["weights after"][name])


def test_processes_that_disagree_are_refused(two):
    for answers in two:
        assert (
            answers["other epochs"] == "ArgumentError: Training.epochs: expected the same in every process, got 1 and 2"
        )
        assert (
            answers["other rate"] == "ArgumentError: Training.lr: expected the same in every process, got 1.0 and 10.0"
        )
        assert answers["same loader"].startswith("ArgumentTypeError: data: expected a DataLoader with a Distributed")


@pytest.mark.parametrize(("job", "failing"), [("failure", 1), ("failure_of_main", 0)])
def test_a_process_that_fails_does_not_leave_the_others_waiting(job, failing, tmp_path):
    statuses, said = run_together(job, 2, tmp_path)
    other = 1 - failing
    assert statuses == [1, 1], "\n".join(said)
    assert "OSError: no space left on device" in said[failing]
    expected = (
        f"ProcessError: processes: expected all 2 to continue (see the errors of the others), got in process {other}"
    )
    assert expected in said[other]


# --- alone ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_are_even_and_make_up_the_whole(n, count):
    parts = [list(range(n))[Processes(torch.device("cpu"), count, index).own(n)] for index in range(count)]
    assert [i for part in parts for i in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_random_numbers_of_the_whole_batch_are_those_without_a_share():
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    shares = (None, Share(start=0, n=4, total=4))
    drawn = [
        for_batch(lambda n, g=g: torch.rand(2, n, generator=g), 4, s) for g, s in zip(generators, shares, strict=True)
    ]
    assert torch.equal(*drawn)
    none = Share(start=4, n=0, total=4)  # a process without samples runs one
    assert for_batch(lambda n: torch.rand(2, n), 1, none).shape == (2, 1)


def test_a_process_that_was_to_have_company_does_not_train_alone(monkeypatch):
    """Here another library has set accelerate up for one process already."""
    resolve_device("auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArgumentError, match=r"expected a device that 2 processes can share, got cpu, where each"):
        hm.fit(workers.new_model(), workers.samples(), hm.Training(device="cpu"), progress=False)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices, for nccl")
def test_two_gpus_train_what_one_does(tmp_path):
    folder = tmp_path
    answers = answers_of("gpus", 2, folder)
    assert_same(answers[0]["cuda"], workers.gpus(folder)["cuda"], 1e-4)
