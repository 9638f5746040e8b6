"""An objective of one's own: hard EM, where each sample trains only its best leaf.

>>> import torch
>>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 3), input_shape=(4,), objective="hard")
>>> sorted(model(torch.rand(5, 4)).terms)
['balance', 'choice', 'hard']
"""

from torch import Tensor

import hmoevae as hm


@hm.objective("hard")
def hard(elbo: Tensor, log_prob: Tensor, log_prior: Tensor) -> dict[str, Tensor]:
    """The best leaf's loss, and the cross-entropy that fits the gates to that choice.

    >>> import torch
    >>> hard(torch.tensor([[-1.0], [-3.0]]), torch.tensor([[0.5], [0.5]]).log(), torch.zeros(2, 1))
    {'hard': tensor([1.]), 'choice': tensor([0.6931])}
    """
    joint, best = (elbo + log_prior).max(0)
    return {"hard": -joint, "choice": -log_prob.gather(0, best.unsqueeze(0)).squeeze(0)}
