"""The kernels of chosen rows for the CPU: the weights are not copied, and gradients hold these rows alone.

Axes: as in `hmoevae.nn.rows`; `inp` and `out` are features, `batch` is last. In memory the tensors lie batch-first: an
expert meets few samples, and BLAS libraries multiply a few rows by a large matrix two to four times as fast as a large
matrix by a few columns.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hmoevae.nn.kernels.cpu import CHUNK
from hmoevae.nn.kernels.memory import Blocks, blocks_of
from hmoevae.nn.kernels.precision import compute_dtype
from hmoevae.nn.kernels.products import matmul
from hmoevae.nn.kernels.readouts import Likelihood
from hmoevae.nn.rows import Chosen, Run, summed

Operand = tuple[Tensor, Literal["row", "group", "distinct"]]
"""A tensor, and what its first axis counts."""


def affine(
    weight: Float[Tensor, "group _ _"],
    bias: Float[Tensor, "group out"],
    x: Float[Tensor, "row inp batch"],
    chosen: Chosen,
    *,
    input_major: bool = False,
) -> Float[Tensor, "row out batch"]:
    """The affine maps of the chosen rows, by hand on a CPU. See `hmoevae.nn.kernels.affine`.

    >>> weight, bias = torch.tensor([[[1.0]], [[2.0]], [[3.0]]]), torch.zeros(3, 1)
    >>> affine(weight, bias, torch.ones(2, 1, 1), Chosen.of(torch.tensor([0, 2]))).flatten()
    tensor([1., 3.])
    """
    return _ChosenAffine.apply(weight, bias, x, chosen, input_major, blocks_of(weight))


def log_prob(
    likelihood: Likelihood,
    weight: Float[Tensor, "group inp raw"],
    bias: Float[Tensor, "group raw"],
    h: Float[Tensor, "row inp batch"],
    x: Float[Tensor, "feature batch"] | Float[Tensor, "row feature batch"],
    chosen: Chosen,
) -> Float[Tensor, "row batch"]:
    """Log p(x|z) of the chosen rows, fused with the last layer as in `readouts.py`, by hand on a CPU."""
    return _ChosenLogProb.apply(weight, bias, h, x, likelihood, chosen, blocks_of(weight))


def products(left: Operand, right: Operand, out: Operand, runs: Iterable[Run], dtype: torch.dtype) -> None:
    """Write left right to `out` for every row of `runs`, in the precision `dtype`; equal rows of the group add up."""
    adds = out[1] == "distinct"
    runs = tuple(runs)
    as_is = left[0].dtype == right[0].dtype == out[0].dtype == dtype
    # Views of all parts at once: one by one, they would take as long as the products of single rows.
    parts = [tensor.unbind(0) if len(tensor) <= 2 * len(runs) else None for tensor, _ in (left, right, out)]
    for run in runs:
        a, b, c = (
            _part(tensor, views, getattr(run, space), run.length)
            for (tensor, space), views in zip((left, right, out), parts, strict=True)
        )
        if not as_is:
            a, b = a.to(dtype), b.to(dtype)
        if run.is_again and adds:
            c.add_(torch.mm(a, b))
            continue
        product = c if c.dtype == dtype else torch.empty_like(c, dtype=dtype)
        if run.length == 1:
            torch.mm(a, b, out=product)
        else:
            matmul(a, b, product)
        if product is not c:
            c.copy_(product)


def _part(operand: Tensor, views: tuple[Tensor, ...] | None, start: int, length: int) -> Tensor:
    if length > 1:
        return operand[start : start + length]
    return operand[start] if views is None else views[start]


def _turned(y: Float[Tensor, "row batch out"]) -> Float[Tensor, "row out batch"]:
    """`y` with its last axes exchanged, as a tensor of its own on the same memory: activations overwrite no views."""
    (rows, n_batch, out), (by_row, by_sample, by_feature) = y.shape, y.stride()
    turned = (rows, out, n_batch), (by_row, by_feature, by_sample)
    return y.new_empty(0).set_(y.untyped_storage(), y.storage_offset(), *turned)


def _weight_gradient(left: Tensor, right: Tensor, weight: Tensor, chosen: Chosen, blocks: Blocks) -> Tensor:
    """The gradient whose row is the sum of left right over equal rows."""
    values = blocks.gradient_of(weight, len(chosen.distinct))
    products((left, "row"), (right, "row"), (values, "distinct"), chosen.runs, left.dtype)
    return chosen.gradient(values, weight)


class _ChosenAffine(torch.autograd.Function):
    """The affine maps of the chosen rows, in the precision of autocast."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, x: Tensor, chosen: Chosen, input_major: bool, blocks: Blocks
    ) -> Tensor:
        x = x.to(compute_dtype(x)).mT
        y = blocks.empty("output", (len(chosen), x.shape[1], bias.shape[1]), x.dtype)
        products((x, "row"), (weight if input_major else weight.mT, "group"), (y, "row"), chosen.runs, x.dtype)
        ctx.save_for_backward(weight, bias, x)
        ctx.chosen, ctx.input_major, ctx.blocks = chosen, input_major, blocks
        return _turned(y.add_(bias.index_select(0, chosen.rows).unsqueeze(1).to(y.dtype)))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # its decorator hides the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        dy = grad_outputs[0].mT
        weight, bias, x = ctx.saved_tensors
        chosen: Chosen = ctx.chosen
        weight_grad, bias_grad, x_grad = None, None, None
        if ctx.needs_input_grad[0]:
            factors = (x.mT, dy) if ctx.input_major else (dy.mT, x)
            weight_grad = _weight_gradient(*factors, weight, chosen, ctx.blocks)
        if ctx.needs_input_grad[1]:
            bias_grad = chosen.gradient(summed(dy.sum(1, dtype=bias.dtype), chosen), bias)
        if ctx.needs_input_grad[2]:
            x_grad = ctx.blocks.empty("input gradient", tuple(x.shape), x.dtype)
            transposed = weight.mT if ctx.input_major else weight
            products((dy, "row"), (transposed, "group"), (x_grad, "row"), chosen.runs, x.dtype)
            x_grad = x_grad.mT
        return weight_grad, bias_grad, x_grad, None, None, None


class _ChosenLogProb(torch.autograd.Function):
    """The fused readout of the chosen rows; the formulas are those of `readouts.py`."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor,
        h: Tensor,
        x: Tensor,
        likelihood: Likelihood,
        chosen: Chosen,
        blocks: Blocks,
    ) -> Tensor:
        dtype = compute_dtype(x)
        h = h.to(dtype).mT
        n_batch, n_raw = h.shape[1], bias.shape[1]
        result = x.new_empty(len(chosen), n_batch)
        score = blocks.empty("score", (len(chosen), n_batch, n_raw), dtype)
        step = max(1, CHUNK // (n_raw * n_batch))
        for start in range(0, len(chosen), step):
            stop = min(start + step, len(chosen))
            scores = score[start:stop]
            raw = torch.empty_like(scores) if dtype == x.dtype else scores
            products((h[start:stop], "row"), (weight, "group"), (raw, "row"), chosen.within(start, stop), dtype)
            raw = raw.to(x.dtype).add_(bias.index_select(0, chosen.rows[start:stop]).unsqueeze(1))
            own = x if x.ndim == 2 else x[start:stop]
            result[start:stop] = likelihood.log_prob_and_score(raw.mT, own, scores.mT)
            del raw  # the next chunk gets the same memory, which is still in the cache
        ctx.save_for_backward(weight, bias, h, score)
        ctx.chosen, ctx.blocks, ctx.score_unit = chosen, blocks, likelihood.score_unit
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # its decorator hides the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        weight, bias, h, score = ctx.saved_tensors
        chosen: Chosen = ctx.chosen
        g = (grad_outputs[0] * ctx.score_unit).to(score.dtype).unsqueeze(2)
        weight_grad, bias_grad, h_grad = None, None, None
        if ctx.needs_input_grad[0]:
            weight_grad = _weight_gradient((g * h).mT, score, weight, chosen, ctx.blocks)
        if ctx.needs_input_grad[1]:
            by_row = torch.bmm(g.mT, score).squeeze(1).to(bias.dtype)
            bias_grad = chosen.gradient(summed(by_row, chosen), bias)
        if ctx.needs_input_grad[2]:
            h_grad = ctx.blocks.empty("input gradient", tuple(h.shape), h.dtype)
            products((score, "row"), (weight.mT, "group"), (h_grad, "row"), chosen.runs, h.dtype)
            h_grad = h_grad.mul_(g).mT
        return weight_grad, bias_grad, h_grad, None, None, None, None
