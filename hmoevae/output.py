"""The inputs and outputs of a pass of the model, as records of tensors."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.nn.sample_weights import SampleWeights


@dataclass(frozen=True, slots=True)
class Routing:
    """The output of a pass of the gates alone.

    Attributes:
        loss: The loss to minimise, the sum of `terms`, in nats.
        terms: `"agreement"` and `"balance"`.
        leaf_log_prob: log q(leaf | sample), the product of the gates on the path.
        edge_log_prob: log g(child | sample) on every edge.

    >>> import torch
    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,))
    >>> routing = model.agree(torch.rand(5, 4), torch.rand(5, 4))
    >>> isinstance(routing, Routing), list(routing.terms), routing.leaf_log_prob.shape
    (True, ['agreement', 'balance'], torch.Size([5, 3]))
    """

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    leaf_log_prob: Float[Tensor, "batch leaf"]
    edge_log_prob: Float[Tensor, "batch edge"]

    def __repr__(self) -> str:
        """The loss as a sum, and the sizes."""
        batch, n_leaves = self.leaf_log_prob.shape
        terms = " + ".join(f"{name} {value:.4g}" for name, value in self.terms.items())
        return f"<{type(self).__name__} of {batch} samples, {n_leaves} leaves: loss {self.loss:.4g} = {terms}>"


@dataclass(frozen=True, slots=True, repr=False)
class Output(Routing):
    """The output of a pass.

    Attributes:
        loss: The loss to minimise, the sum of `terms`, in nats.
        terms: The objective's terms by name, `"agreement"` if there is a second view, and `"balance"`.
        leaf_log_prob: log q(leaf | sample), the product of the gates on the path.
        edge_log_prob: log g(child | sample) on every edge.
        leaf_elbo: ELBO of every sample under every leaf, from one draw of z each: log p(x|z) minus the KL. With the
            objective `"marginal"` the KL is estimated by the draw, log q(z|x) - log p(z). Where the routes choose
            leaves, each column is a slot.
        leaf: The leaf in every slot of every sample, where the routes choose leaves; `None` for all, in order.

    >>> import torch
    >>> import hmoevae as hm
    >>> out = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,))(torch.rand(5, 4))
    >>> isinstance(out, Output), list(out.terms), out.leaf_elbo.shape
    (True, ['expected', 'balance'], torch.Size([5, 3]))
    """

    leaf_elbo: Float[Tensor, "batch slot"]
    leaf: Int[Tensor, "batch slot"] | None = None


class Inputs(NamedTuple):
    """The inputs of the arithmetic of a pass, features-first.

    Attributes:
        samples: The samples, which the experts model.
        seen: What the gates see: a view of the samples, or the samples.
        other: A second view for the gates, for agreement.
        noise: Noise for the draws of z: one tensor per group of equal leaves, or one tensor for all slots.
        weights: The weights of the samples; `None` means equal ones.
        draws: Random numbers by which the routes explore.
    """

    samples: Float[Tensor, "feature batch"]
    seen: Float[Tensor, "feature batch"]
    other: Float[Tensor, "feature batch"] | None
    noise: list[Float[Tensor, "_ _ batch"]]
    weights: SampleWeights | None = None
    draws: Tensor | None = None
