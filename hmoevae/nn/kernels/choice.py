"""The choice of kernels, made here and nowhere else.

Axes: `group` counts equal networks, `inp` and `out` are features, `batch` is last. Features-first lets the products of
forward and backward pass be plain GEMMs without a copy of the weights; batch-first (`"b i, g o i -> b g o"`) would
transpose the weights in every step.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hmoevae.nn.kernels import chosen as by_row
from hmoevae.nn.kernels import cpu, plain
from hmoevae.nn.kernels.readouts import Likelihood, chunked, fused, has_state, scored, unfused
from hmoevae.nn.rows import Chosen, taken
from hmoevae.spec import Activation


def affine(
    weight: Float[Tensor, "group _ _"],
    bias: Float[Tensor, "group out"],
    x: Float[Tensor, "inp batch"] | Float[Tensor, "row inp batch"],
    *,
    input_major: bool = False,
    chosen: Chosen | None = None,
) -> Float[Tensor, "row out batch"]:
    """y[g] = weight[g] x[g] + bias[g], in the precision of autocast.

    Args:
        weight: One matrix per group, (group, out, inp), or (group, inp, out) if `input_major`.
        bias: One vector per group.
        x: One input for all groups, or one per group.
        input_major: The layout of `weight`.
        chosen: The rows of the group that are computed, each on the input of that place; `None` means all.

    Returns:
        One output per group, or per chosen row.

    >>> affine(torch.ones(2, 3, 4), torch.zeros(2, 3), torch.ones(4, 5)).shape
    torch.Size([2, 3, 5])
    """
    by_hand = _by_hand(x)
    if chosen is not None:
        if by_hand:
            x = x.expand(len(chosen), -1, -1) if x.ndim == 2 else x
            return by_row.affine(weight, bias, x, chosen, input_major=input_major)
        weight, bias = taken(weight, chosen), taken(bias, chosen)
    kernels = cpu if by_hand else plain
    return kernels.affine(weight, bias, x, input_major=input_major)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of every entry.

    Args:
        x: The output of an affine map or a convolution, which may be overwritten.
        activation: The activation's name.

    >>> activate(torch.tensor([-1.0, 2.0]), "relu")
    tensor([0., 2.])
    """
    kernels = cpu if _by_hand(x) else plain
    return kernels.activate(x, activation)


def readout(
    likelihood: Likelihood,
    weight: Float[Tensor, "group _ _"],
    bias: Float[Tensor, "group raw"],
    h: Float[Tensor, "row inp batch"],
    x: Float[Tensor, "feature batch"] | Float[Tensor, "row feature batch"],
    present: Bool[Tensor, "feature batch"] | Bool[Tensor, "row feature batch"] | None = None,
    *,
    input_major: bool,
    chosen: Chosen | None = None,
) -> Float[Tensor, "row batch"]:
    """Log p(x|z) in nats, where the likelihood's raw outputs are `weight[g] h[g] + bias[g]`.

    Args:
        likelihood: The likelihood of the samples, given the raw outputs.
        weight: Weights of the decoders' last layer, as in `affine`.
        bias: Biases of that layer.
        h: Inputs of that layer.
        x: Samples that all groups share, or samples of each group's own.
        present: Which entries of `x` were observed, in its shape; `None` means all.
        input_major: The layout of `weight`. The fused kernels need an input-major weight.
        chosen: As in `affine`; the likelihood, `h` and `x` are those of the chosen rows.

    Returns:
        Log-densities in the precision of `x`, which is float32 or higher even where weights and `h` have less.

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
    has_gradient = present is None and not x.requires_grad and not has_state(likelihood)
    if chosen is not None and by_hand and records:
        if input_major and has_gradient:
            return by_row.log_prob(likelihood, weight, bias, h, x, chosen)
        return likelihood.log_prob(by_row.affine(weight, bias, h, chosen, input_major=input_major), x, present)
    if chosen is not None:
        weight, bias = taken(weight, chosen), taken(bias, chosen)
    if by_hand and not records:
        return chunked(cpu.affine, likelihood, weight, bias, h, x, present, input_major=input_major)
    if input_major and records and has_gradient:
        if by_hand:
            return fused(likelihood, weight, bias, h, x)
        if torch.compiler.is_compiling() and not _is_transformed():  # torch.func would need a vmap rule for `scored`
            result = scored(likelihood, weight, bias, h, x)
            if result is not None:
                return result
    kernels = cpu if by_hand else plain
    return unfused(kernels.affine, likelihood, weight, bias, h, x, present, input_major=input_major)


def _by_hand(x: Tensor) -> bool:
    """Whether the hand-written CPU kernels run: `torch.compile` and `torch.func` cannot trace them."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not _is_transformed()


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()
