"""What `test_compiled.py` runs in a process of its own; the last line is what it found, as JSON."""

import copy
import functools
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import hmoevae as hm
from hmoevae.errors import HMoEVAEError
from hmoevae.nn.draws import Share
from hmoevae.nn.routes import TopK
from hmoevae.nn.settings import StepSettings
from hmoevae.output import Inputs
from hmoevae.training import CompiledPass

BATCH = 5
SMALL = hm.MLP((6,), "sigmoid")


def tree(likelihood: hm.spec.Likelihood, gate: hm.MLP | hm.Conv = SMALL) -> hm.Mixture:
    """Two levels, experts of two kinds."""
    few, more = (hm.VAE(n, hm.MLP((7, 6), "relu"), SMALL, likelihood) for n in (2, 3))
    inner = hm.Mixture((few, more, few), SMALL, hm.Balance("kl", 1.0))
    return hm.Mixture((more, inner), gate, hm.Balance("variance", 0.5))


def analysers() -> hm.Mixture:
    """Two levels of leaves with exact posteriors, and a gate that is one below a gate that is learned."""
    few, more = (hm.VAE(n, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity")) for n in (2, 3))
    return hm.Mixture((more, hm.Mixture((few, more, few), hm.PosteriorGate())), SMALL, hm.Balance("variance", 0.5))


CASES: dict[str, tuple[hm.Mixture, torch.dtype]] = {
    "gaussian": (tree(hm.Gaussian(0.5)), torch.float32),
    "bernoulli": (tree(hm.Bernoulli()), torch.float32),
    "continuous": (tree(hm.ContinuousBernoulli()), torch.float32),
    "counts": (tree(hm.ZeroInflated(hm.NegativeBinomial(total=9))), torch.float32),
    "conv": (tree(hm.Gaussian(0.3, mean="identity"), hm.Conv((2,), 3, 1, (5,))), torch.float32),
    "bf16": (tree(hm.Gaussian(0.5)), torch.bfloat16),
    "gaps": (tree(hm.Gaussian("learned")), torch.float32),
    "posteriors": (analysers(), torch.float32),
    "posteriors with gaps": (analysers(), torch.float32),
}


def distance(one: Tensor, two: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    return ((one - two).abs().max() / two.abs().max().clamp_min(1e-3)).item()


def compare(case: tuple[hm.Mixture, torch.dtype]) -> dict[str, float]:
    """How far a compiled pass is from a plain one."""
    torch.manual_seed(0)
    gaps = case is CASES["gaps"] or case is CASES["posteriors with gaps"]
    plain = hm.HMoEVAE(case[0], (1, 4, 4), objective="elbo", missing=gaps)
    model = copy.deepcopy(plain)
    compiled = CompiledPass(model)
    x = torch.rand(BATCH, 1, 4, 4).round()
    x = x.masked_fill(torch.rand_like(x) < 0.3, torch.nan) if gaps else x
    weights = torch.arange(1.0, 1 + BATCH) if case is CASES["bernoulli"] else None
    outs = []
    for each in (compiled, plain):
        with compiled.step(), torch.autocast("cpu", torch.bfloat16, enabled=case[1] == torch.bfloat16):
            out = each(x, sample_weight=weights, generator=torch.Generator().manual_seed(1))
            out.loss.backward()
        outs.append(out)
    one, two = outs
    names = ("loss", "leaf_elbo", "leaf_log_prob", "edge_log_prob")
    errors = {name: distance(getattr(one, name).detach(), getattr(two, name).detach()) for name in names}
    errors |= {name: distance(one.terms[name].detach(), two.terms[name].detach()) for name in two.terms}
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        errors[f"gradient of {name}"] = distance(p.grad, q.grad)
    return errors


def draws() -> dict[str, bool]:
    """Whether two passes agree from one state of a generator, and from two."""
    model = hm.HMoEVAE(CASES["gaussian"][0], (1, 4, 4))
    compiled = CompiledPass(model)
    x = torch.rand(BATCH, 1, 4, 4)
    one, same, other = (compiled(x, generator=torch.Generator().manual_seed(seed)).loss.item() for seed in (1, 1, 2))
    return {"same": one == same, "other": one == other}


def weighed() -> list[int]:
    """How many of three passes run by compiled code, of weights 1, 0.5 and 0.5, where the code is for 0.5."""
    model = hm.HMoEVAE(CASES["gaussian"][0], (1, 4, 4))
    found = []
    with counting() as calls:
        compiled = CompiledPass(model, kl_weight=0.5)
        for weight in (1.0, 0.5, 0.5):
            compiled(X[:BATCH], settings=StepSettings(kl_weight=weight))
            found.append(len(calls))
    return found


def compiled_calls() -> int:
    """How many of eight passes run by compiled code."""
    model = hm.HMoEVAE(CASES["gaussian"][0], (1, 4, 4))
    with counting() as calls:
        compiled = CompiledPass(model)
        for n in (BATCH, 3, BATCH):
            assert compiled(torch.rand(n, 1, 4, 4)).leaf_elbo.shape == (n, 4)
        x = torch.rand(BATCH, 1, 4, 4)
        with torch.no_grad():
            compiled(x)
        compiled(x, settings=StepSettings(kl_weight=0.5))
        assert (
            compiled(x, settings=StepSettings(routes=TopK(2))).leaf_elbo.shape
            == model(x, settings=StepSettings(routes=TopK(2))).leaf_elbo.shape
        )
        compiled(x, share=Share(0, BATCH, 2 * BATCH, importance_of_all=lambda own: own))
        compiled(x, share=Share(0, BATCH, BATCH))
    return len(calls)


X = torch.rand(23, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LEAF = torch.arange(23) % 4
FITS: dict[str, dict[str, Any]] = {
    "plain training": {"batch_size": BATCH},
    "start": {"batch_size": BATCH, "init": LEAF},
    "agreement": {"batch_size": BATCH, "agreement": hm.Agreement(partner=hm.views.Neighbour(k=2), alone=0.25)},
    "warm-up": {"batch_size": BATCH, "warmup": hm.Warmup(2)},
    "another weight": {"batch_size": BATCH, "kl_weight": 0.25},
    "warm-up to another weight": {"batch_size": BATCH, "kl_weight": 2.0, "warmup": hm.Warmup(3)},
    "loader": {"data": DataLoader(X, batch_size=BATCH)},
    "few samples": {"batch_size": 100},
}
"""All but the last have an odd last batch."""


def fit_both_ways(how: dict[str, Any]) -> dict[str, Any]:
    """The losses of a training with and without, and how many passes the compiled code made."""
    found: dict[str, Any] = {}
    for name in ("plain", "compiled"):
        torch.manual_seed(0)
        model = hm.HMoEVAE(CASES["gaussian"][0], (1, 4, 4), objective="elbo")
        attributes = set(vars(model))
        usual: dict[str, Any] = {"data": X, "epochs": 6}
        with counting() as calls:
            options = usual | how
            data = options.pop("data")
            training = hm.Training(**options, compile=name == "compiled", device="cpu")
            history = hm.fit(model, data, training, progress=False)
        found |= {name: history["loss"], "left": sorted(vars(model).keys() - attributes), "calls": len(calls)}
    return found


@contextmanager
def counting() -> Iterator[list[int]]:
    """Inside, every pass by compiled code adds its size to the list."""
    calls: list[int] = []
    compile_it = torch.compile

    def watched(function: Any, **options: Any) -> Any:
        code = compile_it(function, **options)

        def call(inputs: Inputs, *others: Any) -> Any:
            calls.append(inputs.samples.shape[1])
            return code(inputs, *others)

        return call

    torch.compile = watched
    try:
        yield calls
    finally:
        torch.compile = compile_it


def sizes() -> list[list[int]]:
    """The shapes of what a model compiled as it is gives for batches of several sizes."""
    model = hm.HMoEVAE(CASES["gaussian"][0], (1, 4, 4))
    code = torch.compile(model, backend="eager")
    found = []
    for n in (8, 8, BATCH, 1):
        out = code(torch.rand(n, 1, 4, 4))
        out.loss.backward()
        found.append(list(out.leaf_elbo.shape))
    return found


def models_compiled() -> int:
    """Of how many models a compiler makes code that makes one variant of a function, the first."""
    made: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        made.append(graph)
        return graph

    compile_it = torch.compile
    torch.compile = functools.partial(compile_it, backend=backend)
    try:
        with torch._dynamo.config.patch(recompile_limit=1):
            for n in (2, 3, 4):
                model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, SMALL, SMALL), n, gate=SMALL), (1, 4, 4))
                CompiledPass(model)(X[:BATCH])
    finally:
        torch.compile = compile_it
    return len(made)


def bad_levels() -> str:
    """What a user is told of an argument that the pass itself checks."""
    model = hm.HMoEVAE(CASES["gaussian"][0], (1, 4, 4))
    compiled = CompiledPass(model)
    try:
        compiled(X[:BATCH], other_view=X[:BATCH], settings=StepSettings(agreement_levels=[3]))
    except HMoEVAEError as error:
        return str(error)
    return "nothing"


def later_error() -> str:
    """What comes of an error that is not the compiler's, once there is code."""
    model = hm.HMoEVAE(CASES["gaussian"][0], (1, 4, 4))
    compiled = CompiledPass(model)
    compiled(X[:BATCH])

    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    compiled._tensors = fail
    try:
        compiled(X[:BATCH])
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def broken() -> dict[str, Any]:
    """What a user sees where no code can be made."""

    def fail(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> None:
            raise RuntimeError("no working C++ compiler found\nand more")

        return call

    torch.compile = fail
    model = hm.HMoEVAE(CASES["gaussian"][0], (1, 4, 4))
    try:
        hm.fit(model, torch.rand(BATCH, 1, 4, 4), hm.Training(batch_size=BATCH, epochs=1, compile=True), progress=False)
    except HMoEVAEError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": "none"}


def passes() -> dict[str, Any]:
    """Everything that needs compiled code."""
    found: dict[str, Any] = {name: compare(case) for name, case in CASES.items()}
    found |= {"draws": draws(), "compiled_calls": compiled_calls(), "weighed": weighed()}
    found |= {"sizes": sizes(), "models_compiled": models_compiled()}
    found |= {"bad_levels": bad_levels(), "later_error": later_error()}
    return found | {"fit": {name: fit_both_ways(how) for name, how in FITS.items()}}


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # tiny models on noise
    torch.set_num_threads(1)
    print(json.dumps(broken() if sys.argv[1] == "broken" else passes()))
