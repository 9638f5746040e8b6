"""How many bytes does a process send in a step, with all experts in every process and with experts cut over processes?

    torchrun --nproc-per-node 2 benchmarks/expert_parallel.py --leaves 10 100 1000 --route 0 2 --json cut.json

The tree is the article's: `VAE` experts 784-128-10-128-784 below one gate, on random data. Every row is a training by
`hm.fit` of two epochs, of which the second is measured, by the main process:

    cut         processes over which the experts are cut; 1: every process has all of them (data-parallel).
    k           leaves that a sample is computed with; 0: all of them.
    MB sent     bytes that a process hands to the network in a step. Of a sum over P processes of n bytes it sends
                2 n (P - 1) / P, as a ring does; of samples and numbers, what goes to other processes.
    MB held     weights, gradients and moments of the experts in one process.
    ms          of a step, where the processes share one machine: what else runs there, and memory, slow it down.

The last line is the whole report as one JSON object.
"""

import argparse
import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import machine
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import CollapseWarning
from hmoevae.training import resolve_device

NETWORK = hm.MLP((128,), activation="sigmoid")
EXPERT = hm.VAE(latent_dim=10, encoder=NETWORK, decoder=NETWORK)
N_FEATURES = 784
COPIES = 4
"""Weights, gradients and Adam's two moments."""


class Sent:
    """Counts the bytes that this process sends, by what `hm.fit` calls."""

    def __init__(self) -> None:
        self.bytes = 0.0
        self._sum, self._exchange = dist.all_reduce, dist.all_to_all_single
        dist.all_reduce, dist.all_to_all_single = self.all_reduce, self.all_to_all_single

    def all_reduce(self, tensor: Tensor, *args: Any, group: Any = None, **kwargs: Any) -> Any:
        """Count a sum."""
        count = dist.get_world_size(group)
        self.bytes += 2 * (count - 1) / count * tensor.numel() * tensor.element_size()
        return self._sum(tensor, *args, group=group, **kwargs)

    def all_to_all_single(
        self, out: Tensor, rows: Tensor, receive: list[int], send: list[int], *, group: Any = None
    ) -> Any:
        """Count an exchange of rows."""
        others = sum(send) - send[dist.get_rank(group)]
        self.bytes += others * rows[:1].numel() * rows.element_size()
        return self._exchange(out, rows, receive, send, group=group)


class Watch:
    """Notes, after every epoch, the bytes that were sent, and the numbers of the experts' weights."""

    def __init__(self, sent: Sent) -> None:
        self.sent = sent
        self.bytes: list[float] = []
        self.held = 0

    def __call__(self, end: hm.EpochEnd) -> None:
        """Note them."""
        self.bytes.append(self.sent.bytes)
        self.held = COPIES * sum(p.numel() * p.element_size() for p in end.model.experts.parameters())


def row(n_leaves: int, cut: int, k: int, args: argparse.Namespace, sent: Sent) -> dict[str, Any]:
    """Train one tree in one way."""
    torch.manual_seed(0)
    model = hm.HMoEVAE(hm.Mixture.of(EXPERT, n_leaves, gate=NETWORK), (N_FEATURES,), objective="elbo")
    count = dist.get_world_size()
    x = torch.rand(args.steps * args.batch * count, N_FEATURES)
    watch = Watch(sent)
    route: hm.routes.Routes = hm.routes.TopK(k) if k else hm.routes.ALL
    training = hm.Training(epochs=2, batch_size=args.batch, route=route, expert_parallel=cut, device=args.device)
    history = command.whole(hm.fit(model, x, training, callbacks=[watch], progress=False))
    seconds = [one["seconds"] for one in history.rows]
    return {
        "leaves": n_leaves,
        "cut": cut,
        "k": k,
        "bytes": (watch.bytes[1] - watch.bytes[0]) / args.steps,
        "held": watch.held,
        "ms": 1e3 * (seconds[1] - seconds[0]) / args.steps,
    }


def main(say: Callable[[str], None] = print) -> None:
    """Measure, print a table and the report."""
    parser = command.parser(__doc__, has_data_root=False)
    parser.add_argument("--leaves", type=int, nargs="+", default=[10, 100], help="numbers of leaves")
    parser.add_argument("--cut", type=int, nargs="+", help="processes over which experts are cut (default: 1 and all)")
    parser.add_argument("--route", type=int, nargs="+", default=[0, 2], help="leaves a sample; 0 for all")
    parser.add_argument("--batch", type=int, default=128, help="samples a step and process")
    parser.add_argument("--steps", type=int, default=8, help="steps that are measured")
    parser.add_argument("--json", type=Path, help="file for the report")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore", CollapseWarning)  # the data are noise
    here = PartialState(cpu=args.device == "cpu")
    if here.num_processes == 1:
        parser.error("start it by torchrun, with two processes or more")
    try:
        sent = Sent()
        rows: list[dict[str, Any]] = []
        for n_leaves, k, cut in itertools.product(args.leaves, args.route, args.cut or [1, here.num_processes]):
            rows.append(row(n_leaves, cut, k, args, sent))
            one = rows[-1]
            if here.is_main_process:
                shown = f"{one['bytes'] / 1e6:9.3f} MB sent {one['held'] / 1e6:9.1f} MB held {one['ms']:9.1f} ms"
                say(f"{n_leaves:6} leaves  cut {cut:3}  k {k:3}  {shown}")
        if here.is_main_process:
            about = machine.about(resolve_device(args.device), args.threads)
            report = {**about, "argv": command.given(args), "processes": here.num_processes, "rows": rows}
            command.write(report, args.json)
            say(json.dumps(report))
    finally:
        here.destroy_process_group()


if __name__ == "__main__":
    main()
