"""What goes wrong, how often it is survived, and what the user sees of it.

Question: does a saved model that was damaged in any way load as it was saved, or else end in an error of ours, without
a crash, a hang, much memory or code run; and does training or loading one model after the other leave memory behind?

Damaged models are loaded in a process that may crash without harm, under limits of processor time and memory, and
watched by Python's audit events. `--json` adds the rows to a report, in place of older ones of the same faults.

    python benchmarks/faults.py --json benchmarks/results/faults_cpu1.json
"""

import argparse
import gc
import json
import multiprocessing
import re
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import command
import machine
import torch
from mutations import MUTATIONS, Files

import hmoevae as hm
from hmoevae.errors import HMoEVAEError
from hmoevae.spec import Tree

Job = tuple[str, int]
"""A fault, and which of its tries."""
CPU_SECONDS = 20
"""Processor time after which a load hangs."""
MEMORY = 512 << 20
"""Bytes that a load may take at its worst; the damaged files are of a few megabytes at most."""
ADDRESSES = 64 << 30
"""Bytes of address space for a process, lest the machine suffer; PyTorch's libraries alone map a good part of it."""
WAIT = 900
"""Seconds without a word after which a process hangs, though paused it may have been."""
ODD_EVENTS = ("compile", "ctypes", "exec", "import", "marshal", "os.exec", "os.fork", "os.posix_spawn", "os.remove")
ODD_EVENTS += (
    "os.rename",
    "os.rmdir",
    "os.spawn",
    "os.system",
    "pickle",
    "shutil",
    "socket",
    "subprocess",
    "webbrowser",
)
LEAK_PER_REPEAT = 20 << 10
"""Growth in bytes a repeat from which on memory leaks; keeping each trained model would take 139 KiB."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        fault: What went wrong.
        tries: How often.
        survived: How often the user lost nothing: it went on as if nothing had happened, or ended in an error of ours.
        user_sees: What of it, in words.
        details: Counts and figures behind it.
    """

    fault: str
    tries: int
    survived: int
    user_sees: str
    details: dict[str, Any]


def mixed_model() -> hm.HMoEVAE:
    """A small model with everything in it: several levels and likelihoods, a convolution, a learned prior, names."""
    net = hm.MLP((3,), activation="tanh")
    leaf = hm.VAE(2, net, net, hm.ContinuousBernoulli(), name="grey")
    below = hm.Mixture((leaf, leaf, hm.VAE(3, net, net)), gate=hm.MLP(()), balance=hm.Balance("kl"), prior="learned")
    tree = hm.Mixture((hm.VAE(1, net, net, hm.Bernoulli()), below), gate=hm.Conv((2,), 3, 2, ()), name="all")
    torch.manual_seed(0)
    return hm.HMoEVAE(tree, (1, 4, 3), objective="elbo")


# --- damaged models -------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """A load that takes too much processor time; no `except Exception` shall swallow it."""


def same(loaded: hm.HMoEVAE, model: hm.HMoEVAE, tree: Tree) -> bool:
    """Whether `loaded` has the tree given, and of `model` the rest: settings and the bits of every weight."""
    ours, theirs = model.state_dict(), loaded.state_dict()
    return (
        (loaded.tree, loaded.input_shape, loaded.objective) == (tree, model.input_shape, model.objective)
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name].view(torch.int32), theirs[name].view(torch.int32)) for name in ours)
    )


def said_tree(config: bytes, otherwise: Tree) -> Tree:
    """The tree that a forged config describes, if it describes one."""
    try:
        return hm.tree_from_json(json.dumps(json.loads(config)["tree"]))
    except (HMoEVAEError, ValueError, KeyError, TypeError, RecursionError):
        return otherwise


def outcome(fault: str, damaged: Files, model: hm.HMoEVAE, folder: Path) -> tuple[str, str]:
    """Load what was made of a saved model.

    Returns:
        What became of it, `"equal"`, `"refused"` or something worse, and the error.
    """
    try:
        loaded = hm.HMoEVAE.from_pretrained(folder)
    except HMoEVAEError as error:
        return "refused", f"{type(error).__name__}: {error}".replace(str(folder), "")
    except (Exception, Hang) as error:
        return "hang" if isinstance(error, Hang) else "foreign error", repr(error)[:200]
    # A forger may describe another tree that fits the weights, and then gets what the files say.
    tree = said_tree(damaged.config, model.tree) if fault.startswith("forged") else model.tree
    return ("equal", "") if same(loaded, model, tree) else ("another model", str(loaded.tree))


def files_of(model: hm.HMoEVAE, folder: Path) -> Files:
    """Save a model and read its two files."""
    model.save_pretrained(folder)
    return Files((folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes())


def put_damaged(job: Job, seed: int, files: Files, folder: Path) -> Files:
    """Damage the files of a model and write them into `folder`."""
    fault, number = job
    damaged = MUTATIONS[fault](files, Random(f"{seed} {fault} {number}"))
    (folder / "config.json").write_bytes(damaged.config)
    (folder / "model.safetensors").write_bytes(damaged.weights)
    return damaged


def load_damaged(to_parent: Connection, jobs: list[Job], seed: int) -> None:
    """Load damaged models one by one and send what became of each; the body of a process."""
    torch.set_num_threads(1)
    model, watching, seen = mixed_model(), False, set()

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if watching and (event.startswith(ODD_EVENTS) or (event == "open" and _writes(args))):
            seen.add(f"{event} {args[:1]!s:.80}")

    def hang(*_: object) -> None:
        raise Hang

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = files_of(model, folder)
        hm.HMoEVAE.from_pretrained(folder)  # what is imported when first used
        sys.addaudithook(watch)
        signal.signal(signal.SIGPROF, hang)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, resource.RLIM_INFINITY))
        for job in jobs:
            damaged = put_damaged(job, seed, files, folder)
            machine.reset_peak()  # without it, what fits below an earlier peak would go unseen
            before = machine.resident("VmHWM")
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            watching = True
            found, message = outcome(job[0], damaged, model, folder)
            watching = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            taken = machine.resident("VmHWM") - before
            if taken > MEMORY:
                found, message = "memory", f"{taken} bytes; {found} {message}"
            if seen:
                found, message = "code", f"{sorted(seen)}; {found} {message}"
                seen.clear()
            to_parent.send((found, message))
    to_parent.close()


def _writes(args: tuple[Any, ...]) -> bool:
    return isinstance(args[1], str) and bool(set("wax+") & set(args[1]))


def damage(tries: dict[str, int], seed: int) -> list[Row]:
    """Load a model damaged in every way, as often as `tries` says."""
    context = multiprocessing.get_context("spawn")
    jobs = [(fault, number) for fault, n in tries.items() for number in range(n)]
    results: list[tuple[str, str]] = []
    while len(results) < len(jobs):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=load_damaged, args=(theirs, jobs[len(results) :], seed))
        process.start()
        theirs.close()
        try:
            while len(results) < len(jobs):
                if not ours.poll(WAIT):
                    process.kill()
                results.append(ours.recv())
            process.join()
        except EOFError:  # it has died of the model at hand; the next process goes on behind that
            process.join()
            results.append(("crash", f"exit code {process.exitcode}"))
    return [tally(fault, [r for (f, _), r in zip(jobs, results, strict=True) if f == fault]) for fault in tries]


def tally(fault: str, results: list[tuple[str, str]]) -> Row:
    """Count what became of the models damaged in one way; errors are put together by what they expected."""
    outcomes = Counter(found for found, _ in results)
    kinds = (
        re.sub(r", got .*", "", message, flags=re.DOTALL)[:120] for found, message in results if found == "refused"
    )
    failures = [f"{i}: {found}: {text}" for i, (found, text) in enumerate(results) if found not in ("equal", "refused")]
    sees = f"an error that names the file, what was expected and what came ({outcomes['refused']})"
    if outcomes["equal"]:
        what = "that the forged config describes" if fault.startswith("forged") else "as it was saved"
        sees += f", or the model {what} ({outcomes['equal']})"
    if failures:
        sees += f", or worse ({len(failures)})"
    details = {"outcomes": dict(outcomes), "errors": dict(Counter(kinds).most_common()), "failures": failures[:20]}
    return Row(fault, len(results), outcomes["equal"] + outcomes["refused"], sees, details)


# --- memory ---------------------------------------------------------------------------------------------------------


def fit_once(_: Path) -> None:
    """Train a fresh model."""
    model, x = mixed_model(), torch.rand(64, 1, 4, 3).round()
    hm.fit(model, x, hm.Training(epochs=2, batch_size=16, device="cpu"), validation_data=x[:16], progress=False)


def load_once(folder: Path) -> None:
    """Load a model."""
    hm.HMoEVAE.from_pretrained(folder).predict(torch.rand(4, 1, 4, 3).round())


REPEATS: dict[str, Callable[[Path], None]] = {"fits in a row": fit_once, "loads in a row": load_once}


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return machine.resident()


def repeat(to_parent: Connection, what: str, times: int) -> None:
    """Do something over and over, and send how much memory is held after each time; the body of a process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        mixed_model().save_pretrained(name)
        for _ in range(times):
            REPEATS[what](Path(name))
            to_parent.send(resident())
    to_parent.close()


def leak(what: str, times: int) -> Row:
    """Whether memory grows with every repeat, once the first quarter has warmed everything up."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=repeat, args=(theirs, what, times))
    process.start()
    theirs.close()
    held = [ours.recv() for _ in range(times)]
    process.join()
    warm = times // 4
    growth = (held[-1] - held[warm]) / (times - 1 - warm)
    sees = f"{growth / 1024:+.1f} KiB a time from number {warm + 1} on, {held[-1] / 2**20:.0f} MiB held at the end"
    details = {"resident_mib": [round(held[i] / 2**20, 2) for i in range(0, times, max(1, times // 20))]}
    return Row(f"{times} {what}", times, times if growth < LEAK_PER_REPEAT else 0, sees, details)


# --- the report -----------------------------------------------------------------------------------------------------


def share(tries: int) -> dict[str, int]:
    """Tries of each mutation: the accidents make up `tries`, each forgery comes on top with a tenth of them."""
    accidents = [fault for fault in MUTATIONS if not fault.startswith("forged")]
    each, rest = divmod(tries, len(accidents))
    return {fault: each + (i < rest) for i, fault in enumerate(accidents)} | {
        fault: max(1, tries // 10) for fault in MUTATIONS if fault not in accidents
    }


def rows(tries: int, repeats: int, seed: int) -> Iterator[Row]:
    """Every fault in turn."""
    yield from damage(share(tries), seed)
    for what in REPEATS:
        yield leak(what, repeats)


def add_to_report(path: Path, new: list[Row], argv: list[str]) -> None:
    """Put rows into a report, in place of older ones of the same faults; other rows stay, with their own dates."""
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    about = {"argv": argv, **machine.about(torch.device("cpu"), torch.get_num_threads())}
    kept = [row for row in old if row["fault"] not in {row.fault for row in new}]
    command.write({"rows": [*kept, *({**asdict(row), **about} for row in new)]}, path)


def tell(rows: Iterable[Row], path: Path | None, argv: list[str] | None) -> None:
    """Print rows as they come, and in the end put them into the report that is asked for."""
    done: list[Row] = []
    for row in rows:
        print(f"{row.survived:5} of {row.tries:5}  {row.fault}: {row.user_sees}", flush=True)
        for failure in row.details.get("failures", []):
            print(f"    {failure}", flush=True)
        done.append(row)
    if path is not None:
        add_to_report(path, done, sys.argv[1:] if argv is None else argv)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=10_000, help="damaged models, in all; forged ones come on top")
    parser.add_argument("--repeats", type=int, default=200, help="fits, and loads, in a row")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--json", type=Path, help="report that the rows are added to")
    args = parser.parse_args(argv)
    command.check(parser, args, "tries", "repeats")
    torch.set_num_threads(1)
    tell(rows(args.tries, args.repeats, args.seed), args.json, argv)


if __name__ == "__main__":
    main()
