"""The last layer of the decoders and the likelihood of what they say, as one function with its gradient written out.

Axes: `group` counts experts, `feature` the entries of a sample, `inp` the last hidden layer; `batch` is last.

The widest tensors of a training step are here, (group, feature, batch). With raw = W h + b and score = d log p / d raw,
for a loss whose gradient with respect to log p(x|z) is g, (group, batch)::

    d loss / dW = score (g h)^T,    d loss / dh = g W^T score,    d loss / db = score g^T

g scales columns, so it is applied to the narrow h instead of the wide score, which is computed in the forward pass, a
chunk of experts at a time, and is all that is kept. It lies as (group, batch, feature): so the samples come, and
so all three products find their operands.

Code that `torch.compile` makes does the same with PyTorch's own operations, for all experts at a time: it works a wide
tensor out in one pass as it is.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hmoevae.nn.grouped import (
    BlockSource,
    GroupedLinear,
    chunks,
    compute_dtype,
    is_written_out,
    weight_gradient_by_chunks,
)
from hmoevae.nn.likelihoods import LikelihoodModel
from hmoevae.nn.products import matmul


def log_prob(
    likelihood: LikelihoodModel,
    layer: GroupedLinear,
    h: Float[Tensor, "group inp batch"],
    x: Float[Tensor, "feature batch"],
) -> Float[Tensor, "group batch"]:
    """Log p(x|z) in nats, where `layer` makes the raw outputs from `h`."""
    if is_written_out(x) and torch.is_grad_enabled() and not x.requires_grad:
        return _LogProb.apply(layer.weight, layer.bias, h, x, likelihood, layer.block_source())
    is_plain = not torch._C._are_functorch_transforms_active()  # which would need a rule of its own for each of them
    if torch.compiler.is_compiling() and is_plain and torch.is_grad_enabled() and not x.requires_grad:
        h = h.to(compute_dtype(x))
        with torch.no_grad():
            raw = torch.bmm(h.mT, layer.weight.to(h.dtype).mT).to(x.dtype) + layer.bias.unsqueeze(1)
            score = likelihood.score(raw.mT, x)
            result = likelihood.log_prob(raw.mT, x)
        if score is not None:
            return _Scored.apply(layer.weight, layer.bias, h, result, score.mT.to(h.dtype))
    return likelihood.log_prob(layer(h), x)


class _Scored(torch.autograd.Function):
    """Log-densities that are known already, with the gradients that the head of this file has."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, h: Tensor, result: Tensor, score: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(weight, h, score)
        return result.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, h, score = ctx.saved_tensors
        g = g.to(score.dtype).unsqueeze(1)
        weight_grad = torch.bmm(score.mT, (g * h).mT).to(weight.dtype)
        bias_grad = torch.bmm(g, score).squeeze(1).to(weight.dtype)
        h_grad = torch.bmm(score, weight.to(score.dtype)).mT * g
        return weight_grad, bias_grad, h_grad, None, None


class _LogProb(torch.autograd.Function):
    """See the head of this file."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, h: Tensor, x: Tensor, likelihood: LikelihoodModel, block: BlockSource
    ) -> Tensor:
        dtype = compute_dtype(x)
        h = h.to(dtype)
        groups, n_features, _ = weight.shape
        n_batch = h.shape[-1]
        result = x.new_empty(groups, n_batch)
        score = block("score", (groups, n_batch, n_features), dtype)
        for chunk in chunks(groups, n_features * n_batch):
            part = weight[chunk]
            raw = torch.empty(len(part), n_batch, n_features, dtype=dtype)
            matmul(h[chunk].mT, part.to(dtype).mT, raw)
            raw = raw.to(x.dtype).add_(bias[chunk].unsqueeze(1))
            result[chunk] = likelihood.log_prob_and_score(raw.mT, x, score[chunk].mT)
        ctx.save_for_backward(weight, h, score)
        ctx.block = block
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # its decorator hides the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (g,) = grad_outputs
        weight, h, score = ctx.saved_tensors
        g = g.to(score.dtype).unsqueeze(1)
        weight_grad = ctx.block("weight gradient", weight.shape, weight.dtype)
        scratch = ctx.block("scratch", h.shape, h.dtype)
        weight_gradient_by_chunks(score.mT, torch.mul(g, h, out=scratch), weight_grad)
        bias_grad = torch.bmm(g, score).squeeze(1).to(weight.dtype)
        h_grad = scratch.view(len(h), h.shape[2], h.shape[1])
        for chunk in [slice(None)] if score.dtype == weight.dtype else chunks(len(weight), weight[0].numel()):
            matmul(score[chunk], weight[chunk].to(score.dtype), h_grad[chunk])
        h_grad = torch.mul(h_grad.mT, g, out=ctx.block("input gradient", h.shape, h.dtype))
        return weight_grad, bias_grad, h_grad, None, None, None
