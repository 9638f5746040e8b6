"""Readouts: the decoders' last layer and the likelihood as one function, with a gradient written by hand.

Axes: `group` counts experts, `feature` the entries of a sample, `inp` the last hidden layer; `batch` is last.

The tensors (group, feature, batch) are the widest of a training step. Let raw = W h + b, score = d log p / d raw, and g
the gradient of the loss with respect to log p(x|z), (group, batch)::

    d loss / dW = score (g h)^T,    d loss / dh = g W^T score,    d loss / db = score g^T

g scales columns, so it multiplies the narrow h instead of the wide score. The forward pass computes the score, one
chunk of experts at a time, and keeps no other wide tensor. The score is stored as (group, batch, feature), like the
memory of the samples, and W as (group, inp, feature): with these layouts, no operand of the three products is copied.

`fused` implements this by hand. `scored` implements it in PyTorch's own operations, for all experts at once: it is for
`torch.compile`, whose code makes one pass over a wide tensor anyway. `chunked` is for passes without gradients: it
makes wide tensors for one chunk of experts at a time and keeps none. `unfused` runs the layer, then the likelihood.
`choice.py` chooses among them.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hmoevae.nn.kernels.cpu import chunks, matmul_by_chunks
from hmoevae.nn.kernels.memory import Blocks, blocks_of
from hmoevae.nn.kernels.precision import compute_dtype
from hmoevae.nn.kernels.products import matmul
from hmoevae.nn.rows import rows_of

Raw = Float[Tensor, "group raw batch"]
Sample = Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"]
Present = Bool[Tensor, "feature batch"] | Bool[Tensor, "group feature batch"]
Affine = Callable[..., Raw]


@runtime_checkable
class Likelihood(Protocol):
    """The methods of a likelihood that a readout calls; see `hmoevae.nn.likelihoods`."""

    score_unit: float

    def log_prob(self, raw: Raw, x: Sample, present: Present | None = None, /) -> Float[Tensor, "group batch"]:
        """The log-density, summed over the observed entries."""
        ...

    def score(self, raw: Raw, x: Sample, /) -> Raw | None:
        """The gradient of the log-density with respect to `raw`; `None` where it is not known in closed form."""
        ...

    def log_prob_and_score(self, raw: Raw, x: Sample, score: Raw, /) -> Float[Tensor, "group batch"]:
        """The log-density; its gradient, divided by `score_unit`, is written to `score`."""
        ...


def unfused(
    affine: Affine,
    likelihood: Likelihood,
    weight: Float[Tensor, "group _ _"],
    bias: Float[Tensor, "group raw"],
    h: Float[Tensor, "group inp batch"],
    x: Sample,
    present: Present | None,
    *,
    input_major: bool,
) -> Float[Tensor, "group batch"]:
    """The affine map, then the likelihood."""
    return likelihood.log_prob(affine(weight, bias, h, input_major=input_major), x, present)


def chunked(
    affine: Affine,
    likelihood: Likelihood,
    weight: Float[Tensor, "group _ _"],
    bias: Float[Tensor, "group raw"],
    h: Float[Tensor, "group inp batch"],
    x: Sample,
    present: Present | None,
    *,
    input_major: bool,
) -> Float[Tensor, "group batch"]:
    """The affine map, then the likelihood, for one chunk of experts at a time."""
    result = x.new_empty(h.shape[0], h.shape[-1])
    for rows in chunks(bias.shape[1] * h.shape[-1], len(h)):
        raw = affine(weight[rows], bias[rows], h[rows], input_major=input_major)
        own = rows_of(likelihood, rows) if isinstance(likelihood, nn.Module) and has_state(likelihood) else likelihood
        result[rows] = own.log_prob(raw, _at(x, rows), None if present is None else _at(present, rows))
    return result


def has_state(likelihood: Likelihood) -> bool:
    """Whether a likelihood has parameters or buffers: the hand-written gradient does not reach them."""
    if not isinstance(likelihood, nn.Module):
        return False
    return any(True for _ in likelihood.parameters()) or any(True for _ in likelihood.buffers())


def _at(x: Tensor, rows: slice) -> Tensor:
    """The samples of the experts in `rows`."""
    return x if x.ndim == 2 else x[rows]


def fused(
    likelihood: Likelihood,
    weight: Float[Tensor, "group inp raw"],
    bias: Float[Tensor, "group raw"],
    h: Float[Tensor, "group inp batch"],
    x: Sample,
) -> Float[Tensor, "group batch"]:
    """Log-densities with the gradients of this module's docstring, on a CPU."""
    return _LogProb.apply(weight, bias, h, x, likelihood, blocks_of(weight))


def scored(
    likelihood: Likelihood,
    weight: Float[Tensor, "group inp raw"],
    bias: Float[Tensor, "group raw"],
    h: Float[Tensor, "group inp batch"],
    x: Sample,
) -> Float[Tensor, "group batch"] | None:
    """`fused` in PyTorch's own operations; `None` where the likelihood does not know its score."""
    h = h.to(compute_dtype(x))
    with torch.no_grad():
        raw = torch.bmm(h.mT, weight.to(h.dtype)).to(x.dtype) + bias.unsqueeze(1)
        score = likelihood.score(raw.mT, x)
        result = likelihood.log_prob(raw.mT, x)
    return None if score is None else _Scored.apply(weight, bias, h, result, score.mT.to(h.dtype))


class _Scored(torch.autograd.Function):
    """Log-densities that are computed already, with the gradients of this module's docstring."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, h: Tensor, result: Tensor, score: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(weight, h, score)
        return result.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, h, score = ctx.saved_tensors
        g = g.to(score.dtype).unsqueeze(1)
        weight_grad = torch.bmm(g * h, score).to(weight.dtype)
        bias_grad = torch.bmm(g, score).squeeze(1).to(weight.dtype)
        h_grad = torch.bmm(weight.to(score.dtype), score.mT) * g
        return weight_grad, bias_grad, h_grad, None, None


class _LogProb(torch.autograd.Function):
    """The fused readout, as in this module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, h: Tensor, x: Tensor, likelihood: Likelihood, blocks: Blocks
    ) -> Tensor:
        dtype = compute_dtype(x)
        h = h.to(dtype)
        groups, _, n_raw = weight.shape
        n_batch = h.shape[-1]
        result = x.new_empty(groups, n_batch)
        score = blocks.empty("score", (groups, n_batch, n_raw), dtype)
        for rows in chunks(n_raw * n_batch, groups):
            scores = score[rows]
            raw = torch.empty_like(scores) if dtype == x.dtype else scores  # bfloat16 is copied to `x.dtype` below
            matmul(h[rows].mT, weight[rows].to(dtype), raw)
            raw = raw.to(x.dtype).add_(bias[rows].unsqueeze(1))
            result[rows] = likelihood.log_prob_and_score(raw.mT, _at(x, rows), scores.mT)
            del raw  # the next chunk gets the same memory, which is still in the cache
        ctx.save_for_backward(weight, h, score)
        ctx.blocks, ctx.score_unit = blocks, likelihood.score_unit
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # its decorator hides the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (g,) = grad_outputs
        weight, h, score = ctx.saved_tensors
        g = (g * ctx.score_unit).to(score.dtype).unsqueeze(1)
        weight_grad, bias_grad, h_grad = None, None, None
        if ctx.needs_input_grad[0]:
            weight_grad = ctx.blocks.gradient_of(weight)
            scratch = ctx.blocks.empty("scratch", tuple(h.shape), h.dtype)
            matmul_by_chunks(torch.mul(g, h, out=scratch), score, weight_grad)
        if ctx.needs_input_grad[1]:
            bias_grad = torch.bmm(g, score).squeeze(1).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            h_grad = ctx.blocks.empty("input gradient", tuple(h.shape), h.dtype)
            matmul_by_chunks(weight, score.mT, h_grad)
            h_grad.mul_(g)
        return weight_grad, bias_grad, h_grad, None, None, None
