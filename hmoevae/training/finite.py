"""FiniteGuard: ends a training whose loss is NaN or infinite, and restores good weights."""

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hmoevae.errors import NonFiniteError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import Share
from hmoevae.output import Output, Routing
from hmoevae.training.processes import Processes

STEPS_UNSEEN = 50
"""Largest number of steps between two looks at the losses on a GPU, because each look waits for the device."""


def steps_between_looks(device: torch.device) -> int:
    """Number of steps between two looks at the losses: one on a CPU, where a look does not wait."""
    return 1 if device.type == "cpu" else STEPS_UNSEEN


@dataclass(frozen=True, slots=True)
class _Kept:
    """The values of a step that a later look reads; they stay on the device until then."""

    step: int
    names: list[str]
    values: Float[Tensor, " loss_and_terms"]
    bad_edges: Bool[Tensor, " edge"]
    bad_leaves: Bool[Tensor, " leaf"]


class FiniteGuard:
    """Keeps the last good weights, and checks the losses and weights of the steps after them.

    Args:
        model: The model.
        processes: The processes that train it.
        every: Steps from one look at the losses to the next.

    >>> from hmoevae import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    >>> guard = FiniteGuard(model, Processes(model.device), every=2)
    >>> guard.see(1, model(torch.rand(5, 4)), Share(0, 5, 5))
    >>> guard.is_up_to_date
    False
    >>> guard.look()
    >>> guard.is_up_to_date
    True
    """

    def __init__(self, model: HMoEVAE, processes: Processes, every: int) -> None:
        self.model = model
        self.processes = processes
        self.every = every
        self._kept: list[_Kept] = []
        self.good: dict[str, Tensor] = {}
        self.keep_weights()

    def keep_weights(self) -> None:
        """Keep a copy of the model's weights, to be restored when later weights are not finite."""
        now = self.model.state_dict()
        if not _are_alike(now, self.good):
            self.good = copy.deepcopy(now)
            return
        for name, weight in now.items():  # into the memory of the last copy: new memory takes ten times as long
            self.good[name].copy_(weight)

    @property
    def is_up_to_date(self) -> bool:
        """Whether the losses of all steps have been looked at, so that reading from the device does not wait."""
        return not self._kept

    def see(self, step: int, out: Routing, share: Share) -> None:
        """Record a step's loss before its backward pass, and look at the losses every `every` steps.

        Raises:
            NonFiniteError: As in `look`.
        """
        if self.every == 1 and math.isfinite(self.processes.mean(out.loss, share)):
            return
        self._kept.append(_kept(step, out))
        if len(self._kept) >= self.every:
            self.look()

    def look(self) -> None:
        """Look at the losses of the steps since the last look.

        Raises:
            NonFiniteError: A loss is not finite, in any process. Where the weights are not finite or have changed since
                that step, the model gets the weights of the end of the last good epoch.
        """
        if not self._kept:
            return
        kept, self._kept = self._kept, []
        losses = torch.stack([one.values[0] for one in kept])
        own = (~torch.isfinite(losses)).tolist()
        first = self.processes.first(own)
        if first is not None:
            raise self._error(kept[first], knows=own[first], is_last=first == len(kept) - 1)

    def check_weights(self, step: int) -> None:
        """Check the weights after the last step, which no loss has used yet.

        Raises:
            NonFiniteError: A weight is not finite. The model gets the weights of the end of the last good epoch.
        """
        weights = dict(self.model.named_parameters())
        finite = torch.stack([torch.isfinite(weight).all() for weight in weights.values()]).tolist()
        bad = [name for name, good in zip(weights, finite, strict=True) if not good]
        found = _first_of(bad) + self._experts_of({name: weights[name] for name in bad})
        if self.processes.peers is not None:  # else all processes have the same weights
            found = self.processes.best(found, knows=bool(bad))
        if found:
            self.model.load_state_dict(self.good)
            expected = f"finite weights after step {step}"
            kept = "the model has the weights of the last good epoch"
            raise NonFiniteError(mismatch("weights", expected, f"NaN or infinity in {found}; {kept}"))

    def _experts_of(self, weights: dict[str, Tensor]) -> str:
        """The experts with weights that are not finite, in words; nothing if there is none."""
        leaves: set[int] = set()
        peers = self.processes.peers
        for i, group in enumerate(self.model.plan.expert_groups):
            members = group.members if peers is None else group.members[peers.rows(len(group.members))]
            for name, weight in weights.items():
                if name.startswith(f"experts.groups.{i}."):
                    bad = (~torch.isfinite(weight)).flatten(1).any(1).tolist()
                    leaves |= {leaf for leaf, is_bad in zip(members, bad, strict=True) if is_bad}
        return f" (the expert {_first_of([self.model.plan.leaves[i].path for i in sorted(leaves)])})" if leaves else ""

    def _error(self, seen: _Kept, *, knows: bool, is_last: bool) -> NonFiniteError:
        """Name the term and the node, and restore the last good weights if the present ones are not finite."""
        terms = zip(seen.names, seen.values[1:].tolist(), strict=True)
        term = next((f"{name!r} = {value}" for name, value in terms if not math.isfinite(value)), "their sum")
        plan = self.model.plan
        places = [f"the expert {plan.leaves[i].path}" for i in seen.bad_leaves.nonzero().flatten().tolist()]
        bad_edges = seen.bad_edges.nonzero().flatten().tolist()
        places += dict.fromkeys(f"the gate of {plan.mixtures[plan.edge_mixture[i]].path}" for i in bad_edges)
        found = self.processes.best(f"{term} from {_first_of(places) or 'the objective'}", knows=knows)
        spoilt = not is_last or not all(bool(torch.isfinite(p).all()) for p in self.model.parameters())
        kept = "the model has the weights before this step"
        if self.processes.sum(torch.tensor(float(spoilt), device="cpu")) > 0:
            self.model.load_state_dict(self.good)
            kept = "the model has the weights of the last good epoch"
        return NonFiniteError(mismatch("loss", f"a finite loss at step {seen.step}", f"{found}; {kept}"))


def _are_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of weights have the same names, and tensors of equal shape, type and device."""

    def kinds(weights: dict[str, Tensor]) -> list[object]:
        return [(name, weight.shape, weight.dtype, weight.device) for name, weight in weights.items()]

    return all(isinstance(weight, Tensor) for weight in one.values()) and kinds(one) == kinds(other)


@torch.no_grad()
def _kept(step: int, out: Routing) -> _Kept:
    values = torch.stack([out.loss.detach(), *(term.detach() for term in out.terms.values())])
    bad_edges = (~torch.isfinite(out.edge_log_prob)).any(0)
    none = bad_edges[:0]
    bad_leaves = _bad_leaves(out) if isinstance(out, Output) else none
    return _Kept(step, list(out.terms), values, bad_edges, bad_leaves)


def _bad_leaves(out: Output) -> Bool[Tensor, " leaf"]:
    """The leaves with an ELBO that is not finite."""
    bad = ~torch.isfinite(out.leaf_elbo)
    if out.leaf is None:
        return bad.any(0)
    by_leaf = bad.new_zeros(out.leaf_log_prob.shape, dtype=torch.int)
    return by_leaf.scatter_add(1, out.leaf, bad.int()).any(0)


def _first_of(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
