"""Features: they are what a plain reference computes, and neighbours are found by them."""

import math

import pytest
import torch

import hmoevae as hm
from hmoevae.errors import ArgumentError, ShapeError
from hmoevae.features import filled, oriented_gradients
from hmoevae.views import Neighbour


def naive(image: torch.Tensor) -> torch.Tensor:
    """The features of one channel, pixel by pixel: (direction, row, column)."""
    height, width = image.shape

    def pixel(row: int, column: int) -> float:
        return image[row, column].item() if 0 <= row < height and 0 <= column < width else 0.0

    weights = [math.exp(-((offset / 1.5) ** 2) / 2) for offset in range(-4, 5)]
    found = torch.zeros(8, math.ceil(height / 3), math.ceil(width / 3))
    for direction, row, column in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        total = 0.0
        for i, down in enumerate(range(3 * row - 4, 3 * row + 5)):
            for j, along in enumerate(range(3 * column - 4, 3 * column + 5)):
                if 0 <= down < height and 0 <= along < width:
                    dx = pixel(down, along + 1) - pixel(down, along - 1)
                    dy = pixel(down + 1, along) - pixel(down - 1, along)
                    towards = math.cos(math.atan2(dy, dx) - direction * math.pi / 4)
                    share = weights[i] * weights[j] / sum(weights) ** 2
                    total += share * math.hypot(dx, dy) * max(0.0, towards) ** 2
        found[direction, row, column] = math.sqrt(total + 1e-3)
    return found


def test_oriented_gradients_are_those_of_a_plain_loop():
    images = torch.rand(2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.cat([naive(channel).flatten() for channel in image]) for image in images])
    torch.testing.assert_close(oriented_gradients(images), expected, atol=1e-5, rtol=1e-5)


def test_many_images_are_described_as_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(5, 1, 6, 6)
    whole = oriented_gradients(images)
    monkeypatch.setattr(hm.features, "CHUNK", 2)
    torch.testing.assert_close(oriented_gradients(images), whole)


@pytest.mark.usefixtures("as_users_call")
def test_what_is_no_image_is_refused():
    with pytest.raises(ShapeError, match=r"images: expected \(n, channels, height, width\), got \(5, 4\)"):
        oriented_gradients(torch.rand(5, 4))


def test_neighbours_are_found_by_their_features():
    """Only the last value counts, and by it samples are near those that they are far from by the others."""
    x = torch.tensor([[0.0, 1.0], [0.1, 9.0], [7.0, 1.1], [7.1, 9.1]])
    view = Neighbour(1, features=lambda samples: samples[:, 1:]).prepare(x)
    assert view(x, index=torch.arange(4)).tolist() == x[[2, 3, 0, 1]].tolist()


@pytest.mark.usefixtures("as_users_call")
def test_features_that_are_none_are_refused():
    with pytest.raises(ArgumentError, match=r"Neighbour.features: expected None or a callable .*, got 'gradients'"):
        Neighbour(features="gradients")
    with pytest.raises(ShapeError, match=r"Neighbour.features: expected a row for each of the 9 samples, got \(3, 4\)"):
        Neighbour(features=lambda samples: samples[:3]).prepare(torch.rand(9, 4))


def test_gaps_are_filled_from_the_other_columns():
    """Better than with means, where columns depend on each other; what was observed stays as it is."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(200, 2, generator=generator) @ torch.randn(2, 8, generator=generator)
    gaps = torch.rand(whole.shape, generator=generator) < 0.2
    x = (whole + 0.05 * torch.randn(whole.shape, generator=generator)).masked_fill(gaps, math.nan)
    found = filled(x)
    assert torch.equal(found[~gaps], x[~gaps])
    error = (found - whole)[gaps].square().mean()
    means = torch.where(gaps, x.nanmean(0), x)
    assert error < 0.5 * (means - whole)[gaps].square().mean()
    assert filled(whole) is whole


@pytest.mark.parametrize("shape", [(1, 3), (2, 3), (3, 1), (4, 2000)])
def test_gaps_of_any_table_are_filled(shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    x[0], x[:, 0] = math.nan, math.nan  # a row and a column of which nothing is known
    assert torch.isfinite(filled(x)).all()
