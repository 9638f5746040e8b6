"""What a step must multiply: the matrix products of a tree's networks, counted in FLOPs and bytes, and run alone.

Axes as in `hmoevae.nn.grouped`: `group` counts equal networks, `inp` and `out` are features, `batch` is last.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

import hmoevae as hm

Op = Literal["train", "route", "sample", "fit"]
ADAM_BYTES = 28
"""Bytes a parameter that Adam moves: it reads weight, gradient and two moments, and writes all but the gradient."""


@dataclass(frozen=True, slots=True)
class Gemm:
    """Equal products side by side, (out, inp) times (inp, batch).

    Attributes:
        groups: How many.
        out: Rows of each result.
        inp: The length of the sum.
        batch: Columns of each result.
        shared: Whether all groups read one input.
        first: Whether the input are samples, which need no gradient.
        training: Whether the two products of the backward pass, for weight and input, are made too.
    """

    groups: int
    out: int
    inp: int
    batch: int
    shared: bool
    first: bool
    training: bool

    @property
    def n_products(self) -> int:
        """Forward; weight gradient; input gradient."""
        return 1 + self.training * (2 - self.first)

    @property
    def flops(self) -> int:
        """Multiplications and additions: 2 m n k a product."""
        return self.n_products * 2 * self.groups * self.out * self.inp * self.batch

    @property
    def n_weights(self) -> int:
        """Entries of the weights, biases left out."""
        return self.groups * self.out * self.inp

    def bytes(self, itemsize: int) -> int:
        """The least memory traffic: every operand and result of every product once."""
        inputs = (1 if self.shared else self.groups) * self.inp * self.batch
        outputs = self.groups * self.out * self.batch
        return self.n_products * (self.n_weights + inputs + outputs) * itemsize

    def activation_bytes(self, itemsize: int) -> int:
        """What its inputs, its results and, in training, their gradients take."""
        inputs = 0 if self.first else self.groups * self.inp * self.batch  # the samples are there anyway
        return (1 + self.training) * (inputs + self.groups * self.out * self.batch) * itemsize

    def step(self, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
        """The products themselves, into buffers that are made once."""

        def tensor(*shape: int) -> torch.Tensor:
            return torch.rand(shape, device=device, dtype=dtype)

        n, rows = (1, self.groups * self.out) if self.shared else (self.groups, self.out)
        weight, x, y = tensor(n, rows, self.inp), tensor(n, self.inp, self.batch), tensor(n, rows, self.batch)
        products = [(weight, x, y)]
        if self.training:
            products.append((y.clone(), x.mT, torch.empty_like(weight)))
        if self.training and not self.first:
            products.append((weight.mT, y.clone(), torch.empty_like(x)))

        def run() -> None:
            for left, right, out in products:
                torch.bmm(left, right, out=out)

        return run


def gemms_of(tree: hm.VAE | hm.Mixture, n_features: int, batch: int, op: Op, route: int | None = None) -> list[Gemm]:
    """The products of one step; equal layers run as one, and first layers of equal width too, whoever they belong to.

    Args:
        tree: The tree, MLPs only.
        n_features: Entries of a sample.
        batch: Samples in a step.
        op: What the step does: `"train"` and `"fit"` run every network and its backward pass, `"route"` the gates,
            `"sample"` the decoders, each sample with one leaf.
        route: The number of leaves that each sample is computed with, spread evenly over all of them; `None` means all.
    """
    nodes = [node for _, node in tree.walk()]
    leaves = [node for node in nodes if isinstance(node, hm.VAE)]
    gates = [_layers(n_features, n.gate, len(n.children), first=True) for n in nodes if isinstance(n, hm.Mixture)]
    encoders = [_layers(n_features, leaf.encoder, 2 * leaf.latent_dim, first=True) for leaf in leaves]
    decoders = [_layers(leaf.latent_dim, leaf.decoder, n_features, first=False) for leaf in leaves]
    if op == "route":
        networks = gates
    elif op == "sample":
        networks, batch = decoders[:batch], math.ceil(batch / len(leaves))
    elif route is None:
        networks = [*gates, *encoders, *decoders]
    else:
        networks = gates
    training = op in ("train", "fit")
    found = [Gemm(n, out, inp, batch, first, first, training) for (inp, out, first), n in _count(networks)]
    if training and route is not None:
        met = min(len(leaves), route * batch)
        each = math.ceil(route * batch / met)
        layers = _count([*encoders[:met], *decoders[:met]])
        found += [Gemm(n, out, inp, each, False, first, training) for (inp, out, first), n in layers]
    return found


def _count(networks: Iterable[list[tuple[int, int, bool]]]) -> Iterable[tuple[tuple[int, int, bool], int]]:
    """How often each layer occurs."""
    return Counter(layer for network in networks for layer in network).items()


def total_flops(gemms: Iterable[Gemm]) -> int:
    """FLOPs of one step."""
    return sum(gemm.flops for gemm in gemms)


def total_bytes(gemms: Iterable[Gemm], itemsize: int) -> int:
    """Least memory traffic of one step, the optimiser's included, in bytes; element-wise work is left out."""
    return sum(gemm.bytes(itemsize) + gemm.training * gemm.n_weights * ADAM_BYTES for gemm in gemms)


def alone(gemms: Iterable[Gemm], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """A step that does these products by `torch.bmm` and nothing else."""
    steps = [gemm.step(device, dtype) for gemm in gemms]

    def run() -> None:
        for step in steps:
            step()

    return run


def _layers(n_inputs: int, network: hm.Network, n_outputs: int, *, first: bool) -> list[tuple[int, int, bool]]:
    """`(inp, out, first)` of every layer; `first` says that the network reads the samples."""
    assert isinstance(network, hm.MLP), "only MLPs are counted"
    sizes = pairwise((n_inputs, *network.hidden, n_outputs))
    return [(inp, out, first and i == 0) for i, (inp, out) in enumerate(sizes)]
