"""What a user does with files of one's own, in a process that imports them or not; test_extending.py runs it.

    python user.py save|load|load_bare FOLDER
    python user.py compiled CASE

The last line is what came of it, as JSON.
"""

import copy
import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import hmoevae as hm
from hmoevae.errors import CheckpointError, CollapseWarning
from hmoevae.training import CompiledPass

FILES = ("residual", "laplace", "hard", "reverse_kl")
SHAPE = (1, 4, 4)
X = torch.rand(48, *SHAPE, generator=torch.Generator().manual_seed(0))


def model_with(file: str) -> hm.HMoEVAE:
    """A model that uses what a file registers."""
    own: Any = importlib.import_module(file)
    net = own.Residual(width=8, blocks=2) if file == "residual" else hm.MLP((8,))
    leaf = hm.VAE(2, net, net, own.Laplace()) if file == "laplace" else hm.VAE(2, net, net)
    balance = hm.Balance("reverse_kl", 1.0) if file == "reverse_kl" else None
    tree = hm.Mixture.of(leaf, 3, gate=net, balance=balance)
    torch.manual_seed(0)
    return hm.HMoEVAE(tree, SHAPE, objective="hard" if file == "hard" else "elbo")


def save(folder: Path) -> dict[str, Any]:
    """Train one of each, with a checkpoint and revival, and save it; the losses of all epochs."""
    losses = {}
    for file in FILES:
        model = model_with(file)
        training = hm.Training(epochs=8, batch_size=16, lr=1e-2, seed=0, revive=True, device="cpu")
        history = hm.fit(model, X, training, progress=False, checkpoint_dir=folder / f"{file}-checkpoints")
        model.save_pretrained(folder / file)
        torch.save([model.predict_proba(X), model.reconstruct(X), model.score_samples(X)], folder / f"{file}.pt")
        losses[file] = list(history["loss"])
    return losses


def load(folder: Path) -> dict[str, Any]:
    """Load each as a user does who has imported its file; whether it is what was saved, and what is exported."""
    found: dict[str, Any] = {}
    for file in FILES:
        importlib.import_module(file)
        model = hm.HMoEVAE.from_pretrained(folder / file)
        answers = [model.predict_proba(X), model.reconstruct(X), model.score_samples(X)]
        same = all(map(torch.equal, answers, torch.load(folder / f"{file}.pt")))
        z = torch.zeros(3, 2)
        modules = {hm.export.routing(model): X, hm.export.encoder(model, 0): X, hm.export.decoder(model, 0): z}
        apart = 0.0
        for module, values in modules.items():
            shapes = ({0: torch.export.Dim.DYNAMIC},)
            program = torch.export.export(module, (values[:3],), dynamic_shapes=shapes, strict=False).module()
            pairs = zip(_tuple(program(values[:2])), _tuple(module(values[:2])), strict=True)
            apart = max(apart, *((one - two).abs().max().item() for one, two in pairs))
        found[file] = {"same": same, "apart": apart}
    return found


def _tuple(answer: Any) -> tuple[Any, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def load_bare(folder: Path) -> dict[str, Any]:
    """Try to load each without its file; the errors, and which of the files have been imported in the end."""
    found: dict[str, Any] = {}
    for file in FILES:
        try:
            hm.HMoEVAE.from_pretrained(folder / file)
        except CheckpointError as error:
            found[file] = f"{error}"
    return found | {"imported": [file for file in FILES if file in sys.modules]}


def compiled(name: str) -> dict[str, Any]:
    """How far a compiled pass is from a plain one, as a share of the largest entry."""
    from test_extending import CASES, samples

    torch.manual_seed(0)
    plain = hm.HMoEVAE(CASES[name], (1, 6, 6), objective="elbo")
    model = copy.deepcopy(plain)
    passed = CompiledPass(model)
    losses = []
    for each in (passed, plain):
        with passed.step():
            out = each(samples(), generator=torch.Generator().manual_seed(1))
            out.loss.backward()
        losses.append(out.loss.item())
    assert passed.batch_size == len(samples())
    apart = 0.0
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        apart = max(apart, ((p.grad - q.grad).abs().max() / q.grad.abs().max().clamp_min(1e-3)).item())
    return {"loss": abs(losses[0] / losses[1] - 1), "gradient": apart}


if __name__ == "__main__":
    torch.set_num_threads(1)
    job, argument = sys.argv[1:]
    if job == "compiled":  # which warns of what the compiler does
        print(json.dumps(compiled(argument)))
        sys.exit()
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", CollapseWarning)  # after a few epochs on noise
    print(json.dumps({"save": save, "load": load, "load_bare": load_bare}[job](Path(argument))))
