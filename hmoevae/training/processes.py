"""Training by several processes: they train one model, and exchange weights, gradients and numbers.

Every process has the whole model and a share of each batch. Process p has n_p of the batch's N samples; loss_p is the
mean loss over them and I_p their importance. All processes step along the gradient of ::

    sum_p (n_p / N) loss_p,    where the balance in every loss_p is that of I = sum_p I_p

which is the loss of one process on the whole batch.

Experts may be cut over processes (`hmoevae.nn.cut_experts`). The processes among which all experts are cut once are a
replica. The gradient of an expert is that of its replica's samples already, and is summed over the replicas only.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.data import DataLoader, DistributedSampler

from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.cut_experts import CutExperts
from hmoevae.nn.draws import Share
from hmoevae.nn.exchange import Peers, talking
from hmoevae.training.gradients import clip_grad_norm_, no_rows, of_rows, with_rows

T = TypeVar("T")
Batch = tuple[Tensor, Tensor | None]
"""Samples and, if the data set is in memory, their indices in it."""


class Processes:
    """The processes of a training run, as seen by one of them. A single process exchanges nothing.

    Args:
        device: The device of this process.
        count: Number of processes.
        index: Rank of this process, from 0.

    >>> alone = Processes(torch.device("cpu"))
    >>> alone.is_main, alone.own(10), alone.any(False), Processes(torch.device("cpu"), 3, 1).own(10)
    (True, slice(0, 10, None), False, slice(3, 6, None))
    """

    def __init__(self, device: torch.device, count: int = 1, index: int = 0) -> None:
        self.device = device
        self.count = count
        self.index = index
        self.mesh: DeviceMesh | None = None
        """The axes `"replica"` and `"expert"` of the processes, where the experts are cut."""
        self.peers: Peers | None = None
        """Those that share the experts of one replica with this process, where the experts are cut."""
        self._interrupted = False

    @classmethod
    def here(cls, device: torch.device) -> "Processes":
        """The processes of torch's process group; a single process if there is none.

        Raises:
            ArgumentError: The group cannot exchange tensors on `device`.
        """
        if not dist.is_available() or not dist.is_initialized():
            return cls(device)
        if dist.get_backend() == "nccl" and device.type != "cuda":
            raise ArgumentError(mismatch("device", "a CUDA device, for processes that communicate by NCCL", device))
        return cls(device, dist.get_world_size(), dist.get_rank())

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes files and prints."""
        return self.index == 0

    # --- before training --------------------------------------------------------------------------------------------

    def check_equal(self, **settings: object) -> None:
        """Check that all processes have the same settings.

        Raises:
            ArgumentError: A setting differs between processes.
        """
        if self.count == 1:
            return
        everyone: list[Any] = [None] * self.count
        with self._talking():
            dist.all_gather_object(everyone, settings)
        for name in settings:
            values = list(dict.fromkeys(str(theirs[name]) for theirs in everyone))
            if len(values) > 1:
                raise ArgumentError(mismatch(name, "the same in every process", " and ".join(values)))

    def from_main(self, make: Callable[[], T]) -> T:
        """Call `make` in the main process only, and return its result in every process."""
        if self.count == 1:
            return make()
        made = [make() if self.is_main else None]
        with self._talking():
            dist.broadcast_object_list(made, device=self.device)
        return made[0]  # pyright: ignore[reportReturnType]  # the broadcast has filled it in every process

    def share_weights(self, model: HMoEVAE) -> None:
        """Copy the main process's weights to the model of every process."""
        if self.count == 1:
            return
        with self._talking():
            for weight in model.state_dict().values():
                sent = weight.to(self.device)  # one at a time: all of them may not fit on the device
                dist.broadcast(sent, src=0)
                if sent is not weight:
                    weight.copy_(sent)

    # --- experts cut over processes ---------------------------------------------------------------------------------

    def check_cut(self, parts: int) -> None:
        """Check that experts can be cut over so many of the processes.

        Raises:
            ArgumentError: The number does not divide that of the processes, or they cannot exchange samples.
        """
        if self.count % parts:
            expected = f"a divisor of the number of processes, {self.count}"
            raise ArgumentError(mismatch("Training.expert_parallel", expected, parts))
        if parts > 1 and self.device.type != "cpu" and dist.get_backend() == "gloo":
            expected = "1 for processes that communicate by gloo, except on CPUs"
            raise ArgumentError(mismatch("Training.expert_parallel", expected, parts))

    def cut(self, model: HMoEVAE, parts: int) -> None:
        """Let every process keep some rows of each group of experts only, so that `parts` processes hold all of them.

        Neighbours in rank, which most often are on one machine, hold one replica.
        """
        if parts == 1:
            return
        with self._talking():
            shape = self.count // parts, parts
            self.mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=("replica", "expert"))
            self.peers = Peers(self.mesh.get_group("expert"))
        model.experts = CutExperts(model.experts, self.peers)

    def make_whole(self, model: HMoEVAE) -> None:
        """Undo `cut`, in all processes; the model is in host memory then, as it may not fit on a device."""
        if isinstance(model.experts, CutExperts):
            model.experts = model.experts.whole()
            model.cpu()
        self.part()

    def part(self) -> None:
        """End the exchange of samples; a model whose experts are cut stays so, and refuses to be used."""
        if self.mesh is not None and self.peers is not None:
            self.peers.silent = "hm.fit ended with an error"
            for group in map(self.mesh.get_group, ("replica", "expert")):
                if group != dist.group.WORLD:  # a mesh uses it where it can
                    dist.destroy_process_group(group)
        self.mesh = self.peers = None

    def silence(self) -> AbstractContextManager[None]:
        """Inside, refuse the use of cut experts: the processes run code of the user's, which may differ."""
        return nullcontext() if self.peers is None else self.peers.silence("in a callback of hm.fit")

    # --- data -------------------------------------------------------------------------------------------------------

    def own(self, n: int) -> slice:
        """The slice of a global batch of `n` samples that belongs to this process; sizes differ by at most one."""
        return slice(n * self.index // self.count, n * (self.index + 1) // self.count)

    def check_divided(self, loader: DataLoader[Any], name: str) -> None:
        """Check that a user's loader gives every process other samples, as far as its type shows.

        Raises:
            ArgumentTypeError: It gives all processes the same samples.
        """
        if self.count == 1 or isinstance(loader.sampler, DistributedSampler):
            return
        from accelerate.data_loader import DataLoaderStateMixin  # not at the top: see resolve_device

        if not isinstance(loader, DataLoaderStateMixin):
            expected = "a DataLoader with a DistributedSampler or from accelerate's prepare, in several processes"
            raise ArgumentTypeError(mismatch(name, expected, "a loader that gives every process the same samples"))

    def longest(self, n: int) -> int:
        """The largest `n` of all processes."""
        return max(everyone[0] for everyone in self._exchange(n))

    def rounds(self, batches: Iterable[Batch], dummy: Tensor) -> Iterator[tuple[Tensor, Tensor | None, Share]]:
        """Yield batches as long as any process has one; a process without any gets the dummy sample `dummy`.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed in one of the processes. It is raised in all of them.
        """
        if self.count == 1:
            for x, index in batches:
                yield x, index, Share(0, len(x), len(x))
            return
        source = iter(batches)
        while True:
            x, index = next(source, (None, None))
            everyone = [n for (n,) in self._exchange(0 if x is None else len(x))]
            n, total = everyone[self.index], sum(everyone)
            if total == 0:
                return
            share = Share(sum(everyone[: self.index]), n, total, partial(self._importance_of_all, n, total))
            if x is None:
                x, index = dummy, torch.zeros(len(dummy), dtype=torch.long, device="cpu")
            yield x, index, share

    # --- a step -----------------------------------------------------------------------------------------------------

    def _importance_of_all(self, n: int, n_all: int, own: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
        own = own * float(n > 0)
        total = self.sum(own.detach())
        # Every process's loss contains the whole balance and is weighted by n/N, so this gradient is scaled by N/n.
        scaled = own * (n_all / max(n, 1))
        return total + (scaled - scaled.detach())

    def mean(self, value: Float[Tensor, ""], share: Share) -> float:
        """The mean of `value` over the samples of the global batch."""
        if self.count == 1:
            return value.item()
        return self.sum(value.detach() * share.weight).item()

    def backward(
        self, loss: Float[Tensor, ""], model: HMoEVAE, share: Share, by_row: Iterable[nn.Parameter] = ()
    ) -> None:
        """Compute the gradient of the global batch's loss in every parameter.

        Args:
            loss: The loss of this process's samples.
            model: The model.
            share: Which samples of the global batch these are.
            by_row: Parameters of which this process's samples may use some rows only, or none.
        """
        (loss if self.count == 1 else loss * share.weight).backward()
        some = [parameter for parameter in by_row if parameter.requires_grad]
        for parameter in some:
            if parameter.grad is None or (share.n == 0 and self.mesh is None):  # a dummy sample takes no row along
                parameter.grad = no_rows(parameter)
        if self.mesh is None:
            self._sum_gradients(model.parameters(), some)
            return
        own = {id(parameter) for parameter in model.experts.parameters()}
        self._sum_gradients((p for p in model.parameters() if id(p) not in own), ())
        self._sum_gradients(model.experts.parameters(), some, self.mesh.get_group("replica"))

    def _sum_gradients(
        self,
        parameters: Iterable[nn.Parameter],
        by_row: Sequence[nn.Parameter],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Sum gradients over the processes of a group, of which those in `by_row` may be sparse."""
        if self.count == 1 or dist.get_world_size(group) == 1:
            return
        found = [with_rows(parameter) for parameter in by_row]
        for parameter, (dense, _) in zip(by_row, found, strict=True):
            parameter.grad = dense
        with self._talking():
            # In place, without bucketing: grouping equal nodes has already made few, large tensors.
            gradients = [p.grad for p in parameters if p.grad is not None]
            for work in [dist.all_reduce(gradient, group=group, async_op=True) for gradient in gradients]:
                assert work is not None
                work.wait()
        if not by_row:
            return
        holds = torch.cat([holds for _, holds in found]).int()
        held = self.sum(holds, group).split([len(holds) for _, holds in found])
        for parameter, (dense, _), n in zip(by_row, found, held, strict=True):
            parameter.grad = of_rows(dense, n > 0)

    def clip_grad_norm_(self, model: HMoEVAE, max_norm: float) -> None:
        """Clip the gradient to a Euclidean norm over all parameters, wherever they are."""
        if self.peers is None:
            clip_grad_norm_(model.parameters(), max_norm)
            return
        group = self.peers.group
        own = list(model.experts.parameters())
        known = {id(parameter) for parameter in own}
        others = [parameter for parameter in model.parameters() if id(parameter) not in known]
        clip_grad_norm_(others, max_norm, cut=own, sum_of_cut=lambda value: self.sum(value, group))

    # --- reductions -------------------------------------------------------------------------------------------------

    def sum(self, values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """The sum over all processes, or over those of a group."""
        if self.count == 1:
            return values
        total = values.to(self.device, copy=True)
        with self._talking():
            dist.all_reduce(total, group=group)
        return total.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process.

        Raises:
            KeyboardInterrupt: As in `rounds`.
        """
        return flag if self.count == 1 else any(theirs for (theirs,) in self._exchange(int(flag)))

    def first(self, flags: list[bool]) -> int | None:
        """The first index at which any process has set its flag; `None` if there is none.

        Raises:
            KeyboardInterrupt: As in `rounds`.
        """
        own = flags.index(True) if True in flags else len(flags)
        first = min(theirs for (theirs,) in self._exchange(own))
        return first if first < len(flags) else None

    def best(self, words: str, *, knows: bool) -> str:
        """The `words` of a process that `knows`, if there is one."""
        if self.count == 1:
            return words
        everyone: list[Any] = [None] * self.count
        with self._talking():
            dist.all_gather_object(everyone, (knows, words))
        return max(everyone, key=lambda theirs: theirs[0])[1]

    # --- trouble ----------------------------------------------------------------------------------------------------

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Inside, delay Ctrl-C until the next exchange: processes that stop at different points would deadlock."""
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self.count == 1 or not default or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._interrupted = False

        def keep(*_: object) -> None:
            self._interrupted = True

        signal.signal(signal.SIGINT, keep)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _exchange(self, *numbers: int) -> list[list[int]]:
        """Gather the numbers of every process."""
        if self.count == 1:
            return [list(numbers)]
        table = torch.zeros(self.count, 1 + len(numbers), dtype=torch.long, device="cpu")
        table[self.index] = torch.tensor([int(self._interrupted), *numbers], device="cpu")
        everyone = self.sum(table).tolist()
        if any(row[0] for row in everyone):
            raise KeyboardInterrupt
        return [row[1:] for row in everyone]

    def _talking(self) -> AbstractContextManager[None]:
        return talking(self.count, self.index)
