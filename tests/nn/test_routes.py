"""Routes as data: packing goes round, routed passes equal dense ones, values and gradients, and bounds stay bounds."""

import math

import hypothesis
import pytest
import torch
from conftest import build, data_for
from hypothesis import strategies as st
from networks import Laplace, Residual
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError
from hmoevae.nn.posteriors import Draw
from hmoevae.nn.routes import ALL, ROW_COST, Given, TopK, pack, packing, restricted, unpack

NET, CONV = hm.MLP((6,), "tanh"), hm.Conv((2, 4), 3, 2, (4,), "tanh", norm_groups=2)
SHAPE = (1, 5, 6)
DENSE = hm.VAE(2, NET, NET)
TREES = {
    "dense": hm.Mixture.of(DENSE, 4, gate=NET),
    "convolutional": hm.Mixture.of(hm.VAE(3, CONV, CONV.transpose()), 3, gate=CONV),
    "a user's": hm.Mixture.of(hm.VAE(2, Residual(), Residual(5)), 3, gate=Residual()),
    "learned scales": hm.Mixture.of(hm.VAE(2, NET, NET, hm.Gaussian("learned", "identity")), 3, gate=NET),
    "mixed": hm.Mixture(
        (
            hm.VAE(3, CONV, CONV.transpose()),
            hm.Mixture((DENSE, hm.VAE(1, Residual(), Residual(), Laplace()), hm.VAE(4, NET, NET)), gate=NET),
            DENSE,
        ),
        gate=Residual(),
        prior="learned",
    ),
}
each_tree = pytest.mark.parametrize("name", TREES)


# --- packing ----------------------------------------------------------------------------------------------------------


@st.composite
def loads(draw: st.DrawFn) -> tuple[list[int], int]:
    """Experts of pairs, often most of them the same, and how many experts there are."""
    n_experts = draw(st.integers(1, 40))
    expert = st.integers(0, n_experts - 1)
    pool = draw(st.lists(expert, min_size=1, max_size=4))
    return draw(st.lists(st.sampled_from(pool) | expert, min_size=1, max_size=60)), n_experts


@hypothesis.given(loads())
@hypothesis.settings(max_examples=100)
def test_packing_goes_round(load: tuple[list[int], int]) -> None:
    """Every pair lies alone in a place of its own expert's, and is found there; padding is bounded."""
    experts, n_experts = load
    expert, n = torch.tensor(experts), len(experts)
    packed = packing(expert, n_experts)
    rows, columns = packed.shape
    of_row = packed.experts.rows
    assert torch.equal(of_row[packed.row], expert)
    assert len(of_row) == rows
    assert len(set(zip(packed.row.tolist(), packed.column.tolist(), strict=True))) == n
    assert int(packed.row.max()) < rows
    assert int(packed.column.max()) < columns
    values = torch.arange(3.0 * n).reshape(n, 3)
    laid = pack(values, packed, fill=-1.0)
    assert laid.shape == (rows, 3, columns)
    assert torch.equal(unpack(laid, packed), values)
    assert int((laid == -1).sum()) == 3 * (rows * columns - n)
    assert rows * columns <= (1 + ROW_COST) * n


def test_uneven_loads_split_the_rows() -> None:
    """One expert of fifty has nearly all: it runs in several rows, and those with nothing in none."""
    expert = torch.tensor([7] * 60 + [3, 41, 42, 43, 44, 45, 46, 46])
    packed = packing(expert, 50)
    assert packed.experts.rows.tolist() == [3, 7, 41, 42, 43, 44, 45, 46, *[7] * 29]
    assert packed.shape == (37, 2)
    even = packing(torch.arange(50), 50)
    assert even.experts.is_all(50)
    assert even.shape == (50, 1)


def test_packing_passes_gradients_on() -> None:
    packed = packing(torch.tensor([1, 0, 1, 1]), 2)
    values = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: unpack(pack(v, packed).square(), packed), (values,))


# --- routed passes ----------------------------------------------------------------------------------------------------


def model_of(name: str, objective: str = "elbo") -> hm.HMoEVAE:
    return build(TREES[name], SHAPE, objective=objective)


def samples(name: str, n: int = 7) -> Tensor:
    return data_for(TREES[name], SHAPE, n)


def estimates(model: hm.HMoEVAE, x: Tensor, leaf: Tensor | None) -> Tensor:
    """ELBOs of all leaves, or of some, each of a sample's leaves with the same noise in both."""
    flat = x.flatten(1).t()
    noise = torch.randn(model.plan.n_leaves, model.experts.latent_dim, len(x), generator=seeded(), dtype=x.dtype)
    if leaf is None:
        groups = zip(model.plan.expert_groups, model.experts.groups, strict=True)
        drawn = [noise[list(group.members), : own.latent_dim] for group, own in groups]
    else:
        drawn = [noise.gather(0, leaf.unsqueeze(1).expand(-1, noise.shape[1], -1))]
    return model.experts.estimates(flat, drawn, of=Draw.log_weight, leaf=leaf)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@each_tree
def test_the_best_n_of_n_are_all_gradients_included(name: str) -> None:
    """For every parameter of experts, gates and prior."""
    x = samples(name)
    found: list[dict[str, Tensor]] = []
    for routed in (False, True):
        model = model_of(name)
        edges = model.gates(x.flatten(1).t())
        log_prob = model.paths.leaf_log_prob(edges)
        leaf = log_prob.topk(model.plan.n_leaves, dim=0).indices if routed else None
        elbo = estimates(model, x, leaf)
        log_prior = model.prior.leaf_log_prob()
        of_slots = log_prior.unsqueeze(1) if leaf is None else log_prior[leaf]
        q = restricted(log_prob, leaf)
        loss = -(q.exp() * (elbo + of_slots - q)).sum(0).mean()
        loss.backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        found.append(gradients | {"loss": loss.detach()})
    assert len(found[0]) > 8
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, msg=lambda text, key=key: f"{key}: {text}")
        assert key in ("loss",) or value.abs().sum() > 0


@each_tree
@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
def test_given_leaves_get_the_dense_values_and_gradients(name: str, uneven: bool) -> None:
    """Several slots a sample, also where nearly all samples are one expert's, whose rows are split."""
    model, x = model_of(name), samples(name, 40)
    n_leaves = model.plan.n_leaves
    leaf = torch.stack([torch.arange(40) % n_leaves, (torch.arange(40) + 1) % n_leaves])
    if uneven:
        leaf[:, 3:] = torch.tensor([[n_leaves - 1], [0]])
    dense = estimates(model, x, None).gather(0, leaf)
    expected = torch.autograd.grad(dense.sum(), list(model.experts.parameters()))
    routed = estimates(model, x, leaf)
    torch.testing.assert_close(routed, dense)
    for found, value in zip(torch.autograd.grad(routed.sum(), list(model.experts.parameters())), expected, strict=True):
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize("expert", [DENSE, hm.VAE(3, CONV, CONV.transpose())], ids=["dense", "convolutional"])
def test_a_busy_expert_among_many_is_split_in_a_model(expert: hm.VAE) -> None:
    """Of fifty experts, one has nearly all of the samples."""
    model = build(hm.Mixture.of(expert, 50, gate=NET), SHAPE)
    x = data_for(model.tree, SHAPE, 66)
    leaf = torch.tensor([[7] * 60 + [3, 3, 41, 42, 43, 44]])
    chosen = packing(leaf[0], 50).experts
    assert len(chosen) > len(chosen.distinct)
    dense, routed = estimates(model, x, None).gather(0, leaf), estimates(model, x, leaf)
    torch.testing.assert_close(routed, dense)
    parameters = list(model.experts.parameters())
    pairs = zip(*(torch.autograd.grad(out.sum(), parameters) for out in (routed, dense)), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found.to_dense(), expected)


@each_tree
@pytest.mark.parametrize("objective", ["elbo", "marginal"])
def test_bounds_over_chosen_leaves_are_bounds(name: str, objective: str) -> None:
    """Restricted q with the best leaves, and a sum over some: never more than the sum over all leaves."""
    model, x = model_of(name, objective), samples(name, 20)
    elbo, log_prior = estimates(model, x, None), model.prior.leaf_log_prob().unsqueeze(1)
    evidence = (elbo + log_prior).logsumexp(0).mean()
    for k in range(1, model.plan.n_leaves + 1):
        leaf = model.route(x).t().topk(k, dim=0).indices
        chosen, prior = elbo.gather(0, leaf), log_prior.squeeze(1)[leaf]
        q = restricted(model.route(x).t(), leaf)
        torch.testing.assert_close(q.exp().sum(0), torch.ones(20).double())
        bound = (chosen + prior).logsumexp(0) if objective == "marginal" else (q.exp() * (chosen + prior - q)).sum(0)
        assert bound.mean() <= evidence + 1e-9


@each_tree
def test_a_pass_of_the_model_over_given_leaves(name: str) -> None:
    """Its loss is that of the leaves in its slots."""
    model, x = model_of(name), samples(name, 9)
    leaf = torch.stack([torch.arange(9) % 3, (torch.arange(9) + 2) % 3])
    out = model(x, settings=hm.StepSettings(routes=Given(leaf)), generator=seeded())
    assert torch.equal(out.leaf, leaf.t())
    q = out.leaf_log_prob.gather(1, out.leaf).log_softmax(1)
    log_prior = model.prior.leaf_log_prob()[out.leaf]
    expected = -(q.exp() * (out.leaf_elbo + log_prior - q)).sum(1).mean()
    torch.testing.assert_close(out.terms["elbo"], expected)
    one = model(x, settings=hm.StepSettings(routes=Given(leaf[0])), generator=seeded())
    assert one.leaf_elbo.shape == (9, 1)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_users_call")
def test_errors() -> None:
    with pytest.raises(ArgumentError, match=r"^TopK.k: expected an integer > 0, got 0"):
        TopK(0)
    with pytest.raises(ArgumentTypeError, match=r"^Given.leaf: expected a tensor of integers .*, got torch.float32"):
        Given(torch.zeros(3))
    with pytest.raises(ArgumentError, match=r"^Given.leaf: expected \(batch,\) or \(slot, batch\), got \(1, 1, 1\)"):
        Given(torch.zeros(1, 1, 1, dtype=torch.long))
    with pytest.raises(ArgumentError, match=r"^routes: expected ALL, TopK\(...\) or Given\(...\), got 3"):
        hm.StepSettings(routes=3)
    model, x = model_of("dense"), samples("dense")
    for leaf, words in (
        (torch.tensor([0, 1]), "leaves of 7 samples, got of 2"),
        (torch.full((7,), 4), "indices from 0 to 3, got 4 to 4"),
        (torch.full((7,), -1), "indices from 0 to 3, got -1 to -1"),
    ):
        with pytest.raises(ArgumentError, match=rf"^Given.leaf: expected {words}"):
            model(x, settings=hm.StepSettings(routes=Given(leaf)))


def test_what_slots_there_are() -> None:
    assert (ALL.n_slots(5), TopK(3).n_slots(5), TopK(9).n_slots(5)) == (None, 3, None)
    assert Given(torch.zeros(2, 4, dtype=torch.long)).n_slots(5) == 2
    log_prob = torch.tensor([[0.1, 0.7], [0.6, 0.2], [0.3, 0.1]]).log()
    assert TopK(2).leaves(log_prob).tolist() == [[1, 0], [2, 1]]
    assert math.isclose(restricted(log_prob, TopK(1).leaves(log_prob)).abs().sum().item(), 0, abs_tol=1e-6)


@pytest.mark.usefixtures("as_users_call")
def test_leaves_that_are_no_tensor_none_or_twice_a_samples_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"^Given.leaf: expected a tensor of integers \(torch.long\), got list"):
        Given([0, 1])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^Given.leaf: expected \(batch,\) or \(slot, batch\), got \(0, 3\)"):
        Given(torch.zeros(0, 3, dtype=torch.long))
    with pytest.raises(ArgumentError, match=r"^Given.leaf: expected each leaf at most once a sample, got one twice"):
        Given(torch.tensor([[0, 1], [2, 0], [0, 2]])).leaves(torch.zeros(3, 2))


@pytest.mark.usefixtures("as_users_call")
def test_settings_are_a_record_that_can_be_hashed() -> None:
    model, x = build(TREES["dense"], SHAPE).float(), torch.rand(3, *SHAPE)
    for run in (model, lambda x, **how: model.agree(x, x, **how)):
        with pytest.raises(ArgumentTypeError, match=r"^settings: expected a StepSettings\(...\), got {'kl_weight': 1}"):
            run(x, settings={"kl_weight": 1})
    assert hash(hm.StepSettings(agreement_levels=[1])) == hash(hm.StepSettings(agreement_levels=(1,)))
