"""Parts of a trained model as plain modules, for `torch.export` and ONNX, with any batch size.

Each module is a copy in evaluation mode with only the weights that it needs, so the model may be trained further.
Inputs have the model's dtype and are on its device. Unlike the model's methods, these modules do not check values.
"""

import copy
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hmoevae.checks import is_integer
from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.experts import Experts
from hmoevae.nn.gaps import shown
from hmoevae.nn.linear import LinearEncoder
from hmoevae.nn.rows import alone
from hmoevae.nn.stacked import Stacked

M = TypeVar("M", bound=nn.Module)

__all__ = [
    "DecoderModule",
    "EncoderModule",
    "RoutingModule",
    "decoder",
    "encoder",
    "routing",
]


def __dir__() -> list[str]:
    """The public names."""
    return __all__


def routing(model: HMoEVAE, *, level: int | None = None) -> "RoutingModule":
    """The gates alone: x -> the probability of every node of a level, as in `HMoEVAE.predict_proba`.

    Args:
        model: A model.
        level: Depth of the nodes, as in `HMoEVAE.predict_proba`; `None` means the leaves.

    Raises:
        ArgumentError: The tree has no such level.
        ArgumentTypeError: `model` is not an `HMoEVAE`.

    >>> from hmoevae import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    >>> any_batch = {0: torch.export.Dim.DYNAMIC}
    >>> program = torch.export.export(routing(model), (torch.rand(5, 4),), dynamic_shapes=(any_batch,), strict=False)
    >>> program.module()(torch.rand(7, 4)).shape
    torch.Size([7, 3])
    """
    _check_model(model)
    return RoutingModule(model, level).requires_grad_(False).eval()


def encoder(model: HMoEVAE, leaf: int) -> "EncoderModule":
    """One leaf's encoder: x -> mean and standard deviation of q(z|x), as in `HMoEVAE.encode` with `return_std`.

    Args:
        model: A model.
        leaf: Index of the leaf, as in the result of `model.predict`.

    Raises:
        ArgumentError: The tree has no such leaf.
        ArgumentTypeError: `model` is not an `HMoEVAE`.

    >>> from hmoevae import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    >>> mean, std = encoder(model, 0)(torch.rand(5, 4))
    >>> mean.shape, std.shape
    (torch.Size([5, 2]), torch.Size([5, 2]))
    """
    _check_leaf(model, leaf)
    return EncoderModule(model, int(leaf)).requires_grad_(False).eval()


def decoder(model: HMoEVAE, leaf: int) -> "DecoderModule":
    """One leaf's decoder: z -> the mean of p(x|z), as in `HMoEVAE.decode`.

    Args:
        model: A model.
        leaf: Index of the leaf, as in the result of `model.predict`.

    Raises:
        ArgumentError: The tree has no such leaf.
        ArgumentTypeError: `model` is not an `HMoEVAE`.

    >>> from hmoevae import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    >>> decoder(model, 0)(torch.zeros(5, 2)).shape
    torch.Size([5, 4])
    """
    _check_leaf(model, leaf)
    return DecoderModule(model, int(leaf)).requires_grad_(False).eval()


def _check_model(model: object) -> None:
    if not isinstance(model, HMoEVAE):
        raise ArgumentTypeError(mismatch("model", "an HMoEVAE", type(model).__name__))
    model.experts.check_whole()


def _check_leaf(model: HMoEVAE, leaf: int) -> None:
    _check_model(model)
    if not is_integer(leaf, least=0) or leaf >= model.plan.n_leaves:
        raise ArgumentError(mismatch("leaf", f"an integer from 0 to {model.plan.n_leaves - 1}", repr(leaf)))


def _without_weights(module: M) -> M:
    """Drop the parameters of a module that are not read, such as a likelihood's where it only shows samples."""
    for part in module.modules():
        part._parameters.clear()
    return module


def _densities(model: HMoEVAE) -> Experts:
    """The leaves whose density posterior gates read."""
    experts = copy.deepcopy(model.experts)
    for group in experts.groups:
        if not isinstance(group.encoder, LinearEncoder):
            for part in group.modules():
                part._parameters.clear()
                part._buffers.clear()
        elif not model.missing:
            group.encoder.fix_(group.decoder, group.likelihood)
    return experts


class RoutingModule(nn.Module):
    """The module that `routing` returns.

    >>> from hmoevae import VAE, Mixture
    >>> gates = routing(HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,)))
    >>> isinstance(gates, RoutingModule), gates(torch.rand(5, 4)).shape
    (True, torch.Size([5, 3]))
    """

    columns: Int[Tensor, " node"]

    def __init__(self, model: HMoEVAE, level: int | None) -> None:
        super().__init__()
        place = {node.path: i for i, node in enumerate(model.plan.nodes)}
        columns = [place[node.path] for node in model.plan.level(level)]
        self.register_buffer("columns", torch.tensor(columns, device=model.device))
        self.gates = copy.deepcopy(model.gates)
        for part in self.gates.modules():
            if isinstance(part, Stacked):
                part.batched = False
        self.paths = copy.deepcopy(model.paths)
        first = model.plan.leaves[0].place
        self.likelihood = _without_weights(alone(model.experts.first.likelihood, first.row))
        self.missing = model.missing
        self.experts = _densities(model) if self.gates.have_posteriors else None
        self.prior = copy.deepcopy(model.prior) if self.gates.have_posteriors else None

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch node"]:
        """Probabilities of samples `(batch, *input_shape)`; rows sum to one."""
        x = x.flatten(1).t()
        log_joint = None
        if self.experts is not None and self.prior is not None:
            log_joint = self.experts.evidence(x) + self.prior.leaf_log_prob().unsqueeze(1)
        node_log_prob = self.paths.node_log_prob(
            self.gates(shown(self.likelihood, x, missing=self.missing), log_joint=log_joint)
        )
        return node_log_prob.index_select(0, self.columns).exp().t()


class EncoderModule(nn.Module):
    """The module that `encoder` returns.

    >>> from hmoevae import VAE, Mixture
    >>> leaf = encoder(HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,)), 0)
    >>> isinstance(leaf, EncoderModule), leaf.latent_dim
    (True, 2)
    """

    def __init__(self, model: HMoEVAE, leaf: int) -> None:
        super().__init__()
        place = model.plan.leaves[leaf].place
        self.expert = alone(model.experts.groups[place.group], place.row)
        self.latent_dim = self.expert.latent_dim
        if not isinstance(self.expert.encoder, LinearEncoder):
            _without_weights(self.expert.likelihood)
            del self.expert.decoder
        elif not model.missing:  # with gaps, the posterior of each sample is computed from both
            self.expert.encoder.fix_(self.expert.decoder, self.expert.likelihood)
            _without_weights(self.expert.likelihood)
            _without_weights(self.expert.decoder)

    def forward(
        self, x: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """From samples `(batch, *input_shape)` to means and standard deviations, `(batch, latent_dim)` of the leaf."""
        posterior = self.expert.posterior(x.flatten(1).t())
        return posterior.mean.squeeze(0).t(), posterior.variance.squeeze(0).t().sqrt()


class DecoderModule(nn.Module):
    """The module that `decoder` returns.

    >>> from hmoevae import VAE, Mixture
    >>> leaf = decoder(HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,)), 0)
    >>> isinstance(leaf, DecoderModule), leaf.latent_dim
    (True, 2)
    """

    def __init__(self, model: HMoEVAE, leaf: int) -> None:
        super().__init__()
        place = model.plan.leaves[leaf].place
        self.expert = alone(model.experts.groups[place.group], place.row)
        self.latent_dim = self.expert.latent_dim
        self.sample_shape = model.input_shape
        del self.expert.encoder

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch ..."]:
        """From latents, `(batch, latent_dim)` of the leaf, to means `(batch, *input_shape)`."""
        mean = self.expert.likelihood.mean(self.expert.decoder(z.t()))
        return mean.squeeze(0).t().unflatten(1, self.sample_shape)
