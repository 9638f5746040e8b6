"""What becomes of a training run that is killed, spoilt, or finds the disk full; rows for the table of faults.

Question: does a run with checkpoints that is killed at any moment, also in the middle of a write, go on and end with
the very bits of one that was left alone; and do numbers that are not finite, or a full disk, ever cost a checkpoint?

Every run trains ten experts on scikit-learn's digits in a process of its own, with all that draws at random: a view,
agreement with neighbours, a falling learning rate. What has to be equal are the weights, the history but for the
seconds, and the recorded samples. `--json` adds the rows to a report, in place of older ones of the same faults.

    python benchmarks/kills.py --json benchmarks/results/kills_cpu1.json
"""

import argparse
import math
import multiprocessing
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import command
import torch
from faults import Row, tell
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import hmoevae as hm
from hmoevae.errors import CheckpointError, DataError, HMoEVAEError, NonFiniteError
from hmoevae.training import EpochEnd, last_checkpoint

EPOCHS = 12
POLL = 5e-4
"""Seconds between two looks for a checkpoint that is being written."""
PRELOADED = ["hmoevae", "jinja2", "sklearn.datasets", "sklearn.decomposition", "sklearn.neighbors", "torch._dynamo"]
"""What a run would spend most of its time importing; its own process is forked from one that has."""
PLACES = ("data", "weights", "gradients")
VALUES = (math.nan, math.inf, -math.inf)


def tree() -> hm.Mixture:
    """Ten small experts."""
    net = hm.MLP((64,))
    return hm.Mixture.of(hm.VAE(4, net, net), 10, gate=net, balance=hm.Balance("kl", weight=20.0))


def train(checkpoints: Path, out: Path) -> None:
    """A whole run, from the start of its process to what it leaves in `out`; the body of a process."""
    torch.set_num_threads(1)
    images, held_out = hm.datasets.digits()
    torch.manual_seed(0)
    model, recorder = hm.HMoEVAE(tree(), (1, 8, 8), objective="elbo"), hm.SampleRecorder(5)
    history = hm.fit(
        model,
        images.x,
        hm.Training(
            epochs=EPOCHS,
            batch_size=100,
            lr_schedule="cosine",
            view=hm.views.RandomAffine(),
            agreement=hm.Agreement(alone=1 / 3),
            device="cpu",
        ),
        validation_data=held_out.x,
        callbacks=[recorder],
        progress=False,
        checkpoint_dir=checkpoints,
    )
    model.save_pretrained(out)
    save_file({"frames": recorder.frames}, out / "frames.safetensors")
    history.to_json(out / "history.json")  # the last file: a run that has it has ended


def equal(out: Path, reference: Path) -> bool:
    """Whether two runs ended alike, to the bit."""
    if not (out / "history.json").exists():
        return False
    rows = [
        [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]
        for history in (hm.History.from_json(folder / "history.json") for folder in (out, reference))
    ]
    return rows[0] == rows[1] and all(
        bits(load_file(out / name)) == bits(load_file(reference / name))
        for name in ("model.safetensors", "frames.safetensors")
    )


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """The values of tensors as bytes, in which also 0 and -0 differ."""
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


class Runs:
    """Runs in processes of their own, all in one folder, and the uninterrupted one that they are measured by."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        self.reference = folder / "reference"
        self.finish("warm", folder / "warm")  # starts the server
        start = time.perf_counter()
        if self.finish("reference", self.reference) != 0:
            raise RuntimeError("the uninterrupted run has failed")
        self.seconds = time.perf_counter() - start

    def start(self, name: str, out: Path) -> BaseProcess:
        """Begin a run, or go on with it."""
        process = self.context.Process(target=train, args=(self.folder / f"{name}.checkpoints", out))
        process.start()
        return process

    def finish(self, name: str, out: Path) -> int | None:
        """Bring a run to its end; returns its exit code."""
        process = self.start(name, out)
        process.join()
        return process.exitcode


def killed(runs: Runs, fault: str, tries: int, wait: Callable[[BaseProcess, Path], None], sees: str) -> Row:
    """Kill runs when `wait` returns, let each go on to its end, and count those that end as if untouched."""
    kills: list[dict[str, Any]] = []
    while len(kills) < tries:
        name = f"{fault}-{len(kills)}".replace(" ", "-")
        checkpoints, out = runs.folder / f"{name}.checkpoints", runs.folder / name
        begun = time.perf_counter()
        process = runs.start(name, out)
        wait(process, checkpoints)
        process.kill()
        after = time.perf_counter() - begun
        process.join()
        if process.exitcode != -signal.SIGKILL:  # it had ended before
            continue
        left = list(checkpoints.iterdir()) if checkpoints.exists() else []
        code = runs.finish(name, out)
        kills.append(
            {
                "seconds": round(after, 3),
                "epochs_kept": sorted(int(path.name[6:]) for path in left if path.name.startswith("epoch-")),
                "in_a_write": any(path.name.startswith(".epoch-") for path in left),
                "survived": code == 0 and equal(out, runs.reference),
            }
        )
        print(f"    {fault} {len(kills)}: {kills[-1]}", flush=True)
    details = {"run_seconds": round(runs.seconds, 2), "kills": kills}
    return Row(fault, tries, sum(kill["survived"] for kill in kills), sees, details)


def kills(tries: int, writes: int, seed: int) -> Iterator[Row]:
    """Runs killed at random moments, and in the middle of a write."""
    random = Random(seed)
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(Path(name))

        def at_random(process: BaseProcess, _: Path) -> None:
            process.join(random.uniform(0, runs.seconds))

        def in_a_write(process: BaseProcess, checkpoints: Path) -> None:
            process.join(random.uniform(0, 0.8 * runs.seconds))
            while process.is_alive() and not any(checkpoints.glob(".epoch-*")):
                time.sleep(POLL)
            time.sleep(random.uniform(0, 0.02))

        sees = "the same run: weights, history and recorded samples equal to the bit once it has gone on"
        if tries:
            yield killed(runs, "SIGKILL at a random moment", tries, at_random, sees)
        if writes:
            yield killed(runs, "SIGKILL while a checkpoint is written", writes, in_a_write, sees)


# --- in this process: numbers that are not finite, a full disk ------------------------------------------------------


def small_fit(data: hm.training.Data, folder: Path | None, **options: Any) -> hm.HMoEVAE:
    """A short run on few samples."""
    torch.manual_seed(0)
    model = hm.HMoEVAE(tree(), (1, 8, 8), objective="elbo")
    prepare = options.pop("prepare", None)
    if prepare is not None:
        prepare(model)
    training = hm.Training(epochs=4, batch_size=50, device="cpu")
    hm.fit(model, data, training, progress=False, checkpoint_dir=folder, **options)
    return model


def spoilt(x: Tensor, place: str, value: float, random: Random, folder: Path) -> str:
    """Train with one number spoilt; returns the error, or `""`."""
    try:
        if place == "data":
            bad = x.clone()
            bad.view(-1)[random.randrange(bad.numel())] = value
            # From memory, or batch by batch.
            small_fit(random.choice([bad, bad.numpy(), DataLoader(TensorDataset(bad), batch_size=50)]), folder)
        elif place == "weights":
            when = random.randint(1, 4)

            def spoil(end: EpochEnd) -> None:
                if end.epoch == when:
                    weights = random.choice(list(end.model.parameters())).detach().view(-1)
                    weights[random.randrange(len(weights))] = value

            small_fit(x, folder, callbacks=[spoil])
        else:
            step = random.randint(1, 4 * math.ceil(len(x) / 50))

            def hook(model: hm.HMoEVAE) -> None:
                steps = 0

                def spoil(gradient: Tensor) -> Tensor:
                    nonlocal steps
                    steps += 1
                    if steps == step:
                        gradient = gradient.clone()
                        gradient.view(-1)[random.randrange(gradient.numel())] = value
                    return gradient

                random.choice(list(model.parameters())).register_hook(spoil)

            small_fit(x, folder, prepare=hook)
    except (DataError, NonFiniteError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def not_finite(place: str, tries: int, seed: int) -> Row:
    """NaN or infinity in one number: an error that names it, no checkpoint that holds it, and a run that can go on."""
    x = hm.datasets.digits()[1].x[:200]
    reference = bits(small_fit(x, None).state_dict())
    failures, messages = [], []
    for i in range(tries):
        random = Random(f"{seed} {place} {i}")
        value = VALUES[i % len(VALUES)]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            messages.append(spoilt(x, place, value, random, folder))
            try:
                kept = last_checkpoint(folder)
                good = all(bool(p.isfinite().all()) for p in hm.HMoEVAE.from_pretrained(kept).parameters())
            except CheckpointError:  # none yet
                good = not any(folder.glob("epoch-*"))
            # A loader's order is another than that of the same samples in memory, and the data themselves were bad.
            equal_at_last = place == "data" or bits(small_fit(x, folder).state_dict()) == reference
        if not (messages[-1] and good and equal_at_last):
            failures.append(f"{i}: {value} {messages[-1]!r} {good=} {equal_at_last=}")
    sees = f"an error that names it, as '{messages[0].split(': ', 1)[1]:.110}...'; the last good checkpoint stays"
    return Row(f"NaN or infinity in {place}", tries, tries - len(failures), sees, {"failures": failures})


def full_disk(tries: int, seed: int) -> Row:
    """A limit on the size of files stands for the disk's: the run stops, and goes on when there is room."""
    x = hm.datasets.digits()[1].x[:200]
    reference = bits(small_fit(x, None).state_dict())
    failures, message = [], ""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for i in range(tries):
        random = Random(f"{seed} full {i}")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            when = random.randint(1, 3)

            def fill(end: EpochEnd, when: int = when, folder: Path = folder, random: Random = random) -> None:
                if end.epoch == when + 1:
                    largest = max(path.stat().st_size for path in (folder / f"epoch-{when:06d}").iterdir())
                    resource.setrlimit(resource.RLIMIT_FSIZE, (random.randrange(largest), before[1]))

            try:
                small_fit(x, folder, callbacks=[fill])
                message = "no error"
            except HMoEVAEError as error:
                message = f"{type(error).__name__}: {error}".replace(name, "runs/a")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            kept = last_checkpoint(folder)
            right = message.startswith("CheckpointError") and f"the last one is runs/a/{kept.name}" in message
            if not (
                right and kept.name == f"epoch-{when:06d}" and bits(small_fit(x, folder).state_dict()) == reference
            ):
                failures.append(f"{i}: {message}")
    sees = f"an error, as '{message.split(': ', 1)[1]}'; with room again the run goes on and ends equal to the bit"
    return Row("a full disk while a checkpoint is written", tries, tries - len(failures), sees, {"failures": failures})


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """Every fault in turn."""
    for place in PLACES if args.spoilt else ():
        yield not_finite(place, args.spoilt, args.seed)
    if args.full:
        yield full_disk(args.full, args.seed)
    if args.kills or args.writes:
        yield from kills(args.kills, args.writes, args.seed)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="runs killed at a random moment")
    parser.add_argument("--writes", type=int, default=20, help="runs killed while they write a checkpoint")
    parser.add_argument("--spoilt", type=int, default=60, help="runs with a number spoilt, for each kind of number")
    parser.add_argument("--full", type=int, default=20, help="runs that find the disk full")
    parser.add_argument("--seed", type=int, default=0, help="of moments and places")
    parser.add_argument("--json", type=Path, help="report that the rows are added to")
    args = parser.parse_args(argv)
    command.check(parser, args)
    torch.set_num_threads(1)
    tell(rows(args), args.json, argv)


if __name__ == "__main__":
    main()
