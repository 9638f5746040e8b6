"""What the processes of test_expert_parallel.py do: each runs this file with a job and a folder for the answers."""

import itertools
import signal
from pathlib import Path
from typing import Any

import torch
import workers
from workers import COUNT, new_model, refused, samples, trained

import hmoevae as hm

ROUTES: dict[str, hm.routes.Routes] = {
    "all": hm.routes.ALL,
    "top 1": hm.routes.TopK(1, explore=0.3),
    "top 2": hm.routes.TopK(2),
}
PRINCIPLES = [
    (objective, balance, route, dtype)
    for objective, balance in itertools.product(("expected", "elbo", "marginal"), ("variance", "cv2", "kl"))
    for route, dtype in (("all", "float64"), ("top 1", "float64"), ("top 2", "float64"), ("top 2", "float32"))
] + [("elbo", "kl", "all", "float32")]


def parts() -> int:
    """All processes of a small run; in a single process, which is the reference, there are no parts."""
    return min(COUNT, 2)


def principle(objective: str, balance: str, route: str, dtype: str, **options: Any) -> dict[str, Any]:
    """An epoch of a start, two of all or of chosen leaves; then what the gradients of one more step are."""
    model = new_model(objective, balance, seed=workers.RANK).to(getattr(torch, dtype))
    x = samples().to(model.dtype)
    options = {"epochs": 3, "init": "kmeans", "route": ROUTES[route], "expert_parallel": parts()} | options
    return trained(model, x, validation_data=x[:7], **options)


class Watch:
    """A callback that notes the number of weights and moments that this process holds, and what it may not do."""

    def __init__(self) -> None:
        self.n_weights = 0
        self.refused: dict[str, str] = {}

    def __call__(self, end: hm.EpochEnd) -> None:
        self.n_weights = sum(weight.numel() for weight in end.model.experts.parameters())
        x = samples()[:3]
        calls = {
            "score_samples": lambda: end.model.score_samples(x),
            "forward": lambda: end.model(x),
            "reconstruct": lambda: end.model.reconstruct(x),
            "sample": lambda: end.model.sample(2),
            "save_pretrained": lambda: end.model.save_pretrained("nowhere"),
            "export": lambda: hm.export.decoder(end.model, 0),
            "fit": lambda: hm.fit(end.model, x, progress=False),
        }
        self.refused = {name: refused(call) for name, call in calls.items()}
        end.model.predict(x)  # gates are whole


class Spy(torch.optim.Adam):
    """Adam that notes the sizes of the gradients and of its moments."""

    sizes: list[int]

    def step(self, closure: Any = None) -> Any:
        """A step."""
        result = super().step(closure)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        Spy.sizes = [
            sum(parameter.grad.numel() for parameter in parameters if parameter.grad is not None),
            sum(self.state[parameter]["exp_avg"].numel() for parameter in parameters if parameter in self.state),
        ]
        return result


def quick(_: Path) -> dict[str, Any]:
    """One run of all leaves and one of chosen leaves, and what every process holds meanwhile."""
    answers: dict[str, Any] = {route: principle("elbo", "kl", route, "float64", epochs=2) for route in ROUTES}
    watch, model = Watch(), even_model()
    before = [id(parameter) for parameter in model.parameters()]
    trained(model, samples(), expert_parallel=parts(), epochs=1, callbacks=[watch], optimizer=Spy)
    answers["held"] = {
        "weights": watch.n_weights,
        "gradients and moments": Spy.sizes,
        "refused": watch.refused,
        "whole again": sum(weight.numel() for weight in model.experts.parameters()),
        "same parameters": before == [id(parameter) for parameter in model.parameters()],
        "scores": model.score_samples(samples()[:3]),
    }
    return answers


def even_model() -> hm.HMoEVAE:
    """Four equal leaves, of which two processes hold two each."""
    layer = hm.MLP((8,))
    torch.manual_seed(0)
    return hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, layer, layer), 4, gate=layer), workers.SHAPE, objective="elbo")


def two(folder: Path) -> dict[str, Any]:
    """All that two processes are tested for."""
    return {str(case): principle(*case) for case in PRINCIPLES} | others(folder)


def four(folder: Path) -> dict[str, Any]:
    """Two replicas of experts that are cut in two; and experts cut over all four processes."""
    chosen = [case for case in PRINCIPLES if case[0] == "elbo" and case[3] == "float64"]
    answers: dict[str, Any] = {f"2 x 2 {case}": principle(*case) for case in chosen}
    answers |= {f"1 x 4 {case}": principle(*case, expert_parallel=min(COUNT, 4)) for case in chosen[:3]}
    return answers | others(folder)


def others(_: Path) -> dict[str, Any]:
    """Runs with what else a training may do."""
    answers: dict[str, Any] = {}
    for route in ("all", "top 2"):
        answers[f"clipped {route}"] = principle("elbo", "kl", route, "float64", max_grad_norm=0.1)
        answers[f"early {route}"] = principle(
            "elbo", "kl", route, "float64", epochs=6, lr=0.3, early_stopping=hm.EarlyStopping(patience=1)
        )
        answers[f"sgd {route}"] = principle("elbo", "kl", route, "float64", optimizer=sgd)
        answers[f"revived {route}"] = revived(route)
        answers[f"agreement {route}"] = principle(
            "marginal", "kl", route, "float64",
            view=hm.views.RandomAffine(), agreement=hm.Agreement(partner=hm.views.Neighbour(3), alone=0.5),
        )  # fmt: skip
    answers["data parallel"] = principle("elbo", "kl", "top 2", "float64", expert_parallel=1)
    answers["own parts"] = trained(workers.model_of_own_parts(), samples().double(), expert_parallel=parts())
    answers["convolutions"] = convolutions()
    answers["posteriors"] = posteriors()
    answers["frozen"] = frozen()
    return answers


def trouble(folder: Path) -> dict[str, Any]:
    """A weight that becomes NaN in one process, Ctrl-C in one process, and a callback that fails in all of them."""
    answers: dict[str, Any] = {}

    def spoil(end: hm.EpochEnd) -> None:
        with torch.no_grad():
            if workers.RANK == 1:
                end.model.experts.groups[0].decoder.layers[0].bias[0] = torch.nan

    def press(end: hm.EpochEnd) -> None:
        if workers.RANK == 1:
            signal.raise_signal(signal.SIGINT)

    def fail(end: hm.EpochEnd) -> None:
        raise hm.errors.DataError("no reason")

    how: dict[str, Any] = {"expert_parallel": parts(), "epochs": 3}
    model = even_model()
    answers["spoilt"] = refused(lambda: trained(model, samples(), callbacks=[spoil], **how))
    how["checkpoint_dir"] = folder
    answers["spoilt again"] = refused(lambda: trained(model, samples(), callbacks=[spoil], **how))
    answers["weights"] = dict(model.state_dict())
    answers["scores"] = model.score_samples(samples())
    del how["checkpoint_dir"]
    answers["pressed"] = trained(model, samples(), callbacks=[press], **how)
    answers["failed"] = refused(lambda: trained(model, samples(), callbacks=[fail], **how))
    answers["after"] = refused(lambda: model.score_samples(samples()))
    return answers


def run(folder: Path, epochs: int) -> dict[str, Any]:
    """Runs of all and of chosen leaves, which write checkpoints, or go on from those that they find."""
    answers: dict[str, Any] = {}
    for route in ("all", "top 2"):
        how = {"epochs": epochs, "early_stopping": hm.EarlyStopping(patience=9), "checkpoint_dir": folder / route}
        answers[route] = principle("elbo", "kl", route, "float64", **how)
    return answers


def weightless(folder: Path) -> dict[str, Any]:
    """A tree that has no weights but those of experts, with checkpoints, which the main process reads."""
    torch.manual_seed(0)
    leaf = hm.VAE(2, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity"))
    model = hm.HMoEVAE(hm.Mixture.of(leaf, 3, gate=hm.PosteriorGate()), workers.SHAPE, objective="marginal").double()
    answer = trained(model, samples().double(), expert_parallel=parts(), checkpoint_dir=folder)
    return answer | {"read": dict(hm.HMoEVAE.from_pretrained(hm.training.last_checkpoint(folder)).state_dict())}


def begun(folder: Path) -> dict[str, Any]:
    """The first two epochs."""
    return run(folder, 2)


def gone_on(folder: Path) -> dict[str, Any]:
    """Four epochs, of which two may have been."""
    return run(folder, 4)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Gradient descent with momentum."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def revived(route: str) -> dict[str, Any]:
    """Two of six leaves, in two groups, die and are revived, from leaves that other processes hold."""
    layer = hm.MLP((8,))
    torch.manual_seed(0)
    wide, narrow = hm.VAE(3, layer, layer), hm.VAE(2, layer, layer)
    tree = hm.Mixture((wide, narrow, narrow, wide, narrow, wide), gate=layer, balance=hm.Balance("kl", 0.0))
    model = hm.HMoEVAE(tree, workers.SHAPE, objective="elbo").double()
    with torch.no_grad():
        last = model.gates.groups[0].last
        assert last is not None
        last.bias[0, [3, 4]] = -40.0
    how = {"revive": True, "epochs": 4, "route": ROUTES[route], "expert_parallel": parts()}
    answer = trained(model, samples().double(), **how)
    assert sum(row.get("revived", 0) for row in answer["rows"]) >= 2
    return answer


def convolutions() -> dict[str, Any]:
    """Convolutional experts, and samples with gaps."""
    x = samples().double()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = torch.nan
    torch.manual_seed(0)
    leaf = hm.VAE(2, hm.Conv((4,), 3), hm.ConvTranspose((4,), 3), hm.Gaussian("learned"))
    model = hm.HMoEVAE(hm.Mixture.of(leaf, 3, gate=hm.MLP((4,))), workers.SHAPE, missing=True).double()
    return trained(model, x, expert_parallel=parts())


def posteriors() -> dict[str, Any]:
    """Leaves and gates whose posteriors are computed."""
    x = samples().double()
    torch.manual_seed(0)
    leaf = hm.VAE(2, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity"))
    tree = hm.Mixture.of(hm.Mixture.of(leaf, 2, gate=hm.PosteriorGate(), prior="learned"), 2, gate=hm.MLP((8,)))
    model = hm.HMoEVAE(tree, workers.SHAPE, objective="marginal").double()
    return trained(model, x, init="kmeans", expert_parallel=parts())


def frozen() -> dict[str, Any]:
    """Experts that do not learn, in one group of two and one of a single leaf."""
    model = new_model().double()
    model.experts.requires_grad_(requires_grad=False)
    return trained(model, samples().double(), expert_parallel=parts())


if __name__ == "__main__":
    workers.main(globals())
