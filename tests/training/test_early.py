"""Options that act between steps and epochs: early stopping, clipped gradients, a weight of the KL."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError

LAYER = hm.MLP((8,))
TREE = hm.Mixture.of(hm.VAE(2, LAYER, LAYER), 3, gate=LAYER)
X = torch.rand(48, 4, generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.rand(16, 4, generator=torch.Generator().manual_seed(1))
TRAINING = hm.Training(epochs=12, batch_size=16, lr=0.1, device="cpu", early_stopping=hm.EarlyStopping(patience=2))


class Killed(BaseException):
    """A run's process is gone."""


class Keep:
    """Keeps the weights after every epoch, and kills the run at one."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at
        self.weights: list[dict[str, Tensor]] = []

    def __call__(self, end: hm.EpochEnd) -> None:
        self.weights.append({name: weight.clone() for name, weight in end.model.state_dict().items()})
        if end.epoch == self.kill_at:
            raise Killed


def new_model(objective: str = "elbo") -> hm.HMoEVAE:
    torch.manual_seed(0)
    return hm.HMoEVAE(TREE, (4,), objective=objective)


def fit(model: hm.HMoEVAE, training: hm.Training, **how: Any) -> hm.History:
    return hm.fit(model, X, training, **{"validation_data": HELD_OUT, "progress": False} | how)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


# --- early stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["elbo", "marginal"])
def test_it_stops_when_the_objective_has_not_fallen_and_leaves_the_best_weights(objective: str) -> None:
    model, keep = new_model(objective), Keep()
    history = fit(model, TRAINING, callbacks=[keep])
    losses = history[f"val_{objective}"]
    assert history.best_epoch is not None
    assert losses[history.best_epoch - 1] == min(losses)
    assert len(history) == history.best_epoch + 2 < 12  # else the run tells nothing of stopping
    assert equal(model.state_dict(), keep.weights[history.best_epoch - 1])
    assert not equal(model.state_dict(), keep.weights[-1])


def test_a_run_that_does_not_stop_has_its_best_weights_too() -> None:
    patient = dataclasses.replace(TRAINING, early_stopping=hm.EarlyStopping(patience=99))
    model, keep = new_model(), Keep()
    history = fit(model, patient, callbacks=[keep])
    assert len(history) == 12
    losses = history["val_elbo"]
    assert history.best_epoch == 1 + losses.index(min(losses)) < 12
    assert equal(model.state_dict(), keep.weights[history.best_epoch - 1])


def test_ctrl_c_leaves_the_best_weights_too() -> None:
    def press(end: hm.EpochEnd) -> None:
        if end.epoch == 11:
            raise KeyboardInterrupt

    model, keep = new_model(), Keep()
    patient = dataclasses.replace(TRAINING, early_stopping=hm.EarlyStopping(patience=99))
    history = fit(model, patient, callbacks=[keep, press])
    assert history.interrupted
    assert history.best_epoch is not None
    assert equal(model.state_dict(), keep.weights[history.best_epoch - 1])


def test_what_is_not_better_by_enough_does_not_count() -> None:
    demanding = dataclasses.replace(TRAINING, early_stopping=hm.EarlyStopping(patience=3, min_delta=1e6))
    history = fit(new_model(), demanding)
    assert (len(history), history.best_epoch) == (4, 1)


@pytest.mark.filterwarnings("ignore::hmoevae.errors.CollapseWarning")
def test_epochs_count_from_when_all_learn_at_full_weight() -> None:
    training = dataclasses.replace(
        TRAINING,
        epochs=12,
        init="kmeans",
        agreement=hm.Agreement(partner=hm.views.Neighbour(3), alone=0.25),
        warmup=hm.Warmup(3),
        early_stopping=hm.EarlyStopping(patience=1, min_delta=1e6),
    )
    history = fit(new_model(), training)
    assert (len(history), history.best_epoch) == (8, 7)  # 1 of the start, 3 alone, 2 more of the warm-up


def test_it_needs_validation_data_and_says_so() -> None:
    model = new_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ArgumentError, match=r"validation_data: expected held-out samples, for Training.early_stopping"):
        fit(model, TRAINING, validation_data=None)
    assert equal(model.state_dict(), before)


def test_the_history_tells_the_best_epoch_when_it_is_read_again(tmp_path: Any) -> None:
    history = fit(new_model(), TRAINING)
    history.to_json(tmp_path / "history.json")
    assert hm.History.from_json(tmp_path / "history.json") == history


@pytest.mark.slow
@pytest.mark.parametrize("patience", [2, 99])
def test_killed_in_every_epoch_it_goes_on_equal_to_the_bit(tmp_path: Any, patience: int) -> None:
    training = dataclasses.replace(TRAINING, early_stopping=hm.EarlyStopping(patience=patience))

    def result(folder: Any = None, kill_at: int | None = None) -> Any:
        model = new_model()
        try:
            history = fit(model, training, callbacks=[Keep(kill_at)], checkpoint_dir=folder)
        except Killed:
            return None
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]
        return json.dumps(rows), history.best_epoch, [w.numpy().tobytes() for w in model.state_dict().values()]

    expected = result()
    for epoch in range(1, len(json.loads(expected[0])) + 1):
        folder = tmp_path / str(epoch)
        assert result(folder, kill_at=epoch) is None
        assert result(folder) == expected
        assert result(folder) == expected  # it had ended
    saved = hm.training_from_json((hm.training.last_checkpoint(tmp_path / "1") / "training.json").read_text())
    assert saved == training


# --- gradients --------------------------------------------------------------------------------------------------------


def sgd(max_grad_norm: float | None) -> tuple[Tensor, Tensor]:
    """The change that one step of plain gradient descent makes, and the norm of the whole gradient."""
    model = new_model()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    training = hm.Training(
        epochs=1, batch_size=48, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), max_grad_norm=max_grad_norm,
        device="cpu",
    )  # fmt: skip
    fit(model, training)
    change = before - torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    return change, change.norm()


def test_gradients_are_shortened_to_the_norm() -> None:
    change, norm = sgd(None)
    assert norm > 0.1
    clipped, length = sgd(0.01)
    assert length.item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped / length, change / norm, rtol=1e-3, atol=1e-5)
    assert torch.equal(sgd(1e6)[0], change)  # no longer than that


# --- the weight of the KL ---------------------------------------------------------------------------------------------


def test_the_weight_of_the_kl_is_constant_and_multiplies_the_warmup() -> None:
    lessons = hm.Training(epochs=4, warmup=hm.Warmup(2, kl=0.5), kl_weight=4.0).course
    assert [lessons.lesson(epoch).settings.kl_weight for epoch in range(1, 5)] == [2.0, 3.0, 4.0, 4.0]


def test_the_loss_has_the_weight_and_validation_has_not() -> None:
    usual, heavy = (
        fit(new_model(), hm.Training(epochs=1, batch_size=48, lr=1e-12, kl_weight=weight, device="cpu"))
        for weight in (1.0, 4.0)
    )
    model = new_model()
    draws = {"generator": torch.Generator().manual_seed(0)}
    one, four = (
        model(X, settings=hm.StepSettings(kl_weight=weight), generator=torch.Generator().manual_seed(0)).terms["elbo"]
        for weight in (1.0, 4.0)
    )
    assert heavy["elbo"][0] - usual["elbo"][0] == pytest.approx((four - one).item(), rel=0.2)
    assert heavy["elbo"][0] > usual["elbo"][0]
    assert heavy["val_elbo"][0] == pytest.approx(usual["val_elbo"][0], rel=1e-5)
    assert math.isfinite(model.evaluate(X, **draws)["elbo"])
