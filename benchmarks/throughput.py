"""How fast do trees of VAEs train, route and sample here: against what users write, and against the machine's limit?

    python benchmarks/throughput.py --quick                    one answer, under a minute
    python benchmarks/throughput.py --threads 2                10 and 100 leaves, fp32 and bf16, in a few minutes
    python benchmarks/throughput.py --leaves 1 10 100 1000 --depth 1 2 3 --batch 100 512 --json all.json --plot all.png
    python benchmarks/throughput.py --leaves 10 100 1000 10000 --precision fp32 --route 1 2 --against loop --hidden 64

The tree is the article's, `VAE` experts 784-128-10-128-784 with sigmoid MLPs, on random data; at depth d its leaves are
spread over d levels as evenly as their number allows, and `--hidden` sets another width. With `--route k`, rows such as
"2 of 100" are steps in which each sample is computed with k leaves (`hm.Training(route=hm.TopK(k))`). New gates send
these samples to a few leaves only, which would be cheap, so leaves are drawn evenly instead.

A training step is zero_grad, forward, backward and Adam: for ours `hm.RowAdam`, which is PyTorch's fused one where all
leaves learn; for the peers `torch.optim.Adam` as it comes (`peers.py`; a flat tree with as many leaves, whatever our
depth).

All rows of a cell (one op, number of leaves, batch and precision) take turns, so that a noisy machine slows all of them
down alike, each in a process of its own, so that none runs in memory that another has prepared. What the columns say:

    ms          median over the rounds, with quartiles.
    GFLOP/s     the matrix products that the step needs (2 m n k each; training makes three of each, but for the
                gradient of the samples) over its time.
    % ceiling   that rate over the best rate of one large square product by `torch.mm` (`machine.square_gemm`), same
                precision, found in the same rounds. Where oneDNN is faster in fp32, its own rate is in the report too.
    % GEMMs     the time of "GEMMs alone" over the step's, median of the rounds. That row makes the products of exactly
                these shapes by `torch.bmm`, forward and backward, into buffers made beforehand, and does nothing else.
    MB          memory at its worst over the first steps: parameters, gradients, moments and activations
                (`machine.peak_memory`). The report also has the activations by themselves, and what inputs and results
                of the step's products take, with their gradients.
    x loop      how many times as fast as the loop, median of the rounds; for `--op fit`, as the bare step.

The last line is the whole report as one JSON object.
"""

import argparse
import functools
import itertools
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import command
import gemms
import machine
import torch
from peers import PEERS, Loop, peer
from turns import Step, Worker, WorkerError, median_time

import hmoevae as hm
from hmoevae.errors import CollapseWarning
from hmoevae.nn.routes import Routes
from hmoevae.training import CompiledPass, has_bfloat16, resolve_device

N_FEATURES = 784
HIDDEN = 128
Precision = Literal["fp32", "tf32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
WARM_UP_STEPS = 3
FIT_STEPS = 50
"""Steps in one call of `hm.fit`; what it does once a call is shared by so many (an epoch of MNIST has 600)."""
DEFAULTS = {
    "leaves": [10, 100],
    "depth": [1],
    "batch": [100],
    "precision": ["fp32", "bf16"],
    "op": ["train"],
    "route": [],
    "against": ["loop", "vmap", "einsum"],
    "cell_seconds": 60.0,
}
QUICK = {"leaves": [10], "precision": ["fp32"], "against": ["loop", "einsum"], "cell_seconds": 20.0}


# --- trees ----------------------------------------------------------------------------------------------------------


def balanced_factors(n: int, depth: int) -> tuple[int, ...] | None:
    """The `depth` ascending factors of `n`, each at least 2, that are nearest to one another; `None` if there are none.

    >>> balanced_factors(10, 2), balanced_factors(100, 2), balanced_factors(1000, 3), balanced_factors(10, 3)
    ((2, 5), (10, 10), (10, 10, 10), None)
    """

    def factorisations(n: int, depth: int, least: int) -> Iterator[tuple[int, ...]]:
        if depth == 1 and n >= least:
            yield (n,)
        elif depth > 1:
            for first in range(least, math.isqrt(n) + 1):
                if n % first == 0:
                    yield from ((first, *rest) for rest in factorisations(n // first, depth - 1, first))

    return min(factorisations(n, depth, 2), key=sum, default=None)  # of equal products, the least sum is the most even


def article_tree(leaves: int, depth: int, hidden: int = HIDDEN) -> hm.VAE | hm.Mixture | None:
    """The article's experts below `depth` levels of gates, or a lone one; `None` where their number does not factor."""
    network = hm.MLP((hidden,), activation="sigmoid")
    expert = hm.VAE(latent_dim=10, encoder=network, decoder=network)
    if leaves == 1:
        return expert
    factors = balanced_factors(leaves, depth)
    if factors is None:
        return None
    return functools.reduce(lambda below, n: hm.Mixture.of(below, n, gate=network), reversed(factors), expert)


LONE = hm.VAE()
"""Stands for no tree."""

# --- what is timed --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    """The rows that are compared with one another."""

    op: gemms.Op
    leaves: int
    batch: int
    precision: Precision
    device: torch.device

    def autocast(self) -> torch.autocast:
        """The precision, for ours and the peers alike."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def set_tf32(self) -> None:
        """Let this process's products of fp32 numbers on a GPU be rounded to TF32, or not."""
        torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"

    def gemms(self, entry: "Entry") -> list[gemms.Gemm]:
        """The products of one step."""
        return gemms.gemms_of(entry.tree, N_FEATURES, self.batch, self.op, entry.route)


@dataclass(slots=True)
class Entry:
    """One row in the making.

    Attributes:
        what: Who computes.
        tree: What is computed.
        time: Seconds of one call, the median over at least so many of them.
        n_steps: Steps in one call.
        route: The number of leaves that each sample is computed with; `None` means all.
        peak_bytes: Memory at its worst.
        seconds: Of one step, one a round.
    """

    what: str
    tree: hm.VAE | hm.Mixture
    time: Callable[[float], float]
    n_steps: int = 1
    route: int | None = None
    peak_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)


class Even(Routes):
    """Leaves that are drawn evenly for each sample, at the cost of choosing the most probable ones.

    Args:
        k: Number of leaves a sample.
    """

    def __init__(self, k: int) -> None:
        self.k = k

    def n_slots(self, n_leaves: int) -> int:
        """`k`."""
        return min(self.k, n_leaves)

    def leaves(self, leaf_log_prob: torch.Tensor, draws: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """The leaves of every sample, (slot, batch)."""
        return torch.rand_like(leaf_log_prob).topk(self.n_slots(len(leaf_log_prob)), dim=0).indices


def training_step(
    loss: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    cell: Cell,
    memory: Callable[[], AbstractContextManager[None]] = nullcontext,
    products: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Callable[[], None]:
    """zero_grad, forward and backward inside `memory` and `products`, the optimiser; on batches made beforehand."""
    batches = itertools.cycle(torch.rand(8, cell.batch, N_FEATURES, device=cell.device).unbind())

    def step() -> None:
        cell.set_tf32()
        optimizer.zero_grad()
        with memory(), products():
            with cell.autocast():
                value = loss(next(batches))
            value.backward()
        optimizer.step()

    return step


def inference_step(compute: Callable[[Any], object], argument: object, cell: Cell) -> Callable[[], None]:
    """Routing or sampling."""

    def step() -> None:
        cell.set_tf32()
        with cell.autocast():
            compute(argument)

    return step


def our_step(
    cell: Cell, tree: hm.VAE | hm.Mixture, *, compiled: bool = False, route: int | None = None
) -> Callable[[], None]:
    """The library's step, as `hm.fit` has it: the data have been checked beforehand, and steps share their memory."""
    model = hm.HMoEVAE(tree, (N_FEATURES,)).to(cell.device)
    if cell.op == "route":
        return inference_step(model.route, torch.rand(cell.batch, N_FEATURES, device=cell.device), cell)
    if cell.op == "sample":
        return inference_step(model.sample, cell.batch, cell)

    run = CompiledPass(model) if compiled else model

    settings = hm.StepSettings() if route is None else hm.StepSettings(routes=Even(route))

    def loss(x: torch.Tensor) -> torch.Tensor:
        return run(x, settings=settings, validate=False).loss

    optimizer = hm.RowAdam(model.parameters())
    memory = hm.StepMemory()
    return training_step(loss, optimizer, cell, memory.step, run.step if isinstance(run, CompiledPass) else nullcontext)


def peer_step(
    cell: Cell, name: str, tree: hm.VAE | hm.Mixture, *, fused: bool, compiled: bool = False
) -> Callable[[], None] | None:
    """A peer's step; `None` where it has none: only the loop routes and samples."""
    them = peer(name, hm.HMoEVAE(tree, (N_FEATURES,)).to(cell.device))
    if cell.op == "train":
        optimizer = torch.optim.Adam(them.parameters(), fused=fused or None)
        return training_step(torch.compile(them.loss) if compiled else them.loss, optimizer, cell)
    if not isinstance(them, Loop):
        return None
    if cell.op == "route":
        return inference_step(them.route, torch.rand(cell.batch, N_FEATURES, device=cell.device), cell)
    return inference_step(them.sample, cell.batch, cell)


def fit_step(cell: Cell, tree: hm.VAE | hm.Mixture, n_steps: int) -> Callable[[], object]:
    """So many steps by `hm.fit`."""
    model = hm.HMoEVAE(tree, (N_FEATURES,)).to(cell.device)
    x = torch.rand(n_steps * cell.batch, N_FEATURES)

    precision = "bf16" if cell.precision == "bf16" else "fp32"

    def fit() -> hm.History:
        with warnings.catch_warnings():  # of what long training on noise does to gates, which is no matter here
            warnings.simplefilter("ignore", CollapseWarning)
            return hm.fit(
                model,
                x,
                hm.Training(
                    epochs=1, batch_size=cell.batch, lr=1e-3, seed=0, device=cell.device.type, precision=precision
                ),
                progress=False,
            )

    return fit


def entries_of(cell: Cell, args: argparse.Namespace, workers: dict[str, Worker]) -> Iterator[Entry]:
    """The rows of a cell, warmed up, each by the worker of its name, of which missing ones are added to `workers`.

    What cannot be run here is left out, with a line that says why.
    """
    flat = article_tree(cell.leaves, 1, args.hidden)
    assert flat is not None
    trees = dict.fromkeys(tree for depth in args.depth if (tree := article_tree(cell.leaves, depth, args.hidden)))
    for depth in args.depth:
        if article_tree(cell.leaves, depth, args.hidden) is None:
            skip(cell, "hmoevae", f"{cell.leaves} leaves do not factor into {depth} levels of two or more")
    wanted: list[tuple[str, hm.VAE | hm.Mixture | None, Callable[[], Callable[[], object] | None]]] = []
    routes = {f"{k} of {cell.leaves}": k for k in args.route if k < cell.leaves and cell.op == "train"}
    for tree in trees:
        wanted.append(("hmoevae", tree, functools.partial(our_step, cell, tree)))
        wanted += [(what, tree, functools.partial(our_step, cell, tree, route=k)) for what, k in routes.items()]
        if cell.op == "fit":
            wanted.append(("hm.fit", tree, functools.partial(fit_step, cell, tree, FIT_STEPS)))
    fused = args.peer_adam == "fused"
    if cell.op != "fit":
        names = [name for name in args.against if name in PEERS]
        wanted += [(n, flat, functools.partial(peer_step, cell, n, flat, fused=fused)) for n in names]
    if "compile" in args.against and cell.op == "train":
        for tree in itertools.islice(trees, 1):
            wanted.append(("hmoevae compiled", tree, functools.partial(our_step, cell, tree, compiled=True)))
        for n in [n for n in args.against if n in ("vmap", "einsum")] or ["einsum"]:
            make = functools.partial(peer_step, cell, n, flat, fused=fused, compiled=True)
            wanted.append((f"{n} compiled", flat, make))
    for what, _, _ in wanted:
        if what not in workers:  # all begin side by side
            workers[what] = Worker(args.threads)
    for what, tree, make in wanted:
        assert tree is not None
        n_weights = sum(gemm.n_weights for gemm in gemms.gemms_of(tree, N_FEATURES, cell.batch, "train"))
        free = machine.free_memory(cell.device)
        # fp32 weights, gradients and two moments; those of the GEMMs alone; half as much again for all else. Of routed
        # steps weights and moments, and a sixth as much again.
        needed = (14 if what in routes else 36) * n_weights
        if free is not None and free < needed:
            skip(cell, what, f"needs about {1e-9 * needed:.1f} GB more, {1e-9 * free:.1f} GB are free")
            continue
        n_steps = FIT_STEPS if what == "hm.fit" else 1
        try:
            made = workers[what].make(make, WARM_UP_STEPS if n_steps == 1 else 1, cell.device)
        except WorkerError as error:
            if not what.endswith("compiled"):
                raise
            lines = f"{error}".strip().splitlines()  # such as of a missing or broken C++ compiler
            skip(cell, what, next(line for line in lines if not line.endswith("raised:")))
            continue
        if made is None:
            continue
        number, peak = made
        if peak is not None:
            peak += 4 * n_weights
        compiled = what.endswith("compiled")  # the compiler's own memory is in its peak
        time = functools.partial(workers[what].time, number)
        yield Entry(what, tree, time, n_steps, routes.get(what), None if compiled else peak)


def skip(cell: Cell, what: str, reason: str) -> None:
    """Say that a row is missing, and why."""
    print(f"    skipped: {what}, {cell.op}, {cell.leaves} leaves, batch {cell.batch}, {cell.precision}: {reason}")


# --- measuring ------------------------------------------------------------------------------------------------------


MIN_ROUNDS = 3


def interleave(entries: list[Entry], args: argparse.Namespace) -> None:
    """Time all entries in turns of `args.seconds` or one call each; a call before each turn warms up.

    There are `args.rounds` rounds, or fewer where they would take longer than `args.cell_seconds`.
    """
    start = time.perf_counter()
    for done in range(args.rounds):
        if done >= MIN_ROUNDS and (time.perf_counter() - start) * (done + 1) / done > args.cell_seconds:
            break
        for entry in entries:
            entry.seconds.append(entry.time(args.seconds) / entry.n_steps)


def paired_ratio(above: Entry, below: Entry) -> float:
    """Median over the rounds of how many times as long `above` took."""
    return statistics.median(a / b for a, b in zip(above.seconds, below.seconds, strict=True))


def measure(cell: Cell, args: argparse.Namespace, workers: dict[str, Worker]) -> list[dict[str, Any]]:
    """The rows of a cell."""
    dtype = DTYPES[cell.precision]
    entries: list[Entry] = []
    floors: dict[tuple[hm.VAE | hm.Mixture, int | None], Entry] = {}
    for entry in entries_of(cell, args, workers):
        entries.append(entry)
        if (entry.tree, entry.route) not in floors:  # made before the next entry asks how much memory is left
            floor = here(
                "GEMMs alone", gemms.alone(cell.gemms(entry), cell.device, dtype), args, entry.tree, entry.route
            )
            floors[entry.tree, entry.route] = floor
    square, square_flops = machine.square_gemm(cell.device, dtype)
    ceiling = here("ceiling", square, args)
    others = [here("oneDNN's", gemm, args) for gemm in (machine.onednn_gemm(cell.device, dtype),) if gemm]
    interleave([*entries, *floors.values(), ceiling, *others], args)
    ceiling_rate = square_flops / min(ceiling.seconds) / 1e9
    onednn_rate = square_flops / min(others[0].seconds) / 1e9 if others else None
    # The peers are flat, whatever our depth; fit is compared with the bare step of its own tree.
    loop = next((entry for entry in entries if entry.what == "loop"), None)
    bare = {entry.tree: entry for entry in entries if entry.what == "hmoevae"}
    rows = []
    for entry in [*entries, *floors.values()]:
        slow = bare[entry.tree] if cell.op == "fit" else loop
        products, floor = cell.gemms(entry), floors[entry.tree, entry.route]
        gflop = gemms.total_flops(products) / 1e9
        q1, median, q3 = statistics.quantiles(entry.seconds, n=4, method="inclusive")
        row = {
            "op": cell.op,
            "leaves": cell.leaves,
            "depth": entry.tree.depth,
            "batch": cell.batch,
            "precision": cell.precision,
            "what": entry.what,
            "route": entry.route,
            "ms": 1e3 * median,
            "ms_quartiles": [1e3 * q1, 1e3 * q3],
            "samples_per_s": cell.batch / median,
            "gflop": gflop,
            "gbytes": gemms.total_bytes(products, dtype.itemsize) / 1e9,
            "gflop_per_s": gflop / median,
            "ceiling_gflop_per_s": ceiling_rate,
            "onednn_ceiling_gflop_per_s": onednn_rate,
            "ceiling_fraction": gflop / median / ceiling_rate,
            "gemms_alone_fraction": paired_ratio(floor, entry),
            "gemms_alone_ms": 1e3 * statistics.median(floor.seconds),
            "peak_mb": entry.peak_bytes and entry.peak_bytes / 1e6,
            "activation_mb": activation_mb(entry, cell),
            "gemms_activation_mb": sum(gemm.activation_bytes(dtype.itemsize) for gemm in products) / 1e6,
            "baseline": slow and slow.what,
            "speedup": slow and paired_ratio(slow, entry),
            "rounds": len(entry.seconds),
        }
        rows.append(row)
        print(table_row(row))
    return rows


def here(
    what: str, step: Step, args: argparse.Namespace, tree: hm.VAE | hm.Mixture = LONE, route: int | None = None
) -> Entry:
    """A row that is timed in this process: products and copies alone, with no memory to be asked for."""
    return Entry(what, tree, functools.partial(median_time, step, threads=args.threads), route=route)


def activation_mb(entry: Entry, cell: Cell) -> float | None:
    """Of a training step's peak what is no weight, gradient or moment, each in fp32."""
    if entry.peak_bytes is None or cell.op != "train" or entry.route is not None:
        return None
    return (entry.peak_bytes - 16 * sum(gemm.n_weights for gemm in cell.gemms(entry))) / 1e6


# --- the command ----------------------------------------------------------------------------------------------------

COLUMNS = (
    ("op", 6),
    ("leaves", 6),
    ("depth", 5),
    ("batch", 5),
    ("prec", 4),
    ("what", -16),
    ("ms", 9),
    ("quartiles", 17),
    ("samples/s", 10),
    ("GFLOP/s", 8),
    ("% ceiling", 9),
    ("% GEMMs", 7),
    ("MB", 7),
    ("x loop", 6),
)


def table_row(row: dict[str, Any]) -> str:
    """One line of the table."""
    q1, q3 = row["ms_quartiles"]
    cells = (
        *(str(row[name]) for name in ("op", "leaves", "depth", "batch", "precision", "what")),
        f"{row['ms']:.2f}",
        f"{q1:.2f}-{q3:.2f}",
        f"{row['samples_per_s']:,.0f}",
        f"{row['gflop_per_s']:,.1f}",
        f"{100 * row['ceiling_fraction']:.0f}",
        f"{100 * row['gemms_alone_fraction']:.0f}",
        f"{row['peak_mb']:.0f}" if row["peak_mb"] is not None else "",
        f"{row['speedup']:.2f}" if row["speedup"] is not None else "",
    )
    return aligned(cells)


def aligned(cells: tuple[str, ...]) -> str:
    """Cells under their columns' heads, numbers to the right."""
    padded = (
        cell.ljust(-width) if width < 0 else cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True)
    )
    return "  ".join(padded)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, defaults filled in."""
    parser = command.parser(__doc__, has_data_root=False, devices=("auto", "cpu", "cuda"))
    parser.add_argument("--leaves", type=int, nargs="+", help="sizes of the tree; 1 is a lone VAE")
    parser.add_argument("--depth", type=int, nargs="+", help="levels of gates, ours only")
    parser.add_argument("--batch", type=int, nargs="+", help="samples a step")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="width of the networks")
    parser.add_argument("--route", type=int, nargs="*", help="numbers of leaves that a sample is computed with")
    parser.add_argument("--precision", nargs="+", choices=DTYPES)
    parser.add_argument("--op", nargs="+", choices=get_args(gemms.Op))
    parser.add_argument("--against", nargs="*", choices=[*PEERS, "compile"])
    parser.add_argument("--peer-adam", choices=("plain", "fused"), default="plain", help="Adam of the peers")
    parser.add_argument("--rounds", type=int, default=10, help="turns of every row")
    parser.add_argument("--seconds", type=float, default=0.1, help="least time of a turn")
    parser.add_argument("--cell-seconds", type=float, help="fewer rounds where a cell would take longer, 3 at least")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    parser.add_argument("--plot", type=Path, help="draw it, in the format that the file's ending names")
    parser.add_argument("--quick", action="store_true", help="10 leaves, batch 100, fp32, against loop and einsum")
    args = parser.parse_args(argv)
    command.fill_in(args, DEFAULTS | (QUICK if args.quick else {}))
    command.check(parser, args, "leaves", "depth", "batch", "hidden", "route")
    if args.rounds < 2:
        parser.error("--rounds: expected at least 2, for quartiles")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    args = parse(argv)
    with command.at_work("throughput.py", args.threads):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure and report."""
    device = resolve_device(args.device)
    torch.manual_seed(0)
    workers: dict[str, Worker] = {}
    try:
        report = {
            **machine.about(device, args.threads),
            "argv": command.given(args),
        }
        copy, copy_bytes = machine.large_copy(device)
        bandwidth = here("copy", copy, args)
        interleave([bandwidth], args)
        report["copy_gbytes_per_s"] = copy_bytes / min(bandwidth.seconds) / 1e9
        print(aligned(tuple(name for name, _ in COLUMNS)))
        rows = []
        for op, leaves, batch, precision in itertools.product(args.op, args.leaves, args.batch, args.precision):
            cell = Cell(op, leaves, batch, precision, device)
            if precision == "tf32" and (device.type != "cuda" or op == "fit"):
                skip(
                    cell,
                    "all",
                    "hm.fit leaves TF32 to PyTorch's setting" if op == "fit" else "TF32 is for CUDA devices",
                )
                continue
            if precision == "bf16" and not has_bfloat16(device):
                skip(cell, "all", "this CPU has no bfloat16 instructions; hm.fit would train in fp32")
                continue
            if op == "route" and leaves == 1:
                skip(cell, "all", "a lone leaf has no gate")
                continue
            cell.set_tf32()
            rows += measure(cell, args, workers)
            for worker in workers.values():
                worker.forget()
        report |= {"load_average_after": machine.load_average(), "rows": rows}
    finally:
        for worker in workers.values():
            worker.close()
    command.write(report, args.json)
    print(json.dumps(report))
    if args.plot:
        from figure import save_figure  # matplotlib only where a picture is asked for

        save_figure(report, args.plot)


if __name__ == "__main__":
    main()
