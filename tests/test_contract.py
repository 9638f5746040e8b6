"""What every model must do, whatever its tree: one tree of each sort."""

import copy
import math
from pathlib import Path

import pytest
import torch
from conftest import build, data_for
from networks import Laplace, Residual
from torch import Tensor

import hmoevae as hm
from hmoevae.nn.routes import Given, TopK
from hmoevae.spec import Tree

NET, GATE = hm.MLP((6,), "tanh"), hm.MLP((5,), "tanh")


def leaf(latent_dim: int = 2, likelihood: object = None, net: hm.MLP = NET) -> hm.VAE:
    return hm.VAE(latent_dim, net, net, likelihood or hm.Gaussian())


EXACT = hm.VAE(2, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian(0.5, "identity"))
NUMBER = hm.Gaussian("learned", "identity")
COLUMNS = hm.Columns.of(NUMBER, hm.Ordinal(3), hm.LogNormal(), NUMBER, hm.Poisson())
SORTS: dict[str, tuple[Tree, tuple[int, ...], str]] = {
    "lone leaf": (leaf(3), (4,), "elbo"),
    "flat": (hm.Mixture.of(leaf(), 4, gate=GATE), (4,), "expected"),
    "flat, linear": (hm.Mixture.of(leaf(net=hm.MLP(())), 3, gate=hm.MLP(())), (2, 2), "expected"),
    "two levels": (hm.Mixture.of(hm.Mixture.of(leaf(), 2, gate=GATE), 3, gate=GATE), (2, 2), "expected"),
    "unequal": (
        hm.Mixture(
            (leaf(1), hm.Mixture((leaf(3), hm.Mixture.of(leaf(1), 2, gate=GATE)), gate=GATE), leaf(3)), gate=GATE
        ),
        (4,),
        "elbo",
    ),
    "learned prior": (hm.Mixture.of(leaf(), 3, gate=GATE, prior="learned"), (4,), "elbo"),
    "learned below": (
        hm.Mixture.of(hm.Mixture.of(leaf(), 2, gate=GATE, prior="learned"), 2, gate=GATE),
        (4,),
        "marginal",
    ),
    "marginal": (hm.Mixture.of(leaf(), 3, gate=GATE), (4,), "marginal"),
    "convolutional gates": (
        hm.Mixture.of(
            hm.Mixture.of(leaf(), 2, gate=hm.Conv((2,), 3, 1, (), "tanh", 1)),
            2,
            gate=hm.Conv((2, 3), 3, 2, (4,), "tanh"),
        ),
        (1, 5, 6),
        "expected",
    ),
    "bernoulli": (hm.Mixture.of(leaf(2, hm.Bernoulli()), 3, gate=GATE), (4,), "expected"),
    "continuous bernoulli": (hm.Mixture.of(leaf(2, hm.ContinuousBernoulli()), 3, gate=GATE), (4,), "expected"),
    "identity": (hm.Mixture.of(leaf(2, hm.Gaussian(1.0, "identity")), 3, gate=GATE), (4,), "expected"),
    "mixed likelihoods": (
        hm.Mixture((leaf(2, hm.Bernoulli()), leaf(2, hm.ContinuousBernoulli()), leaf(2)), gate=GATE),
        (4,),
        "elbo",
    ),
    "convolutional experts": (
        hm.Mixture.of(
            hm.VAE(2, hm.Conv((2, 3), 3, 2, (4,), "tanh", 1), hm.Conv((2, 3), 3, 2, (4,), "tanh").transpose()), 3
        ),
        (1, 5, 6),
        "expected",
    ),
    "a user's networks": (
        hm.Mixture.of(hm.Mixture.of(hm.VAE(2, Residual(), Residual(5)), 2, gate=Residual()), 2, gate=Residual(4)),
        (1, 2, 3),
        "elbo",
    ),
    "a user's likelihood": (hm.Mixture.of(leaf(2, Laplace()), 3, gate=GATE), (2, 2), "marginal"),
    "a user's networks and likelihood": (
        hm.Mixture.of(hm.VAE(2, Residual(), Residual(), Laplace()), 3, gate=Residual()),
        (4,),
        "expected",
    ),
    "learned scales": (hm.Mixture.of(leaf(2, hm.Gaussian("learned", "identity")), 3, gate=GATE), (4,), "elbo"),
    "counts given their total": (
        hm.Mixture.of(leaf(2, hm.ZeroInflated(hm.NegativeBinomial(total=3))), 3, gate=GATE),
        (2, 2),
        "elbo",
    ),
    "categories": (hm.Mixture.of(leaf(2, hm.Categorical(3)), 3, gate=GATE), (2, 2), "marginal"),
    "columns": (hm.Mixture.of(hm.Mixture.of(leaf(2, COLUMNS), 2, gate=GATE), 2, gate=GATE), (5,), "elbo"),
    "exact posteriors": (
        hm.Mixture.of(hm.VAE(2, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity")), 3, gate=GATE),
        (4,),
        "elbo",
    ),
    "posterior gates": (
        hm.Mixture.of(
            hm.VAE(2, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity")),
            3,
            gate=hm.PosteriorGate(),
            prior="learned",
        ),
        (4,),
        "marginal",
    ),
    "posterior gates below and above others": (
        hm.Mixture(
            (
                hm.Mixture.of(EXACT, 2, gate=hm.PosteriorGate()),
                hm.Mixture((hm.Mixture.of(EXACT, 2, gate=GATE), EXACT), gate=hm.PosteriorGate()),
                leaf(),
            ),
            gate=GATE,
        ),
        (4,),
        "elbo",
    ),
    "balanced by cv2": (hm.Mixture.of(leaf(), 3, gate=GATE, balance=hm.Balance("cv2", 1.0)), (4,), "expected"),
    "balanced by kl": (
        hm.Mixture.of(leaf(), 3, gate=GATE, balance=hm.Balance("kl", 1.0), prior="learned"),
        (4,),
        "elbo",
    ),
}
BATCH = 6


@pytest.fixture(params=SORTS.values(), ids=SORTS)
def model(request: pytest.FixtureRequest) -> hm.HMoEVAE:
    tree, shape, objective = request.param
    return build(tree, shape, objective=objective).float()


@pytest.fixture
def x(model: hm.HMoEVAE) -> Tensor:
    return data_for(model.tree, model.input_shape, BATCH).float()


def loss_of(model: hm.HMoEVAE, x: Tensor) -> Tensor:
    """The loss with fixed draws of z."""
    return model(x, generator=torch.Generator().manual_seed(0)).loss


def test_shapes_and_types(model: hm.HMoEVAE, x: Tensor) -> None:
    plan, latent = model.plan, max(leaf.spec.latent_dim for leaf in model.plan.leaves)
    out = model(x)
    found = {
        "loss": out.loss,
        "leaf_elbo": out.leaf_elbo,
        "leaf_log_prob": out.leaf_log_prob,
        "edge_log_prob": out.edge_log_prob,
        "route": model.route(x),
        "predict_proba": model.predict_proba(x),
        "encode": model.encode(x),
        "reconstruct": model.reconstruct(x),
        "sample": model.sample(3),
        "observe": model.sample(3, observe=True),
        "score_samples": model.score_samples(x, n_importance=2),
        "decode": model.decode(torch.zeros(plan.n_leaves, latent), torch.arange(plan.n_leaves)),
    }
    expected = {
        "loss": (),
        "leaf_elbo": (BATCH, plan.n_leaves),
        "leaf_log_prob": (BATCH, plan.n_leaves),
        "edge_log_prob": (BATCH, plan.n_edges),
        "route": (BATCH, plan.n_leaves),
        "predict_proba": (BATCH, plan.n_leaves),
        "encode": (BATCH, latent),
        "reconstruct": x.shape,
        "sample": (3, *model.input_shape),
        "observe": (3, *model.input_shape),
        "score_samples": (BATCH,),
        "decode": (plan.n_leaves, *model.input_shape),
    }
    assert {name: tuple(value.shape) for name, value in found.items()} == {k: tuple(v) for k, v in expected.items()}
    for name, value in found.items():
        assert value.dtype == torch.float32, name
        assert torch.isfinite(value).all(), name
    torch.testing.assert_close(out.loss, sum(out.terms.values()))
    assert model.predict(x).dtype == torch.int64
    assert all(isinstance(v, float) and math.isfinite(v) for v in model.evaluate(x).values())


def test_every_parameter_of_every_network_gets_a_gradient(model: hm.HMoEVAE, x: Tensor) -> None:
    """Not only every tensor: every expert's and every gate's own slice of it."""
    loss_of(model, x).backward()
    learned = torch.tensor([plan_node.spec.prior == "learned" for plan_node in edge_owners(model)])
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        if name == "prior.logits":
            assert torch.equal(gradient != 0, learned)
        else:
            assert (gradient.reshape(len(gradient), -1).abs().sum(1) > 0).all(), name


def test_the_law_of_places(model: hm.HMoEVAE) -> None:
    """Each parameter and buffer of a group has the group axis first: row r is the node."""
    plan = model.plan
    pairs = [*zip(model.experts.groups, plan.expert_groups, strict=True)]
    pairs += [*zip(model.gates.groups, plan.gate_groups, strict=True)]
    for module, group in pairs:
        tensors = [*module.named_parameters(), *module.named_buffers()]
        assert tensors
        assert {name: len(tensor) for name, tensor in tensors} == {name: len(group.members) for name, _ in tensors}
    for i, leaf in enumerate(plan.leaves):
        assert plan.expert_groups[leaf.place.group].members[leaf.place.row] == i
    for i, mixture in enumerate(plan.mixtures):
        assert plan.gate_groups[mixture.place.group].members[mixture.place.row] == i


def test_row_r_is_the_node(model: hm.HMoEVAE, x: Tensor) -> None:
    """Whoever changes the rows of a leaf changes that leaf, and no other one."""
    before = model(x, generator=torch.Generator().manual_seed(0)).leaf_elbo
    for i, leaf in enumerate(model.plan.leaves):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in twin.experts.groups[leaf.place.group].parameters():
                parameter[leaf.place.row] += 0.3
        after = twin(x, generator=torch.Generator().manual_seed(0)).leaf_elbo
        changed = (after != before).any(0)
        assert changed.nonzero().flatten().tolist() == [i]


def test_routes_give_the_numbers_of_the_dense_pass(model: hm.HMoEVAE, x: Tensor) -> None:
    """With the same noise, here none, the ELBOs of chosen leaves are those of the dense pass."""
    n_leaves = model.plan.n_leaves
    inputs = model.prepare(x)
    zero = inputs._replace(noise=[torch.zeros_like(noise) for noise in inputs.noise])
    dense = model.compute(zero)
    for routes in (TopK(1), TopK(min(2, n_leaves)), Given(torch.arange(BATCH) % n_leaves)):
        settings = hm.StepSettings(routes=routes)
        inputs = model.prepare(x, settings=settings)
        zero = inputs._replace(noise=[torch.zeros_like(noise) for noise in inputs.noise])
        routed = model.compute(zero, settings)
        is_dense = routes.n_slots(n_leaves) is None
        assert (routed.leaf is None) == is_dense
        expected = dense.leaf_elbo if is_dense else dense.leaf_elbo.gather(1, routed.leaf)
        torch.testing.assert_close(routed.leaf_elbo, expected, rtol=1e-4, atol=1e-4)
        routed.loss.backward()
        assert all(torch.isfinite(p.grad.to_dense()).all() for p in model.parameters() if p.grad is not None)


def edge_owners(model: hm.HMoEVAE) -> list:
    """The mixture that each edge leaves from."""
    return [model.plan.mixtures[m] for m in model.plan.edge_mixture]


def test_saving_and_loading(model: hm.HMoEVAE, x: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = hm.HMoEVAE.from_pretrained(tmp_path)
    assert (loaded.tree, loaded.input_shape, loaded.objective) == (model.tree, model.input_shape, model.objective)
    assert loaded.missing == model.missing
    assert torch.equal(loss_of(loaded, x), loss_of(model, x))


def test_state_dict_goes_round(model: hm.HMoEVAE, x: Tensor) -> None:
    """Into a model with other weights, which it then equals."""
    other = build(model.tree, model.input_shape, objective=model.objective, seed=1, missing=model.missing).float()
    assert not torch.equal(loss_of(other, x), loss_of(model, x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(loss_of(other, x), loss_of(model, x))


def test_deepcopy_shares_nothing(model: hm.HMoEVAE, x: Tensor) -> None:
    before = loss_of(model, x)
    twin = copy.deepcopy(model)
    assert torch.equal(loss_of(twin, x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert torch.equal(loss_of(model, x), before)
    assert not torch.equal(loss_of(twin, x), before)
    assert twin.tree == model.tree


def test_repr(model: hm.HMoEVAE) -> None:
    text = repr(model)
    assert text.startswith("HMoEVAE(")
    drawn = [line.strip() for line in text.splitlines()]
    assert all(line.strip() in drawn for line in str(model.tree).splitlines())
    assert f"objective={model.objective!r}, leaves={model.plan.n_leaves}, " in text


def test_double_precision(model: hm.HMoEVAE, x: Tensor) -> None:
    """Everything follows the parameters, tables and priors included; the answers agree to single precision."""
    twin = copy.deepcopy(model).double()
    out = twin(x.double(), generator=torch.Generator().manual_seed(0))
    for value in (out.loss, *out.terms.values(), out.leaf_elbo, out.leaf_log_prob, out.edge_log_prob):
        assert value.dtype == torch.float64
    torch.testing.assert_close(twin.predict_proba(x.double()).float(), model.predict_proba(x))
    torch.testing.assert_close(twin.reconstruct(x).float(), model.reconstruct(x))
    for value in (twin.sample(2), twin.sample(2, observe=True), twin.score_samples(x, n_importance=2), twin.encode(x)):
        assert value.dtype == torch.float64
    out.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float64 for p in twin.parameters())


def test_training_lowers_the_loss(model: hm.HMoEVAE, x: Tensor) -> None:
    first = loss_of(model, x).item()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(8):
        optimiser.zero_grad()
        loss_of(model, x).backward()
        optimiser.step()
    assert loss_of(model, x).item() < first


def test_training_under_bfloat16_autocast(model: hm.HMoEVAE, x: Tensor) -> None:
    """Sums, probabilities, parameters and gradients stay in float32, and the loss is that of float32 to 1 %."""
    expected = loss_of(model, x).item()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x, generator=torch.Generator().manual_seed(0))
        for value in (out.loss, *out.terms.values(), out.leaf_elbo, out.leaf_log_prob, out.edge_log_prob):
            assert value.dtype == torch.float32
        assert torch.isfinite(out.loss)
        if step == 0:
            assert out.loss.item() == pytest.approx(expected, rel=0.01, abs=0.02)
            with torch.autocast("cpu", torch.bfloat16):
                for group in model.experts.groups:  # exp, log and the sums of the KL are taken of these
                    posterior = group.posterior(x.flatten(1).t())
                    assert posterior.mean.dtype == posterior.variance.dtype == torch.float32
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter).all(), name


def test_evaluation_under_bfloat16_autocast(model: hm.HMoEVAE, x: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        results = (model.predict_proba(x), model.encode(x), model.reconstruct(x), model.sample(2, observe=True))
        results += (model.score_samples(x, n_importance=2),)
        probability = results[0]
        evaluated = model.evaluate(x)
    for value in results:
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
    torch.testing.assert_close(probability.sum(1), torch.ones(BATCH))
    assert all(math.isfinite(v) for v in evaluated.values())


def test_inference_mode(model: hm.HMoEVAE, x: Tensor) -> None:
    with torch.inference_mode():
        assert torch.isfinite(model(x).loss)
        assert torch.isfinite(model.reconstruct(x)).all()
