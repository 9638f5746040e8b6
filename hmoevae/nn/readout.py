"""The last layer of the decoders and the likelihood of what they say, as one function with its gradient written out.

Axes: `group` counts experts, `feature` the entries of a sample, `inp` the last hidden layer; `batch` is last.

The widest tensors of a training step are here, (group, feature, batch). With raw = W h + b and score = d log p / d raw,
for a loss whose gradient with respect to log p(x|z) is g, (group, batch)::

    d loss / dW = score (g h)^T,    d loss / dh = g W^T score,    d loss / db = score g^T

g scales columns, so it is applied to the narrow h instead of the wide score, which is computed in the forward pass, a
chunk of experts at a time, and is all that is kept. It lies as (group, batch, feature), so the samples come, and W as
(group, inp, feature): so all three products find their operands, and give their results as they are wanted.

Without gradients nothing wide is kept at all, nor made for more than a chunk of experts.

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
    affine,
    compute_dtype,
    in_chunks,
    is_written_out,
    matmul_by_chunks,
)
from hmoevae.nn.likelihoods import LikelihoodModel
from hmoevae.nn.products import matmul


def log_prob(
    likelihood: LikelihoodModel,
    layer: GroupedLinear,
    h: Float[Tensor, "group inp batch"],
    x: Float[Tensor, "feature batch"],
) -> Float[Tensor, "group batch"]:
    """Log p(x|z) in nats, where `layer` makes the raw outputs from `h`: in one function for one that is input-major.

    In the precision of `x`, which is single or more although `layer` and `h` may be in half.
    """
    if is_written_out(x) and not torch.is_grad_enabled():
        result = x.new_empty(h.shape[0], h.shape[-1])
        for w, b, inp, log_probs in in_chunks(x.numel(), layer.matrices, layer.bias, h, result):
            log_probs.copy_(likelihood.log_prob(affine(w, b, inp, layer.block_source()), x))
        return result
    is_step = layer.input_major and torch.is_grad_enabled() and not x.requires_grad
    if is_step and is_written_out(x):
        return _LogProb.apply(layer.weight, layer.bias, h, x, likelihood, layer.block_source())
    is_plain = not torch._C._are_functorch_transforms_active()  # which would need a rule of its own for each of them
    if is_step and is_plain and torch.compiler.is_compiling():
        h = h.to(compute_dtype(x))
        with torch.no_grad():
            raw = torch.bmm(h.mT, layer.weight.to(h.dtype)).to(x.dtype) + layer.bias.unsqueeze(1)
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
        weight_grad = torch.bmm(g * h, score).to(weight.dtype)
        bias_grad = torch.bmm(g, score).squeeze(1).to(weight.dtype)
        h_grad = torch.bmm(weight.to(score.dtype), score.mT) * g
        return weight_grad, bias_grad, h_grad, None, None


class _LogProb(torch.autograd.Function):
    """See the head of this file."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, h: Tensor, x: Tensor, likelihood: LikelihoodModel, block: BlockSource
    ) -> Tensor:
        dtype = compute_dtype(x)
        h = h.to(dtype)
        groups, _, n_features = weight.shape
        n_batch = h.shape[-1]
        result = x.new_empty(groups, n_batch)
        score = block("score", (groups, n_batch, n_features), dtype)
        for w, b, inp, scores, log_probs in in_chunks(n_features * n_batch, weight, bias, h, score, result):
            raw = torch.empty_like(scores) if dtype == x.dtype else scores  # in bfloat16 there is a copy anyway
            matmul(inp.mT, w.to(dtype), raw)
            raw = raw.to(x.dtype).add_(b.unsqueeze(1))
            log_probs.copy_(likelihood.log_prob_and_score(raw.mT, x, scores.mT))
            del raw  # so that the next one takes its place, which is still in the cache
        ctx.save_for_backward(weight, h, score)
        ctx.block, ctx.score_unit = block, likelihood.score_unit
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # its decorator hides the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (g,) = grad_outputs
        weight, h, score = ctx.saved_tensors
        g = (g * ctx.score_unit).to(score.dtype).unsqueeze(1)
        weight_grad = ctx.block("weight gradient", weight.shape, weight.dtype)
        matmul_by_chunks(torch.mul(g, h, out=ctx.block("scratch", h.shape, h.dtype)), score, weight_grad)
        bias_grad = torch.bmm(g, score).squeeze(1).to(weight.dtype)
        h_grad = ctx.block("input gradient", h.shape, h.dtype)
        matmul_by_chunks(weight, score.mT, h_grad)
        return weight_grad, bias_grad, h_grad.mul_(g), None, None, None
