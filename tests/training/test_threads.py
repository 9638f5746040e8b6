"""Small steps run in one thread, and nobody else notices."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.training import threads

X = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """As a user's process with two cores begins."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def model(gate: hm.MLP | hm.Conv | None = None) -> hm.HMoEVAE:
    torch.manual_seed(0)
    return hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 2, gate=gate or hm.MLP()), (1, 4, 4), objective="elbo")


def fit(trained: hm.HMoEVAE, *errors: Exception) -> dict[str, set[int]]:
    """How many threads what runs inside a step has, and what a callback has."""
    found: dict[str, set[int]] = {"view": set(), "evaluate": set(), "callback": set()}
    evaluate = trained.evaluate

    def view(x: Tensor) -> Tensor:
        found["view"].add(torch.get_num_threads())
        for error in errors:
            raise error
        return x

    def watched(*args, **options):
        found["evaluate"].add(torch.get_num_threads())
        return evaluate(*args, **options)

    def callback(end: hm.EpochEnd) -> None:
        found["callback"].add(torch.get_num_threads())

    trained.evaluate = watched  # type: ignore[method-assign]
    training = hm.Training(epochs=1, batch_size=4, view=view, device="cpu")
    hm.fit(trained, X, training, validation_data=X, callbacks=[callback], progress=False)
    return found


def test_small_steps_have_one_thread_and_callbacks_what_the_process_has() -> None:
    assert fit(model()) == {"view": {1}, "evaluate": {1}, "callback": {2}}
    assert torch.get_num_threads() == 2


def test_larger_steps_have_what_the_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch of an epoch is smaller, and may be small."""
    n_weights = sum(weight.numel() for weight in model().parameters())
    monkeypatch.setattr(threads, "SMALL_STEP", 3 * n_weights)
    assert fit(model()) == {"view": {1, 2}, "evaluate": {1, 2}, "callback": {2}}
    monkeypatch.setattr(threads, "SMALL_STEP", 0)
    assert fit(model()) == {"view": {2}, "evaluate": {2}, "callback": {2}}


def test_convolutions_are_not_judged_by_their_weights() -> None:
    assert fit(model(hm.Conv((4,)))) == {"view": {2}, "evaluate": {2}, "callback": {2}}


@pytest.mark.parametrize("error", [OSError("in a step"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_the_number_is_put_back_however_a_step_ends(error: Exception) -> None:
    if isinstance(error, KeyboardInterrupt):
        fit(model(), error)
    else:
        with pytest.raises(OSError, match="in a step"):
            fit(model(), error)
    assert torch.get_num_threads() == 2


def test_a_process_of_one_thread_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: pytest.fail("set"))
    assert fit(model()) == {"view": {1}, "evaluate": {1}, "callback": {1}}
