"""Views: what they do to samples, what fit does with them, and agreement as fit runs it."""

import functools
import math
from dataclasses import replace

import conftest
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, MissingExtraError, ShapeError
from hmoevae.views import Compose, Neighbour, RandomAffine, View, _affine, as_view

SHAPE = (1, 8, 6)
TREE = hm.Mixture.of(hm.VAE(2, hm.MLP((8,)), hm.MLP((8,))), 3, gate=hm.MLP((8,)), balance=hm.Balance("kl", 1.0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x():
    return torch.rand(40, *SHAPE, generator=seeded())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return hm.HMoEVAE(TREE, SHAPE)


fit = functools.partial(conftest.fit, epochs=2, batch_size=16)


# --- RandomAffine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("angle", "shift", "scale", "shear"),
    [(30, (0, 0), 1, 0), (0, (2, -1), 1, 0), (0, (0, 0), 1.3, 0), (0, (0, 0), 1, 20), (-25, (1, 2), 0.8, -15)],
    ids=["turned", "shifted", "scaled", "sheared", "all"],
)
def test_affine_is_torchvisions(angle, shift, scale, shear):
    image = torch.rand(2, 3, 9, 12, generator=seeded())
    expected = tv.affine(image, angle, list(shift), scale, [shear, 0.0], InterpolationMode.BILINEAR)
    amounts = (torch.full((2,), math.radians(angle)), torch.tensor(shift).float().unsqueeze(1).expand(2, 2))
    result = _affine(image, *amounts, torch.full((2,), float(scale)), torch.full((2,), math.radians(shear)))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_every_image_has_its_own_draw_from_the_generator(x, rng_untouched):
    same = x[:1].expand(5, *SHAPE)
    first, again, other = (RandomAffine()(same, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.flatten(1).unique(dim=0)) == 5


def test_no_change_asked_for_is_none(x):
    still = RandomAffine(degrees=0.0, translate=(0.0, 0.0), scale=(1.0, 1.0), shear=0.0)
    torch.testing.assert_close(still(x, generator=seeded()), x, rtol=0, atol=1e-5)


def test_shifts_reach_as_far_as_said():
    dot = torch.zeros(500, 1, 21, 21)
    dot[:, :, 10, 10] = 1
    moved = RandomAffine(degrees=0.0, translate=(0.2, 0.0), scale=(1.0, 1.0), shear=0.0)(dot, generator=seeded())
    mass = moved.sum(0).squeeze()
    assert mass.sum(1).nonzero().flatten().tolist() == [10]
    columns = mass.sum(0).nonzero().flatten()
    assert (columns.min().item(), columns.max().item()) == (5, 15)  # 0.2 * 21 = 4.2, spread over two pixels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"degrees": -1.0}, r"RandomAffine.degrees: expected an angle from 0 to 180, or two ascending ones, got -1.0"),
        ({"shear": 90.0}, r"RandomAffine.shear: expected an angle from 0 to 89, or two ascending ones, got 90.0"),
        ({"translate": (0.1, 2.0)}, r"RandomAffine.translate: expected two numbers from 0 to 1"),
        ({"scale": (0.0, 1.0)}, r"RandomAffine.scale: expected two ascending numbers > 0"),
        ({"scale": (1.2, 1.0)}, r"RandomAffine.scale: expected two ascending numbers > 0"),
        ({"degrees": (5, -5)}, r"RandomAffine.degrees: expected an angle .*, or two ascending ones, got \(5, -5\)"),
        (
            {"degrees": (-5, 5, 7)},
            r"RandomAffine.degrees: expected an angle .*, or two ascending ones, got \(-5, 5, 7\)",
        ),
        ({"degrees": (-200, 5)}, r"RandomAffine.degrees: expected an angle .*, or two ascending ones, got \(-200, 5\)"),
        ({"shear": "3"}, r"RandomAffine.shear: expected an angle from 0 to 89, or two ascending ones, got '3'"),
        ({"shear": math.nan}, r"RandomAffine.shear: expected an angle from 0 to 89, or two ascending ones, got nan"),
        ({"translate": 0.1}, r"RandomAffine.translate: expected two numbers from 0 to 1, got 0.1"),
        ({"translate": None}, r"RandomAffine.translate: expected two numbers from 0 to 1, got None"),
        ({"translate": ("0.1", "0.1")}, r"RandomAffine.translate: expected two numbers from 0 to 1"),
        ({"scale": 0.9}, r"RandomAffine.scale: expected two ascending numbers > 0, got 0.9"),
        ({"scale": (0.9, None)}, r"RandomAffine.scale: expected two ascending numbers > 0, got \(0.9, None\)"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_ranges_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        RandomAffine(**arguments)


def test_angles_lie_between_two_as_torchvisions_do():
    arrow = torch.zeros(300, 1, 41, 41)
    arrow[..., 20, 20:] = 1
    around = {"translate": (0.0, 0.0), "scale": (1.0, 1.0)}
    turned = RandomAffine(degrees=(10.0, 40.0), shear=0.0, **around)(arrow, generator=seeded())
    rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    angle = torch.atan2((turned * rows).sum((1, 2, 3)), (turned * columns).sum((1, 2, 3))).rad2deg()
    assert (angle.min().item(), angle.max().item()) == (pytest.approx(10, abs=1), pytest.approx(40, abs=1))
    plain, pair = RandomAffine(20.0, shear=7.0), RandomAffine((-20.0, 20.0), shear=(-7.0, 7.0))
    assert torch.equal(plain(arrow, generator=seeded()), pair(arrow, generator=seeded()))


def test_affine_views_are_for_images():
    with pytest.raises(ShapeError, match=r"x: expected images, .*got \(5, 7\)"):
        RandomAffine()(torch.rand(5, 7))
    with pytest.raises(ArgumentTypeError, match=r"x: expected floating point values .*, got torch.uint8"):
        RandomAffine()(torch.zeros(5, 1, 7, 7, dtype=torch.uint8))


# --- Neighbour ------------------------------------------------------------------------------------------------------


def test_neighbours_are_the_nearest_and_not_the_sample_itself(x, rng_untouched):
    """With all components kept, distances are those between the samples."""
    distance = torch.cdist(x.flatten(1), x.flatten(1)).fill_diagonal_(math.inf)
    nearest = distance.topk(3, largest=False).indices
    view = Neighbour(3).prepare(x)
    index = torch.arange(40).repeat(30)
    drawn = view(x[index], index=index, generator=seeded())
    which = torch.cdist(drawn.flatten(1), x.flatten(1)).argmin(1)
    for i in range(40):
        assert set(which[index == i].tolist()) == set(nearest[i].tolist())


def test_mutual_neighbours_have_each_other_among_theirs(x):
    distance = torch.cdist(x.flatten(1), x.flatten(1)).fill_diagonal_(math.inf)
    nearest = distance.topk(3, largest=False).indices.tolist()
    view = Neighbour(3, mutual=True).prepare(x)
    index = torch.arange(40).repeat(30)
    drawn = view(x[index], index=index, generator=seeded())
    which = torch.cdist(drawn.flatten(1), x.flatten(1)).argmin(1)
    some_stay = False
    for i in range(40):
        expected = {j if i in nearest[j] else i for j in nearest[i]}
        assert set(which[index == i].tolist()) == expected
        some_stay |= i in expected
    assert some_stay


def test_duplicates_are_each_others_neighbours():
    x = torch.rand(3, 4, generator=seeded()).repeat_interleave(2, 0)
    view = Neighbour(1).prepare(x)
    assert torch.equal(view(x, index=torch.arange(6), generator=seeded()), x)


def test_neighbour_asks_for_what_it_needs(x, monkeypatch):
    with pytest.raises(ArgumentError, match=r"Neighbour: expected prepare"):
        Neighbour()(x)
    with pytest.raises(ArgumentError, match=r"index: expected .* for Neighbour, got None"):
        Neighbour().prepare(x)(x)
    with pytest.raises(DataError, match=r"samples: expected more than 5 for Neighbour\(5\), got 4"):
        Neighbour().prepare(x[:4])
    with pytest.raises(ArgumentTypeError, match=r"data: expected a tensor or array in memory, for Neighbour"):
        Neighbour().prepare(None)
    with pytest.raises(ArgumentError, match=r"Neighbour.k: expected an integer > 0, got 0"):
        Neighbour(0)
    with pytest.raises(ArgumentError, match=r"Neighbour.mutual: expected True or False, got 1"):
        Neighbour(mutual=1)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.neighbors", None)
    with pytest.raises(MissingExtraError, match=r"Neighbour: expected scikit-learn \(in a clone: pip install"):
        Neighbour().prepare(x)


def test_views_compose_in_order(x):
    index = torch.arange(40)
    both = Compose([Neighbour(2), lambda samples: 1 - samples]).prepare(x)
    alone = Neighbour(2).prepare(x)
    torch.testing.assert_close(both(x, index=index, generator=seeded()), 1 - alone(x, index=index, generator=seeded()))


@pytest.mark.usefixtures("as_users_call")
def test_what_cannot_be_called_is_no_view():
    with pytest.raises(ArgumentTypeError, match=r"view: expected a View or a callable .*got int"):
        as_view(3)
    with pytest.raises(ArgumentTypeError, match=r"view: expected a View or a callable .*got the class RandomAffine"):
        as_view(RandomAffine)


# --- the model ------------------------------------------------------------------------------------------------------


def test_gates_see_the_view_and_experts_the_sample(model, x):
    view, other = x.flip(0), x.roll(1, 0) - 0.5  # a view may leave the support of a likelihood
    both = model(x, view=view, other_view=other, settings=hm.StepSettings(agreement_weight=0.3), generator=seeded())
    torch.testing.assert_close(both.leaf_log_prob, model(view).leaf_log_prob)
    torch.testing.assert_close(both.leaf_elbo, model(x, generator=seeded()).leaf_elbo)
    seen = model.route(view).exp()
    torch.testing.assert_close(both.terms["expected"], -(seen * both.leaf_elbo).sum(1).mean())
    with torch.no_grad():
        elsewhere = model.gates(other.flatten(1).t()).t().exp()
    torch.testing.assert_close(both.terms["agreement"], 0.3 * -(seen * elsewhere).sum(1).log().mean())
    usage = (seen.mean(0) + elsewhere.mean(0)) / 2
    torch.testing.assert_close(both.terms["balance"], (usage * (usage * 3).log()).sum())
    torch.testing.assert_close(both.loss, sum(both.terms.values()))
    assert list(both.terms) == ["expected", "agreement", "balance"]

    alone = model.agree(view, other, settings=hm.StepSettings(agreement_weight=0.3))
    assert list(alone.terms) == ["agreement", "balance"]
    for name, term in alone.terms.items():
        torch.testing.assert_close(term, both.terms[name])
    alone.loss.backward()
    assert all(p.grad is None for p in model.experts.parameters())
    assert all(p.grad is not None for p in model.gates.parameters())


GATE = hm.MLP((8,))
LEAF = hm.VAE(2, hm.MLP((8,)), hm.MLP((8,)))
BALANCE = hm.Balance("kl", 20.0)
DEEP = {
    "alike": hm.Mixture.of(hm.Mixture.of(LEAF, 2, gate=GATE), 2, gate=GATE, balance=BALANCE),  # one group of gates
    "unlike": hm.Mixture.of(hm.Mixture.of(LEAF, 2, gate=GATE), 3, gate=hm.Conv((2,)), balance=BALANCE),
    "uneven": hm.Mixture((LEAF, hm.Mixture((LEAF, hm.Mixture.of(LEAF, 2, gate=GATE)), gate=GATE)), gate=GATE),
}


@pytest.mark.parametrize("name", DEEP)
def test_gates_below_the_last_level_see_the_sample(name, x):
    torch.manual_seed(0)
    model = hm.HMoEVAE(DEEP[name], SHAPE, objective="elbo")
    view, other = x.flip(0), x.roll(1, 0) - 0.5
    out = model(x, view=view, other_view=other, settings=hm.StepSettings(agreement_weight=0.3, agreement_levels=[1]))
    seen, elsewhere, own = (model.gates(images.flatten(1).t()) for images in (view, other, x))
    at_root = torch.tensor(model.plan.edge_mixture) == 0
    torch.testing.assert_close(out.edge_log_prob.t(), torch.where(at_root[:, None], seen, own))
    same = (seen[at_root] + elsewhere[at_root]).logsumexp(0)
    torch.testing.assert_close(out.terms["agreement"], -0.3 * same.mean())
    torch.testing.assert_close(
        model(x, view=view, settings=hm.StepSettings(agreement_levels=[1])).edge_log_prob, out.edge_log_prob
    )
    everywhere = model(x, view=view, other_view=other, settings=hm.StepSettings(agreement_weight=0.3))
    torch.testing.assert_close(everywhere.edge_log_prob, seen.t())
    levels = list(range(1, model.plan.depth + 1))
    given = model(
        x, view=view, other_view=other, settings=hm.StepSettings(agreement_weight=0.3, agreement_levels=levels)
    )
    torch.testing.assert_close(given.terms["agreement"], everywhere.terms["agreement"])

    alone = model.agree(view, other, settings=hm.StepSettings(agreement_weight=0.3, agreement_levels=[1]))
    torch.testing.assert_close(alone.terms["agreement"], out.terms["agreement"])
    torch.testing.assert_close(alone.edge_log_prob, seen.t())


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("levels", [(0, 1), (2, 1), (1, 1), (3,), (1.5,), 1, "1"])
def test_levels_that_the_tree_does_not_have(levels, x):
    model = hm.HMoEVAE(DEEP["unlike"], SHAPE)
    with pytest.raises(ArgumentError, match=r"agreement_levels: expected .*ascending levels from 1 to .* depth.*, got"):
        model(x, view=x, other_view=x, settings=hm.StepSettings(agreement_levels=levels))
    if levels != (3,):
        with pytest.raises(ArgumentError, match=r"Agreement.levels: expected None or ascending integers > 0, got"):
            hm.Agreement(levels=levels)
    with pytest.raises(ArgumentError, match=r"Agreement.levels"):
        hm.Agreement(levels=())


def test_without_a_view_nothing_changes(model, x):
    torch.testing.assert_close(
        model(x, generator=seeded()).loss, model(x, view=x, generator=seeded()).loss, rtol=1e-6, atol=0
    )
    assert "agreement" not in model(x).terms


def test_views_are_checked(model, x):
    with pytest.raises(ShapeError, match=r"view: expected one per sample, \(40, 1, 8, 6\), got \(39, 1, 8, 6\)"):
        model(x, view=x[1:])
    with pytest.raises(ShapeError, match=r"other_view: expected \(batch, 1, 8, 6\), got \(40, 8, 6\)"):
        model.agree(x, x.squeeze(1))
    with pytest.raises(DataError, match=r"view: expected finite values, got NaN or infinity"):
        model(x, view=x / 0)


# --- fit ------------------------------------------------------------------------------------------------------------


def test_fit_shows_views_to_the_gates_in_training_only(model, x):
    seen, called = [], []

    def invert(samples):
        called.append(samples)
        return 1 - samples

    forward = model.forward
    model.forward = lambda batch, **options: (seen.append((batch, options["view"])), forward(batch, **options))[1]
    fit(model, x, view=invert, validation_data=x)
    assert len(called) == len(seen) == 6
    for batch, view in seen:
        assert torch.equal(view, 1 - batch)


def test_views_need_indices_of_the_right_samples(model, x):
    """What fit tells a view about a batch is where its samples stand in the data."""

    class Recorder(View):
        def prepare(self, samples):
            self.samples = samples
            return self

        def __call__(self, batch, *, index=None, generator=None, share=None):
            assert torch.equal(self.samples[index], batch)
            return batch

    recorder = Recorder()
    fit(model, TensorDataset(x), view=recorder)
    assert torch.equal(recorder.samples, x)


AGREEMENT = hm.Agreement(partner=Neighbour(3), alone=0.5)


def test_the_first_epochs_belong_to_the_gates(model, x):
    experts = {name: p.clone() for name, p in model.experts.state_dict().items()}
    gates = {name: p.clone() for name, p in model.gates.state_dict().items()}
    after = []

    def keep(end):
        after.append(all(torch.equal(experts[name], p) for name, p in model.experts.state_dict().items()))

    history = fit(model, x, epochs=4, view=RandomAffine(), agreement=AGREEMENT, callbacks=[keep])
    assert after == [True, True, False, False]
    assert not all(torch.equal(gates[name], p) for name, p in model.gates.state_dict().items())
    assert np.isnan(history["expected"]).tolist() == [True, True, False, False]
    assert not np.isnan(history["agreement"]).any()
    for row in history.rows:
        assert row["loss"] == pytest.approx(sum(row.get(term, 0) for term in ("expected", "agreement", "balance")))


@pytest.mark.filterwarnings("ignore::hmoevae.errors.ConstantGateWarning")  # noise has no kinds to tell
def test_the_root_of_a_deeper_tree_learns_as_the_flat_ones(x):
    """What its children can tell apart is not for them to teach it; the same weights, batches and views."""
    roots = []
    for tree in (hm.Mixture.of(LEAF, 3, gate=GATE, balance=BALANCE), DEEP["unlike"]):
        tree = replace(tree, gate=hm.Conv((2,)))
        torch.manual_seed(0)
        model = hm.HMoEVAE(tree, SHAPE)
        fit(model, x, epochs=3, lr=0.01, view=RandomAffine(), agreement=replace(AGREEMENT, alone=1.0), seed=0)
        roots.append(model.predict_proba(x, level=1))
    torch.testing.assert_close(roots[0], roots[1])
    assert roots[0].std(0).max() > 1e-3


class InPlace(View):
    """Writes its answer into what it is given."""

    def __call__(self, x, *, index=None, generator=None, share=None):
        return x.mul_(0.5)


@pytest.mark.parametrize("agreement", [None, hm.Agreement(partner=None, alone=0.0)])
def test_a_view_that_works_in_place_leaves_the_samples_to_the_experts(x, agreement):
    losses = []
    for view in (lambda x: x * 0.5, lambda x: x.mul_(0.5), InPlace()):
        torch.manual_seed(0)
        model = hm.HMoEVAE(TREE, SHAPE)
        before = x.clone()
        losses.append(fit(model, x, epochs=2, view=view, agreement=agreement)["loss"])
        assert torch.equal(x, before)
    assert losses[0] == losses[1] == losses[2]


def test_same_seed_same_views_and_global_state_untouched(x, rng_untouched):
    def trained(seed):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = hm.HMoEVAE(TREE, SHAPE)
        fit(model, x, seed=seed, view=RandomAffine(), agreement=AGREEMENT, lr_schedule="cosine")
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_agreement_finds_kinds_that_only_views_tell_apart(rng_untouched):
    """Four kinds of direction, far more spread along the other axes; gates alone, from a random start."""
    generator = seeded(1)
    kind = torch.arange(400) % 4
    angle = kind * math.pi / 2 + 0.4 * torch.rand(400, generator=generator)
    x = torch.stack([angle.cos(), angle.sin()], 1) * (0.5 + torch.rand(400, 1, generator=generator))
    expert = hm.VAE(1, hm.MLP((4,)), hm.MLP((4,)), hm.Gaussian(mean="identity"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hm.HMoEVAE(hm.Mixture.of(expert, 4, gate=hm.MLP((32,)), balance=hm.Balance("kl", 20.0)), (2,))
    agreement = hm.Agreement(partner=Neighbour(5), alone=1.0)
    history = fit(model, x, epochs=40, batch_size=100, lr=1e-2, agreement=agreement)
    assert history["agreement"][-1] < 0.1 < 1 < history["agreement"][0]
    assert hm.metrics.accuracy(kind, model.predict(x)) > 0.98


@pytest.mark.filterwarnings("ignore::hmoevae.errors.DeadLeafWarning")
@pytest.mark.parametrize(("agreement", "constant"), [(None, 0), (AGREEMENT, 6), (replace(AGREEMENT, alone=1.0), 0)])
def test_learning_rate_falls_along_half_a_cosine(model, x, agreement, constant):
    """From the first step on, or from the first that the experts learn in."""
    rates = []

    def sgd(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer

    fit(model, x, epochs=4, optimizer=sgd, lr_schedule="cosine", view=RandomAffine(), agreement=agreement)
    falling = 12 - constant
    expected = [0.05 * (1 + math.cos(math.pi * step / falling)) for step in range(falling)]
    assert rates == pytest.approx([0.1] * constant + expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"view": 3}, ArgumentTypeError, r"view: expected a View or a callable .*got int"),
        ({"agreement": hm.Agreement(partner=None)}, ArgumentError, r"view: expected a view, for agreement .*got None"),
        ({"lr_schedule": "linear"}, ArgumentError, r"lr_schedule: expected 'constant' or 'cosine', got 'linear'"),
        ({"view": lambda samples: samples[1:]}, ShapeError, r"view: expected one per sample"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_arguments_of_fit(model, x, change, error, message):
    with pytest.raises(error, match=message):
        fit(model, x, **change)


class Forgetful(View):
    """Has no `return`."""

    def __call__(self, x, *, index=None, generator=None, share=None):
        x * 0.5


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("view", "got"),
    [(lambda samples: None, "NoneType"), (lambda samples: samples.numpy(), "ndarray"), (Forgetful(), "NoneType")],
)
def test_a_view_that_returns_no_tensor_is_refused(model, x, view, got):
    options = [{"view": view}, {"view": Compose([view, RandomAffine()])}]
    options += [{"agreement": hm.Agreement(partner=view)}, {"agreement": AGREEMENT, "view": view}]
    for given in options:
        with pytest.raises(ArgumentTypeError, match=f"view: expected a tensor from the callable, got {got}"):
            fit(model, x, **given)


@pytest.mark.usefixtures("as_users_call")
def test_bad_combinations(model, x):
    loader = DataLoader(TensorDataset(x))
    with pytest.raises(ArgumentTypeError, match=r"data: expected a tensor or array in memory, for Neighbour"):
        fit(model, loader, agreement=AGREEMENT)
    fit(model, loader, view=RandomAffine(), agreement=hm.Agreement(partner=None))
    with pytest.raises(ArgumentError, match=r"agreement: expected None for a tree without a gate"):
        fit(hm.HMoEVAE(hm.VAE(2), SHAPE), x, agreement=AGREEMENT)
    with pytest.raises(ArgumentError, match=r"Agreement.alone: expected a number from 0 to 1, got 2.0"):
        hm.Agreement(alone=2.0)
    with pytest.raises(ArgumentError, match=r"Agreement.alone: expected a number from 0 to 1, got '0.5'"):
        hm.Agreement(alone="0.5")
    with pytest.raises(ArgumentError, match=r"Agreement.weight: expected a finite number >= 0, got nan"):
        hm.Agreement(weight=math.nan)
    with pytest.raises(ArgumentError, match=r"agreement_weight: expected a finite number >= 0, got -1"):
        hm.StepSettings(agreement_weight=-1)
