"""What a user adds in a file of one's own does all that parts of the package do: train, save, load, go on, revive."""

import doctest
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import user
from conftest import data_for, fit
from networks import Frozen
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, SpecError
from hmoevae.nn.balance import Balances
from hmoevae.nn.objectives import OBJECTIVES
from hmoevae.plan import compile_tree
from hmoevae.training.revival import revive

FILES = Path(__file__).parent.parent / "docs" / "extending"
SHAPE = (1, 6, 6)
NET, CONV = hm.MLP((8,)), hm.Conv((2, 3), 3, 2, (6,))
WORKER = Path(user.__file__)


def file_of(name: str) -> Any:
    return importlib.import_module(name)


def cases() -> dict[str, hm.Mixture]:
    """Experts, and where one may, gates of each sort that came with the open house."""
    residual, laplace = file_of("residual").Residual, file_of("laplace").Laplace
    return {
        "convolutional": hm.Mixture.of(hm.VAE(2, CONV, CONV.transpose()), 3, gate=CONV),
        "a user's network": hm.Mixture.of(hm.VAE(2, residual(8), residual(9)), 3, gate=residual(6)),
        "with dropout": hm.Mixture.of(hm.VAE(2, residual(8, dropout=0.3), NET), 3, gate=residual(6, dropout=0.3)),
        "a user's likelihood": hm.Mixture.of(hm.VAE(2, NET, NET, laplace()), 3, gate=NET),
        "learned scales": hm.Mixture.of(hm.VAE(2, NET, NET, hm.Gaussian("learned", "identity")), 3, gate=NET),
    }


CASES = cases()
each_case = pytest.mark.parametrize("name", CASES)
quiet = pytest.mark.filterwarnings("ignore::hmoevae.errors.CollapseWarning")


def model_of(name: str, seed: int = 0) -> hm.HMoEVAE:
    torch.manual_seed(seed)
    return hm.HMoEVAE(CASES[name], SHAPE, objective="elbo")


def samples(n: int = 40) -> Tensor:
    """Two kinds of blurred images."""
    x = data_for(CASES["convolutional"], SHAPE, n).float()
    ramp = torch.linspace(0, 1, 6).expand(6, 6)
    return 0.3 * x + 0.7 * torch.where((torch.arange(n) % 2 == 0).reshape(-1, 1, 1, 1), ramp, ramp.t())


def same_weights(one: hm.HMoEVAE, two: hm.HMoEVAE) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- all of them do what a model does ---------------------------------------------------------------------------------


@quiet
@each_case
def test_it_trains(name: str) -> None:
    history = fit(model_of(name), samples(), epochs=12, batch_size=20, lr=2e-2, validation_data=samples(11))
    assert history["loss"][-1] < history["loss"][0] - 0.5
    assert history["val_elbo"][-1] < history["val_elbo"][0]


class CutError(Exception):
    """What ends a run before its time."""


def cut(end: hm.EpochEnd) -> None:
    if end.epoch == 3:
        raise CutError


@quiet
@each_case
@pytest.mark.parametrize("init", ["random", pytest.param("given", marks=pytest.mark.slow)])
def test_it_goes_on_from_a_checkpoint_to_the_bit(name: str, init: str, tmp_path: Path) -> None:
    """Dropout and all: a run of four epochs, and one that is cut in the third."""
    how = {"batch_size": 16, "lr": 1e-2, "validation_data": samples(9), "revive": True}
    how["init"] = torch.arange(40) % 3 if init == "given" else "random"
    whole, half = model_of(name), model_of(name)
    expected = fit(whole, samples(), epochs=4, **how)
    with pytest.raises(CutError):
        fit(half, samples(), epochs=4, checkpoint_dir=tmp_path, callbacks=[cut], **how)
    torch.rand(3)  # wherever the global state has come to
    again = model_of(name, seed=5)
    found = fit(again, samples(), epochs=4, checkpoint_dir=tmp_path, **how)
    assert same_weights(whole, again)
    assert not same_weights(whole, half)
    assert [{**row, "seconds": 0} for row in found.rows] == [{**row, "seconds": 0} for row in expected.rows]


@quiet
@each_case
def test_it_trains_the_same_by_the_same_seed(name: str) -> None:
    models = [model_of(name) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.rand(seed + 1)
        fit(model, samples(), epochs=1, batch_size=16, seed=seed)
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


@quiet
@each_case
@pytest.mark.usefixtures("bfloat16")
def test_it_trains_in_bfloat16(name: str) -> None:
    losses = [fit(model_of(name), samples(), epochs=3, precision=p)["loss"][-1] for p in ("fp32", "bf16")]
    assert losses[1] == pytest.approx(losses[0], rel=0.02, abs=0.2)


@each_case
def test_a_dead_child_takes_over_half_of_its_siblings_samples(name: str) -> None:
    """Its rows of every parameter are the sibling's but for a little noise, and Adam's moments too."""
    model, x = model_of(name), samples()
    optimizer = torch.optim.Adam(model.parameters())
    model(x).loss.backward()
    optimizer.step()
    model.eval()
    gate = model.gates.groups[0]
    with torch.no_grad():
        gate.last.bias[0, 1] = -30.0
        gate.last.bias[0, 0] += 2.0
    share = model.predict_proba(x).mean(0)
    assert share[0] > share[2] > 0.02 > 1e-6 > share[1]
    before = [p.clone() for p in model.experts.parameters()]
    assert revive(model, optimizer, share, torch.Generator().manual_seed(0)) == ["root/1"]
    shares = model.predict_proba(x).mean(0)
    assert shares[1] == pytest.approx(shares[0].item(), rel=0.3)
    for parameter, old in zip(model.experts.parameters(), before, strict=True):
        spread = old[0].std(correction=0)
        assert torch.equal(parameter[0], old[0])
        assert (parameter[1] - parameter[0]).std(correction=0) <= 0.2 * spread
        assert torch.equal(optimizer.state[parameter]["exp_avg"][1], optimizer.state[parameter]["exp_avg"][0])
    one, two = (model.reconstruct(x, node=f"root/{i}") for i in (0, 1))
    assert (one - two).square().mean() < 0.2 * one.var() + 0.01


def test_what_a_network_keeps_fixed_is_copied_as_it_is() -> None:
    """Buffers and frozen parameters of a user's, which may differ from node to node, go with the learned weights."""
    torch.manual_seed(0)
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, Frozen(), Frozen()), 2, gate=NET), (4,))
    network = model.experts.groups[0].encoder.module
    assert not torch.equal(network.directions[0], network.directions[1])
    optimizer = torch.optim.Adam(model.parameters())
    assert revive(model, optimizer, torch.tensor([1.0, 0.0]), torch.Generator()) == ["root/1"]
    assert torch.equal(network.directions[0], network.directions[1])
    assert torch.equal(network.frozen[0], network.frozen[1])
    assert not torch.equal(network.last.weight[0], network.last.weight[1])


@quiet
def test_what_is_measured_knows_no_dropout() -> None:
    """Validation is that of the model in evaluation, and so is what callbacks see; training goes on with dropout."""
    model, x = model_of("with dropout"), samples()
    seen: list[tuple[bool, Tensor]] = []

    def look(end: hm.EpochEnd) -> None:
        seen.append((end.model.training, end.model.predict_proba(x)))
        assert torch.equal(end.model.predict_proba(x), seen[-1][1])

    history = fit(model, x, epochs=3, batch_size=20, lr=1e-2, seed=3, validation_data=x[:9], callbacks=[look])
    assert [training for training, _ in seen] == [False] * 3
    terms = model.evaluate(x[:9], generator=torch.Generator().manual_seed(3))
    assert history["val_elbo"][-1] == pytest.approx(terms["elbo"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convolutional", "a user's network", "learned scales"])
def test_a_compiled_pass_is_the_plain_one(compiler: None, name: str) -> None:
    """In a process of its own, without the tests' checks of shapes, into which torch.compile cannot look."""
    done = run_user("compiled", name)
    assert done["loss"] < 1e-4
    assert done["gradient"] < 1e-3


def run_user(job: str, argument: object) -> dict[str, Any]:
    paths = os.pathsep.join(map(str, (FILES, *sys.path)))
    command = [sys.executable, "-W", "ignore", str(WORKER), job, str(argument)]
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# --- the files of the documentation -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("user")
    return folder, run_user("save", folder)


@pytest.mark.slow
@pytest.mark.parametrize("file", user.FILES)
def test_a_file_of_ones_own_trains(saved: tuple[Path, dict[str, list[float]]], file: str) -> None:
    losses = saved[1][file]
    assert losses[-1] < losses[0]


@pytest.fixture(scope="module")
def loaded(saved: tuple[Path, Any]) -> dict[str, Any]:
    return run_user("load", saved[0])


@pytest.mark.slow
@pytest.mark.parametrize("file", user.FILES)
def test_it_loads_where_the_file_is_imported(loaded: dict[str, Any], file: str) -> None:
    """In a fresh process, to equal answers, and is exported from there."""
    assert loaded[file]["same"]
    assert loaded[file]["apart"] < 1e-5


@pytest.fixture(scope="module")
def refused(saved: tuple[Path, Any]) -> dict[str, Any]:
    return run_user("load_bare", saved[0])


@pytest.mark.slow
@pytest.mark.parametrize("file", user.FILES)
def test_it_says_what_to_import_where_it_is_not(refused: dict[str, Any], file: str) -> None:
    """The kind, and the module that the file names; which nobody imports for that."""
    told = f"the model was saved with '{file}' from the module '{file}'"
    assert told in refused[file]
    assert "import the module that registers" in refused[file]
    assert repr(file) in refused[file].partition(told)[0]
    assert refused["imported"] == []


@pytest.fixture
def imported(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """A file as it is imported; an objective of its own is forgotten after it."""
    module = importlib.reload(file_of(request.param))
    yield module
    OBJECTIVES.pop("hard", None)


each_file = pytest.mark.parametrize("imported", user.FILES, indirect=True)


@each_file
def test_the_sessions_in_it_give_what_they_say(imported: ModuleType) -> None:
    results = doctest.testmod(imported, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0


def test_every_file_is_tested_and_shown() -> None:
    assert {f"{file}.py" for file in user.FILES} == {path.name for path in FILES.glob("*.py")}
    page = (FILES.parent / "extend.md").read_text(encoding="utf-8")
    for file in user.FILES:
        assert f"{{literalinclude}} extending/{file}.py" in page


@pytest.mark.parametrize("imported", ["hard"], indirect=True)
def test_the_hard_objective(imported: Any) -> None:
    """By hand; over some leaves as over all of them; and leaves that were not chosen get no gradient."""
    elbo = torch.tensor([[-1.0, -5.0], [-2.0, -3.0]], requires_grad=True)
    gate, prior = torch.tensor([[0.9, 0.8], [0.1, 0.2]]).log(), torch.full((2, 1), 0.5).log()
    terms = imported.hard(elbo, gate, prior)
    assert terms["hard"].tolist() == pytest.approx([1 + math.log(2), 3 + math.log(2)])
    assert terms["choice"].tolist() == pytest.approx([-math.log(0.9), -math.log(0.2)])
    terms["hard"].mean().backward()
    assert elbo.grad is not None
    assert elbo.grad.tolist() == [[-0.5, 0.0], [0.0, -0.5]]
    model = hm.HMoEVAE(CASES["convolutional"], SHAPE, objective="hard")
    routed = model(samples(), settings=hm.StepSettings(routes=hm.nn.routes.TopK(2)))
    assert {"hard", "choice", "balance"} == routed.terms.keys()
    assert {"hard", "choice", "elbo"} <= model.evaluate(samples()).keys()


@pytest.mark.parametrize("imported", ["reverse_kl"], indirect=True)
def test_the_reverse_divergence(imported: Any) -> None:
    balances = Balances(compile_tree(hm.Mixture.of(hm.VAE(2), 2, balance=hm.Balance("reverse_kl", 3.0))))
    even = torch.tensor([0.5, 0.5]).log()

    def term(*importance: float) -> float:
        return balances(torch.tensor(importance), even).item()

    assert term(4.0, 4.0) == pytest.approx(0.0, abs=1e-6)
    assert term(6.0, 2.0) == pytest.approx(3 * (math.log(0.5 / 0.75) + math.log(0.5 / 0.25)) / 2)
    costs = [term(8.0, share) for share in (1.0, 1e-2, 1e-4, 1e-8)]
    assert costs == sorted(costs)
    assert costs[-1] > costs[0] + 20
    assert term(0.0, 0.0) == 0


@pytest.mark.parametrize("imported", ["laplace"], indirect=True)
def test_the_laplace_likelihood(imported: Any) -> None:
    """Density, gradient and draws against torch.distributions."""
    module = imported.Laplace(least_width=0.1).build(3, 4)
    raw, x = torch.randn(3, 8, 5, requires_grad=True), torch.randn(4, 5)
    expected = torch.distributions.Laplace(raw[:, :4], 0.1 + raw[:, 4:].exp()).log_prob(x).sum(1)
    torch.testing.assert_close(module.log_prob(raw, x), expected)
    score = torch.empty_like(raw)
    torch.testing.assert_close(module.log_prob_and_score(raw.detach().clone(), x, score), expected.detach())
    torch.testing.assert_close(score, torch.autograd.grad(expected.sum(), raw)[0])
    many = torch.tensor([3.0, math.log(0.6)]).reshape(1, 2, 1).expand(1, 2, 100_000)
    drawn = module.sample(many, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(), torch.tensor(3.0), atol=0.02, rtol=0)
    torch.testing.assert_close((drawn - 3).abs().mean(), torch.tensor(0.7), atol=0.02, rtol=0)


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_is_taken_once() -> None:
    def mine(*given: Tensor) -> Any:
        raise AssertionError("a name that is taken is refused before the function is called")

    with pytest.raises(ArgumentError, match=r"^objective: expected a name that is free \('elbo' is hmoevae\.nn\.obj"):
        hm.objective("elbo")(mine)
    with pytest.raises(SpecError, match=r"^kind: expected one that is free \('kl' is hmoevae\.nn\.balance\.kl\)"):
        hm.balance("kl")(mine)
    with pytest.raises(SpecError, match=r"^kind: expected one that is free \('mlp' is hmoevae\.spec\.networks\.MLP\)"):
        hm.record(kind="mlp")(type("Mine", (hm.Network,), {}))


def test_a_balance_may_have_a_dot_in_its_name() -> None:
    @hm.balance("tests.squares")
    def squares(importance: Tensor, log_prior: Tensor, siblings: Any) -> Tensor:
        return siblings.share(importance).square()

    tree = hm.Mixture.of(hm.VAE(2, NET, NET), 2, gate=NET, balance=hm.Balance("tests.squares", 2.0))
    model = hm.HMoEVAE(tree, (4,))
    out = model(torch.rand(5, 4))
    share = out.edge_log_prob.exp().mean(0)
    torch.testing.assert_close(out.terms["balance"], 2 * share.square().sum())
    assert hm.tree_from_json(tree.to_json()) == tree
