"""Several processes that train one model together: who they are, and all that they tell each other.

Data-parallel: every process has the whole model and a share of each batch. Where process p has n_p of a batch's N
samples, loss_p is the mean over them and I_p their importance, all processes step along the gradient of ::

    sum_p (n_p / N) loss_p,    where the balance in every loss_p is that of I = sum_p I_p

which is the loss of one process on the whole batch.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from hmoevae.errors import ArgumentError, ArgumentTypeError, ProcessError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import Share

T = TypeVar("T")
Batch = tuple[Tensor, Tensor | None]
"""Samples and, where they lie in memory, their places in the data set."""


class Processes:
    """The processes of a training run as one of them sees them; one that is alone has its own answers back at once.

    Args:
        device: Where this process computes.
        count: How many processes there are.
        index: Which of them this is, from 0.

    >>> alone = Processes(torch.device("cpu"))
    >>> alone.is_main, alone.own(10), alone.any(False), Processes(torch.device("cpu"), 3, 1).own(10)
    (True, slice(0, 10, None), False, slice(3, 6, None))
    """

    def __init__(self, device: torch.device, count: int = 1, index: int = 0) -> None:
        self.device = device
        self.count = count
        self.index = index
        self._interrupted = False

    @classmethod
    def here(cls, device: torch.device) -> "Processes":
        """The processes of torch's process group, where there is one.

        Raises:
            ArgumentError: The group cannot exchange tensors on `device`.
        """
        if not dist.is_available() or not dist.is_initialized():
            return cls(device)
        if dist.get_backend() == "nccl" and device.type != "cuda":
            raise ArgumentError(mismatch("device", "a CUDA device, for processes that talk by nccl", device))
        return cls(device, dist.get_world_size(), dist.get_rank())

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and shows things."""
        return self.index == 0

    # --- before training --------------------------------------------------------------------------------------------

    def check_equal(self, **settings: object) -> None:
        """Make sure that all processes were asked for the same training.

        Raises:
            ArgumentError: They were not.
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
        """What `make` returns in the main process, where alone it is called."""
        if self.count == 1:
            return make()
        made = [make() if self.is_main else None]
        with self._talking():
            dist.broadcast_object_list(made, device=self.device)
        return made[0]  # pyright: ignore[reportReturnType]  # by now it is there in every process

    def share_weights(self, model: HMoEVAE) -> None:
        """Give the model of every process the main one's weights."""
        if self.count == 1:
            return
        with self._talking():
            for weight in model.state_dict().values():
                dist.broadcast(weight, src=0)

    # --- data -------------------------------------------------------------------------------------------------------

    def own(self, n: int) -> slice:
        """Which of the `n` samples of a global batch are this process's; their numbers differ by at most one."""
        return slice(n * self.index // self.count, n * (self.index + 1) // self.count)

    def check_divided(self, loader: DataLoader[Any], name: str) -> None:
        """Make sure that a user's loader, as far as one can see, gives every process samples of its own.

        Raises:
            ArgumentTypeError: It gives all of them the same.
        """
        if self.count == 1 or isinstance(loader.sampler, DistributedSampler):
            return
        from accelerate.data_loader import DataLoaderStateMixin  # not at the top: see resolve_device

        if not isinstance(loader, DataLoaderStateMixin):
            expected = "a DataLoader with a DistributedSampler or from accelerate's prepare, in several processes"
            raise ArgumentTypeError(mismatch(name, expected, "one that gives every process the same samples"))

    def longest(self, n: int) -> int:
        """The largest `n` of all processes."""
        return max(everyone[0] for everyone in self._exchange(n))

    def rounds(self, batches: Iterable[Batch], made_up: Tensor) -> Iterator[tuple[Tensor, Tensor | None, Share]]:
        """Batches, as long as any process has one; where another has none any more it is given what is made up.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed in one of the processes; it is raised in all of them.
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
                x, index = made_up, torch.zeros(len(made_up), dtype=torch.long, device="cpu")
            yield x, index, share

    # --- a step -----------------------------------------------------------------------------------------------------

    def _importance_of_all(self, n: int, n_all: int, own: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
        own = own * float(n > 0)
        total = self.sum(own.detach())
        # Every loss has the whole balance in it and is weighed by n/N, so this gradient has to be N/n times as large.
        scaled = own * (n_all / max(n, 1))
        return total + (scaled - scaled.detach())

    def mean(self, value: Float[Tensor, ""], share: Share) -> float:
        """The mean of `value` over the samples of the global batch."""
        if self.count == 1:
            return value.item()
        return self.sum(value.detach() * share.weight).item()

    def backward(
        self, loss: Float[Tensor, ""], model: HMoEVAE, share: Share, learning: Iterable[nn.Parameter] = ()
    ) -> None:
        """Leave in every parameter the gradient of the loss of all.

        Args:
            loss: Of this process's samples.
            model: The model.
            share: Which samples these are.
            learning: Those that are to have a gradient, if it be zero, where the samples have no use for them.
        """
        (loss if self.count == 1 else loss * share.weight).backward()
        for parameter in learning:
            if parameter.grad is None and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        if self.count == 1:
            return
        with self._talking():
            # In place, each by itself: groups of equal nodes make a few large tensors out of many small ones.
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
                assert work is not None
                work.wait()

    # --- what is known to one, or in parts --------------------------------------------------------------------------

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count == 1:
            return values
        total = values.to(self.device, copy=True)
        with self._talking():
            dist.all_reduce(total)
        return total.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process.

        Raises:
            KeyboardInterrupt: As in `rounds`.
        """
        return flag if self.count == 1 else any(theirs for (theirs,) in self._exchange(int(flag)))

    def first(self, flags: list[bool]) -> int | None:
        """The first place at which the flag of any process is set; `None` where there is none.

        Raises:
            KeyboardInterrupt: As in `rounds`.
        """
        own = flags.index(True) if True in flags else len(flags)
        first = min(theirs for (theirs,) in self._exchange(own))
        return first if first < len(flags) else None

    def best(self, words: str, *, knows: bool) -> str:
        """The words of a process that knows, where there is one."""
        if self.count == 1:
            return words
        everyone: list[Any] = [None] * self.count
        with self._talking():
            dist.all_gather_object(everyone, (knows, words))
        return max(everyone, key=lambda theirs: theirs[0])[1]

    # --- trouble ----------------------------------------------------------------------------------------------------

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Inside, Ctrl-C is kept until the processes speak next: ended at different places they would wait for ever."""
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
        """The numbers of every process."""
        if self.count == 1:
            return [list(numbers)]
        table = torch.zeros(self.count, 1 + len(numbers), dtype=torch.long, device="cpu")
        table[self.index] = torch.tensor([int(self._interrupted), *numbers], device="cpu")
        everyone = self.sum(table).tolist()
        if any(row[0] for row in everyone):
            raise KeyboardInterrupt
        return [row[1:] for row in everyone]

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Word the errors of exchanges, which mostly mean that another process has gone."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            expected = f"all {self.count} to go on (see what the others say)"
            raise ProcessError(mismatch("processes", expected, f"in process {self.index}: {reason}")) from error
