"""Against collapse: what a gate tells, warnings, warm-up, revival of dead children, and restarts."""

import functools
import math
import warnings
from typing import Any

import conftest
import pytest
import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConstantGateWarning,
    DeadLeafWarning,
    NonFiniteError,
    StartWarning,
)
from hmoevae.nn.grouped import GroupedLinear
from hmoevae.plan import compile_tree
from hmoevae.training.revival import revive
from hmoevae.training.usage import gate_sums, information

N_FEATURES = 6
LAYER = hm.MLP((8,))
LEAF, OTHER = hm.VAE(2, LAYER, LAYER), hm.VAE(3, LAYER, LAYER)
TREE = hm.Mixture(children=(LEAF, hm.Mixture.of(LEAF, 2, gate=LAYER), OTHER), gate=LAYER)

quiet_fit = functools.partial(conftest.fit, batch_size=25)


def model_of(tree: hm.Mixture = TREE, objective: str = "elbo", seed: int = 0) -> hm.HMoEVAE:
    torch.manual_seed(seed)
    return hm.HMoEVAE(tree, (N_FEATURES,), objective=objective)


@pytest.fixture
def blobs() -> Tensor:
    """Two hundred samples of four kinds."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(4, N_FEATURES, generator=generator).round() * 0.8 + 0.1
    kind = torch.arange(200) % 4
    return (centre[kind] + 0.03 * torch.randn(200, N_FEATURES, generator=generator)).clamp(0, 1)


def last_layer(model: hm.HMoEVAE, mixture: int) -> tuple[GroupedLinear, int]:
    """The layer that gives a gate's logits, and the gate's row in it."""
    place = model.plan.mixtures[mixture].place
    return model.gates.groups[place.group].last, place.row


def silence(model: hm.HMoEVAE, mixture: int, child: int) -> None:
    """Let a gate send nothing to one of its children."""
    layer, gate = last_layer(model, mixture)
    with torch.no_grad():
        layer.bias[gate, child] = -30.0


def test_a_start_that_was_not_learned_is_named(blobs):
    kind = torch.arange(200) % 4
    lost = r"init_epochs: expected enough epochs .*, got 1, in the last of which they lacked 1\.\d+ nats"
    with pytest.warns(StartWarning, match=lost):
        quiet_fit(model_of(), blobs, epochs=2, init=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StartWarning)
        history = quiet_fit(model_of(), blobs, epochs=21, init=kind, init_epochs=20, lr=1e-2)
    assert history["start_gate"][19] < 0.1


# --- information ------------------------------------------------------------------------------------------------------


def told(model: hm.HMoEVAE, x: Tensor) -> dict[str, float]:
    sums = gate_sums(model(x), model.paths)
    return information(model.plan, sums.tolist())


def test_information_is_the_mutual_information_of_arriving_samples_and_children(blobs: Tensor) -> None:
    model = model_of().double()
    x = blobs.double()
    with torch.no_grad():  # gates that say something
        for layer in (last_layer(model, 0)[0], last_layer(model, 1)[0]):
            layer.weight.mul_(5)
    assert list(told(model, x)) == ["root", "root/1"]
    for path, nats in told(model, x).items():
        level = path.count("/")
        arrives = model.predict_proba(x, level=level)[:, [n.path for n in model.plan.level(level)].index(path)]
        below = [i for i, n in enumerate(model.plan.level(level + 1)) if n.path.startswith(f"{path}/")]
        joint = model.predict_proba(x, level=level + 1)[:, below] / arrives.sum()
        expected = (joint * (joint / (joint.sum(0) * joint.sum(1, keepdim=True))).log()).sum()
        assert nats == pytest.approx(expected.item(), rel=1e-9)
        assert nats > 1e-4


def test_information_of_constant_and_certain_gates() -> None:
    plan = compile_tree(hm.Mixture.of(LEAF, 2, gate=LAYER))
    even, certain = [5.0, 5.0, 5 * math.log(0.5), 5 * math.log(0.5)], [5.0, 5.0, 0.0, 0.0]
    assert information(plan, even)["root"] == pytest.approx(0, abs=1e-12)
    assert information(plan, certain)["root"] == pytest.approx(math.log(2))
    assert information(plan, [10.0, 0.0, 0.0, 0.0])["root"] == 0  # all samples to one child
    assert information(plan, [0.0, 0.0, 0.0, 0.0])["root"] == 0  # no samples at all


def test_history_has_the_information_of_every_gate(blobs: Tensor) -> None:
    model = model_of()
    row = quiet_fit(model, blobs, epochs=1, lr=1e-12).rows[-1]
    for path, nats in told(model, blobs).items():
        assert row[f"information/{path}"] == pytest.approx(nats, rel=1e-3, abs=1e-6)
    lone = quiet_fit(hm.HMoEVAE(LEAF, (N_FEATURES,)), blobs, epochs=1)
    assert not [column for column in lone.columns if column.startswith("information")]


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_a_constant_gate_is_named(blobs: Tensor) -> None:
    model = model_of()
    layer, gate = last_layer(model, 1)
    with torch.no_grad():
        layer.weight[gate] = 0.0
    with pytest.warns(
        ConstantGateWarning, match=r"information: .* same probabilities for all samples from .*root/1 \(.* nats\)"
    ):
        quiet_fit(model, blobs, epochs=1, lr=1e-9)


def test_a_gate_that_nothing_reaches_is_not_called_constant(blobs: Tensor) -> None:
    model = model_of()
    silence(model, 0, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_fit(model, blobs, epochs=1, lr=1e-9)
    messages = {warning.category: str(warning.message) for warning in caught}
    assert "root/1/0" in messages[DeadLeafWarning]
    assert "root/1" not in messages.get(ConstantGateWarning, "")


def test_a_leaf_that_is_never_the_most_probable_one_is_named(blobs: Tensor) -> None:
    """However large its share in probability: no sample is ever in it."""
    model = model_of(hm.Mixture.of(LEAF, 3, gate=LAYER))
    layer, gate = last_layer(model, 0)
    with torch.no_grad():  # a gate that divides its samples between two, and puts the last child a little below one
        layer.weight[gate, :2] *= 20
        layer.weight[gate, 2], layer.bias[gate, 2] = layer.weight[gate, 1], -1e9
        log_prob = model.route(blobs)
        layer.bias[gate, 0] -= (log_prob[:, 0] - log_prob[:, 1]).quantile(0.5)
        layer.bias[gate, 2] = layer.bias[gate, 1] - 0.1
    assert model.predict_proba(blobs).mean(0)[2] > 0.1
    message = r"usage: expected every leaf to be the most probable one of some samples, got none for .*root/2 \("
    with pytest.warns(DeadLeafWarning, match=message) as caught:
        quiet_fit(model, blobs, epochs=1, lr=1e-9)
    assert [warning.category for warning in caught] == [DeadLeafWarning]


def test_leaves_below_a_constant_gate_are_not_named_one_by_one(blobs: Tensor) -> None:
    model = model_of(hm.Mixture.of(LEAF, 3, gate=LAYER))
    layer, gate = last_layer(model, 0)
    with torch.no_grad():
        layer.weight[gate] = 0.0
        layer.bias[gate] = torch.tensor([0.3, 0.2, 0.1])
    with pytest.warns(ConstantGateWarning, match="root") as caught:
        quiet_fit(model, blobs, epochs=1, lr=1e-9)
    assert [warning.category for warning in caught] == [ConstantGateWarning]


def test_of_many_dead_leaves_some_are_named(blobs: Tensor) -> None:
    model = model_of(hm.Mixture.of(LEAF, 30, gate=LAYER))
    for child in range(29):
        silence(model, 0, child)
    with pytest.warns(DeadLeafWarning, match=r"less for root/0 \(.*root/9 \([^,]*\) and 19 more$"):
        quiet_fit(model, blobs, epochs=1, lr=1e-9)


def test_warnings_point_at_the_users_line(blobs: Tensor) -> None:
    model = model_of(hm.Mixture.of(LEAF, 2, gate=LAYER))
    silence(model, 0, 1)
    training = hm.Training(epochs=1, batch_size=25, lr=1e-9, device="cpu")
    with pytest.warns(DeadLeafWarning) as caught:
        here = hm.fit(model, blobs, training, progress=False)
    assert here is not None
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.slow
def test_gates_that_do_their_work_are_not_warned_of(blobs: Tensor) -> None:
    tree = hm.Mixture.of(LEAF, 4, gate=LAYER, balance=hm.Balance("kl", 5.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = quiet_fit(model_of(tree), blobs, epochs=30, lr=1e-2, view=None, agreement=agreement())
    assert history["information/root"][-1] > 0.5


def agreement() -> hm.Agreement:
    return hm.Agreement(partner=hm.views.Neighbour(5), alone=0.5, weight=2.0)


# --- warm-up ----------------------------------------------------------------------------------------------------------


def test_kl_weight_and_temperature_do_what_they_say(blobs: Tensor) -> None:
    model = model_of().double()
    x = blobs.double()

    def out(**options: float) -> hm.Output:
        return model(x, generator=torch.Generator().manual_seed(0), settings=hm.StepSettings(**options))

    whole, none, half = out(), out(kl_weight=0.0), out(kl_weight=0.5)
    kl = none.leaf_elbo - whole.leaf_elbo
    assert kl.min() > 0
    torch.testing.assert_close(half.leaf_elbo, whole.leaf_elbo + kl / 2)
    gates = [model.plan.edge_mixture.count(i) for i in range(2)]
    hot = out(gate_temperature=4.0).edge_log_prob.split(gates, dim=1)
    for cold, warm in zip(whole.edge_log_prob.split(gates, dim=1), hot, strict=True):
        torch.testing.assert_close(warm, (cold / 4).log_softmax(1))


def test_warmup_counts_the_epochs_in_which_experts_learn(blobs: Tensor) -> None:
    model = model_of()
    seen = []
    forward = model.forward

    def watched(x: Tensor, *, settings: hm.StepSettings, **options: Any) -> hm.Output:
        seen.append((settings.kl_weight, settings.gate_temperature))
        return forward(x, settings=settings, **options)

    model.forward = watched
    warmup = hm.Warmup(2, kl=0.2, temperature=9.0)
    quiet_fit(model, blobs[:25], epochs=6, warmup=warmup, agreement=agreement(), init=torch.arange(25) % 4)
    assert seen == [(0.2, 9.0), (0.6, 3.0), (1.0, 1.0)]  # one of the start, three alone, two joint


def test_validation_is_measured_without_warmup(blobs: Tensor) -> None:
    model = model_of()
    history = quiet_fit(model, blobs, epochs=2, lr=1e-12, warmup=hm.Warmup(1, temperature=50.0), validation_data=blobs)
    assert history["elbo"][0] < history["elbo"][1]  # the KL was left out
    assert history["val_elbo"][0] == pytest.approx(history["val_elbo"][1], rel=1e-6)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate_temperature": 0}, r"gate_temperature: expected a finite number > 0, got 0"),
        ({"gate_temperature": "1"}, r"gate_temperature: expected a finite number > 0, got '1'"),
        ({"kl_weight": math.nan}, r"kl_weight: expected a finite number >= 0, got nan"),
        ({"agreement_weight": -1.0}, r"agreement_weight: expected a finite number >= 0, got -1.0"),
    ],
)
def test_bad_weights_of_a_pass_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        hm.StepSettings(**options)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"Warmup.epochs: expected an integer > 0, got 0"),
        ({"epochs": 2, "kl": -1.0}, r"Warmup.kl: expected a finite number >= 0, got -1.0"),
        ({"epochs": 2, "kl": "0"}, r"Warmup.kl: expected a finite number >= 0, got '0'"),
        ({"epochs": 2, "temperature": 0.0}, r"Warmup.temperature: expected a finite number > 0, got 0.0"),
    ],
)
def test_bad_warmups_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        hm.Warmup(**options)


def test_a_warmup_that_does_not_end_is_refused(blobs: Tensor) -> None:
    with pytest.raises(
        ArgumentError, match=r"warmup: expected fewer epochs than those in which .*got Warmup\(epochs=2"
    ):
        quiet_fit(model_of(), blobs, epochs=4, agreement=agreement(), warmup=hm.Warmup(2))


# --- revival ----------------------------------------------------------------------------------------------------------


def revived(model: hm.HMoEVAE, usage: list[float]) -> list[str]:
    optimizer = torch.optim.Adam(model.parameters())
    return revive(model, optimizer, torch.tensor(usage), torch.Generator().manual_seed(0))


def test_a_revived_child_shares_its_siblings_samples(blobs: Tensor) -> None:
    model = model_of(hm.Mixture.of(LEAF, 3, gate=LAYER))
    silence(model, 0, 2)
    before = model.predict_proba(blobs)
    usage = before.mean(0)
    assert revived(model, usage.tolist()) == ["root/2"]
    after = model.predict_proba(blobs)
    donor, other = (0, 1) if usage[0] > usage[1] else (1, 0)
    torch.testing.assert_close(after[:, other], before[:, other], atol=0.02, rtol=0)
    torch.testing.assert_close(after[:, 2].mean(), usage[donor] / 2, atol=0.03, rtol=0)
    group = model.experts.groups[0]
    for parameter in group.parameters():
        copied, original = parameter[2], parameter[donor]
        apart = (copied - original).std() / original.std()
        assert 0 < apart < 0.3
        assert not torch.equal(parameter[other], original)


def test_several_dead_children_split_what_there_is() -> None:
    model = model_of(hm.Mixture.of(LEAF, 4, gate=LAYER))
    for child in (0, 2, 3):
        silence(model, 0, child)
    assert revived(model, [0.0, 1.0, 0.0, 0.0]) == ["root/0", "root/2", "root/3"]
    usage = model.predict_proba(torch.rand(100, N_FEATURES)).mean(0)
    torch.testing.assert_close(usage, torch.full((4,), 0.25), atol=0.05, rtol=0)


def test_revival_in_a_tree_of_unequal_nodes(blobs: Tensor) -> None:
    model = model_of()
    silence(model, 0, 1)  # the inner mixture: equal leaves stand beside it
    silence(model, 0, 2)  # a leaf like no other: its weights are its own
    alone = [p.clone() for p in model.experts.groups[1].parameters()]
    assert revived(model, [1.0, 0.0, 0.0, 0.0]) == ["root/1", "root/2"]
    model.eval()
    assert model.predict_proba(blobs, level=1).mean(0).min() > 0.1
    for parameter in model.experts.groups[0].parameters():
        assert (parameter[1:] - parameter[0]).std() < 0.2 * parameter[0].std()
    assert all(torch.equal(a, b) for a, b in zip(alone, model.experts.groups[1].parameters(), strict=True))


def test_a_dead_child_is_not_its_own_donor(blobs: Tensor) -> None:
    """One with several leaves may be dead with more samples than a sibling of one leaf has that is alive."""
    inner = hm.Mixture(children=(hm.Mixture.of(LEAF, 100, gate=LAYER), LEAF), gate=LAYER)
    model = model_of(hm.Mixture(children=(inner, LEAF), gate=LAYER))
    big = [0.0095] * 100  # dead together, below a hundredth of what is due
    n = model.plan.n_leaves
    usage = [share / n for share in (*big, 0.5, n - 0.5 - sum(big))]
    layer, place = last_layer(model, 1)
    before = layer.bias[place, 1].item()
    assert revived(model, usage) == ["root/0/0"]
    assert layer.bias[place].tolist() == [pytest.approx(before - math.log(2))] * 2  # the living one gives half


def test_a_leaf_like_no_other_keeps_its_weights_while_it_lives() -> None:
    other = hm.VAE(latent_dim=3, encoder=hm.MLP((4,)), decoder=hm.MLP((4,)))
    inner = hm.Mixture(children=(other, LEAF, LEAF), gate=LAYER)
    model = model_of(hm.Mixture(children=(inner, LEAF), gate=LAYER))
    before = [p.clone() for p in model.experts.groups[0].parameters()]
    assert revived(model, [0.0074, 0.0, 0.0, 0.9926]) == ["root/0"]
    assert all(torch.equal(a, b) for a, b in zip(before, model.experts.groups[0].parameters(), strict=True))


def test_revival_copies_the_prior_and_the_optimisers_state(blobs: Tensor) -> None:
    model = model_of(hm.Mixture.of(LEAF, 3, gate=LAYER, prior="learned"))
    optimizer = torch.optim.Adam(model.parameters())
    model(blobs).loss.backward()
    optimizer.step()
    assert model.prior.logits is not None
    with torch.no_grad():
        model.prior.logits[:] = torch.tensor([0.0, 0.0, -20.0])
    assert revive(model, optimizer, torch.tensor([0.6, 0.4, 0.0]), torch.Generator()) == ["root/2"]
    torch.testing.assert_close(model.prior.leaf_log_prob().exp(), torch.tensor([0.25, 0.5, 0.25]))
    for parameter in model.experts.parameters():
        moments = optimizer.state[parameter]
        assert torch.equal(moments["exp_avg"][2], moments["exp_avg"][0])
        assert not torch.equal(moments["exp_avg"][2], moments["exp_avg"][1])


def test_nothing_dead_nothing_done() -> None:
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert revived(model, [0.25] * 4) == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("tree", [hm.Mixture.of(LEAF, 4, gate=LAYER), hm.Mixture.of(hm.Mixture.of(LEAF, 2), 2)])
def test_a_collapsed_run_is_mended(blobs: Tensor, tree: hm.Mixture) -> None:
    """One leaf has everything when training begins, and without revival also when it ends."""
    tree = tree_with(tree, hm.Balance("kl", 0.0))

    def trained(*, revive: bool) -> hm.History:
        model = model_of(tree)
        for mixture in range(len(model.plan.mixtures)):
            for child in range(1, len(model.plan.mixtures[mixture].spec.children)):
                silence(model, mixture, child)
        return quiet_fit(model, blobs, epochs=40, lr=1e-2, revive=revive)

    with pytest.warns(DeadLeafWarning):
        collapsed = trained(revive=False)
    assert "revived" not in collapsed.columns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeadLeafWarning)  # undecided gates may still give some leaf no sample
        warnings.filterwarnings("error", "usage: expected a share", DeadLeafWarning)
        mended = trained(revive=True)
    assert mended["revived"][0] > 0
    assert mended["elbo"][-1] < collapsed["elbo"][-1]


def tree_with(tree: hm.Mixture, balance: hm.Balance) -> hm.Mixture:
    return hm.Mixture(children=tree.children, gate=tree.gate, balance=balance)


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_the_best_of_several_trainings_is_kept(blobs: Tensor) -> None:
    made = {}

    def train(seed: int) -> tuple[hm.HMoEVAE, hm.History]:
        made[seed] = model_of(seed=seed), hm.History([{"epoch": 1}])
        return made[seed]

    best = hm.best_of(train, blobs, seeds=[3, 1, 2])
    expected = {
        seed: model.evaluate(blobs, generator=torch.Generator().manual_seed(0))["elbo"]
        for seed, (model, _) in made.items()
    }
    assert list(best.losses) == [3, 1, 2]
    assert best.losses == pytest.approx(expected, rel=1e-6)
    assert best.seed == min(expected, key=expected.__getitem__)
    assert (best.model, best.history) == made[best.seed]
    assert not best.interrupted


def test_restarts_end_with_ctrl_c(blobs: Tensor) -> None:
    def train(seed: int) -> tuple[hm.HMoEVAE, hm.History]:
        return model_of(seed=seed), hm.History(interrupted=seed == 1)

    best = hm.best_of(train, blobs)
    assert list(best.losses) == [0, 1]
    assert best.interrupted


def test_restarts_refuse_what_cannot_be_compared(blobs: Tensor) -> None:
    def train(seed: int) -> tuple[hm.HMoEVAE, hm.History]:
        model = model_of(seed=seed)
        with torch.no_grad():
            next(model.experts.parameters()).fill_(math.nan)
        return model, hm.History()

    with pytest.raises(NonFiniteError, match=r"loss: expected a finite loss after the last step, got nan"):
        hm.best_of(train, blobs)
    with pytest.raises(ArgumentError, match=r"seeds: expected at least one, got none"):
        hm.best_of(train, blobs, seeds=[])


@pytest.mark.usefixtures("as_users_call")
def test_restarts_name_what_they_cannot_use(blobs: Tensor) -> None:
    model = model_of()
    for returned, got in ((model, "HMoEVAE"), (None, "NoneType"), ((hm.History(), model), "tuple")):
        with pytest.raises(ArgumentTypeError) as caught:
            hm.best_of(lambda seed, returned=returned: returned, blobs)
        expected = "a function that returns a model and its history"
        assert str(caught.value) == f"train: expected {expected}, got {got} from it"
    with pytest.raises(ArgumentTypeError, match=r"seeds: expected seeds, such as range\(4\), got 4"):
        hm.best_of(lambda seed: (model, hm.History()), blobs, seeds=4)
