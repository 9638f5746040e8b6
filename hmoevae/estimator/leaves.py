"""What an estimator tells of the leaves of its model: mean samples, order by size, priors, number of parameters."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.nn.experts import ExpertGroup
from hmoevae.nn.grouped import GroupedMLP
from hmoevae.nn.rows import reorder_
from hmoevae.spec import Categorical, Columns, Likelihood, Mixture, NegativeBinomial, Poisson

PAIRS, ROUNDS = 128, 16
"""Pairs of draws of z at a time, and how often, for the mean sample of a leaf."""


@torch.no_grad()
def leaf_means(model: HMoEVAE) -> Float[Tensor, "leaf feature"]:
    """The mean of p(x|leaf) of every leaf, or the most probable code where a mean has no meaning.

    It is an average over pairs z and -z, so that it is exact, up to rounding, for linear decoders with Gaussian
    features. Every call draws the same.

    >>> from hmoevae.spec import VAE
    >>> leaf_means(HMoEVAE(Mixture.of(VAE(2), 3), (4,))).shape
    torch.Size([3, 4])
    """
    generator = torch.Generator().manual_seed(0)
    means = []
    for group in model.experts.groups:
        total: Tensor | float = 0.0
        for _ in range(ROUNDS):
            z = torch.randn(1, group.latent_dim, PAIRS, generator=generator, dtype=model.dtype, device="cpu")
            pairs = torch.cat([z, -z], 2).to(model.device).expand(group.n_experts, -1, -1)
            total = total + group.likelihood.statistics(group.decoder(pairs)).mean(2, keepdim=True)
        means.append(group.likelihood.from_statistics(total / ROUNDS).squeeze(2))  # type: ignore[arg-type]
    return model.experts.by_leaf(means)


def by_size(counts: Float[np.ndarray, " leaf"], means: Float[np.ndarray, "leaf feature"]) -> Int[np.ndarray, " leaf"]:
    """Leaves from the largest to the smallest; equal ones in the order of their means, compared column by column.

    >>> by_size(np.array([2.0, 5.0, 2.0]), np.array([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0]])).tolist()
    [1, 2, 0]
    """
    return np.lexsort((*means.T[::-1], -counts))


@torch.no_grad()
def reorder_leaves_(model: HMoEVAE, history: History, order: Int[np.ndarray, " leaf"]) -> None:
    """Renumber the leaves of a flat mixture of equal leaves, in weights and history: leaf i becomes leaf order[i]."""
    index = torch.from_numpy(order).to(model.device)
    reorder_(model.experts.groups[0], index)
    for gate in model.gates.groups:
        for parameter in () if gate.last is None else (gate.last.weight, gate.last.bias):  # posterior gates have none
            parameter.copy_(parameter[:, index])
    if model.prior.logits is not None:
        model.prior.logits.copy_(model.prior.logits[index])
    columns = [f"usage/{leaf.path}" for leaf in model.plan.leaves]
    for row in history.rows:
        row.update(zip(columns, [row[columns[i]] for i in order], strict=True))


def n_parameters(model: HMoEVAE) -> int:
    """Number of free parameters of p(x): learned priors, decoders and likelihoods; encoders and gates play no part.

    What leaves p(x) as it is does not count: rotations of the latents of a linear decoder, and a constant that is added
    to the logits of categories or shares. Weights of linear decoders that are exactly zero, as `fit_em` sets those of
    columns that are not Gaussian, do not count either.

    >>> from hmoevae.spec import MLP, VAE, Gaussian
    >>> leaf = VAE(2, MLP(()), MLP(()), Gaussian("learned", "identity"))
    >>> tree = Mixture.of(leaf, 3, prior="learned")
    >>> n_parameters(HMoEVAE(tree, (4,), objective="marginal"))  # 3 times 4 * 2 - 1 + 4 + 4, and 2 weights
    47
    """
    mixtures = [mixture.spec for mixture in model.plan.mixtures]
    weights = sum(len(each.children) - 1 for each in mixtures if isinstance(each, Mixture) and each.prior == "learned")
    groups = zip(model.plan.expert_groups, model.experts.groups, strict=True)
    n_features = math.prod(model.input_shape)
    return weights + sum(_of_group(group, planned.spec.likelihood, n_features) for planned, group in groups)


def _of_group(group: ExpertGroup, likelihood: Likelihood, n_features: int) -> int:
    own = sum(p.numel() for p in (*group.decoder.parameters(), *group.likelihood.parameters()))
    spare = _spare_outputs(likelihood, n_features)
    if _is_linear(group):
        assert isinstance(group.decoder, GroupedMLP)
        loadings = group.decoder.last.matrices
        used = loadings.any(2).sum(1)  # outputs that depend on z
        own -= int((~loadings.any(2)).sum()) * group.latent_dim
        rotations = [min(group.latent_dim, n) for n in used.tolist()]
        own -= sum(q * (q - 1) // 2 for q in rotations)
    return own - group.n_experts * spare


def _spare_outputs(likelihood: Likelihood, n_features: int) -> int:
    """Number of outputs of a decoder that the others make redundant."""
    match likelihood:
        case Columns(parts=parts):
            totals = {part for part in parts if isinstance(part, Poisson | NegativeBinomial) and part.total is not None}
            return len(totals) + sum(isinstance(part, Categorical) for part in parts)
        case Categorical():
            return n_features
        case Poisson(total=total) | NegativeBinomial(total=total):
            return 0 if total is None else 1
    return 0


def _is_linear(group: ExpertGroup) -> bool:
    return isinstance(group.decoder, GroupedMLP) and len(group.decoder.layers) == 1
