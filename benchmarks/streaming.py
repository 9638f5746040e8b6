"""Does training slow down when the data do not lie in memory?

    python benchmarks/streaming.py --quick             10,000 samples, about a minute
    python benchmarks/streaming.py --threads 2         100,000 samples: 314 MB, more than `fit` copies at a time

An epoch of `hm.fit` with the article's flat tree (`VAE` experts 784-128-10-128-784) on random samples of 784 features.
The rows take turns, an epoch each, so that a noisy machine slows all of them down alike. One epoch before them is not
counted.

    memory    a tensor in memory.
    file      the same numbers in a .npy file, memory-mapped; just written, so the system has it in its page cache.
    stream    an IterableDataset that reads the mapped file sample by sample.

`x memory` is the epoch's time over that of `memory`, median of the rounds; `x CPU` the same of the processor's time,
which waits neither for the disk nor for other programs. All that `fit` does is in both, so also its look at every value
before it starts. The last line is the whole report as one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import command
import machine
import numpy as np
import torch
from throughput import N_FEATURES, article_tree
from torch import Tensor
from torch.utils.data import IterableDataset

import hmoevae as hm
from hmoevae.errors import CollapseWarning
from hmoevae.training import resolve_device

CHUNK = 10_000
"""Samples written at a time."""


class Rows(IterableDataset[Tensor]):
    """The rows of a file, front to back.

    Args:
        file: A .npy file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.from_numpy(row) for row in np.load(self.file, mmap_mode="c"))


def write(file: Path, samples: int) -> None:
    """Fill a .npy file with uniform noise."""
    mapped = np.lib.format.open_memmap(file, "w+", np.float32, (samples, N_FEATURES))
    random = np.random.default_rng(0)
    for start in range(0, samples, CHUNK):
        mapped[start : start + CHUNK] = random.random(mapped[start : start + CHUNK].shape, dtype=np.float32)
    mapped.flush()


def seconds_of(data: Callable[[], hm.training.Data], leaves: int, batch: int, device: str) -> tuple[float, float]:
    """Wall and processor time of one epoch of a fresh model on `data`, all that `fit` does included."""
    torch.manual_seed(0)
    tree = article_tree(leaves, 1)
    assert tree is not None  # any number factors into one level
    model = hm.HMoEVAE(tree, (N_FEATURES,))
    source = data()
    start, cpu_start = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # there is nothing to find in noise
        history = hm.fit(model, source, hm.Training(epochs=1, batch_size=batch, device=device), progress=False)
    command.whole(history)
    return time.perf_counter() - start, time.process_time() - cpu_start


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command.parser(__doc__, has_data_root=False, devices=("cpu", "cuda"))
    parser.add_argument("--samples", type=int, help="rows of the file")
    parser.add_argument("--leaves", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128, help="samples a step")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every row")
    parser.add_argument("--folder", type=Path, help="where the file lies meanwhile; default: where temporary files do")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    parser.add_argument("--quick", action="store_true", help="10,000 samples")
    args = parser.parse_args(argv)
    if args.samples is None:
        args.samples = 10_000 if args.quick else 100_000
    command.check(parser, args, "samples", "leaves", "batch", "rounds")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    args = parse(argv)
    with command.at_work("streaming.py", args.threads):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure and report."""
    resolve_device(args.device)
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "x.npy"
        write(file, args.samples)
        in_memory = torch.from_numpy(np.load(file))
        sources: dict[str, Callable[[], hm.training.Data]] = {
            "memory": lambda: in_memory,
            "file": lambda: np.load(file, mmap_mode="r"),
            "stream": lambda: Rows(file),
        }
        seconds_of(sources["memory"], args.leaves, args.batch, args.device)  # the first epoch of a process takes longer
        for _ in range(args.rounds):
            for name, data in sources.items():
                taken.setdefault(name, []).append(seconds_of(data, args.leaves, args.batch, args.device))
    rows = []
    print(f"{'data':8}{'s an epoch':>12}{'x memory':>10}{'x CPU':>8}")
    for name, times in taken.items():
        against = zip(times, taken["memory"], strict=True)
        wall, cpu = zip(*((mine[0] / theirs[0], mine[1] / theirs[1]) for mine, theirs in against), strict=True)
        row = {
            "data": name,
            "seconds": [seconds for seconds, _ in times],
            "cpu_seconds": [seconds for _, seconds in times],
            "x_memory": statistics.median(wall),
            "x_cpu": statistics.median(cpu),
        }
        rows.append(row)
        print(f"{name:8}{statistics.median(row['seconds']):12.2f}{row['x_memory']:10.2f}{row['x_cpu']:8.2f}")
    report = {
        **machine.about(torch.device(args.device), args.threads),
        "argv": command.given(args),
        "load_average_after": machine.load_average(),
        "rows": rows,
    }
    command.write(report, args.json)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
