"""The door for data: values are looked at once, where they come in, and again only by who asks more of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import hmoevae as hm
from hmoevae.door import Checked
from hmoevae.errors import DataError, ShapeError
from hmoevae.estimator import VAEMixture

N_COLUMNS = 7
N_LEAVES = 4
NET = hm.MLP((3,))
ANY = hm.Gaussian(0.5, mean="identity")
GREY = hm.ContinuousBernoulli()


def make(likelihood: hm.spec.Likelihood = ANY, dtype: torch.dtype = torch.float32) -> hm.HMoEVAE:
    torch.manual_seed(0)
    tree = hm.Mixture.of(hm.Mixture.of(hm.VAE(2, NET, NET, likelihood), 2, gate=NET), 2, gate=NET)
    return hm.HMoEVAE(tree, (N_COLUMNS,)).to(dtype)


def samples(n: int = 60) -> Tensor:
    return torch.rand(n, N_COLUMNS, generator=torch.Generator().manual_seed(1))


class Looks(TorchFunctionMode):
    """Counts the samples whose values are looked at, whether they are finite or in what range."""

    LOOKS = ("aminmax", "isfinite", "isnan", "isinf", "min", "max", "amin", "amax")

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        x = args[0] if args else None
        if func.__name__ in self.LOOKS and isinstance(x, Tensor) and x.ndim == 2 and x.shape[1] == N_COLUMNS:
            self.n += len(x) if len(x) > N_LEAVES else 0  # what is shorter are the biases of decoders
        return func(*args, **(kwargs or {}))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Calls a function, and says how many samples were looked at in it, by us and by scikit-learn."""
    validation = pytest.importorskip("sklearn.utils.validation")
    mode, look = Looks(), validation._assert_all_finite

    def counting(x: np.ndarray, *args: object, allow_nan: bool = False, **how: object) -> None:
        mode.n += 0 if allow_nan or np.ndim(x) != 2 else len(x)
        look(x, *args, allow_nan=allow_nan, **how)

    monkeypatch.setattr(validation, "_assert_all_finite", counting)

    def count(call: Callable[[], object]) -> int:
        before = mode.n
        with mode:
            call()
        return mode.n - before

    return count


# --- how often ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::hmoevae.errors.ConvergenceWarning")
@pytest.mark.parametrize("n_init", [1, 3])
def test_an_estimator_looks_once(looks: Callable[[Callable[[], object]], int], n_init: int) -> None:
    """Once a call, however many trainings and measurements it takes; six times and fourteen it was."""
    x = samples().numpy()
    mixture = VAEMixture(2, hidden=(3,), max_iter=2, n_init=n_init, n_importance=2, random_state=0, device="cpu")
    mixture.set_params(init="random")
    assert looks(lambda: mixture.fit(x)) == len(x)
    for method in (mixture.predict, mixture.predict_proba, mixture.transform, mixture.score_samples):
        assert looks(lambda method=method: method(x)) == len(x), method.__name__


def test_training_looks_once_at_what_it_is_given(looks: Callable[[Callable[[], object]], int]) -> None:
    """Not again after every epoch, when it measures itself on held-out data."""
    x, held_out = samples(60), samples(20)

    def fit(data: Tensor | Checked, measured: Tensor | Checked) -> None:
        hm.fit(make(), data, hm.Training(epochs=3), validation_data=measured, progress=False)

    assert looks(lambda: fit(x, held_out)) == 80
    model = make()
    assert looks(lambda: fit(model.checked(x), held_out)) == 80
    data = model.checked(x)
    assert looks(lambda: fit(data, data)) == 0


def test_checked_samples_are_taken_unlooked(looks: Callable[[Callable[[], object]], int]) -> None:
    model, x = make(), samples()
    data = model.checked(x)
    labels = torch.arange(len(x)) % 2
    calls = {
        "check_input": lambda: model.check_input(data),
        "checked": lambda: model.checked(data),
        "predict": lambda: model.predict(data),
        "encode": lambda: model.encode(data),
        "reconstruct": lambda: model.reconstruct(data),
        "score_samples": lambda: model.score_samples(data, n_importance=2),
        "evaluate": lambda: model.evaluate(data),
        "report": lambda: hm.metrics.report(model, data, labels),
    }
    assert {name: looks(call) for name, call in calls.items()} == dict.fromkeys(calls, 0)
    assert looks(lambda: model.evaluate(x)) == len(x)  # as the count can be another than 0
    assert looks(lambda: hm.metrics.report(model, x, labels)) == len(x)


# --- what comes of it -----------------------------------------------------------------------------------------------


def test_answers_and_trainings_are_the_same() -> None:
    x, first, second = samples(), make(), make()
    data = first.checked(x)
    assert torch.equal(first.score_samples(data, n_importance=2), first.score_samples(x, n_importance=2))
    assert first.evaluate(data) == first.evaluate(x)
    for model, given in ((first, x), (second, data)):
        hm.fit(model, given, hm.Training(epochs=2, seed=0), progress=False, validation_data=given)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_a_training_goes_on_with_the_same_samples_checked(tmp_path: Path) -> None:
    x, model = samples(), make()
    hm.fit(model, x, hm.Training(epochs=1, seed=0), progress=False, checkpoint_dir=tmp_path)
    history = hm.fit(make(), model.checked(x), hm.Training(epochs=2, seed=0), progress=False, checkpoint_dir=tmp_path)
    assert len(history) == 2


# --- another door ---------------------------------------------------------------------------------------------------


def test_who_asks_more_looks_again() -> None:
    free = make().checked(samples() * 3)
    with pytest.raises(DataError, match=r"x: expected values in \[0, 1\], got values from "):
        make(GREY).score_samples(free, n_importance=2)
    with pytest.raises(DataError, match=r"data: expected values in \[0, 1\], got values from "):
        hm.fit(make(GREY), free, hm.Training(epochs=1), progress=False)
    large = make(dtype=torch.float64).checked(samples().double() * 1e300)
    with pytest.raises(DataError, match="x: expected finite values"):
        make().predict(large)
    with pytest.raises(ShapeError, match=r"x: expected \(batch, 2\), got \(60, 7\)"):
        hm.HMoEVAE(hm.VAE(2), (2,)).encode(free)


def test_what_gates_may_see_experts_need_not_take() -> None:
    """Without support, predict takes them unlooked, and score_samples looks."""
    model = make(GREY)
    with pytest.warns(UserWarning, match=r"x: expected values in \[0, 1\], or close to it, got values from "):
        data = model.checked(samples() * 255, support=False)
    assert not data.in_support
    assert model.checked(data, support=False) is data
    model.predict(data)  # warns no more, or this test would end here
    with pytest.raises(DataError, match=r"x: expected values in \[0, 1\], got values from "):
        model.score_samples(data, n_importance=2)


def test_what_rounding_has_moved_comes_back_moved() -> None:
    model, x = make(GREY), samples()
    x[0, 0] = 1 + 1e-6
    data = model.checked(x)
    assert isinstance(data, Checked)
    assert data.x.max() == 1
    assert x.max() > 1  # the user's own stay as they are
