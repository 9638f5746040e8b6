"""What a report says of a training, and of how the model was made."""

import hashlib
import json
import math
import platform
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.errors import ArgumentTypeError, mismatch
from hmoevae.growth import Decision, Grown
from hmoevae.history import NODES, History
from hmoevae.model import HMoEVAE
from hmoevae.training.record import Training
from hmoevae.version import __version__

MOST_EPOCHS = 400
"""Points of a curve; of longer trainings, every so manieth epoch."""
LITTLE = 0.1
"""A leaf is called little used below this share of an even one."""


def of_history(history: History | Grown | None) -> dict[str, Any] | None:
    """The curves of a training, every column but those of leaves and mixtures; and the decisions of a growth.

    Args:
        history: The history; or the result of `hmoevae.grow`, whose first training it was. `None` gives nothing.

    Raises:
        ArgumentTypeError: It is neither.

    >>> of_history(History([{"epoch": 1, "loss": 3.5}]))["curves"]
    {'epoch': [1.0], 'loss': [3.5]}
    """
    if history is None:
        return None
    if isinstance(history, Grown):
        first = of_history(history.histories[0] if history.histories else History())
        assert first is not None
        return first | {"growth": [_told(decision) for decision in history.decisions]}
    if not isinstance(history, History):
        expected = "a History, such as fit returns, or what grow returns"
        raise ArgumentTypeError(mismatch("history", expected, type(history).__name__))
    rows = range(0, len(history), max(1, math.ceil(len(history) / MOST_EPOCHS)))
    kept = [column for column in history.columns if not column.startswith(NODES)]
    drawn = [column for column in kept if column not in ("seconds", "revived")]
    curves = {column: [_number(history[column][i]) for i in rows] for column in drawn} if len(history) else {}
    notes = [] if not history.interrupted else ["Ctrl-C ended the training early."]
    if history.best_epoch is not None:
        notes.append(f"Early stopping kept the weights of epoch {history.best_epoch}.")
    if history.converged is not None:
        notes.append("The loss had stopped falling." if history.converged else "The loss was still falling at the end.")
    revived = int(np.nansum(history["revived"])) if "revived" in kept else 0
    if revived:
        notes.append(f"{revived} {'child was' if revived == 1 else 'children were'} revived.")
    training = history.training
    told = str(training) if isinstance(training, Training) else json.dumps(training, indent=1) if training else None
    return {"curves": curves, "notes": notes, "record": told, "epochs": len(history)}


def _told(decision: Decision) -> tuple[str, ...]:
    """A decision in the cells of a line: round, what, where, done, samples, what it was judged by, words."""
    judged = ""
    if decision.gain is not None:
        error = "" if decision.error is None or not math.isfinite(decision.error) else f" ± {decision.error:.2f}"
        judged = f"{decision.gain:+.2f}{error} nats"
    elif decision.conductance is not None:
        judged = f"conductance {decision.conductance:.3f}"
    done = "yes" if decision.accepted else "no"
    sizes = f"{decision.n_samples:,}", f"{decision.n_leaves:,}"
    return str(decision.round), decision.action, decision.path, done, sizes[0], judged, sizes[1], decision.reason


def warnings_of(model: HMoEVAE, share: Float[np.ndarray, " leaf"]) -> list[str]:
    """Leaves that hardly a sample goes to, in words.

    Args:
        model: The model.
        share: The share of every leaf.

    >>> import hmoevae as hm
    >>> warnings_of(hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,)), np.array([0.5, 0.5, 0.0]))
    ['1 of 3 leaves is the most probable one of no sample: 2.']
    """
    names = model.plan.level_names(None)
    found = []
    few = [i for i, part in enumerate(share.tolist()) if 0 < part < LITTLE / len(share)]
    for indices, what in (
        (np.flatnonzero(share == 0).tolist(), "the most probable one of no sample"),
        (few, f"of less than a tenth of an even share, {LITTLE / len(share):.2%}"),
    ):
        if indices:
            shown = ", ".join(names[i] for i in indices[:20]) + (", …" if len(indices) > 20 else "")
            verb = "is" if len(indices) == 1 else "are"
            found.append(f"{len(indices):,} of {len(share):,} leaves {verb} {what}: {shown}.")
    return found


def made(model: HMoEVAE, x: Float[Tensor, "n *input_shape"]) -> dict[str, Any]:
    """The tree, versions, digests, and the lines that load the model.

    Args:
        model: The model.
        x: The samples of the report.

    >>> import hmoevae as hm
    >>> facts = made(hm.HMoEVAE(hm.VAE(latent_dim=2), input_shape=(4,)), torch.zeros(2, 4))
    >>> [name for name, _ in facts["facts"]][:3], len(facts["facts"][-1][1])
    (['Samples', 'Objective', 'Parameters'], 64)
    """
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        weights.update(name.encode() + _bytes_of(value))
    facts = [
        ("Samples", f"{len(x):,} of shape {model.input_shape}"),
        ("Objective", model.objective),
        ("Parameters", f"{n_parameters:,}"),
        ("hmoevae", __version__),
        ("PyTorch", str(torch.__version__)),
        ("NumPy", np.__version__),
        ("Python", platform.python_version()),
        ("SHA-256 of the weights", weights.hexdigest()),
        ("SHA-256 of the samples", hashlib.sha256(_bytes_of(x)).hexdigest()),
    ]
    lines = [
        "import hmoevae as hm",
        "",
        'model = hm.HMoEVAE.from_pretrained("the folder of model.save_pretrained")',
        "model.predict_proba(x)  # which leaf, by the gates",
        "model.sample(8)  # new samples",
    ]
    return {"tree": str(model.tree), "facts": facts, "snippet": "\n".join(lines)}


def _bytes_of(value: Tensor) -> bytes | memoryview:
    array = np.ascontiguousarray(value.detach().cpu().float().numpy())
    return array.data.cast("B") if array.size and array.ndim else array.tobytes()


def _number(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
