"""Which kernels run: the one place that chooses.

Axes: `group` counts equal networks, `inp` and `out` are features, `batch` is last. Features-first keeps both products
plain GEMMs with no copy of the weights; batch-first (`"b i, g o i -> b g o"`) would transpose them at every step.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hmoevae.nn.kernels import cpu, plain
from hmoevae.nn.kernels.readouts import Likelihood, chunked, fused, has_state, scored, unfused
from hmoevae.spec import Activation


def affine(
    weight: Float[Tensor, "group _ _"],
    bias: Float[Tensor, "group out"],
    x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"],
    *,
    input_major: bool = False,
) -> Float[Tensor, "group out batch"]:
    """y[g] = weight[g] x[g] + bias[g], in the precision of autocast.

    Args:
        weight: One matrix a group, (group, out, inp), or (group, inp, out) where `input_major`.
        bias: One vector a group.
        x: An input that all groups share, or one a group.
        input_major: How `weight` lies.

    Returns:
        One output a group.

    >>> affine(torch.ones(2, 3, 4), torch.zeros(2, 3), torch.ones(4, 5)).shape
    torch.Size([2, 3, 5])
    """
    kernels = cpu if _by_hand(x) else plain
    return kernels.affine(weight, bias, x, input_major=input_major)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of every entry.

    Args:
        x: The output of an affine map or a convolution, which may be overwritten.
        activation: Its name.

    >>> activate(torch.tensor([-1.0, 2.0]), "relu")
    tensor([0., 2.])
    """
    kernels = cpu if _by_hand(x) else plain
    return kernels.activate(x, activation)


def readout(
    likelihood: Likelihood,
    weight: Float[Tensor, "group _ _"],
    bias: Float[Tensor, "group raw"],
    h: Float[Tensor, "group inp batch"],
    x: Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"],
    present: Bool[Tensor, "feature batch"] | Bool[Tensor, "group feature batch"] | None = None,
    *,
    input_major: bool,
) -> Float[Tensor, "group batch"]:
    """Log p(x|z) in nats, where the likelihood's raw outputs are `weight[g] h[g] + bias[g]`.

    Args:
        likelihood: What the raw outputs mean.
        weight: That of the decoders' last layer, as in `affine`.
        bias: Its bias.
        h: Its input.
        x: Samples that all groups share, or each its own.
        present: Which entries of `x` were observed, of its shape; all of them if `None`.
        input_major: How `weight` lies. The fused kernels ask for an input-major one.

    Returns:
        In the precision of `x`, which is single or more although weights and `h` may be in half.

    >>> from hmoevae.nn.likelihoods import likelihood_module
    >>> from hmoevae.spec import Bernoulli
    >>> weight, bias, h, x = torch.zeros(3, 4, 2), torch.zeros(3, 2), torch.zeros(3, 4, 1), torch.ones(2, 1)
    >>> coins = likelihood_module(Bernoulli(), 3, 2)
    >>> readout(coins, weight, bias, h, x, input_major=True).exp()
    tensor([[0.2500],
            [0.2500],
            [0.2500]])
    """
    by_hand, records = _by_hand(x), torch.is_grad_enabled()
    if by_hand and not records:
        return chunked(cpu.affine, likelihood, weight, bias, h, x, present, input_major=input_major)
    has_gradient = present is None and not x.requires_grad and not has_state(likelihood)
    if input_major and records and has_gradient:
        if by_hand:
            return fused(likelihood, weight, bias, h, x)
        if torch.compiler.is_compiling() and not _is_transformed():  # which would ask for rules of their own
            result = scored(likelihood, weight, bias, h, x)
            if result is not None:
                return result
    kernels = cpu if by_hand else plain
    return unfused(kernels.affine, likelihood, weight, bias, h, x, present, input_major=input_major)


def _by_hand(x: Tensor) -> bool:
    """Whether the CPU's kernels run: not where `torch.compile` or `torch.func` have to look into them."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not _is_transformed()


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()
