"""The plain reference: the model's formulas with a Python loop over nodes and samples, one recursion over the tree.

Slow, batch-first, and written from the formulas of the design, not from the code: it reads a model's weights and
nothing else of `hmoevae.nn`. All results carry gradients to the model's parameters.
"""

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, distributions

import hmoevae as hm
from hmoevae.spec import Tree

FUNCTIONS = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
}


@dataclass
class Result:
    """What one pass gives; the fields up to `leaf_log_prior` are `(batch, ...)`, in the plan's order."""

    leaf_elbo: Tensor
    leaf_log_prob: Tensor
    edge_log_prob: Tensor
    leaf_log_prior: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """The sum of the terms."""
        return sum(self.terms.values(), torch.zeros((), dtype=self.leaf_elbo.dtype))


class Reference:
    """A slow twin of `model` that runs on the same parameters."""

    def __init__(self, model: hm.HMoEVAE) -> None:
        self.model = model
        self.leaves: list[tuple[str, hm.VAE]] = []
        self.mixtures: list[tuple[str, hm.Mixture]] = []
        self._collect(model.tree, "root")
        self._expert_place = _places([(path, replace(leaf, name=None)) for path, leaf in self.leaves])
        self._gate_place = _places([(path, (mix.gate, len(mix.children))) for path, mix in self.mixtures])
        self.first_edge = {}
        edges = 0
        for path, mixture in self.mixtures:
            self.first_edge[path] = edges
            edges += len(mixture.children)

    def _collect(self, node: Tree, path: str) -> None:
        if isinstance(node, hm.VAE):
            self.leaves.append((path, node))
            return
        self.mixtures.append((path, node))
        for i, child in enumerate(node.children):
            self._collect(child, f"{path}/{i}")

    # --- one node's own weights, as views of the grouped ones -------------------------------------------------------

    def encoder_weights(self, path: str) -> list[Tensor]:
        """Weight and bias of every layer of one leaf's encoder."""
        group, place = self._expert_place[path]
        return _dense_weights(self.model.experts.groups[group].encoder, place)

    def decoder_weights(self, path: str) -> list[Tensor]:
        """Weight and bias of every layer of one leaf's decoder."""
        group, place = self._expert_place[path]
        return _dense_weights(self.model.experts.groups[group].decoder, place)

    def gate_weights(self, path: str) -> list[Tensor]:
        """Weight and bias of every layer of one mixture's gate; the rows of the last two are its children."""
        group, place = self._gate_place[path]
        network = self.model.gates.groups[group]
        if not hasattr(network, "convolutions"):
            return _dense_weights(network, place)
        spec = self.model.tree.at(path).gate
        weights = []
        for channels, layer in zip(spec.channels, network.convolutions, strict=True):
            rows = slice(place * channels, (place + 1) * channels)
            weights += [layer.weight[rows], layer.bias[rows]]
        return weights + _dense_weights(network.head, place)

    def prior_logits(self, path: str) -> Tensor | None:
        """The learned logits of one mixture's prior, or nothing where it is fixed."""
        mixture = self.model.tree.at(path)
        if mixture.prior != "learned":
            return None
        first = self.first_edge[path]
        return self.model.paths.prior_logits[first : first + len(mixture.children)]

    # --- one node ---------------------------------------------------------------------------------------------------

    def gate(self, path: str, x: Tensor) -> Tensor:
        """log g(child | x) of one mixture, (batch, child)."""
        spec = self.model.tree.at(path).gate
        weights = self.gate_weights(path)
        if isinstance(spec, hm.Conv):
            for _ in spec.channels:
                weight, bias, *weights = weights
                x = F.conv2d(x, weight, bias, stride=spec.stride, padding=spec.kernel_size // 2)
                x = FUNCTIONS[spec.activation](x)
        return _dense(weights, x.flatten(1), spec.activation).log_softmax(1)

    def log_prior(self, path: str) -> Tensor:
        """log pi of one mixture's children."""
        logits = self.prior_logits(path)
        if logits is None:
            mixture = self.model.tree.at(path)
            shares = [child.n_leaves if mixture.prior == "leaves" else 1 for child in mixture.children]
            return torch.tensor([share / sum(shares) for share in shares], dtype=self.model.dtype).log()
        return logits.log_softmax(0)

    def posterior(self, path: str, x: Tensor) -> distributions.Normal:
        """q(z|x) of one leaf."""
        leaf = self.model.tree.at(path)
        raw = _dense(self.encoder_weights(path), x.flatten(1), leaf.encoder.activation)
        mean, log_variance = raw[:, : leaf.latent_dim], raw[:, leaf.latent_dim :]
        variance = log_variance.clamp_max(10).exp()
        tangent = math.exp(10) * (log_variance - 9)
        variance = 1e-5 + torch.where(log_variance > 10, tangent, variance)
        return distributions.Normal(mean, variance.sqrt())

    def observation(self, path: str, z: Tensor) -> distributions.Distribution:
        """p(x|z) of one leaf, over (batch, feature)."""
        leaf = self.model.tree.at(path)
        raw = _dense(self.decoder_weights(path), z, leaf.decoder.activation)
        match leaf.likelihood:
            case hm.Gaussian(scale=scale, mean="sigmoid"):
                return distributions.Normal(torch.sigmoid(raw), scale)
            case hm.Gaussian(scale=scale, mean="identity"):
                return distributions.Normal(raw, scale)
            case hm.Bernoulli():
                return distributions.Bernoulli(logits=raw)
            case hm.ContinuousBernoulli():
                return distributions.ContinuousBernoulli(logits=raw)
        raise AssertionError(leaf.likelihood)

    def elbo(self, path: str, x: Tensor, noise: Tensor) -> Tensor:
        """ELBO of one leaf at z = mean + std * noise, (batch,)."""
        posterior = self.posterior(path, x)
        z = posterior.mean + posterior.stddev * noise
        log_likelihood = self.observation(path, z).log_prob(x.flatten(1)).sum(1)
        prior = distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
        return log_likelihood - distributions.kl_divergence(posterior, prior).sum(1)

    def log_weight(self, path: str, x: Tensor, noise: Tensor) -> Tensor:
        """log p(x|z) p(z) / q(z|x) of one leaf at z = mean + std * noise, (batch,)."""
        posterior = self.posterior(path, x)
        z = posterior.mean + posterior.stddev * noise
        prior = distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
        log_likelihood = self.observation(path, z).log_prob(x.flatten(1)).sum(1)
        return log_likelihood + (prior.log_prob(z) - posterior.log_prob(z)).sum(1)

    # --- the whole tree ---------------------------------------------------------------------------------------------

    def draw_noise(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """One draw for every leaf, `(batch, latent)` by path, from the numbers that the model takes of `generator`."""
        noise = {}
        for group in range(1 + max(group for group, _ in self._expert_place.values())):
            members = [path for path, _ in self.leaves if self._expert_place[path][0] == group]
            latent = self.model.tree.at(members[0]).latent_dim
            drawn = torch.randn(len(members), latent, batch, generator=generator, dtype=self.model.dtype)
            noise |= {path: drawn[self._expert_place[path][1]].t() for path in members}
        return noise

    def run(self, x: Tensor, noise: dict[str, Tensor]) -> Result:
        """Everything that `model(x)` gives, for `x` of the model's dtype."""
        elbos: list[Tensor] = []
        log_probs: list[Tensor] = []
        log_priors: list[Tensor] = []
        edges: dict[int, Tensor] = {}
        balance_terms: list[Tensor] = []

        def visit(node: Tree, path: str, reach: Tensor, log_prior: Tensor, inherited: hm.Balance) -> None:
            if isinstance(node, hm.VAE):
                estimate = self.log_weight if self.model.objective == "marginal" else self.elbo
                elbos.append(estimate(path, x, noise[path]))
                log_probs.append(reach)
                log_priors.append(log_prior)
                return
            balance = node.balance if node.balance is not None else inherited
            log_gate, own_prior = self.gate(path, x), self.log_prior(path)
            arrived = reach.detach()  # the children of a mixture do not teach the gates above it
            importance = [
                sum((arrived[b] + log_gate[b, c]).exp() for b in range(len(x))) for c in range(len(own_prior))
            ]
            balance_terms.append(balance.weight * naive_balance(balance.kind, importance, own_prior.detach().tolist()))
            for c, child in enumerate(node.children):
                edges[self.first_edge[path] + c] = log_gate[:, c]
                visit(child, f"{path}/{c}", reach + log_gate[:, c], log_prior + own_prior[c], balance)

        visit(self.model.tree, "root", x.new_zeros(len(x)), x.new_zeros(()), hm.Balance("variance", 0.1))
        result = Result(
            leaf_elbo=torch.stack(elbos, 1),
            leaf_log_prob=torch.stack(log_probs, 1),
            edge_log_prob=torch.stack([edges[i] for i in range(len(edges))], 1) if edges else x.new_zeros(len(x), 0),
            leaf_log_prior=torch.stack(log_priors),
        )
        objective = {"expected": naive_expected, "elbo": naive_elbo, "marginal": naive_marginal}[self.model.objective]
        result.terms = objective(result.leaf_elbo, result.leaf_log_prob, result.leaf_log_prior)
        result.terms["balance"] = sum(balance_terms, x.new_zeros(()))
        return result

    def best_leaf(self, x: Tensor, node: str = "root") -> list[str]:
        """The most probable leaf below `node` of every sample, by path."""
        with torch.no_grad():
            result = self.run(x, {path: torch.zeros(len(x), leaf.latent_dim) for path, leaf in self.leaves})
        below = [i for i, (path, _) in enumerate(self.leaves) if path == node or path.startswith(f"{node}/")]
        return [self.leaves[below[int(row[below].argmax())]][0] for row in result.leaf_log_prob]


# --- formulas -------------------------------------------------------------------------------------------------------


def naive_expected(leaf_elbo: Tensor, leaf_log_prob: Tensor, log_prior: Tensor) -> dict[str, Tensor]:
    """mean_x sum_l q(l|x) (-ELBO_l(x)), tensors (batch, leaf)."""
    batch, leaves = leaf_elbo.shape
    total = sum(leaf_log_prob[b, k].exp() * -leaf_elbo[b, k] for b in range(batch) for k in range(leaves))
    return {"expected": total / batch}


def naive_elbo(leaf_elbo: Tensor, leaf_log_prob: Tensor, log_prior: Tensor) -> dict[str, Tensor]:
    """mean_x -sum_l q(l|x) (ELBO_l(x) + log pi_l - log q(l|x)), tensors (batch, leaf)."""
    batch, leaves = leaf_elbo.shape
    total = torch.zeros((), dtype=leaf_elbo.dtype)
    for b in range(batch):
        for k in range(leaves):
            log_q = leaf_log_prob[b, k]
            total = total - log_q.exp() * (leaf_elbo[b, k] + log_prior[k] - log_q)
    return {"elbo": total / batch}


def naive_marginal(leaf_elbo: Tensor, leaf_log_prob: Tensor, log_prior: Tensor) -> dict[str, Tensor]:
    """mean_x -log sum_l pi_l exp ELBO_l(x), and the cross-entropy from the responsibilities, tensors (batch, leaf)."""
    batch, leaves = leaf_elbo.shape
    bound = torch.zeros((), dtype=leaf_elbo.dtype)
    distillation = torch.zeros((), dtype=leaf_elbo.dtype)
    for b in range(batch):
        largest = max(leaf_elbo[b].tolist())
        joint = [(log_prior[k] + leaf_elbo[b, k] - largest).exp() for k in range(leaves)]
        bound = bound - (sum(joint).log() + largest)
        for k in range(leaves):
            responsibility = (joint[k] / sum(joint)).item()
            distillation = distillation - responsibility * leaf_log_prob[b, k]
    return {"marginal": bound / batch, "distillation": distillation / batch}


def naive_balance(kind: str, importance: list[Tensor], log_prior: list[float]) -> Tensor:
    """One mixture's balance term, unweighted, from the importance of its children."""
    n, total = len(importance), sum(importance)
    mean = total / n
    variance = sum((i - mean) ** 2 for i in importance) / n
    match kind:
        case "variance":
            return variance
        case "cv2":
            return variance / mean**2
        case "kl":
            return sum(i / total * ((i / total).log() - p) for i, p in zip(importance, log_prior, strict=True))
    raise AssertionError(kind)


def naive_agreement(reach: tuple[Tensor, Tensor], log_gate: tuple[Tensor, Tensor]) -> Tensor:
    """One mixture's share: mean_x r(v) r(v') (-log sum_c g(c|v) g(c|v')); reach (batch,), log_gate (batch, child)."""
    batch, children = log_gate[0].shape
    total = torch.zeros((), dtype=log_gate[0].dtype)
    for b in range(batch):
        same = sum(log_gate[0][b, c].exp() * log_gate[1][b, c].exp() for c in range(children))
        total = total - reach[0][b].item() * reach[1][b].item() * same.log()
    return total / batch


# --- moving weights -------------------------------------------------------------------------------------------------


@torch.no_grad()
def copy_weights(source: hm.HMoEVAE, target: hm.HMoEVAE, origin: dict[str, str]) -> None:
    """Give every node of `target` named in `origin` the weights of the node of `source` that it comes from.

    The children of a copied mixture are matched by `origin` too, in whatever order they stand.
    """
    old, new = Reference(source), Reference(target)
    for path, node in target.tree.walk():
        if path not in origin:
            continue
        if isinstance(node, hm.VAE):
            mine = new.encoder_weights(path) + new.decoder_weights(path)
            theirs = old.encoder_weights(origin[path]) + old.decoder_weights(origin[path])
            for a, b in zip(mine, theirs, strict=True):
                a.copy_(b)
            continue
        order = [int(origin[f"{path}/{i}"].rpartition("/")[2]) for i in range(len(node.children))]
        mine, theirs = new.gate_weights(path), old.gate_weights(origin[path])
        for a, b in zip(mine[:-2], theirs[:-2], strict=True):
            a.copy_(b)
        for a, b in zip(mine[-2:], theirs[-2:], strict=True):
            a.copy_(b[order])
        if node.prior == "learned":
            new.prior_logits(path).copy_(old.prior_logits(origin[path])[order])


# --- helpers --------------------------------------------------------------------------------------------------------


def _places(keys: list[tuple[str, object]]) -> dict[str, tuple[int, int]]:
    """(group, place in the group) of every path: equal keys share a group, all in order of appearance."""
    groups: list[tuple[object, list[str]]] = []
    for path, key in keys:
        for known, members in groups:
            if known == key:
                members.append(path)
                break
        else:
            groups.append((key, [path]))
    return {path: (g, place) for g, (_, members) in enumerate(groups) for place, path in enumerate(members)}


def _dense_weights(network: torch.nn.Module, place: int) -> list[Tensor]:
    return [tensor[place] for layer in network.layers for tensor in (layer.matrices, layer.bias)]


def _dense(weights: list[Tensor], x: Tensor, activation: str) -> Tensor:
    """A dense network on (batch, feature), no activation behind the last layer."""
    for i in range(0, len(weights), 2):
        x = F.linear(x, weights[i], weights[i + 1])
        if i < len(weights) - 2:
            x = FUNCTIONS[activation](x)
    return x
