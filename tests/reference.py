"""The plain reference: the model's formulas with a Python loop over nodes and samples, one recursion over the tree.

Slow, batch-first, and written from the formulas of the design, not from the code: it reads a model's weights and
nothing else of `hmoevae.nn`. All results carry gradients to the model's parameters.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from networks import Laplace
from torch import Tensor, distributions

import hmoevae as hm
from hmoevae.plan import Place
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

    def place(self, path: str) -> Place:
        """Where the weights of a node lie."""
        return self.model.plan.node(path).place

    def group(self, path: str) -> torch.nn.Module:
        """The group that a node is a row of."""
        groups = (
            self.model.experts.groups if self.model.plan.node(path).spec.children == () else self.model.gates.groups
        )
        return groups[self.place(path).group]

    def expert_weights(self, path: str) -> list[Tensor]:
        """All parameters of one leaf."""
        return [parameter[self.place(path).row] for parameter in self.group(path).parameters()]

    def encoder_weights(self, path: str) -> list[Tensor]:
        """All parameters of one leaf's encoder."""
        return [parameter[self.place(path).row] for parameter in self.group(path).encoder.parameters()]

    def decoder_weights(self, path: str) -> list[Tensor]:
        """All parameters of one leaf's dense decoder, each matrix as (out, inp)."""
        *others, weight, bias = (p[self.place(path).row] for p in self.group(path).decoder.parameters())
        return [*others, weight.t(), bias]

    def gate_weights(self, path: str) -> list[Tensor]:
        """All parameters of one mixture's gate; the rows of the last two are its children."""
        return [parameter[self.place(path).row] for parameter in self.group(path).parameters()]

    def prior_logits(self, path: str) -> Tensor | None:
        """The learned logits of one mixture's prior, or nothing where it is fixed."""
        mixture = self.model.tree.at(path)
        if mixture.prior != "learned":
            return None
        first = self.first_edge[path]
        return self.model.prior.logits[first : first + len(mixture.children)]

    # --- one node ---------------------------------------------------------------------------------------------------

    def gate(self, path: str, x: Tensor) -> Tensor:
        """log g(child | x) of one mixture, (batch, child)."""
        mixture = self.model.tree.at(path)
        if isinstance(mixture.gate, hm.PosteriorGate):
            joint = [self.log_density(f"{path}/{i}", x) for i in range(len(mixture.children))]
            return (torch.stack(joint, 1) + self.log_prior(path)).detach().log_softmax(1)
        group, row = self.group(path), self.place(path).row
        x = self.shown(self.leaves[0][1].likelihood, x)
        logits = run_network(mixture.gate, group.network, row, x, (len(mixture.children),))
        if group.head is not None:
            logits = F.linear(logits, group.head.weight[row], group.head.bias[row])
        return logits.log_softmax(1)

    def log_density(self, path: str, x: Tensor) -> Tensor:
        """log p(x) of one node above factor analysers, (batch,)."""
        node = self.model.tree.at(path)
        if isinstance(node, hm.Mixture):
            children = [self.log_density(f"{path}/{i}", x) for i in range(len(node.children))]
            return (torch.stack(children, 1) + self.log_prior(path)).logsumexp(1)
        weight, bias = self.decoder_weights(path)
        scale = self.observation(path, x.new_zeros(1, node.latent_dim)).stddev.expand(1, len(bias))
        covariance = weight @ weight.T + torch.diag(scale[0] ** 2)
        return distributions.MultivariateNormal(bias, covariance).log_prob(x.flatten(1))

    def log_prior(self, path: str) -> Tensor:
        """log pi of one mixture's children."""
        logits = self.prior_logits(path)
        if logits is None:
            mixture = self.model.tree.at(path)
            shares = [child.n_leaves if mixture.prior == "leaves" else 1 for child in mixture.children]
            return torch.tensor([share / sum(shares) for share in shares], dtype=self.model.dtype).log()
        return logits.log_softmax(0)

    def posterior(self, path: str, x: Tensor) -> distributions.Normal | distributions.MultivariateNormal:
        """q(z|x) of one leaf."""
        leaf = self.model.tree.at(path)
        if isinstance(leaf.encoder, hm.LinearPosterior):
            return self.exact_posterior(path, x)
        encoder, x = self.group(path).encoder, self.shown(leaf.likelihood, x)
        raw = run_network(leaf.encoder, encoder, self.place(path).row, x, (2 * leaf.latent_dim,))
        mean, log_variance = raw[:, : leaf.latent_dim], raw[:, leaf.latent_dim :]
        variance = log_variance.clamp_max(10).exp()
        tangent = math.exp(10) * (log_variance - 9)
        variance = 1e-5 + torch.where(log_variance > 10, tangent, variance)
        return distributions.Normal(mean, variance.sqrt())

    def exact_posterior(self, path: str, x: Tensor) -> distributions.MultivariateNormal:
        """p(z|x) of one leaf with a linear decoder, from the joint covariance of (z, x), by conditioning."""
        leaf = self.model.tree.at(path)
        weight, bias = self.decoder_weights(path)
        scale = self.observation(path, x.new_zeros(1, leaf.latent_dim)).stddev.expand(1, len(bias))
        covariance = weight @ weight.T + torch.diag(scale[0] ** 2)
        gain = torch.linalg.solve(covariance, weight).T
        mean = (x.flatten(1) - bias) @ gain.T
        return distributions.MultivariateNormal(mean, torch.eye(leaf.latent_dim, dtype=x.dtype) - gain @ weight)

    def draw(self, path: str, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A draw of z by one leaf, and log q(z|x) - log p(z) of the draw and on average, (batch,)."""
        posterior = self.posterior(path, x)
        if isinstance(posterior, distributions.Normal):
            z = posterior.mean + posterior.stddev * noise
            prior = distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
            at_draw = (posterior.log_prob(z) - prior.log_prob(z)).sum(1)
            return z, at_draw, distributions.kl_divergence(posterior, prior).sum(1)
        # The draw is mean + R noise with R upper triangular: the inverse of the precision's lower Cholesky factor.
        factor = torch.linalg.cholesky(posterior.precision_matrix)
        z = posterior.mean + (torch.linalg.inv(factor).mT @ noise.to(x.dtype).unsqueeze(2)).squeeze(2)
        prior = distributions.MultivariateNormal(torch.zeros_like(z), torch.eye(z.shape[1], dtype=z.dtype))
        at_draw = posterior.log_prob(z) - prior.log_prob(z)
        # Where all features are Gaussian, the ELBO is the log-weight of any draw.
        return z, at_draw, at_draw

    def observation(self, path: str, z: Tensor) -> distributions.Distribution:
        """p(x|z) of one leaf, over (batch, feature)."""
        leaf = self.model.tree.at(path)
        group, row = self.group(path), self.place(path).row
        channels, *others = self.model.input_shape
        shape = (2 * channels if isinstance(leaf.likelihood, Laplace) else channels, *others)
        raw = run_network(leaf.decoder, group.decoder, row, z, shape, is_decoder=True).flatten(1)
        match leaf.likelihood:
            case Laplace():
                mean, log_width = raw.chunk(2, dim=1)
                return distributions.Laplace(mean, (log_width + group.likelihood.offset[row]).exp())
            case hm.Gaussian(scale="learned", mean=mean):
                scale = 1e-3 + group.likelihood.log_scale[row].exp()
                return distributions.Normal(torch.sigmoid(raw) if mean == "sigmoid" else raw, scale)
            case hm.Gaussian(scale=scale, mean="sigmoid"):
                return distributions.Normal(torch.sigmoid(raw), scale)
            case hm.Gaussian(scale=scale, mean="identity"):
                return distributions.Normal(raw, scale)
            case hm.Bernoulli():
                return distributions.Bernoulli(logits=raw)
            case hm.ContinuousBernoulli():
                return distributions.ContinuousBernoulli(logits=raw)
            case hm.LogNormal(scale="learned"):
                return distributions.LogNormal(raw, 1e-3 + group.likelihood.of_log.log_scale[row].exp())
            case hm.Categorical(n=n):
                return distributions.Categorical(logits=raw.unflatten(1, (n, -1)).transpose(1, 2))
            case hm.Poisson(total=None):
                return distributions.Poisson(raw.exp())
            case hm.NegativeBinomial(total=None):
                log_dispersion = group.likelihood.log_dispersion[row]
                return distributions.NegativeBinomial((-log_dispersion).exp(), logits=raw + log_dispersion)
        raise AssertionError(leaf.likelihood)

    def elbo(self, path: str, x: Tensor, noise: Tensor) -> Tensor:
        """ELBO of one leaf at the draw of z from `noise`, (batch,)."""
        z, _, divergence = self.draw(path, x, noise)
        return self.log_likelihood(path, x, z) - divergence

    def log_weight(self, path: str, x: Tensor, noise: Tensor) -> Tensor:
        """log p(x|z) p(z) / q(z|x) of one leaf at the draw of z from `noise`, (batch,)."""
        z, at_draw, _ = self.draw(path, x, noise)
        return self.log_likelihood(path, x, z) - at_draw

    def log_likelihood(self, path: str, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) of the observed cells by one leaf, (batch,)."""
        flat = x.flatten(1)
        each = self.observation(path, z).log_prob(flat.nan_to_num(1.0))
        return torch.where(flat.isnan(), 0.0, each).sum(1)

    def shown(self, likelihood: hm.Likelihood, x: Tensor) -> Tensor:
        """What networks see of samples: where cells may be missing, zeros for them, and what was observed beside it."""
        if not self.model.missing:
            return seen(likelihood, x)
        return torch.cat([torch.where(x.isnan(), 0.0, seen(likelihood, x)), (~x.isnan()).to(x.dtype)], dim=1)

    # --- the whole tree ---------------------------------------------------------------------------------------------

    def draw_noise(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """One draw for every leaf, `(batch, latent)` by path, from the numbers that the model takes of `generator`."""
        noise = {}
        for group in self.model.plan.expert_groups:
            members = [self.model.plan.leaves[i].path for i in group.members]
            drawn = torch.randn(len(members), group.spec.latent_dim, batch, generator=generator, dtype=self.model.dtype)
            noise |= {path: drawn[self.place(path).row].t() for path in members}
        return noise

    def run(self, x: Tensor, noise: dict[str, Tensor]) -> Result:
        """Everything that `model(x)` gives, for `x` of the model's dtype."""
        log_prob, edges, log_prior, balance = self.run_gates(x)
        elbo = torch.stack([self.estimate(path, x, noise[path]) for path, _ in self.leaves], 1)
        return Result(elbo, log_prob, edges, log_prior, self.objective(elbo, log_prob, log_prior) | balance)

    def run_over(self, x: Tensor, leaf: list[list[int]], noise: Tensor, ran: list[set[str]] | None = None) -> Result:
        """What `model(x)` gives over the chosen leaves of every sample, which alone are run, one at a time.

        Args:
            x: Samples.
            leaf: The leaves in the slots of every sample.
            noise: One draw for every slot, `(slot, latent, batch)`.
            ran: As in `run_gates`.
        """
        log_prob, edges, log_prior, balance = self.run_gates(x, ran)
        elbos: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for b, chosen in enumerate(leaf):
            here, elbo = slice(b, b + 1), []
            for slot, i in enumerate(chosen):
                path, node = self.leaves[i]
                elbo.append(self.estimate(path, x[here], noise[slot, : node.latent_dim, here].t()))
            elbos.append(torch.stack(elbo, 1))
            log_q = torch.stack([log_prob[b, i] for i in chosen])
            log_q = log_q - sum(one.exp() for one in log_q).log()
            of_sample = self.objective(elbos[-1], log_q.unsqueeze(0), torch.stack([log_prior[i] for i in chosen]))
            terms = {name: terms.get(name, 0.0) + term / len(x) for name, term in of_sample.items()}
        return Result(torch.cat(elbos), log_prob, edges, log_prior, terms | balance)

    def estimate(self, path: str, x: Tensor, noise: Tensor) -> Tensor:
        """The number of one leaf that the objective reads, (batch,)."""
        return self.log_weight(path, x, noise) if self.model.objective == "marginal" else self.elbo(path, x, noise)

    def objective(self, elbo: Tensor, log_prob: Tensor, log_prior: Tensor) -> dict[str, Tensor]:
        """The terms of the objective."""
        functions = {"expected": naive_expected, "elbo": naive_elbo, "marginal": naive_marginal}
        return functions[self.model.objective](elbo, log_prob, log_prior)

    def run_gates(
        self, x: Tensor, ran: list[set[str]] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """log q(leaf|x), log g(child|x) on every edge, log pi of every leaf, and the balance.

        Args:
            x: Samples.
            ran: The paths of the mixtures whose gates run for each sample, the others being even; `None` means all.
        """
        log_probs: list[Tensor] = []
        log_priors: list[Tensor] = []
        edges: dict[int, Tensor] = {}
        balance_terms: list[Tensor] = []

        def visit(node: Tree, path: str, reach: Tensor, log_prior: Tensor, inherited: hm.Balance) -> None:
            if isinstance(node, hm.VAE):
                log_probs.append(reach)
                log_priors.append(log_prior)
                return
            balance = node.balance if node.balance is not None else inherited
            log_gate, own_prior = self.gate(path, x), self.log_prior(path)
            even = torch.full_like(log_gate[0], -math.log(len(node.children)))
            log_gate = torch.stack([g if ran is None or path in ran[b] else even for b, g in enumerate(log_gate)])
            arrived = reach.detach()  # the children of a mixture do not teach the gates above it
            importance = [
                sum((arrived[b] + log_gate[b, c]).exp() for b in range(len(x))) for c in range(len(own_prior))
            ]
            taught = 0.0 if isinstance(node.gate, hm.PosteriorGate) else balance.weight
            balance_terms.append(taught * naive_balance(balance.kind, importance, own_prior.detach().tolist()))
            for c, child in enumerate(node.children):
                edges[self.first_edge[path] + c] = log_gate[:, c]
                visit(child, f"{path}/{c}", reach + log_gate[:, c], log_prior + own_prior[c], balance)

        visit(self.model.tree, "root", x.new_zeros(len(x)), x.new_zeros(()), hm.Balance("variance", 0.1))
        by_edge = torch.stack([edges[i] for i in range(len(edges))], 1) if edges else x.new_zeros(len(x), 0)
        balance = {"balance": sum(balance_terms, x.new_zeros(()))}
        return torch.stack(log_probs, 1), by_edge, torch.stack(log_priors), balance

    def best_leaf(self, x: Tensor, node: str = "root") -> list[str]:
        """The most probable leaf below `node` of every sample, by path."""
        with torch.no_grad():
            result = self.run(x, {path: torch.zeros(len(x), leaf.latent_dim) for path, leaf in self.leaves})
        below = [i for i, (path, _) in enumerate(self.leaves) if path == node or path.startswith(f"{node}/")]
        return [self.leaves[below[int(row[below].argmax())]][0] for row in result.leaf_log_prob]


# --- down the tree --------------------------------------------------------------------------------------------------


@dataclass
class Walk:
    """What one sample meets, by index in the plan."""

    edges: Tensor
    leaves: dict[int, Tensor] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)

    @property
    def best(self) -> int:
        """The most probable leaf that is met."""
        return max(self.leaves, key=lambda leaf: self.leaves[leaf].item())


def walk(reference: Reference, seen: list[Tensor], width: int, explored: int = -1) -> Walk:
    """Walk down the tree with one sample, of which gates at depth d see `seen[d]`, `(1, *shape)`."""
    plan = reference.model.plan
    even = [-torch.tensor(float(len(plan.mixtures[m].spec.children))).log() for m in plan.edge_mixture]
    found = Walk(torch.stack(even).to(reference.model.dtype))
    leaf_of = {leaf.path: i for i, leaf in enumerate(plan.leaves)}
    level = [("root", torch.zeros((), dtype=reference.model.dtype))]
    for depth in range(plan.depth):
        below: list[tuple[str, Tensor]] = []
        for path, log_prob in level:
            found.ran.add(path)
            for i, log_gate in enumerate(reference.gate(path, seen[depth])[0]):
                edge, child = reference.first_edge[path] + i, f"{path}/{i}"
                found.edges = found.edges.index_put((torch.tensor([edge]),), log_gate)
                if child in leaf_of:
                    found.leaves[leaf_of[child]] = log_prob + log_gate
                else:
                    below.append((child, log_prob + log_gate))
        level = sorted(below, key=lambda one: -one[1].item())[:width]
        above = [one for one in below if explored >= 0 and plan.leaves[explored].path.startswith(f"{one[0]}/")]
        if above and above[0][0] not in [path for path, _ in level]:
            level = [*level[:-1], *above]
    return found


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
            for a, b in zip(new.expert_weights(path), old.expert_weights(origin[path]), strict=True):
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


def seen(likelihood: hm.Likelihood, x: Tensor) -> Tensor:
    """What networks see of samples."""
    match likelihood:
        case hm.LogNormal():
            return x.log()
        case hm.Categorical(n=n):
            return F.one_hot(x.flatten(1).long(), n).to(x.dtype).transpose(1, 2).flatten(1)
        case hm.Poisson(total=None) | hm.NegativeBinomial(total=None):
            return x.log1p()
    return x


def run_network(
    record: hm.Network,
    grouped: torch.nn.Module,
    row: int,
    x: Tensor,
    output_shape: tuple[int, ...],
    *,
    is_decoder: bool = False,
) -> Tensor:
    """One network of a group on (batch, *input_shape), from its own row of the weights."""
    weights = [parameter[row] for parameter in grouped.parameters()]
    match record:
        case hm.MLP(activation=activation):
            if is_decoder:  # whose last matrix lies as (inp, out)
                weights[-2] = weights[-2].t()
            return _dense(weights, x.flatten(1), activation)
        case hm.Conv(activation=activation, stride=stride, kernel_size=kernel_size):
            n_norm = 2 * len(record.channels) if record.norm_groups else 0  # after all of the convolutions
            norms = weights[2 * len(record.channels) :][:n_norm]
            weights = weights[: 2 * len(record.channels)] + weights[2 * len(record.channels) + n_norm :]
            for i in range(len(record.channels)):
                weight, bias, *weights = weights
                x = F.conv2d(x, weight, bias, stride=stride, padding=kernel_size // 2)
                if record.norm_groups:
                    x = F.group_norm(x, record.norm_groups, *norms[2 * i : 2 * i + 2])
                x = FUNCTIONS[activation](x)
            return _dense(weights, x.flatten(1), activation)
        case hm.ConvTranspose(activation=activation, stride=stride, kernel_size=kernel_size):
            n_dense = 2 * (1 + len(record.hidden))
            sizes = [output_shape[1:]]
            for _ in record.channels:
                sizes.append(tuple((n + 2 * (kernel_size // 2) - kernel_size) // stride + 1 for n in sizes[-1]))
            x = _dense(weights[:n_dense], x.flatten(1), activation).reshape(len(x), record.channels[0], *sizes[-1])
            for i, size in enumerate(reversed(sizes[:-1])):
                weight, bias = weights[n_dense + 2 * i : n_dense + 2 * i + 2]
                x = _enlarged(FUNCTIONS[activation](x), weight, bias, stride, kernel_size // 2, size)
            return x
        case _:  # a user's own: a fresh module with the weights of the row
            module = record.build(tuple(x.shape[1:]), output_shape).to(x.dtype)
            names = [name for name, _ in module.named_parameters()]
            return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))


def _enlarged(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, size: tuple[int, ...]) -> Tensor:
    """A transposed convolution, product by product: every pixel adds its kernel to the image, which is then cut out."""
    (batch, _, height, width), side = x.shape, weight.shape[-1]
    full = x.new_zeros(batch, weight.shape[1], (height + 1) * stride + side, (width + 1) * stride + side)
    for i in range(height):
        for j in range(width):
            rows, columns = slice(i * stride, i * stride + side), slice(j * stride, j * stride + side)
            full[:, :, rows, columns] += torch.einsum("bi,iokl->bokl", x[:, :, i, j], weight)
    return full[:, :, padding : padding + size[0], padding : padding + size[1]] + bias.reshape(-1, 1, 1)


def _dense(weights: list[Tensor], x: Tensor, activation: str) -> Tensor:
    """A dense network on (batch, feature), no activation behind the last layer."""
    for i in range(0, len(weights), 2):
        x = F.linear(x, weights[i], weights[i + 1])
        if i < len(weights) - 2:
            x = FUNCTIONS[activation](x)
    return x
