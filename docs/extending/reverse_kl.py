"""A balance of one's own: the divergence of the prior from the mean usage, which grows as a child dies out.

>>> tree = hm.Mixture.of(hm.VAE(2), 3, balance=hm.Balance("reverse_kl", weight=5.0))
>>> bool(hm.HMoEVAE(tree, input_shape=(4,))(torch.rand(5, 4)).terms["balance"] >= 0)
True
"""

import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.nn.paths import Siblings


@hm.balance("reverse_kl")
def reverse_kl(importance: Tensor, log_prior: Tensor, siblings: Siblings) -> Tensor:
    """The summands of sum_c pi_c log(pi_c / u_c); zero for all children of a mixture that no sample reaches."""
    usage = siblings.share(importance)
    floor = torch.finfo(usage.dtype).tiny ** 0.5
    reached = siblings.total(importance) > floor
    return reached * log_prior.exp() * (log_prior - usage.clamp_min(floor).log())
