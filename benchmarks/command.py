"""What the command lines of the benchmarks share: the machine, the data, and how they end."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hmoevae.errors import HMoEVAEError


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that describes a benchmark by its docstring, with the options that say where it runs and on what."""
    assert doc is not None
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--device", default="auto", help="cpu, cuda, mps; auto takes an accelerator if there is one")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch")
    made.add_argument("--data-root", help="folder with MNIST/raw/ in it (default: HMOEVAE_DATA, or a download)")
    return made


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run for its report, without the places of files."""
    return {name: value for name, value in vars(args).items() if name not in ("json", "plot", "data_root", "folder")}


def write(report: dict[str, Any], file: Path | None) -> None:
    """Write a report into `file`, where one is asked for."""
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def require_positive(made: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> None:
    """End the program where an option that is given, or `--threads`, is not above zero."""
    for name in ("threads", *names):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            made.error(f"--{name.replace('_', '-')}: expected an integer > 0, got {getattr(args, name)}")


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
