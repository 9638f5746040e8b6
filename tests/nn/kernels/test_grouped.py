"""Grouped layers against a plain loop over `torch.nn` layers: outputs and gradients."""

import math
from collections.abc import Sequence

import pytest
import torch
from conftest import ACTIVATIONS
from torch import Tensor, nn

import hmoevae as hm
from hmoevae.nn.conv import GroupedConv, GroupedConvTranspose
from hmoevae.nn.grouped import GroupedLinear, GroupedMLP

TORCH = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}
GROUPS, BATCH = 3, 7


def randn(*shape: int) -> Tensor:
    """Double precision normal numbers that ask for their gradient."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def own_input(x: Tensor, group: int) -> Tensor:
    """What one network of a group reads, batch-first."""
    return (x if x.ndim == 2 else x[group]).t()


def plain_mlp(network: GroupedMLP, place: int, activation: str) -> nn.Sequential:
    """One network of a group as a chain of `torch.nn` layers with copies of its weights."""
    layers: list[nn.Module] = []
    for grouped in network.layers:
        _, out_features, in_features = grouped.weight.shape
        layer = nn.Linear(in_features, out_features, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(grouped.weight[place])
            layer.bias.copy_(grouped.bias[place])
        layers += [layer, TORCH[activation]()]
    return nn.Sequential(*layers[:-1])


def assert_same_gradients(network: GroupedMLP, plain: list[nn.Sequential]) -> None:
    """The grouped weights have the gradients of the plain copies, network by network."""
    for place, chain in enumerate(plain):
        for grouped, layer in zip(network.layers, [m for m in chain if isinstance(m, nn.Linear)], strict=True):
            torch.testing.assert_close(grouped.weight.grad[place], layer.weight.grad)
            torch.testing.assert_close(grouped.bias.grad[place], layer.bias.grad)


@pytest.mark.parametrize("shared", [True, False])
def test_how_weights_lie_changes_nothing_else(shared: bool) -> None:
    """The same draws, results and gradients."""
    answers = []
    for input_major in (False, True):
        torch.manual_seed(0)
        layer = GroupedLinear(GROUPS, 4, 5, input_major=input_major).double()
        x = randn(4, BATCH) if shared else randn(GROUPS, 4, BATCH)
        y = layer(x)
        y.square().sum().backward()
        assert layer.weight.grad.is_contiguous()
        assert repr(layer) == f"GroupedLinear(groups={GROUPS}, in_features=4, out_features=5)"
        weight_grad = layer.weight.grad.mT if input_major else layer.weight.grad
        answers.append([layer.matrices, layer.bias, y, weight_grad, layer.bias.grad, x.grad])
    torch.testing.assert_close(*answers)


def assert_same_results(grouped: nn.Module, plain: Sequence[nn.Module], x: Tensor) -> None:
    """Outputs and the gradient of the input are those of a loop; all weights have gradients afterwards."""
    y = x.detach().clone().requires_grad_()
    expected = torch.stack([one(own_input(y, g)).t() for g, one in enumerate(plain)])
    result = grouped(x)
    torch.testing.assert_close(result, expected)
    weights = torch.randn_like(result)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("shared", [True, False])
def test_grouped_linear_is_a_loop_over_linear(shared: bool) -> None:
    torch.manual_seed(0)
    layer = GroupedLinear(GROUPS, 4, 5).double()
    plain = [nn.Linear(4, 5, dtype=torch.float64) for _ in range(GROUPS)]
    with torch.no_grad():
        for place, one in enumerate(plain):
            one.weight.copy_(layer.weight[place])
            one.bias.copy_(layer.bias[place])
    assert_same_results(layer, plain, randn(4, BATCH) if shared else randn(GROUPS, 4, BATCH))
    torch.testing.assert_close(layer.weight.grad, torch.stack([one.weight.grad for one in plain]))
    torch.testing.assert_close(layer.bias.grad, torch.stack([one.bias.grad for one in plain]))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("hidden", [(), (6,), (6, 2, 5)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("large", [0, math.inf], ids=["blocks", "plain"])
def test_grouped_mlp_is_a_loop_over_mlps(
    shared: bool, hidden: tuple[int, ...], activation: str, large: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not its tensors count as large."""
    monkeypatch.setattr("hmoevae.nn.kernels.cpu.GLIBC_LARGEST", large)
    torch.manual_seed(1)
    network = GroupedMLP(GROUPS, 4, 3, hm.MLP(hidden, activation)).double()
    plain = [plain_mlp(network, place, activation) for place in range(GROUPS)]
    assert_same_results(network, plain, randn(4, BATCH) if shared else randn(GROUPS, 4, BATCH))
    assert_same_gradients(network, plain)


@pytest.mark.parametrize("chunk", [1, 45, 1 << 20])
@pytest.mark.parametrize("shared", [True, False])
def test_bf16_is_as_near_to_fp32_as_autocast_is(shared: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 2 % of the largest entry, whether weights are cast one group at a time, two or all together."""
    monkeypatch.setattr("hmoevae.nn.kernels.cpu.CHUNK", chunk)
    torch.manual_seed(2)
    layer = GroupedLinear(GROUPS, 4, 5)
    x, g = torch.randn(4, BATCH) if shared else torch.randn(GROUPS, 4, BATCH), torch.randn(GROUPS, 5, BATCH)
    letters = "ib" if shared else "gib"
    answers = []
    for way, enabled in (
        (layer, True),
        (lambda h: torch.einsum(f"goi,{letters}->gob", layer.weight, h) + layer.bias.unsqueeze(-1), False),
    ):
        h = x.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            result = way(h)
        assert result.dtype == (torch.bfloat16 if enabled else torch.float32)
        (result * g).sum().backward()
        answers.append([result.detach().float(), layer.weight.grad, layer.bias.grad, h.grad])
    for low, exact in zip(*answers, strict=True):
        assert low.dtype == torch.float32
        assert (low - exact).abs().max() < 0.02 * exact.abs().max()


def test_torch_func_looks_into_it() -> None:
    """Gradients sample by sample, as in PyTorch's tutorial on them."""
    torch.manual_seed(3)
    layer = GroupedLinear(GROUPS, 4, 5).double()
    weights = dict(layer.named_parameters())
    x = torch.randn(BATCH, 4, dtype=torch.float64)

    def loss(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (one.unsqueeze(1),)).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    layer(x.t()).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(gradients[name].sum(0), parameter.grad)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Factors and offsets other than one and zero."""
    for parameter in module.parameters():
        parameter.normal_()


@pytest.mark.parametrize("kernel_size", [1, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "hidden"), [((4,), ()), ((3, 5), (6,)), ((2, 3, 2), (4, 3))])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("normed", [False, True], ids=["", "normed"])
def test_grouped_conv_is_a_loop_over_convolutions(
    kernel_size: int, stride: int, channels: tuple[int, ...], hidden: tuple[int, ...], own: bool, normed: bool
) -> None:
    torch.manual_seed(2)
    norm_groups = math.gcd(*channels) if normed else None
    spec = hm.Conv(channels, kernel_size, stride, hidden, "tanh", norm_groups)
    shape = (2, 5, 4)
    network = GroupedConv(GROUPS, shape, 3, spec).double()
    randomise(network.norms)
    plain, heads = [], []
    for place in range(GROUPS):
        chain: list[nn.Module] = []
        layers = zip((2, *channels), channels, network.convolutions, network.norms, strict=False)
        for in_channels, out_channels, grouped, grouped_norm in layers:
            layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(grouped.weight[place])
                layer.bias.copy_(grouped.bias[place])
            norm = nn.GroupNorm(norm_groups or 1, out_channels, dtype=torch.float64) if normed else nn.Identity()
            with torch.no_grad():
                for name, own_weight in norm.named_parameters():
                    own_weight.copy_(grouped_norm.get_parameter(name)[place])
            chain += [layer, norm, nn.Tanh()]
        heads.append(plain_mlp(network.head, place, "tanh"))
        plain.append(nn.Sequential(*chain, nn.Flatten(), heads[-1]))
    x = randn(GROUPS, BATCH, *shape) if own else randn(BATCH, *shape)
    y = x.detach().clone().requires_grad_()
    expected = torch.stack([one(y[g] if own else y).t() for g, one in enumerate(plain)])
    result = network(x.flatten(2).mT if own else x.flatten(1).t())
    torch.testing.assert_close(result, expected)

    weights = torch.randn_like(result)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert_same_gradients(network.head, heads)
    for i, layers in enumerate(zip(network.convolutions, network.norms, strict=True)):
        for j, grouped in enumerate(layers):
            for name, parameter in grouped.named_parameters():
                gradients = [one[3 * i + j].get_parameter(name).grad for one in plain]
                torch.testing.assert_close(parameter.grad, torch.stack(gradients))


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2), (4, 2), (5, 2), (5, 3)])
@pytest.mark.parametrize(("channels", "hidden"), [((4,), ()), ((5, 3), (6,))])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_grouped_transposed_convolutions_are_a_loop(
    kernel_size: int, stride: int, channels: tuple[int, ...], hidden: tuple[int, ...], own: bool
) -> None:
    torch.manual_seed(2)
    spec = hm.ConvTranspose(channels, kernel_size, stride, hidden, "tanh")
    shape = (2, 7, 6)
    network = GroupedConvTranspose(GROUPS, 3, shape, spec).double()
    plain = []
    for place in range(GROUPS):
        chain: list[nn.Module] = [plain_mlp(network.head, place, "tanh"), nn.Unflatten(1, network.first_shape)]
        for inp, out, grouped in zip(channels, (*channels[1:], 2), network.convolutions, strict=True):
            sizes = kernel_size, stride, kernel_size // 2, grouped.output_padding
            layer = nn.ConvTranspose2d(inp, out, *sizes, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(grouped.weight[place])
                layer.bias.copy_(grouped.bias[place])
            chain += [nn.Tanh(), layer]
        plain.append(nn.Sequential(*chain, nn.Flatten()))
    assert plain[0](torch.zeros(1, 3, dtype=torch.float64)).shape == (1, 2 * 7 * 6)
    assert_same_results(network, plain, randn(GROUPS, 3, BATCH) if own else randn(3, BATCH))
    for i, grouped in enumerate(network.convolutions):
        layers = [one[3 + 2 * i] for one in plain]
        torch.testing.assert_close(grouped.weight.grad, torch.stack([layer.weight.grad for layer in layers]))
        torch.testing.assert_close(grouped.bias.grad, torch.stack([layer.bias.grad for layer in layers]))


@pytest.mark.parametrize(("groups", "in_features", "out_features"), [(1, 400, 30), (50, 16, 25), (3, 100, 100)])
def test_initial_weights_are_those_of_linear(groups: int, in_features: int, out_features: int) -> None:
    """U(-b, b) with b of the true fan-in; torch's own rule would take (out, inp) of a 3-D weight for (inp, kernel)."""
    torch.manual_seed(3)
    layer = GroupedLinear(groups, in_features, out_features)
    bound = 1 / math.sqrt(in_features)
    largest = layer.weight.abs().amax().item()
    assert 0.99 * bound < largest <= bound
    assert layer.bias.abs().amax().item() <= bound
    # The standard deviation of U(-b, b) is b / sqrt(3); 10,000 draws know it to 1 %.
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.03 * bound)
    reference = nn.Linear(in_features, 10_000 // in_features + 1)
    assert reference.weight.abs().amax().item() == pytest.approx(bound, rel=0.01)


def test_every_convolution_starts_from_its_own_fan_in() -> None:
    torch.manual_seed(4)
    network = GroupedConv(10, (2, 8, 8), 3, hm.Conv((8, 16), 3, 2, (5,)))
    first, second = network.convolutions
    for layer, fan_in in ((first, 2 * 9), (second, 8 * 9)):
        bound = 1 / math.sqrt(fan_in)
        assert 0.98 * bound < layer.weight.abs().amax().item() <= bound
    assert network.head.layers[0].weight.shape == (10, 5, 16 * 2 * 2)


def test_groups_start_different() -> None:
    layer = GroupedLinear(4, 5, 6)
    assert len({tuple(weight.flatten().tolist()) for weight in layer.weight}) == 4
    assert len({tuple(bias.tolist()) for bias in layer.bias}) == 4


def test_reset_parameters_draws_fresh_weights() -> None:
    torch.manual_seed(5)
    layer = GroupedLinear(2, 3, 4)
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)
    torch.manual_seed(5)
    layer.reset_parameters()
    assert torch.equal(layer.weight, before)


def test_repr_tells_the_sizes() -> None:
    assert repr(GroupedLinear(3, 4, 5)) == "GroupedLinear(groups=3, in_features=4, out_features=5)"
