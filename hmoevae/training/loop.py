"""Run: the steps of a training and the sums over an epoch; `evaluate`: the mean terms on held-out data."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from hmoevae.door import Checked
from hmoevae.errors import DataError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import Share
from hmoevae.nn.kernels.memory import StepMemory
from hmoevae.nn.routes import ALL, Given
from hmoevae.nn.sample_weights import SampleWeights, weighted_mean
from hmoevae.output import Output, Routing
from hmoevae.training.batches import Batches
from hmoevae.training.compiled import CompiledPass
from hmoevae.training.course import Lesson
from hmoevae.training.finite import FiniteGuard, steps_between_looks
from hmoevae.training.gate_views import GateViews
from hmoevae.training.gradients import make_dense_
from hmoevae.training.processes import Processes
from hmoevae.training.random_states import may_draw, seeded_random_states
from hmoevae.training.revival import revive
from hmoevae.training.row_adam import RowAdam
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
        noise: torch.Generator,
        autocast: torch.autocast,
        processes: Processes,
        *,
        compiled: CompiledPass | None = None,
        max_grad_norm: float | None = None,
        shared_start: bool = False,
        look_every: int | None = None,
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
        self.max_grad_norm = max_grad_norm
        looks = steps_between_looks(noise.device) if look_every is None else look_every
        self.guard = FiniteGuard(model, processes, looks)
        self.may_draw = may_draw(model)
        self.memory = StepMemory()
        self.compiled = compiled
        firsts = {leaf: group.members[0] for group in model.plan.expert_groups for leaf in group.members}
        self.learner = torch.tensor([firsts[i] for i in sorted(firsts)]) if shared_start else None
        """For each leaf, the one whose expert learns its samples of the start; `None` means itself."""
        self.chosen: list[float] = []
        """For each leaf, the share of the last epoch's samples whose most probable leaf it was."""
        self.threads = Threads(model)

    def close(self) -> None:
        """Free the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes from step to step, except the weights."""
        return {
            "steps": self.steps,
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "noise": self.noise.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.steps = state["steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.noise.set_state(state["noise"])

    def revive(self, row: dict[str, float]) -> list[str]:
        """Revive the children that got no samples in an epoch; returns their paths."""
        usage = torch.tensor([row[f"usage/{leaf.path}"] for leaf in self.model.plan.leaves], device="cpu")
        return revive(self.model, self.optimizer, usage, self.noise)

    @torch.no_grad()
    def share_start(self) -> None:
        """Give all equal experts the weights of the one that has learnt the start. Their moments stay."""
        experts = self.model.experts
        for i, group in enumerate(experts.groups):
            for parameter in group.parameters():
                if parameter.requires_grad:
                    parameter.copy_(experts.row(i, 0, parameter).expand_as(parameter))

    def epoch(self, batches: Batches, lesson: Lesson, title: str, bar: "tqdm[Any]") -> dict[str, float]:
        """Run one pass over the data; returns the means of the loss and its terms, and usage and information."""
        n_samples, n_own = 0, 0
        names: list[str] = []
        sums: Tensor | None = None
        shown = 0.0
        bar.set_description(title, refresh=False)
        for x, index, share in self.processes.rounds(batches, _dummy_sample(self.model)):
            fast = x.device.type == "cpu"  # host-to-device copies may overlap; device-to-host ones must be waited for
            x = x.to(self.noise.device, self.model.dtype, non_blocking=fast)
            with self.threads.for_samples(len(x)):
                weighed = None if batches.weights is None or index is None else batches.weights.at(index.cpu())
                weights = None if weighed is None else weighed.like(x)
                out = self.step(x, index, share, lesson, weights)
            n_samples, n_own = n_samples + share.total, n_own + share.n
            names, added = ["loss", *out.terms], self._measured(out, share, weights)
            sums = added if sums is None else sums.add_(added)
            bar.update()
            # Reading a number waits for the device, so the bar is updated right after a look at the losses.
            if self.guard.is_up_to_date and time.perf_counter() - shown > bar.mininterval:
                shown = time.perf_counter()
                values = (sums[: len(names)] / max(n_own, 1)).tolist()  # means over this process's samples
                bar.set_postfix(dict(zip(names, (f"{v:.4g}" for v in values), strict=True)), refresh=False)
        if sums is None:
            raise DataError(mismatch("data", "at least one sample", "none"))
        self.guard.look()
        self.guard.check_weights(self.steps)
        self.guard.keep_weights()
        plan = self.model.plan
        names += [f"usage/{leaf.path}" for leaf in plan.leaves]
        values = (self.processes.sum(sums) / n_samples).tolist()
        values, self.chosen = values[: -plan.n_leaves], values[-plan.n_leaves :]
        row = dict(zip(names, values[: len(names)], strict=True))
        nats = information(plan, values[len(names) :])
        return row | {f"information/{path}": value for path, value in nats.items()}

    @torch.no_grad()
    def _measured(self, out: Routing, share: Share, weights: SampleWeights | None) -> Tensor:
        """The values that a step adds to the sums of its epoch, on the device."""
        means = torch.stack([out.loss, *out.terms.values()])
        weight = None if weights is None else weights.relative
        routed = gate_sums(out, self.model.paths, weight)
        usage, chosen = out.leaf_log_prob.exp(), out.leaf_log_prob == out.leaf_log_prob.amax(1, keepdim=True)
        if weight is not None:
            usage, chosen = usage * weight.unsqueeze(1), chosen * weight.unsqueeze(1)
        parts = [means * len(out.leaf_log_prob), usage.sum(0), routed, chosen.sum(0)]
        added = torch.cat(parts).to(self.sum_dtype)
        return added if share.n else added.zero_()  # a dummy sample counts nothing

    def step(
        self, x: Tensor, index: Tensor | None, share: Share, lesson: Lesson, weights: SampleWeights | None = None
    ) -> Routing:
        """Take one optimiser step on this process's samples of the global batch."""
        self.steps += 1
        self.optimizer.zero_grad(set_to_none=True)  # before the step reuses their memory
        with self.memory.step(), nullcontext() if self.compiled is None else self.compiled.step():
            out = self._forward(x, index, share, lesson, weights)
            self.guard.see(self.steps, out, share)
            routed = lesson.phase == "start" or lesson.settings.routes != ALL
            by_row = list(self.model.experts.parameters()) if routed else []
            if self.model.beam_of(lesson.settings.routes) is not None:
                by_row += self.model.gates.parameters()
            self.processes.backward(out.loss, self.model, share, by_row)
        if not isinstance(self.optimizer, RowAdam):
            make_dense_(self.model.parameters())
        if self.max_grad_norm is not None:
            self.processes.clip_grad_norm_(self.model, self.max_grad_norm)
        self.optimizer.step()
        if self.schedule is not None and lesson.rate_falls:
            self.schedule.step()
        return out

    def _states(self, share: Share, device: torch.device) -> AbstractContextManager[None]:
        """The global random states for networks that draw from them."""
        return seeded_random_states(self.noise, share, device, b"networks") if self.may_draw else nullcontext()

    def _forward(
        self, x: Tensor, index: Tensor | None, share: Share, lesson: Lesson, weights: SampleWeights | None
    ) -> Routing:
        """Run the forward pass of the lesson's phase."""
        before = self.noise.get_state() if lesson.phase == "alone" else None
        view, other = self.views(x, index, self.noise, share)
        if before is not None and torch.equal(before, self.noise.get_state()):
            # Gates alone draw no z, and the random states of views follow from the generator's state: advance it.
            torch.rand((), generator=self.noise, device=self.noise.device)
        told: dict[str, Any] = {
            "settings": lesson.settings,
            "share": share,
            "sample_weight": weights,
            "validate": False,
        }
        with self.autocast, self._states(share, x.device):
            if lesson.phase == "alone" and other is not None:
                return self.model.agree(x if view is None else view, other, **told)
            if lesson.phase == "start" and self.start is not None and index is not None:
                start = self.start[index.cpu()].to(x.device)
                learner = start if self.learner is None else self.learner.to(x.device)[start]
                told["settings"] = replace(lesson.settings, routes=Given(learner))
                return _towards(start, self.model(x, view=view, generator=self.noise, **told), weights)
            forward = self.model if self.compiled is None or lesson.phase != "joint" else self.compiled
            return forward(x, view=view, other_view=other, generator=self.noise, **told)


def _towards(leaf: Int[Tensor, " batch"], out: Output, weights: SampleWeights | None) -> Output:
    """Replace the loss by the one that fits gates and experts to given leaves: -log p(sample, leaf)."""
    terms = {
        "start_gate": -weighted_mean(out.leaf_log_prob.gather(1, leaf.unsqueeze(1)).squeeze(1), weights),
        "start_expert": -weighted_mean(out.leaf_elbo.squeeze(1), weights),
    }
    return replace(out, loss=terms["start_gate"] + terms["start_expert"], terms=terms)


def _dummy_sample(model: HMoEVAE) -> Tensor:
    """A dummy sample with a finite likelihood, for a process that has no samples left."""
    return torch.full((1, *model.input_shape), model.door.example, device="cpu")


def evaluate(model: HMoEVAE, batches: Batches, seed: int, processes: Processes) -> dict[str, float]:
    """Mean terms over all batches, with the same draws of z in every call, so that epochs can be compared."""
    generator = torch.Generator(model.device).manual_seed(seed)
    threads = Threads(model)
    door = model.door  # the batches are checked already
    n_samples = 0
    sums: dict[str, float] = {}
    for x, _, share in processes.rounds(batches, _dummy_sample(model)):
        n_samples += share.total
        with threads.for_samples(len(x)):
            terms = model.evaluate(Checked(x, door), batch_size=len(x), generator=generator, share=share)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + share.n * value
    if n_samples == 0:
        raise DataError(mismatch("validation_data", "at least one sample", "none"))
    totals = processes.sum(torch.tensor(list(sums.values()), dtype=torch.float64, device="cpu"))
    return dict(zip(sums, (totals / n_samples).tolist(), strict=True))
