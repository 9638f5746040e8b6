"""Networks and views of a user's own draw from the global random states, as the seed says, and leave them alone."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hmoevae as hm
from hmoevae.nn.draws import Share
from hmoevae.training.processes import Processes
from hmoevae.training.random_states import may_draw, seeded_random_states

CPU = torch.device("cpu")
LAYER = hm.MLP((8,))
TREE = hm.Mixture.of(hm.VAE(2, LAYER, LAYER), 3, gate=LAYER)
X = torch.rand(40, 4, generator=torch.Generator().manual_seed(0))


@hm.record(kind="test_random_states_dropout")
class WithDropout(hm.Network):
    """A dense layer behind dropout."""

    def build(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
        n_in, n_out = (torch.Size(shape).numel() for shape in (in_shape, out_shape))
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(n_in, n_out))


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002


def test_random_states_follow_from_the_generator_the_share_and_the_salt() -> None:
    def of(seed: int = 0, start: int = 0, salt: bytes = b"") -> tuple[float, float, float]:
        with seeded_random_states(torch.Generator().manual_seed(seed), Share(start, 5, 20), CPU, salt):
            return drawn()

    random.seed(1)
    state = torch.get_rng_state()
    others = [of(1), of(start=5), of(salt=b"networks")]
    assert of() == of() not in others
    assert len(set(others)) == 3
    assert torch.equal(torch.get_rng_state(), state)
    assert random.random() == random.Random(1).random()


def test_only_what_may_draw_is_lent_to() -> None:
    class Own(nn.Module):
        pass

    assert not may_draw(hm.HMoEVAE(TREE, (4,)))
    assert not may_draw(hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 2, gate=hm.Conv((2,))), (1, 4, 4)))
    assert may_draw(nn.Sequential(nn.Dropout()))
    assert may_draw(nn.Sequential(Own()))


@pytest.mark.filterwarnings("ignore::hmoevae.errors.CollapseWarning")
def test_dropout_of_a_users_network_follows_the_seed(rng_untouched: None) -> None:
    def trained(seed: int) -> Tensor:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, WithDropout(), LAYER), 2, gate=LAYER), (4,))
            torch.rand(seed + 1)  # wherever the global state is
            hm.fit(model, X, hm.Training(epochs=1, batch_size=8, seed=seed, device="cpu"), progress=False)
        return torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


@pytest.mark.filterwarnings("ignore::hmoevae.errors.CollapseWarning")
def test_views_of_gates_alone_are_other_ones_in_every_step() -> None:
    """Though nothing is drawn from the generator in between."""
    seen: list[float] = []

    def view(x: Tensor) -> Tensor:
        seen.append(torch.rand(()).item())
        return x

    model = hm.HMoEVAE(TREE, (4,))
    agreement = hm.Agreement(partner=None, alone=1.0)
    training = hm.Training(epochs=1, batch_size=8, view=view, agreement=agreement, device="cpu")
    hm.fit(model, X, training, progress=False)
    assert len(set(seen)) == len(seen) == 10


def test_a_process_alone_finds_the_first_flag() -> None:
    alone: Any = Processes(CPU)
    assert [alone.first(flags) for flags in ([False, False], [False, True, True], [])] == [None, 1, None]
