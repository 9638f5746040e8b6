"""How well each leaf of a tree explains samples."""

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.model import HMoEVAE

N_IMPORTANCE = 8
"""Number of draws of z from every leaf for each sample."""
BATCH_SIZE = 500


@torch.no_grad()
def log_joint(model: HMoEVAE, x: Float[Tensor, "n *sample"]) -> Float[Tensor, "leaf n"]:
    """The importance-weighted bound on log pi_l + log p_l(x) of every leaf, in nats; always the same draws.

    >>> import hmoevae as hm
    >>> model, x = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 3), (4,)), torch.rand(5, 4)
    >>> scores = model.score_samples(x, n_importance=N_IMPORTANCE)
    >>> log_joint(model, x).logsumexp(0).allclose(scores, atol=1e-4)
    True
    """
    log_prior = model.prior.leaf_log_prob().unsqueeze(1)
    found = []
    for piece in x.to(model.device, model.dtype).split(BATCH_SIZE):
        draws = torch.Generator(model.device).manual_seed(0)
        flat = piece.flatten(1).t()
        found.append(model.experts.log_marginal(flat, N_IMPORTANCE, draws, shared_noise=True) + log_prior)
    return torch.cat(found, dim=1).cpu()


def mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """The mean, and its standard error; of fewer than two values, infinite.

    >>> mean_and_error(torch.tensor([1.0, 3.0]))
    (2.0, 1.0)
    """
    if len(values) < 2:
        return (values.mean().item() if len(values) else 0.0), float("inf")
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()
