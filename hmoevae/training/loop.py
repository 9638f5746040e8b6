"""The loop: steps, epochs, and what is done when a loss is not finite."""

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from hmoevae.errors import DataError, NonFiniteError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import Draws, Share
from hmoevae.nn.kernels.memory import StepMemory
from hmoevae.output import Output, Routing
from hmoevae.samples import Checked
from hmoevae.training.agreement import GateViews
from hmoevae.training.batches import Batches
from hmoevae.training.compiled import CompiledPass
from hmoevae.training.course import Lesson
from hmoevae.training.processes import Processes
from hmoevae.training.revival import revive
from hmoevae.training.threads import Threads
from hmoevae.training.usage import gate_sums, information


class Run:
    """The state of one training run between steps."""

    def __init__(
        self,
        model: HMoEVAE,
        optimizer: Optimizer,
        schedule: LRScheduler | None,
        views: GateViews,
        start: Tensor | None,
        noise: Draws,
        autocast: torch.autocast,
        processes: Processes,
        compiled: CompiledPass | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.views = views
        self.start = start
        self.noise = noise
        self.autocast = autocast
        self.processes = processes
        self.steps = 0
        self.sum_dtype = torch.float32 if noise.device.type == "mps" else torch.float64  # MPS has no float64
        self.keep_weights()
        self.memory = StepMemory()
        self.compiled = compiled
        self.chosen: list[float] = []
        """Of which share of the samples of the last epoch every leaf was the most probable one."""
        self.threads = Threads(model)

    def keep_weights(self) -> None:
        """Call the weights that the model has now good: what to go back to when later ones are not."""
        self.good = copy.deepcopy(self.model.state_dict())

    def close(self) -> None:
        """Let go of the last gradients and of compiled code."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.compiled is not None:
            self.compiled.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes from step to step, but the weights."""
        return {
            "steps": self.steps,
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "noise": self.noise.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.steps = state["steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.noise.set_state(state["noise"])

    def revive(self, row: dict[str, float]) -> list[str]:
        """Revive the children that an epoch left without samples; returns their paths."""
        usage = torch.tensor([row[f"usage/{leaf.path}"] for leaf in self.model.plan.leaves], device="cpu")
        return revive(self.model, self.optimizer, usage, self.noise)

    def epoch(self, batches: Batches, lesson: Lesson, title: str, bar: "tqdm[Any]") -> dict[str, float]:
        """One pass over the data; returns means: of the loss, its terms, leaves' usage, gates' information."""
        n_samples, n_own = 0, 0
        names: list[str] = []
        sums: Tensor | None = None
        shown = 0.0
        bar.set_description(title, refresh=False)
        if self.compiled is not None and lesson.phase == "joint":  # a start makes a loss of its own from the output
            self.compiled.attach()
        for x, index, share in self.processes.rounds(batches, self.model.input_shape):
            fast = x.device.type == "cpu"  # the other way, nobody would wait until the copy is there
            x = x.to(self.noise.device, self.model.dtype, non_blocking=fast)
            with self.threads.for_samples(len(x)):
                out = self.step(x, index, share, lesson)
            n_samples, n_own = n_samples + share.total, n_own + share.n
            with torch.no_grad():
                names = ["loss", *out.terms]
                means = torch.stack([out.loss, *out.terms.values()])
                routed = gate_sums(out, self.model.paths)
                chosen = (out.leaf_log_prob == out.leaf_log_prob.amax(1, keepdim=True)).sum(0)
                added = torch.cat([means * len(x), out.leaf_log_prob.exp().sum(0), routed, chosen]).to(self.sum_dtype)
                if share.n == 0:  # made up
                    added.zero_()
                sums = added if sums is None else sums.add_(added)
            bar.update()
            if time.perf_counter() - shown > bar.mininterval:  # reading a number waits for the device
                shown = time.perf_counter()
                values = (sums[: len(names)] / max(n_own, 1)).tolist()  # of several processes, this one's
                bar.set_postfix(dict(zip(names, (f"{v:.4g}" for v in values), strict=True)), refresh=False)
        if sums is None:
            raise DataError(mismatch("data", "at least one sample", "none"))
        self.check_weights()
        self.keep_weights()
        plan = self.model.plan
        names += [f"usage/{leaf.path}" for leaf in plan.leaves]
        values = (self.processes.sum(sums) / n_samples).tolist()
        values, self.chosen = values[: -plan.n_leaves], values[-plan.n_leaves :]
        row = dict(zip(names, values[: len(names)], strict=True))
        nats = information(plan, values[len(names) :])
        return row | {f"information/{path}": value for path, value in nats.items()}

    def step(self, x: Tensor, index: Tensor | None, share: Share, lesson: Lesson) -> Routing:
        """One step of the optimiser, on the samples that this process has of the global batch."""
        self.steps += 1
        self.optimizer.zero_grad(set_to_none=True)  # before their memory is given out again
        with self.memory.step(), nullcontext() if self.compiled is None else self.compiled.step():
            with self.processes.sharing(self.model, self.noise, share):
                out = self._forward(x, index, lesson)
            if not math.isfinite(self.processes.mean(out.loss, share)):
                raise self._non_finite(out)
            self.processes.backward(out.loss, self.model, share)
        self.optimizer.step()
        if self.schedule is not None and lesson.rate_falls:
            self.schedule.step()
        return out

    def _forward(self, x: Tensor, index: Tensor | None, lesson: Lesson) -> Routing:
        """What the lesson asks of the model."""
        view, other = self.views(x, index, self.noise)
        scheduled = {"kl_weight": lesson.kl_weight, "gate_temperature": lesson.gate_temperature}
        with self.autocast:
            if lesson.phase == "alone" and other is not None:
                out = self.model.agree(
                    x if view is None else view,
                    other,
                    agreement_weight=self.views.weight,
                    agreement_levels=self.views.levels,
                    validate=False,
                )
            elif lesson.phase == "start" and self.start is not None and index is not None:
                out = self.model(x, view=view, **scheduled, generator=self.noise, validate=False)
                out = _towards(out, self.start[index.cpu()].to(x.device))
            else:
                agree: dict[str, Any] = {"agreement_weight": self.views.weight, "agreement_levels": self.views.levels}
                out = self.model(
                    x, view=view, other_view=other, **agree, **scheduled, generator=self.noise, validate=False
                )
        return out

    def check_weights(self) -> None:
        """Make sure that the last step has left good weights, also where no loss has looked at them yet.

        Raises:
            NonFiniteError: It has not; the model is put back to the end of the last good epoch.
        """
        weights = dict(self.model.named_parameters())
        finite = torch.stack([torch.isfinite(weight).all() for weight in weights.values()]).tolist()
        bad = [name for name, good in zip(weights, finite, strict=True) if not good]
        if bad:
            self.model.load_state_dict(self.good)
            where = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
            expected = f"finite weights after step {self.steps}"
            kept = "the model is back at the end of the last good epoch"
            raise NonFiniteError(mismatch("weights", expected, f"NaN or infinity in {where}; {kept}"))

    def _non_finite(self, out: Routing) -> NonFiniteError:
        """Say which term and which node, and put the last good weights back if the present ones are spoilt."""
        terms = {name: value.item() for name, value in out.terms.items()}
        term = next((f"{name!r} = {value}" for name, value in terms.items() if not math.isfinite(value)), "their sum")
        plan = self.model.plan
        bad_edges = (~torch.isfinite(out.edge_log_prob)).any(0).nonzero().flatten().tolist()
        bad_leaves: list[int] = []
        if isinstance(out, Output):
            bad_leaves = (~torch.isfinite(out.leaf_elbo)).any(0).nonzero().flatten().tolist()
        places = [f"the expert {plan.leaves[i].path}" for i in bad_leaves]
        places += dict.fromkeys(f"the gate of {plan.mixtures[plan.edge_mixture[i]].path}" for i in bad_edges)
        where = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        found = f"{term} from {where or 'the objective'}"
        found = self.processes.best(found, knows=not bool(torch.isfinite(out.loss)))
        kept = "the model is as it was before this step"
        spoilt = not all(bool(torch.isfinite(p).all()) for p in self.model.parameters())
        if self.processes.sum(torch.tensor(float(spoilt), device="cpu")) > 0:
            self.model.load_state_dict(self.good)
            kept = "the model is back at the end of the last good epoch"
        expected = f"a finite loss at step {self.steps}"
        return NonFiniteError(mismatch("loss", expected, f"{found}; {kept}"))


def _towards(out: Output, leaf: Int[Tensor, " batch"]) -> Output:
    """The output with the loss that fits gates and experts to given leaves: the log-likelihood of sample and leaf."""
    own = leaf.unsqueeze(1)
    terms = {
        "start_gate": -out.leaf_log_prob.gather(1, own).mean(),
        "start_expert": -out.leaf_elbo.gather(1, own).mean(),
    }
    return replace(out, loss=terms["start_gate"] + terms["start_expert"], terms=terms)


def evaluate(model: HMoEVAE, batches: Batches, seed: int, processes: Processes) -> dict[str, float]:
    """Mean terms over all batches, always with the same draws of z, so that epochs can be compared."""
    generator = Draws(model.device)
    generator.manual_seed(seed)
    threads = Threads(model)
    door = model.door  # which all of them have passed
    n_samples = 0
    sums: dict[str, float] = {}
    for x, _, share in processes.rounds(batches, model.input_shape):
        n_samples += share.total
        with threads.for_samples(len(x)), processes.sharing(model, generator, share):
            terms = model.evaluate(Checked(x, door), batch_size=len(x), generator=generator)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + share.n * value
    if n_samples == 0:
        raise DataError(mismatch("validation_data", "at least one sample", "none"))
    totals = processes.sum(torch.tensor(list(sums.values()), dtype=torch.float64, device="cpu"))
    return dict(zip(sums, (totals / n_samples).tolist(), strict=True))
