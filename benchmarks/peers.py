"""What a user would write instead: the article's flat mixture of VAEs in three plain PyTorch styles, batch-first.

All three compute the same loss as `hm.HMoEVAE` with the objective `"expected"` and the default balance, and start from
a model's own weights (`peer`), so that a difference in time is a difference in how the same arithmetic is done.

Axes: `leaf` counts the experts, `batch` the samples, `feature` the entries of a sample, `latent` those of z.
"""

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

import hmoevae as hm

SCALE = 0.5
MIN_VARIANCE = 1e-5
BALANCE_WEIGHT = 0.1

Noise = Float[Tensor, "leaf batch latent"]

# --- the arithmetic that all three share ----------------------------------------------------------------------------


def mlp(n_inputs: int, n_hidden: int, n_outputs: int) -> nn.Sequential:
    """The article's network."""
    return nn.Sequential(nn.Linear(n_inputs, n_hidden), nn.Sigmoid(), nn.Linear(n_hidden, n_outputs))


def draw(
    raw: Float[Tensor, "*leaf batch twice_latent"], noise: Float[Tensor, "*leaf batch latent"]
) -> tuple[Float[Tensor, "*leaf batch latent"], Float[Tensor, "*leaf batch"]]:
    """A draw of z from an encoder's output, and KL(q(z|x) || N(0, I)) in nats."""
    mean, log_variance = raw.to(noise.dtype).chunk(2, dim=-1)
    variance = MIN_VARIANCE + log_variance.exp()
    return mean + variance.sqrt() * noise, 0.5 * (mean.square() + variance - variance.log() - 1).sum(-1)


def log_prob(
    raw: Float[Tensor, "*leaf batch feature"], x: Float[Tensor, "batch feature"]
) -> Float[Tensor, "*leaf batch"]:
    """Log-density of N(sigmoid(raw), SCALE^2) at x, summed over the features, in nats."""
    constant = x.shape[-1] * (math.log(SCALE) + 0.5 * math.log(2 * math.pi))
    return -0.5 * ((x - torch.sigmoid(raw)) / SCALE).square().sum(-1) - constant


def mixture_loss(
    leaf_elbo: Float[Tensor, "leaf batch"], gate_logits: Float[Tensor, "batch leaf"] | None
) -> Float[Tensor, ""]:
    """The experts' loss as the gate weighs it, plus the variance of how much each is used; no gate, one expert."""
    if gate_logits is None:
        return -leaf_elbo.mean()
    probability = gate_logits.to(leaf_elbo.dtype).softmax(1)
    importance = probability.sum(0)
    return -(probability * leaf_elbo.t()).sum(1).mean() + BALANCE_WEIGHT * importance.var(correction=0)


# --- the peers ------------------------------------------------------------------------------------------------------


class Expert(nn.Module):
    """One VAE.

    Args:
        n_features: Entries of a sample.
        n_hidden: Width of the hidden layers.
        n_latent: Size of z.
    """

    def __init__(self, n_features: int, n_hidden: int, n_latent: int) -> None:
        super().__init__()
        self.encoder = mlp(n_features, n_hidden, 2 * n_latent)
        self.decoder = mlp(n_latent, n_hidden, n_features)
        self.n_features, self.n_latent = n_features, n_latent

    def forward(
        self, x: Float[Tensor, "batch feature"], noise: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, " batch"]:
        """ELBO(x) from one draw of z, in nats."""
        z, kl = draw(self.encoder(x), noise)
        return log_prob(self.decoder(z), x) - kl


class Loop(nn.Module):
    """One module an expert and a Python loop over them: what one writes first.

    Args:
        experts: The leaves.
        gate: Network from x to one logit a leaf; `None` for a lone expert.
    """

    def __init__(self, experts: list[Expert], gate: nn.Sequential | None) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.gate = gate
        self.n_features, self.n_latent = experts[0].n_features, experts[0].n_latent

    def loss(self, x: Float[Tensor, "batch feature"], noise: Noise | None = None) -> Float[Tensor, ""]:
        """The number to minimise, in nats; `noise` stands in for the draws of z."""
        noise = draws(len(self.experts), x, self.n_latent) if noise is None else noise
        leaf_elbo = torch.stack([expert(x, e) for expert, e in zip(self.experts, noise, strict=True)])
        return mixture_loss(leaf_elbo, self.gate(x) if self.gate else None)

    @torch.no_grad()
    def route(self, x: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch leaf"]:
        """Log-probability of every leaf, log q(leaf | x)."""
        if self.gate is None:
            return x.new_zeros(len(x), 1)
        return self.gate(x).log_softmax(1)

    @torch.no_grad()
    def sample(self, n: int) -> Float[Tensor, "batch feature"]:
        """Means of p(x|z), the leaf drawn uniformly and z from N(0, I)."""
        weight = next(self.parameters())
        leaf = torch.randint(len(self.experts), (n,), device=weight.device)
        z = torch.randn(n, self.n_latent, device=weight.device, dtype=weight.dtype)
        samples = weight.new_empty(n, self.n_features)
        for i, expert in enumerate(self.experts):
            mine = leaf == i
            if mine.any():
                samples[mine] = torch.sigmoid(expert.get_submodule("decoder")(z[mine])).to(samples.dtype)
        return samples


class Vmap(nn.Module):
    """`torch.func.vmap` over stacked experts, as PyTorch's tutorial on model ensembling has it.

    Args:
        experts: The leaves.
        gate: As in `Loop`.
    """

    def __init__(self, experts: list[Expert], gate: nn.Sequential | None) -> None:
        super().__init__()
        stacked, _ = torch.func.stack_module_state(experts)  # type: ignore[arg-type]
        # A module's parameter may have no dot in its name.
        self.stacked = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(p) for name, p in stacked.items()})
        self.gate = gate
        self.n_experts, self.n_latent = len(experts), experts[0].n_latent
        # In a tuple, so that its weights, which are never used, are none of this module's.
        self.skeleton = (copy.deepcopy(experts[0]).to("meta"),)

    def loss(self, x: Float[Tensor, "batch feature"], noise: Noise | None = None) -> Float[Tensor, ""]:
        """As in `Loop`."""
        noise = draws(self.n_experts, x, self.n_latent) if noise is None else noise

        def elbo(weights: dict[str, Tensor], e: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
            return torch.func.functional_call(self.skeleton[0], weights, (x, e))

        stacked = {name.replace("/", "."): weight for name, weight in self.stacked.items()}
        leaf_elbo = torch.func.vmap(elbo)(stacked, noise)
        return mixture_loss(leaf_elbo, self.gate(x) if self.gate else None)


class Einsum(nn.Module):
    """Stacked weights and a batch-first einsum a layer.

    The leaf axis leads in the results, `"bi,lio->lbo"`. Measured with PyTorch 2.15 on a CPU, forward and backward, that
    is as fast as `"bi,lio->blo"` and a little faster than weights stored as `nn.Linear` does, `"bi,loi->lbo"`.

    Args:
        experts: The leaves.
        gate: As in `Loop`.
    """

    def __init__(self, experts: list[Expert], gate: nn.Sequential | None) -> None:
        super().__init__()
        stacked, _ = torch.func.stack_module_state(experts)  # type: ignore[arg-type]
        layers = [f"{network}.{i}" for network in ("encoder", "decoder") for i in (0, 2)]
        self.weights = nn.ParameterList(stacked[f"{layer}.weight"].detach().mT.contiguous() for layer in layers)
        self.biases = nn.ParameterList(stacked[f"{layer}.bias"].detach().unsqueeze(1) for layer in layers)
        self.gate = gate
        self.n_experts, self.n_latent = len(experts), experts[0].n_latent

    def loss(self, x: Float[Tensor, "batch feature"], noise: Noise | None = None) -> Float[Tensor, ""]:
        """As in `Loop`."""
        noise = draws(self.n_experts, x, self.n_latent) if noise is None else noise
        hidden = torch.sigmoid(torch.einsum("bi,lio->lbo", x, self.weights[0]) + self.biases[0])
        z, kl = draw(self._layer(1, hidden), noise)
        raw = self._layer(3, torch.sigmoid(self._layer(2, z)))
        return mixture_loss(log_prob(raw, x) - kl, self.gate(x) if self.gate else None)

    def _layer(self, i: int, x: Float[Tensor, "leaf batch inp"]) -> Float[Tensor, "leaf batch out"]:
        return torch.einsum("lbi,lio->lbo", x, self.weights[i]) + self.biases[i]


Peer = Loop | Vmap | Einsum
PEERS: dict[str, type[Peer]] = {"loop": Loop, "vmap": Vmap, "einsum": Einsum}


def draws(n_experts: int, x: Float[Tensor, "batch feature"], n_latent: int) -> Noise:
    """Standard normal noise for one draw of z from every expert."""
    return torch.randn(n_experts, len(x), n_latent, device=x.device, dtype=x.dtype)


# --- the same weights -----------------------------------------------------------------------------------------------


def peer(name: str, model: hm.HMoEVAE) -> Peer:
    """A peer with the weights, device and dtype of a lone VAE or a flat mixture with one hidden layer a network.

    Args:
        name: A key of `PEERS`.
        model: Where the weights are copied from.
    """
    assert model.plan.depth <= 1, f"peers are flat, the model has depth {model.plan.depth}"
    # The names in a saved file, which are as public as the file is.
    weights = model.state_dict()
    first, second = (weights[f"experts.groups.0.encoder.layers.{i}.weight"] for i in range(2))
    n_leaves, n_hidden, n_features = first.shape
    with torch.device(model.device):
        experts = [Expert(n_features, n_hidden, second.shape[1] // 2).to(model.dtype) for _ in range(n_leaves)]
        gate = mlp(n_features, n_hidden, n_leaves).to(model.dtype) if model.plan.depth else None
    for i, expert in enumerate(experts):
        for network in ("encoder", "decoder"):
            _copy(expert.get_submodule(network), weights, f"experts.groups.0.{network}", i)
    if gate is not None:
        _copy(gate, weights, "gates.groups.0.network", 0)
    return PEERS[name](experts, gate)


@torch.no_grad()
def _copy(network: nn.Module, weights: dict[str, Tensor], prefix: str, i: int) -> None:
    for theirs, ours in (("0", "0"), ("2", "1")):  # nn.Sequential counts the activation too
        for kind in ("weight", "bias"):
            values = weights[f"{prefix}.layers.{ours}.{kind}"][i]
            is_input_major = prefix.endswith("decoder") and (ours, kind) == ("1", "weight")
            network.get_parameter(f"{theirs}.{kind}").copy_(values.mT if is_input_major else values)
