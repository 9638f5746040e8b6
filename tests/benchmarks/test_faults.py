"""Damage and leaks: a small share of what `benchmarks/faults.py` does in earnest, and that it would notice."""

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
import torch
from faults import Row
from mutations import MUTATIONS

import hmoevae as hm

pytestmark = pytest.mark.slow


@pytest.fixture
def model() -> Iterator[hm.HMoEVAE]:
    with torch.random.fork_rng():
        yield faults.mixed_model()


# --- damaged models -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("fault", MUTATIONS)
def test_a_damaged_model_loads_as_it_was_or_is_refused(fault: str, model: hm.HMoEVAE, tmp_path: Path) -> None:
    files = faults.files_of(model, tmp_path)
    for number in range(20):
        damaged = faults.put_damaged((fault, number), 1, files, tmp_path)
        found, message = faults.outcome(fault, damaged, model, tmp_path)
        assert found in ("equal", "refused"), (number, message)


# --- leaks ----------------------------------------------------------------------------------------------------------


def live() -> int:
    """Tensors, modules and parameters that anything still holds on to."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor | torch.nn.Module) for thing in gc.get_objects())


def test_fits_in_a_row_leave_nothing_behind(tmp_path: Path) -> None:
    faults.fit_once(tmp_path)
    before = live()
    for _ in range(3):
        faults.fit_once(tmp_path)
    assert live() == before


def test_a_trained_model_goes_when_its_user_lets_go(model: hm.HMoEVAE) -> None:
    model = faults.mixed_model()
    x = torch.rand(8, 1, 4, 3).round()
    history = hm.fit(model, x, hm.Training(epochs=1, device="cpu"), progress=False)
    out = model(x)
    out.loss.backward()
    traces = [weakref.ref(thing) for thing in (model, out.loss, x, *model.parameters())]
    del model, out, x
    gc.collect()
    assert [trace() for trace in traces] == [None] * len(traces)
    assert len(history) == 1


# --- the benchmark itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", MUTATIONS)
def test_damage_is_damage_and_the_same_each_time(fault: str, model: hm.HMoEVAE, tmp_path: Path) -> None:
    files = faults.files_of(model, tmp_path)
    tries = [faults.put_damaged((fault, number), 0, files, tmp_path) for number in range(10)]
    assert sum(damaged != files for damaged in tries) >= 8
    assert len(set(tries)) >= 3
    assert tries == [faults.put_damaged((fault, number), 0, files, tmp_path) for number in range(10)]


@pytest.mark.parametrize(
    ("error", "found"),
    [(TypeError("odd"), "foreign error"), (MemoryError(), "foreign error"), (faults.Hang(), "hang")],
    ids=["type", "memory", "hang"],
)
def test_a_load_that_ends_otherwise_is_noticed(
    model: hm.HMoEVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, found: str
) -> None:
    def fail(folder: Path) -> None:
        raise error

    files = faults.files_of(model, tmp_path)
    monkeypatch.setattr(hm.HMoEVAE, "from_pretrained", fail)
    assert faults.outcome("any", files, model, tmp_path)[0] == found


def test_another_model_is_noticed(model: hm.HMoEVAE, tmp_path: Path) -> None:
    files = faults.files_of(model, tmp_path)
    assert faults.outcome("any", files, model, tmp_path) == ("equal", "")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] *= -1
    assert faults.outcome("any", files, model, tmp_path)[0] == "another model"


WATCHED = """
import os, faults, hmoevae as hm
load, sent, jobs = hm.HMoEVAE.from_pretrained, [], [("model.safetensors: bits of the weights", i) for i in range(5)]
faults.CPU_SECONDS, faults.MEMORY = 0.3, 20 << 20

class Pipe:
    send, close = sent.append, print

def load_oddly(folder):
    match len(sent):
        case 0: return load(folder)
        case 1: os.system("true")
        case 2: b"x" * (60 << 20)
        case 3:
            while True: pass
        case _: open(folder / "written", "w").close()
    raise faults.HMoEVAEError("odd")

hm.HMoEVAE.from_pretrained = load_oddly
try:
    faults.load_damaged(Pipe, jobs, 0)
finally:
    print([found for found, _ in sent])
"""


def test_code_memory_and_hangs_are_noticed() -> None:
    """In a process of its own, as what watches can't be taken away again."""
    benchmarks = Path(faults.__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(benchmarks.parent), str(benchmarks)])}
    done = subprocess.run([sys.executable, "-c", WATCHED], env=environment, capture_output=True, text=True)
    assert "['refused', 'code', 'memory', 'hang', 'code']" in done.stdout, done.stderr


def test_a_report_keeps_what_others_put_there(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    rows = [Row("kill", 50, 50, "nothing", {}), Row("bits", 2, 1, "an error", {})]
    faults.add_to_report(path, rows, ["--first"])
    faults.add_to_report(path, [Row("bits", 3, 3, "an error", {})], ["--second"])
    found = [(r["fault"], r["tries"], r["argv"]) for r in json.loads(path.read_text())["rows"]]
    assert found == [("kill", 50, ["--first"]), ("bits", 3, ["--second"])]


def test_failures_are_counted() -> None:
    results = [("equal", ""), ("refused", "CheckpointError: /a: expected b, got c"), ("crash", "exit code -11")]
    row = faults.tally("bits", results)
    assert (row.tries, row.survived) == (3, 2)
    assert row.user_sees.endswith("or the model as it was saved (1), or worse (1)")
    assert row.details["failures"] == ["2: crash: exit code -11"]
    assert row.details["errors"] == {"CheckpointError: /a: expected b": 1}


def test_the_tries_are_shared_out() -> None:
    shares = faults.share(10_000)
    assert sum(n for fault, n in shares.items() if not fault.startswith("forged")) == 10_000
    assert shares.keys() == MUTATIONS.keys()
