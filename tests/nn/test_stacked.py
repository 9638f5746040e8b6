"""Stacked networks against their modules one by one, and what is refused, by name and place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build
from networks import Frozen, Residual
from torch import Tensor, nn

import hmoevae as hm
from hmoevae.errors import ArgumentError, SpecError
from hmoevae.nn.rows import Chosen, alone, rows_of
from hmoevae.nn.stacked import Stacked

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of rules for `vmap` it lacks
NET = hm.MLP((4,))
MAKE: dict[str, Callable[[int, int], Any]] = {}


@hm.record(kind="tests.made")
class Made(hm.Network):
    """Whatever one of `MAKE` gives for numbers of inputs and outputs."""

    how: str

    def build(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Any:
        return MAKE[self.how](*input_shape, *output_shape)


def made(function: Callable[[int, int], Any]) -> Callable[[int, int], Any]:
    MAKE[function.__name__] = function
    return function


# --- what can be stacked ----------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(inp, inp), nn.Linear(inp, inp), nn.Linear(inp, out)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(torch.tanh(self.one(x))))


class Attention(nn.Module):
    """A feature as a token."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(inp, 4))
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.last = nn.Linear(4, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.unsqueeze(2) * self.embedding).mean(1))


@made
def tied(inp: int, out: int) -> nn.Module:
    return Tied(inp, out)


@made
def attention(inp: int, out: int) -> nn.Module:
    return Attention(inp, out)


@made
def weight_norm(inp: int, out: int) -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(inp, 5)), nn.Tanh(), nn.Linear(5, out))


@made
def norms(inp: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inp, 4), nn.GroupNorm(2, 4), nn.Linear(4, out), nn.LayerNorm(out))


@made
def class_of_each(inp: int, out: int) -> nn.Module:
    """A class defined anew for every module, as one in `build` is."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.scale = nn.Linear(inp, out), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x) * self.scale

    return Scaled()


@made
def parametrized(inp: int, out: int) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(inp, out))


STACKABLE = [pytest.param(record, id=str(record)) for record in (Residual(), Frozen(), *map(Made, MAKE))]


@pytest.mark.parametrize("record", STACKABLE)
@pytest.mark.parametrize("training", [True, False])
def test_it_is_its_modules_one_by_one(record: hm.Network, training: bool) -> None:
    """Outputs and gradients, for shared inputs and for each its own."""
    torch.manual_seed(0)
    stacked = Stacked(record, 3, (4,), (2,), "root.gate").double().train(training)
    plain = [type(record).build(record, (4,), (2,)).double().train(training) for _ in range(3)]
    for row, module in enumerate(plain):
        module.load_state_dict({name: value[row] for name, value in stacked.module.state_dict().items()})
    for x in (torch.randn(4, 5).double(), torch.randn(3, 4, 5).double()):
        stacked.zero_grad(), [module.zero_grad() for module in plain]
        own = x.expand(3, 4, 5)
        expected = torch.stack([module(own[row].t()).t() for row, module in enumerate(plain)])
        found = stacked(x)
        torch.testing.assert_close(found, expected)
        if not training:  # torch's fused layers have no gradient then
            continue
        found.square().sum().backward()
        expected.square().sum().backward()
        of_row = [dict(module.named_parameters()) for module in plain]
        for name, parameter in stacked.module.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, torch.stack([of[name].grad for of in of_row]))
            else:
                assert parameter.grad is None


@pytest.mark.parametrize("record", STACKABLE)
def test_rows_of_it_are_its_members(record: hm.Network) -> None:
    torch.manual_seed(0)
    stacked = Stacked(record, 3, (4,), (2,), "root.gate").eval()
    x = torch.randn(4, 5)
    expected = stacked(x)
    torch.testing.assert_close(rows_of(stacked, Chosen.of(torch.tensor([0, 2, 2])))(x), expected[[0, 2, 2]])
    torch.testing.assert_close(alone(stacked, 1)(x), expected[1:2])


# --- what is refused --------------------------------------------------------------------------------------------------


@made
def batch_norm(inp: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inp, 3), nn.BatchNorm1d(3), nn.Linear(3, out))


@made
def batch_norm_without_statistics(inp: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inp, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, out))


@made
def lazy(inp: int, out: int) -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(3, out))


class Counted(nn.Module):
    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.last = nn.Linear(inp, out)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(x)


@made
def counted(inp: int, out: int) -> nn.Module:
    return Counted(inp, out)


@made
def spectral(inp: int, out: int) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(inp, out))


@made
def integers(inp: int, out: int) -> nn.Module:
    module = nn.Linear(inp, out)
    module.register_buffer("order", torch.arange(inp))
    return module


@made
def nothing(inp: int, out: int) -> nn.Module:
    return nn.Identity()


@made
def no_module(inp: int, out: int) -> Any:
    return torch.tanh


@made
def other_size(inp: int, out: int) -> nn.Module:
    return nn.Linear(inp, out + 1)


@made
def other_input(inp: int, out: int) -> nn.Module:
    return nn.Linear(inp + 1, out)


@made
def several(inp: int, out: int) -> nn.Module:
    return nn.LSTM(inp, out)


@made
def in_a_list(inp: int, out: int) -> nn.Module:
    module = nn.Linear(inp, out)
    module.others = [[nn.Linear(inp, inp)]]
    return module


class Function(nn.Module):
    """A layer, and a function of what it gives."""

    def __init__(self, inp: int, out: int, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.last, self.function = nn.Linear(inp, out), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.last(x))


@made
def centred(inp: int, out: int) -> nn.Module:
    return Function(inp, out, lambda h: h - h.mean(0))


@made
def squeezed(inp: int, out: int) -> nn.Module:
    return Function(inp, out, lambda h: h.squeeze(0))


@made
def reads_a_number(inp: int, out: int) -> nn.Module:
    module = nn.Linear(inp, out)
    module.scale = float(torch.rand(())) if module.weight.sum().item() else 0.0
    return module


@made
def projected_by_an_attribute(inp: int, out: int) -> nn.Module:
    projection = torch.randn(out, out)
    module = Function(inp, out, lambda h: h @ projection)
    module.projection = {"one": [projection]}
    return module


@made
def other_order(inp: int, out: int) -> nn.Module:
    module = nn.Sequential(nn.Linear(inp, out))
    module[0].order = np.random.permutation(1000)  # noqa: NPY002
    return module


@made
def by_a_hook(inp: int, out: int) -> nn.Module:
    """As torch.nn.utils.weight_norm, which parametrisations replace, keeps what it computes."""
    module = nn.Linear(inp, out)
    weight = nn.Parameter(module.weight.detach())
    del module.weight
    module.register_parameter("weight_v", weight)
    module.weight = 2 * weight
    return module


class Branching(nn.Module):
    """Python reads a number that depends on the weights."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.last = nn.Linear(inp, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) if self.last.weight.sum() > 0 else -self.last(x)


@made
def branching(inp: int, out: int) -> nn.Module:
    return Branching(inp, out)


REFUSED = {
    "batch_norm": "expected a module that can be stacked, got BatchNorm1d at 1, whose running statistics change",
    "batch_norm_without_statistics": ".* got BatchNorm1d at 1, which mixes the samples of a batch",
    "lazy": "expected a module that can be stacked, got LazyLinear at 0, whose sizes are not known yet",
    "counted": r"expected a module that can be stacked, got the buffer calls, which a call changes",
    "spectral": r"expected a module that can be stacked, got the buffer parametrizations\.weight\.0\._u, which a call",
    "integers": r"expected a module that can be stacked, got the buffer order of torch\.int64",
    "nothing": "expected a module that can be stacked, got one without parameters",
    "no_module": r"expected a torch\.nn\.Module from Made\(how='no_module'\)\.build, got ",
    "other_size": r"expected outputs \(batch, {out}\) of Made\(how='other_size'\), got \(2, {more}\) of 2 inputs",
    "other_input": r"expected a module that takes \(batch, {inp}\), got RuntimeError: mat1",
    "several": r"expected outputs \(batch, {out}\) of Made\(how='several'\), got tuple of 2 inputs",
    "centred": "expected a module that can be stacked, got one whose answer to a sample depends on the others",
    "squeezed": r"expected outputs \(batch, {out}\) of Made\(how='squeezed'\), got \({out},\) of 1 input",
    "reads_a_number": r"expected a build that runs without numbers, .*, got RuntimeError: Tensor\.item\(\) cannot",
    "projected_by_an_attribute": r"expected an attribute projection of equal numbers in every module from .*\.build, ",
    "other_order": r"expected an attribute 0\.order of equal numbers in every module .*, got others \(a buffer may",
    "in_a_list": r"expected a module that can be stacked, got a Linear in the attribute others, where torch",
    "by_a_hook": r"expected a module that can be stacked, got a Tensor in the attribute weight, where torch",
    "branching": r"expected a module that torch\.func\.vmap can run, got RuntimeError: ",
}


ALONE = REFUSED.keys() - {"branching"}


@pytest.mark.parametrize("how", sorted(ALONE))
def test_a_network_alone_is_refused_as_well(how: str) -> None:
    torch.manual_seed(0)  # what changes at a call converges for some weights
    message = REFUSED[how].replace("{inp}", "6").replace("{out}", "4").replace("{more}", "5")
    with pytest.raises(SpecError, match=rf"^root\.encoder: {message}"):
        hm.HMoEVAE(hm.VAE(2, Made(how), NET), (6,))


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_be_stacked_is_refused_by_its_place(how: str) -> None:
    torch.manual_seed(0)
    network = Made(how)
    plain, inner = hm.VAE(2, NET, NET), hm.Mixture.of(hm.VAE(2, NET, NET), 2, gate=network)
    trees = {
        "root/1.encoder": (hm.Mixture((plain, *[hm.VAE(3, network, NET)] * 2)), 6, 6),
        "root/1.decoder": (hm.Mixture((plain, *[hm.VAE(3, NET, network)] * 2)), 3, 6),
        "root/1.gate": (hm.Mixture((plain, inner, inner)), 6, 2),
    }
    for place, (tree, inp, out) in trees.items():
        message = REFUSED[how].replace("{inp}", f"{inp}").replace("{out}", f"{out}").replace("{more}", f"{out + 1}")
        with pytest.raises(SpecError, match=rf"^{place}: {message}"):
            hm.HMoEVAE(tree, (6,))


WIDTHS = iter(range(3, 100))


@made
def other_each_time(inp: int, out: int) -> nn.Module:
    width = next(WIDTHS)
    return nn.Sequential(nn.Linear(inp, width), nn.Linear(width, out))


def test_modules_that_differ_are_refused_by_their_place() -> None:
    tree = hm.Mixture.of(hm.VAE(2, Made("other_each_time"), NET), 2)
    message = (
        r"^root/0\.encoder: expected equal modules from .*\.build, with torch\.float32 of shape \(\d, 6\) at 0\.weight"
    )
    with pytest.raises(SpecError, match=message):
        hm.HMoEVAE(tree, (6,))


class Projected(nn.Module):
    """A random projection that its class does not save."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.last = nn.Linear(inp, out)
        self.register_buffer("fixed", torch.randn(inp, inp), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x @ self.fixed)


@made
def projected(inp: int, out: int) -> nn.Module:
    return Projected(inp, out)


def test_all_buffers_are_saved(tmp_path: Path) -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, NET, NET), 3, gate=Made("projected")), (4,)).eval()
    model.save_pretrained(tmp_path)
    x = torch.rand(5, 4)
    assert torch.equal(hm.HMoEVAE.from_pretrained(tmp_path).predict_proba(x), model.predict_proba(x))


class Constants(nn.Module):
    """Tensors and arrays that are attributes, not buffers."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.last = nn.Linear(inp, out)
        self.order, self.signs = torch.arange(inp).flip(0), np.array([1.0, np.nan])
        self.parts = {"one": [torch.tensor([torch.nan, 2.0])], "other": (np.arange(3), None)}

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["one"][0][1] * self.last(x[:, self.order])


@made
def constants(inp: int, out: int) -> nn.Module:
    return Constants(inp, out)


@made
def noisy(inp: int, out: int) -> nn.Module:
    """It draws in evaluation too, which is not a look at other samples."""
    return Function(inp, out, lambda h: h + torch.randn_like(h))


def test_what_is_drawn_is_no_look_at_the_others() -> None:
    assert Stacked(Made("noisy"), 2, (40,), (30,), "root.gate")(torch.rand(40, 3)).shape == (2, 30, 3)


@pytest.mark.parametrize("how", ["tied", "constants", "tied_buffers", "parametrized"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_it_is_trained_saved_and_loaded(how: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Ties are tied again, and constants are not asked for numbers where loading has none yet."""
    tree = hm.Mixture.of(hm.VAE(2, NET, NET), 3, gate=Made(how))
    model, x = hm.HMoEVAE(tree, (4,)).to(dtype), torch.rand(20, 4)
    training = hm.Training(epochs=2, batch_size=10, device="cpu", revive=True)
    hm.fit(model, x, training, progress=False, checkpoint_dir=tmp_path / "checkpoints")
    model.save_pretrained(tmp_path / "model")
    loaded = hm.HMoEVAE.from_pretrained(tmp_path / "model")
    x = x.to(dtype)
    assert torch.equal(loaded.predict_proba(x), model.predict_proba(x))
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    hm.fit(loaded, x, training, progress=False)
    loaded.save_pretrained(tmp_path / "again")


class TiedBuffers(nn.Module):
    """One buffer in two places."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.last = nn.Linear(inp, out)
        self.register_buffer("one", torch.randn(inp))
        self.register_buffer("two", self.one)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x * self.one + self.two)


@made
def tied_buffers(inp: int, out: int) -> nn.Module:
    return TiedBuffers(inp, out)


def test_a_tie_that_loading_would_not_make_is_refused(tmp_path: Path) -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, NET, NET), 3, gate=Made("tied")), (4,))
    module = model.gates.groups[0].network.module
    name = r"model\.gates\.groups\.0\.network\.module"
    module.two.weight = nn.Parameter(module.two.weight.detach().clone())
    expected = rf"^{name}\.two\.weight: expected the memory of gates\.groups\.0\.network\.module\.one\.weight, got"
    with pytest.raises(ArgumentError, match=expected):
        model.save_pretrained(tmp_path)
    module.two.weight = module.one.weight
    model.save_pretrained(tmp_path)
    for other in (module.one.bias, nn.Parameter(module.one.bias.detach())):  # the same memory either way
        module.two.bias = other
        with pytest.raises(ArgumentError, match=rf"^{name}\.two\.bias: expected memory of its own, got"):
            model.save_pretrained(tmp_path)


def test_a_look_at_a_module_draws_nothing_and_leaves_it_as_it_was() -> None:
    """Weights are those of modules built one by one, whatever the package did to look at the first."""
    torch.manual_seed(0)
    expected = [Made("norms").build((4,), (2,)) for _ in range(3)]
    torch.manual_seed(0)
    stacked = Stacked(Made("norms"), 3, (4,), (2,), "root.gate")
    assert stacked.module.training
    for name, value in stacked.module.named_parameters():
        assert torch.equal(value, torch.stack([dict(module.named_parameters())[name] for module in expected]))


def test_a_network_alone_asks_nothing_of_vmap() -> None:
    """There is nothing to stack, and branches and loops of Python may be there."""
    model = hm.HMoEVAE(hm.VAE(2, Made("branching"), NET), (6,))
    model(torch.rand(5, 6)).loss.backward()
    assert all(p.grad is not None for p in model.experts.parameters())


@pytest.mark.parametrize("record", STACKABLE)
def test_one_by_one_is_as_batched(record: hm.Network) -> None:
    """As exported gates run."""
    stacked = Stacked(record, 3, (4,), (2,), "root.gate").eval()
    x, own = torch.randn(4, 5), torch.randn(3, 4, 5)
    expected = stacked(x), stacked(own)
    stacked.batched = False
    torch.testing.assert_close((stacked(x), stacked(own)), expected)


def test_a_learned_start_of_the_gate_is_that_of_the_network() -> None:
    """The affine layer that a gate is given leaves the network's answers as they are."""
    model = build(hm.Mixture.of(hm.VAE(2, NET, NET), 3, gate=Residual()), (4,))
    x = torch.randn(4, 5).double()
    gate = model.gates.groups[0]
    torch.testing.assert_close(gate(x), gate.network(x).log_softmax(1))


@hm.record(kind="tests.derived")
class Derived(hm.MLP):
    """A record derived from one of the package's, with a module of its own."""

    def build(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> nn.Module:
        return nn.Linear(*input_shape, *output_shape, bias=False)


@hm.record(kind="tests.nothing_built")
class NothingBuilt(hm.Network):
    """A record that forgot its module."""


def test_a_record_derived_from_ours_builds_its_own_module() -> None:
    gate = build(hm.Mixture.of(hm.VAE(2, NET, NET), 3, gate=Derived((5,))), (4,)).gates.groups[0]
    assert [name for name, _ in gate.network.named_parameters()] == ["module.weight"]


def test_a_record_without_build_is_refused_by_its_place() -> None:
    with pytest.raises(SpecError, match=r"^root\.gate: expected a method NothingBuilt\.build, which makes the module"):
        hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, NET, NET), 3, gate=NothingBuilt()), (4,))
