"""Taking turns: what is timed lives in processes of its own, and each of them runs while all others wait.

In turns, a noisy machine slows all of them down alike. In processes of their own, none profits from what another one
has done to memory: where the C library has learned to keep large blocks, the loop of `peers.py` is 8 % faster.
"""

import gc
import logging
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import machine
import torch

Step = Callable[[], object]


class WorkerError(Exception):
    """What went wrong in a worker, in words."""


class Worker:
    """A process that makes steps and times them when asked.

    Args:
        threads: CPU threads of PyTorch.
    """

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit the memory and the threads of this one
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self._process.start()
        theirs.close()

    def make(
        self, make: Callable[[], Step | None], warm_up: int, device: torch.device
    ) -> tuple[int, int | None] | None:
        """Make a step and warm it up.

        Args:
            make: Makes the step, or `None` where there is none; it has to be picklable.
            warm_up: How many times the step is run.
            device: Whose memory is watched meanwhile.

        Returns:
            The step's number, and the bytes that it needed at its worst where the system tells; `None` without a step.

        Raises:
            WorkerError: Making it or running it has failed.
        """
        return self._ask("make", make, warm_up, device)

    def time(self, number: int, seconds: float) -> float:
        """Seconds of one run of a step, the median over at least so many of them, after a run to warm up."""
        return self._ask("time", number, seconds)

    def forget(self) -> None:
        """Free the memory of all steps made."""
        self._ask("forget")

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()

    def _ask(self, *request: object) -> Any:
        self._connection.send(request)
        try:
            answer, error = self._connection.recv()
        except EOFError:
            self._process.join(timeout=10)
            raise WorkerError(f"the process ended, exit code {self._process.exitcode}") from None
        if error is not None:
            raise WorkerError(error)
        return answer


def median_time(step: Step, seconds: float, threads: int) -> float:
    """Seconds of one run of a step, the median over at least so many of them, after a run to warm up."""
    from torch.utils.benchmark import Timer  # here, for what it logs when it is imported

    timer = Timer("step()", globals={"step": step}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=seconds).median


def _serve(connection: Connection, threads: int) -> None:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no GPU is no news here
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    steps: list[Step] = []
    while True:
        try:
            what, *arguments = connection.recv()
        except EOFError:
            return
        try:
            if what == "make":
                answer: object = _make(steps, *arguments)
            elif what == "time":
                number, seconds = arguments
                answer = median_time(steps[number], seconds, threads)
            else:
                steps.clear()
                torch.compiler.reset()  # it makes code for so many variants of a function only
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                answer = None
        except Exception as error:  # whatever it is, it is told
            connection.send((None, f"{type(error).__name__}: {error.__cause__ or error}"))
        else:
            connection.send((answer, None))


def _make(
    steps: list[Step], make: Callable[[], Step | None], warm_up: int, device: torch.device
) -> tuple[int, int | None] | None:
    step = make()
    if step is None:
        return None

    def run() -> None:
        for _ in range(warm_up):
            step()

    peak = machine.peak_memory(run, device)
    steps.append(step)
    return len(steps) - 1, peak
