"""step_em: frames, groups of leaves of different sizes, and what it refuses."""

import copy

import pytest
import torch

import hmoevae as hm
from hmoevae.em import Step, step_em
from hmoevae.errors import ArgumentError, SpecError

NUMBER = hm.Gaussian("learned", "identity")


def linear(latent_dim: int = 1, likelihood: hm.Likelihood = NUMBER) -> hm.VAE:
    return hm.VAE(latent_dim, hm.LinearPosterior(), hm.MLP(()), likelihood)


def model_of(*leaves: hm.VAE, shape: hm.Table | tuple[int, ...] = (3,), **options: object) -> hm.HMoEVAE:
    options = {"gate": hm.PosteriorGate(), "balance": None, "prior": "learned", **options}
    return hm.HMoEVAE(hm.Mixture(children=leaves, **options), shape, objective="marginal").double()  # type: ignore[arg-type]


def blobs() -> torch.Tensor:
    x = torch.randn(120, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([x[:90] - 4, 2 * x[90:] + 4])


def test_leaves_of_different_sizes_share_what_they_cannot_learn_alone() -> None:
    x = blobs()
    model, other = model_of(linear(1), linear(2)), model_of(linear(1), linear(2))
    hm.fit_em(model, x, hm.EM(max_iter=5, tol=0.0))
    other.load_state_dict(model.state_dict())
    hm.fit_em(model, x, hm.EM(max_iter=1, tol=0.0, init="model"))
    step_em(other, x, Step(1.0, len(x)))
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same)


def test_frames_are_samples() -> None:
    x = blobs()
    frame = {"a": x[:, 0].numpy(), "b": x[:, 1].numpy()}
    table = hm.Table.of(frame)
    leaf = linear(1, table.likelihood())
    model = model_of(leaf, leaf, shape=table)
    hm.fit_em(model, frame)
    twin = copy.deepcopy(model)
    assert step_em(model, frame, Step(0.5, 200)) == step_em(twin, table.encode(frame), Step(0.5, 200))


def test_what_has_no_closed_form_and_steps_too_far_are_refused() -> None:
    x = blobs()
    with pytest.raises(SpecError, match=r"^root\.gate: expected PosteriorGate"):
        step_em(model_of(linear(), linear(), gate=hm.MLP(())), x, Step(0.5, 100))
    with pytest.raises(ArgumentError, match=r"^step: expected a rate from 0 to 1 and n_seen >= 0, got .*rate=1\.5"):
        step_em(model_of(linear(), linear()), x, Step(1.5, 100))
