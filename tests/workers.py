"""What the processes of test_processes.py do: each runs this file with a job and a folder for the answers."""

import itertools
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.data_loader import prepare_data_loader
from conftest import fit
from networks import Laplace, Residual
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

import hmoevae as hm
from hmoevae.errors import ConstantGateWarning, ConvergenceWarning, DeadLeafWarning, HMoEVAEError, StartWarning

SHAPE = (1, 4, 4)
N_SAMPLES, GLOBAL_BATCH = 37, 12  # three batches of twelve and one sample, too few for every process
PRINCIPLES = [
    *itertools.product(("expected", "elbo", "marginal"), ("variance", "cv2", "kl"), (False, True), (torch.float64,)),
    *itertools.product(("expected", "elbo", "marginal"), ("variance", "cv2", "kl"), (True,), (torch.float32,)),
]
RANK, COUNT = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def samples() -> Tensor:
    return torch.rand(N_SAMPLES, *SHAPE, generator=torch.Generator().manual_seed(0))


def new_model(objective: str = "elbo", balance: str = "kl", seed: int = 0) -> hm.HMoEVAE:
    """Leaves and gates in two groups each, in and out of order."""
    layer = hm.MLP((8,))
    wide, narrow = hm.VAE(3, layer, layer), hm.VAE(2, layer, layer)
    prior = "uniform" if objective == "expected" else "learned"
    inner = hm.Mixture.of(narrow, 2, gate=layer, prior=prior)
    tree = hm.Mixture(
        children=(narrow, inner, wide), gate=hm.Conv((4,), 3, hidden=(4,)), balance=hm.Balance(balance, 3)
    )
    torch.manual_seed(seed)
    return hm.HMoEVAE(tree, SHAPE, objective=objective)


def model_of_own_parts() -> hm.HMoEVAE:
    """A user's network as encoder, decoder and gate, and a user's likelihood."""
    torch.manual_seed(0)
    tree = hm.Mixture.of(hm.VAE(2, Residual(), Residual(5), Laplace()), 3, gate=Residual())
    return hm.HMoEVAE(tree, SHAPE, objective="elbo").double()


def trained(model: hm.HMoEVAE, data: Any, **options: Any) -> dict[str, Any]:
    """What a run ends with, but for the clock."""
    options = {
        "batch_size": GLOBAL_BATCH // COUNT,
        "epochs": 2,
        "lr": 1e-2,
    } | options
    history = fit(model, data, **options)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]
    return {"weights": dict(model.state_dict()), "rows": rows, "interrupted": history.interrupted}


def principle(objective: str, balance: str, agree: bool, dtype: torch.dtype, **options: Any) -> dict[str, Any]:
    """Train by one objective and balance; with agreement, an epoch of gates alone and one with the experts."""
    if agree:
        options["view"] = hm.views.RandomAffine()
        options["agreement"] = hm.Agreement(partner=hm.views.Neighbour(3), alone=0.5)
    model = new_model(objective, balance, seed=RANK).to(dtype)  # all but the main one's weights are forgotten
    return trained(model, samples().to(dtype), validation_data=samples()[:7].to(dtype), **options)


class Items(Dataset[Any]):
    def __len__(self) -> int:
        return N_SAMPLES

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return samples()[i], 7


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(samples())


def source(name: str, folder: Path) -> dict[str, Any]:
    """Train on samples that come another way, in their order."""
    if name == "file":
        file = folder / f"{RANK}.npy"
        np.save(file, samples().numpy())
        return trained(new_model(), np.load(file, mmap_mode="r"))
    if name == "loader" and COUNT > 1:  # processes take turns, so 36 samples make the batches of one process
        sampler = DistributedSampler(Items(), COUNT, RANK, shuffle=False, drop_last=True)
        return trained(new_model(), DataLoader(Items(), GLOBAL_BATCH // COUNT, sampler=sampler))
    if name == "loader":
        by_process = torch.arange(36).view(-1, GLOBAL_BATCH // 2, 2).transpose(1, 2).flatten()
        return trained(new_model(), DataLoader(torch.utils.data.Subset(Items(), by_process.tolist()), GLOBAL_BATCH))
    return trained(new_model(), {"items": Items, "stream": Stream}[name]())


def refused(call: Any) -> str:
    """The error that a call ends with."""
    try:
        call()
    except HMoEVAEError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


SOURCES = ("file", "items", "stream", "loader")


def two(folder: Path) -> dict[str, Any]:
    """All that two processes are tested for."""
    answers: dict[str, Any] = {str(case): principle(*case) for case in PRINCIPLES}
    answers |= {name: source(name, folder) for name in SOURCES}
    answers["resumed"] = resumed(folder)
    answers["own parts"] = trained(model_of_own_parts(), samples().double())
    return answers | together()


def resumed(folder: Path) -> dict[str, Any]:
    """Two epochs, and two more by a run that finds their checkpoints, of which `folder/half` keeps a copy."""
    trained(new_model(), samples(), checkpoint_dir=folder / "whole")
    if RANK == 0:
        shutil.copytree(folder / "whole", folder / "half")
    return gone_on(folder / "whole")


def gone_on(folder: Path) -> dict[str, Any]:
    """Up to four epochs, from the checkpoints in a folder; without them it would begin from other weights."""
    return trained(new_model(seed=5), samples(), epochs=4, checkpoint_dir=folder)


def three(_: Path) -> dict[str, Any]:
    """With three processes a batch of one sample leaves two without any."""
    return {str(case): principle(*case) for case in PRINCIPLES if case[2:] == (True, torch.float64)}


def weighted() -> dict[str, Any]:
    """Samples with weights, the heaviest three times the mean; with agreement, whose gates train alone at first."""
    w = torch.linspace(0, 3, N_SAMPLES) ** 2
    return principle("marginal", "variance", True, torch.float64, sample_weight=w, init="kmeans")


ROUTED = [*itertools.product(("expected", "elbo", "marginal"), (1, 2), (0.0, 0.4)), ("elbo", 4, 0.4)]


def routed(objective: str, k: int, explore: float) -> dict[str, Any]:
    """Train over some of the leaves, of which a process may meet others than its neighbour, or none of a group."""
    options = {"route": hm.TopK(k, explore=explore), "max_grad_norm": 1.0, "init": "kmeans", "epochs": 3}
    return principle(objective, "kl", False, torch.float64, **options)


def gaps() -> dict[str, Any]:
    """Samples with gaps, one of which nothing is known."""
    x = samples().double()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = torch.nan
    x[5] = torch.nan
    layer = hm.MLP((8,))
    torch.manual_seed(0)
    tree = hm.Mixture.of(hm.VAE(2, layer, layer, hm.Gaussian("learned")), 3, gate=hm.Conv((4,), 3, hidden=(4,)))
    return trained(hm.HMoEVAE(tree, SHAPE, objective="marginal", missing=True).double(), x, init="kmeans")


def down_the_tree() -> dict[str, Any]:
    """Gates that only some samples reach, in one process and not in another, beside a group that hardly any reach."""
    torch.manual_seed(0)
    layer, leaf = hm.MLP((8,)), hm.VAE(2, hm.MLP((8,)), hm.MLP((8,)))
    below = [hm.Mixture.of(leaf, 3, gate=gate) for gate in (layer, layer, layer, hm.MLP((4,)), hm.MLP((5,)))]
    model = hm.HMoEVAE(hm.Mixture(tuple(below), gate=layer), SHAPE, objective="elbo").double()
    return trained(model, samples().double(), route=hm.nn.routes.TopK(1, explore=0.2))


def posteriors(*, missing: bool) -> dict[str, Any]:
    """Leaves and gates whose posteriors are computed, with and without gaps."""
    x = samples().double()
    if missing:
        x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = torch.nan
    torch.manual_seed(0)
    leaf = hm.VAE(2, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity"))
    tree = hm.Mixture.of(hm.Mixture.of(leaf, 2, gate=hm.PosteriorGate(), prior="learned"), 2, gate=hm.MLP((8,)))
    return trained(hm.HMoEVAE(tree, SHAPE, objective="marginal", missing=missing).double(), x, init="kmeans")


def together() -> dict[str, Any]:
    """What else processes have to agree on."""
    answers: dict[str, Any] = {}
    answers |= {f"routed {case}": routed(*case) for case in ROUTED}
    answers["kmeans"] = trained(new_model(), samples(), init="kmeans")
    answers["weighted"] = weighted()
    answers["gaps"] = gaps()
    answers["down the tree"] = down_the_tree()
    answers |= {f"posteriors {missing}": posteriors(missing=missing) for missing in (False, True)}
    answers["other weights"] = refused(
        lambda: trained(new_model(), samples(), sample_weight=torch.full((N_SAMPLES,), 1.0 + RANK))
    )
    answers["fresh seed"] = trained(new_model(), samples(), seed=None)
    answers["cosine"] = trained(new_model(), samples(), lr_schedule="cosine")

    ends: list[tuple[int, bool]] = []

    def stop(end: hm.EpochEnd) -> bool:
        ends.append((end.epoch, end.is_main))
        return end.epoch == 2 and RANK == COUNT - 1

    answers["stopped"] = trained(new_model(), samples(), epochs=5, callbacks=[stop])
    answers["ends"] = ends

    def press(end: hm.EpochEnd) -> None:
        if end.epoch == 2 and RANK == COUNT - 1:
            signal.raise_signal(signal.SIGINT)

    answers["ctrl-c"] = trained(new_model(), samples(), epochs=5, callbacks=[press])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    spoilt = new_model()

    def spoil(end: hm.EpochEnd) -> None:
        with torch.no_grad():
            spoilt.experts.groups[0].decoder.layers[0].bias[1] = torch.nan if RANK == 1 else 0.0

    answers["spoilt"] = refused(lambda: trained(spoilt, samples(), callbacks=[spoil]))
    answers["weights after"] = dict(spoilt.state_dict())
    answers["other epochs"] = refused(lambda: trained(new_model(), samples(), epochs=1 + RANK))
    answers["other rate"] = refused(lambda: hm.fit(new_model(), samples(), hm.Training(lr=10.0**RANK), progress=False))
    answers["same loader"] = refused(lambda: trained(new_model(), DataLoader(Items())))
    # As accelerate's `prepare` divides a loader, without filling up the last round: processes end at different times.
    prepared = prepare_data_loader(DataLoader(Items(), 6), torch.device("cpu"), COUNT, RANK, even_batches=False)
    answers["prepared"] = trained(new_model(), prepared, epochs=1)
    estimator = hm.VAEMixture(2, max_iter=2, device="cpu", random_state=None).fit(samples().flatten(1).numpy())
    answers["estimator"] = {"weights": dict(estimator.model_.state_dict()), "rows": [], "interrupted": False}
    return answers


def gpus(_: Path) -> dict[str, Any]:
    """A short run on the processes' own accelerators."""
    answer = trained(new_model().cuda(), samples(), device="auto")
    return {"cuda": answer | {"weights": {name: weight.cpu() for name, weight in answer["weights"].items()}}}


def failure_of_main(_: Path) -> None:
    """As `failure`, in the process that the others found each other by."""
    failure(_, failing=0)


def failure(_: Path, failing: int = 1) -> None:
    """One process fails; the others are waiting for it."""

    def fail(end: hm.EpochEnd) -> None:
        if failing == RANK:
            raise OSError("no space left on device")

    trained(new_model(), samples(), callbacks=[fail])


def main(jobs: dict[str, Any]) -> None:
    """Run the job that the command line names, and save what it returns."""
    job, folder = jobs[sys.argv[1]], Path(sys.argv[2])
    torch.set_num_threads(1)
    for harmless in (DeadLeafWarning, ConstantGateWarning, ConvergenceWarning, StartWarning):  # after two epochs
        warnings.filterwarnings("ignore", category=harmless)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    try:
        torch.save(job(folder), folder / f"{sys.argv[1]}-{RANK}.pt")
    finally:  # else gloo's own threads may still run when Python ends, and abort the process
        PartialState().destroy_process_group()


if __name__ == "__main__":
    main(globals())
