"""What the command lines of the benchmarks share: the machine, the data, and how they end."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import torch

from hmoevae import History
from hmoevae.errors import HMoEVAEError


def parser(
    doc: str | None, *, has_data_root: bool = True, devices: Sequence[str] | None = None
) -> argparse.ArgumentParser:
    """A parser that describes a benchmark by its docstring, with the options that say where it runs and on what.

    Args:
        doc: The docstring.
        has_data_root: Whether the benchmark reads MNIST.
        devices: Those it can run on, the first one unless told; any where none are named.
    """
    assert doc is not None
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    usual = devices[0] if devices else "auto"
    about = "cpu, cuda, mps; auto takes an accelerator if there is one"
    made.add_argument("--device", default=usual, choices=devices, help=None if devices else about)
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch")
    if has_data_root:
        made.add_argument("--data-root", help="folder with MNIST/raw/ in it (default: HMOEVAE_DATA, or a download)")
    return made


def fill_in(args: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Give options that were not given their default; they depend on others, such as `--quick`."""
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run for its report, without the places of files."""
    places = ("json", "plot", "models", "data_root", "folder")
    return {name: value for name, value in vars(args).items() if name not in places}


def whole(history: History) -> History:
    """The history of a training that came to its end; `fit` ends quietly on Ctrl-C, and half a run is no result.

    Raises:
        KeyboardInterrupt: It was ended by Ctrl-C.
    """
    if history.interrupted:
        raise KeyboardInterrupt
    return history


def write(report: dict[str, Any], file: Path | None) -> None:
    """Write a report into `file`, where one is asked for."""
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def collect(
    report: dict[str, Any], rows: Iterable[dict[str, Any]], shown: Callable[[dict[str, Any]], str], file: Path | None
) -> None:
    """Put each row into the report as soon as it is measured: print it as `shown` says, and write the report anew."""
    for row in rows:
        print(shown(row), flush=True)
        report["rows"].append(row)
        report["load_average_after"] = machine.load_average()
        write(report, file)


def check(made: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> None:
    """End the program, before hours of work, where an option cannot be used.

    The options `names` and `--threads` have to be above zero where they are given, all of them where they are lists;
    `--json` and `--plot` have to lie in a folder that exists, and a picture to be of a known format.
    """
    for name in ("threads", *names):
        given = getattr(args, name, None)
        for number in given if isinstance(given, list) else [given]:
            if number is not None and number < 1:
                made.error(f"--{name.replace('_', '-')}: expected an integer > 0, got {number}")
    for name in ("json", "plot"):
        file: Path | None = getattr(args, name, None)
        if file is not None and not file.parent.is_dir():
            made.error(f"--{name}: expected a file in a folder that exists, got {file}")
    if getattr(args, "plot", None) is not None:
        from matplotlib.figure import Figure  # only where a picture is asked for

        formats = Figure().canvas.get_supported_filetypes()
        if args.plot.suffix.removeprefix(".") not in formats:
            made.error(f"--plot: expected a file that ends in one of {', '.join(sorted(formats))}, got {args.plot}")


@contextmanager
def at_work(program: str, threads: int) -> Iterator[None]:
    """Inside, PyTorch has so many threads, and what a user can mend ends in one line, not in a traceback."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    except (HMoEVAEError, OSError) as error:
        sys.exit(f"{program}: {error}")
    finally:
        torch.set_num_threads(before)
