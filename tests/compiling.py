"""What `test_compiled.py` runs in a process of its own; the last line is what it found, as JSON."""

import copy
import json
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, HMoEVAEError
from hmoevae.training import CompiledPass

BATCH = 5
SMALL = hm.MLP((6,), "sigmoid")


def tree(likelihood: hm.spec.Likelihood, gate: hm.MLP | hm.Conv = SMALL) -> hm.Mixture:
    """Two levels, experts of two kinds."""
    few, more = (hm.VAE(n, hm.MLP((7, 6), "relu"), SMALL, likelihood) for n in (2, 3))
    inner = hm.Mixture((few, more, few), SMALL, hm.Balance("kl", 1.0))
    return hm.Mixture((more, inner), gate, hm.Balance("variance", 0.5))


CASES: dict[str, tuple[hm.Mixture, torch.dtype]] = {
    "gaussian": (tree(hm.Gaussian(0.5)), torch.float32),
    "bernoulli": (tree(hm.Bernoulli()), torch.float32),
    "continuous": (tree(hm.ContinuousBernoulli()), torch.float32),
    "conv": (tree(hm.Gaussian(0.3, mean="identity"), hm.Conv((2,), 3, 1, (5,))), torch.float32),
    "bf16": (tree(hm.Gaussian(0.5)), torch.bfloat16),
}


def distance(one: Tensor, two: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    return ((one - two).abs().max() / two.abs().max().clamp_min(1e-3)).item()


def compare(case: tuple[hm.Mixture, torch.dtype]) -> dict[str, float]:
    """How far a compiled pass is from a plain one."""
    torch.manual_seed(0)
    plain = hm.HMoEVAE(case[0], (1, 4, 4), objective="elbo")
    model = copy.deepcopy(plain)
    compiled = CompiledPass(model, BATCH)
    compiled.attach()
    x = torch.rand(BATCH, 1, 4, 4).round()
    outs = []
    for each in (model, plain):
        with compiled.step(), torch.autocast("cpu", torch.bfloat16, enabled=case[1] == torch.bfloat16):
            out = each(x, generator=torch.Generator().manual_seed(1))
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
    CompiledPass(model, BATCH).attach()
    x = torch.rand(BATCH, 1, 4, 4)
    one, same, other = (model(x, generator=torch.Generator().manual_seed(seed)).loss.item() for seed in (1, 1, 2))
    return {"same": one == same, "other": one == other}


def compiled_calls() -> int:
    """How many of five passes run by compiled code."""
    model = hm.HMoEVAE(CASES["gaussian"][0], (1, 4, 4))
    compiled = CompiledPass(model, BATCH)
    calls = 0
    tensors = compiled._tensors

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return tensors(*arguments)

    compiled._tensors = counted
    compiled.attach()
    for n in (BATCH, 3, BATCH):
        assert model(torch.rand(n, 1, 4, 4)).leaf_elbo.shape == (n, 4)
    with torch.no_grad():
        model(torch.rand(BATCH, 1, 4, 4))
    model(torch.rand(BATCH, 1, 4, 4), kl_weight=0.5)
    return calls


def fits() -> dict[str, Any]:
    """The losses of a training with start, warm-up, agreement and an odd last batch, with and without."""
    found: dict[str, Any] = {}
    x = torch.rand(23, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for name in ("plain", "compiled"):
        torch.manual_seed(0)
        model = hm.HMoEVAE(CASES["gaussian"][0], (1, 4, 4), objective="elbo")
        how: dict[str, Any] = {"agreement": hm.Agreement(partner=hm.views.Neighbour(k=2), alone=0.25)}
        how |= {"init": [i % 4 for i in range(23)], "warmup": hm.Warmup(2), "progress": False, "device": "cpu"}
        how["init"] = torch.tensor(how["init"])
        history = hm.fit(model, x, epochs=8, batch_size=BATCH, compile=name == "compiled", **how)
        found[name] = history["loss"]
        found["left"] = model.compiled
    return found


def broken() -> dict[str, Any]:
    """What a user sees where no code can be made."""

    def fail(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> None:
            raise RuntimeError("no working C++ compiler found\nand more")

        return call

    torch.compile = fail
    model = hm.HMoEVAE(CASES["gaussian"][0], (1, 4, 4))
    try:
        hm.fit(model, torch.rand(BATCH, 1, 4, 4), batch_size=BATCH, epochs=1, compile=True, progress=False)
    except HMoEVAEError as error:
        return {"error": f"{type(error).__name__}: {error}", "left": model.compiled}
    return {"error": "none", "left": model.compiled}


def passes() -> dict[str, Any]:
    """Everything that needs compiled code."""
    try:
        found: dict[str, Any] = {name: compare(case) for name, case in CASES.items()}
    except ArgumentError as error:
        return {"unavailable": str(error)}
    return found | {"draws": draws(), "compiled_calls": compiled_calls(), "fit": fits()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # tiny models on noise
    torch.set_num_threads(1)
    print(json.dumps(broken() if sys.argv[1] == "broken" else passes()))
