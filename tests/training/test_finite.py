"""Losses that are not finite: found at once on a CPU, and elsewhere without waiting for the device at every step."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import NonFiniteError
from hmoevae.training import loop
from hmoevae.training.finite import STEPS_UNSEEN, steps_between_looks

LAYER = hm.MLP((8,))
TREE = hm.Mixture.of(hm.VAE(2, LAYER, LAYER), 3, gate=LAYER)
X = torch.rand(80, 4, generator=torch.Generator().manual_seed(0))
TRAINING = hm.Training(epochs=2, batch_size=8, device="cpu", view=lambda x: x)
STEPS = 10
"""In an epoch."""


def new_model() -> hm.HMoEVAE:
    torch.manual_seed(0)
    return hm.HMoEVAE(TREE, (4,))


def weights(model: hm.HMoEVAE) -> Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def spoil(model: hm.HMoEVAE, at_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the second expert answer NaN from a step on."""
    forward, steps = model.forward, []

    def spoilt(x: Tensor, **how: Any) -> hm.Output:
        steps.append(len(x))
        if len(steps) == at_step:
            with torch.no_grad():
                model.experts.groups[0].decoder.last.bias[1] = math.nan
        return forward(x, **how)

    monkeypatch.setattr(model, "forward", spoilt)


def look_every(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "steps_between_looks", lambda device: steps)


@pytest.mark.parametrize("every", [1, 2, 4, 100])
@pytest.mark.parametrize("at_step", [1, 3, STEPS, STEPS + 4])
def test_the_step_the_term_and_the_node_are_named(every: int, at_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, good = new_model(), []
    good.append(weights(model))
    look_every(every, monkeypatch)
    spoil(model, at_step, monkeypatch)
    message = rf"loss: expected a finite loss at step {at_step}, got 'expected' = nan from the expert root/1; "
    with pytest.raises(NonFiniteError, match=f"{message}the model has the weights of the last good epoch"):
        hm.fit(model, X, TRAINING, callbacks=[lambda end: good.append(weights(end.model))], progress=False)
    assert len(good) == 1 + (at_step > STEPS)
    assert torch.equal(weights(model), good[-1])


@pytest.mark.parametrize("every", [1, 3])
def test_a_loss_that_spoils_no_weight_leaves_those_before_the_step_if_it_is_looked_at_in_time(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where steps came after it, nobody knows what they have made of it."""
    model, before = new_model(), []
    look_every(every, monkeypatch)
    forward = model.forward

    def infinite(x: Tensor, **how: Any) -> hm.Output:
        before.append(weights(model))
        out = forward(x, **how)
        return hm.Output(**{**vars_of(out), "loss": out.loss * math.inf}) if len(before) == 4 else out

    monkeypatch.setattr(model, "forward", infinite)
    where = "before this step" if every == 1 else "of the last good epoch"
    with pytest.raises(
        NonFiniteError, match=rf"step 4, got their sum from the objective; the model has the weights {where}"
    ):
        hm.fit(model, X, TRAINING, progress=False)
    assert torch.equal(weights(model), before[3 if every == 1 else 0])


def vars_of(out: hm.Output) -> dict[str, Any]:
    return {name: getattr(out, name) for name in out.__dataclass_fields__}


@pytest.mark.parametrize("every", [1, 3, 100])
def test_the_numbers_do_not_depend_on_how_often_one_looks(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    look_every(every, monkeypatch)
    model = new_model()
    history = hm.fit(model, X, TRAINING, progress=False)
    monkeypatch.undo()
    plain = new_model()
    expected = hm.fit(plain, X, TRAINING, progress=False)
    assert torch.equal(weights(model), weights(plain))
    assert history["loss"] == expected["loss"]


def test_between_looks_no_number_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would make the CPU wait for an accelerator."""
    look_every(100, monkeypatch)
    read: list[str] = []
    inside = []
    step = loop.Run.step

    def watched(run: loop.Run, *how: Any) -> Any:
        inside.append(True)
        try:
            return step(run, *how)
        finally:
            inside.pop()

    monkeypatch.setattr(loop.Run, "step", watched)
    for name in ("item", "tolist", "__bool__", "__float__", "nonzero"):
        original = getattr(Tensor, name)

        def reads(self: Tensor, *how: Any, name: str = name, original: Any = original) -> Any:
            if inside:
                read.append(name)
            return original(self, *how)

        monkeypatch.setattr(Tensor, name, reads)
    model = new_model()
    training = hm.Training(epochs=1, batch_size=8, device="cpu", max_grad_norm=1.0)
    hm.fit(model, X, training, progress=False)
    assert read == []
    monkeypatch.setattr(loop, "steps_between_looks", lambda device: 1)
    hm.fit(model, X, training, progress=False)
    assert read.count("item") == STEPS


def test_an_accelerator_is_waited_for_now_and_then() -> None:
    assert steps_between_looks(torch.device("cpu")) == 1
    assert steps_between_looks(torch.device("cuda")) == STEPS_UNSEEN > 10
