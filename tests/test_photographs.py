"""Photographs: the views are torchvision's, and features learnt from copies tell apart what pixels do not."""

from typing import Any

import pytest
import torch
from torchvision.transforms import functional as tv

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError
from hmoevae.nn.draws import Share
from hmoevae.photographs import ColourJitter, RandomCrop, learn_patches
from hmoevae.training import training_from_json
from hmoevae.views import Compose, Neighbour

NO_CHANGE = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grey": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(6, 3, 12, 16, generator=seeded())


def textures(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stripes along or down, in noise, of any colour, brightness and place; and which of the two."""
    rng = seeded(1)
    kind = torch.arange(n) % 2
    phase, colour = torch.rand(n, 1, 1, generator=rng), torch.rand(n, 3, 1, 1, generator=rng)
    wave = (torch.arange(16).view(1, 1, 16) / 4 + phase).mul(2 * torch.pi).sin().expand(-1, 16, -1)
    wave = torch.where(kind.view(-1, 1, 1) == 1, wave.transpose(1, 2), wave).unsqueeze(1)
    noise = 0.05 * torch.randn(n, 3, 16, 16, generator=rng)
    return (0.8 * colour + 0.1 + 0.1 * wave + noise).clamp(0, 1), kind


@pytest.mark.parametrize(
    ("name", "row", "reference"),
    [
        ("brightness", 0, tv.adjust_brightness),
        ("contrast", 1, tv.adjust_contrast),
        ("saturation", 2, tv.adjust_saturation),
    ],
)
def test_colours_change_as_in_torchvision(x, name, row, reference):
    changed = ColourJitter(**NO_CHANGE | {name: 0.5})(x, generator=seeded(3))
    factors = 1 + 0.5 * (2 * torch.rand(5, len(x), generator=seeded(3))[row] - 1)
    expected = torch.stack([reference(image, factor.item()) for image, factor in zip(x, factors, strict=True)])
    torch.testing.assert_close(changed, expected, atol=1e-3, rtol=0)


def test_greys_have_no_hue_and_lose_no_colour(x):
    grey = x[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(ColourJitter(**NO_CHANGE | {"hue": 0.5})(grey), grey, atol=1e-6, rtol=0)
    lost = ColourJitter(**NO_CHANGE | {"grey": 1.0})(x)
    torch.testing.assert_close(lost, tv.rgb_to_grayscale(x, 3), atol=1e-3, rtol=0)
    assert (ColourJitter(**NO_CHANGE | {"hue": 0.5})(x) - x).abs().max() > 0.1


def test_a_whole_image_is_no_crop(x):
    torch.testing.assert_close(RandomCrop(area=(1.0, 1.0), aspect=1.0, mirror=False)(x), x)
    either = RandomCrop(area=(1.0, 1.0), aspect=1.0)(x.repeat(20, 1, 1, 1), generator=seeded())
    mirrored = (either - x.flip(3).repeat(20, 1, 1, 1)).abs().amax((1, 2, 3)) < 1e-5
    assert 40 < mirrored.sum() < 80
    torch.testing.assert_close(either[~mirrored], x.repeat(20, 1, 1, 1)[~mirrored])


def test_a_quarter_has_half_the_slope_and_lies_within():
    ramp = torch.arange(32).expand(50, 1, 32, 32).div(31)
    part = RandomCrop(area=(0.25, 0.25), aspect=1.0, mirror=False)(ramp, generator=seeded())
    slopes = part[..., 2:-2].diff(dim=3)
    torch.testing.assert_close(slopes, torch.full_like(slopes, 0.5 / 31), atol=1e-5, rtol=0)
    assert part.mean((1, 2, 3)).std() > 0.1


@pytest.mark.parametrize("view", [RandomCrop(), ColourJitter()])
def test_every_image_has_its_own_draw(view, x, rng_untouched):
    whole = view(x, generator=seeded())
    assert whole.shape == x.shape
    torch.testing.assert_close(view(x[2:4], generator=seeded(), share=Share(2, 2, len(x))), whole[2:4])
    assert not torch.equal(view(x, generator=seeded(1)), whole)


def test_views_are_read_back_from_json():
    training = hm.Training(view=Compose([RandomCrop(area=(0.5, 1.0)), ColourJitter(hue=0.2)]))
    assert training_from_json(training.to_json()) == training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(area=(0.0, 1.0)), "RandomCrop.area: expected two ascending numbers above 0, to 1"),
        (lambda: RandomCrop(area=(0.5, 0.2)), "RandomCrop.area"),
        (lambda: RandomCrop(aspect=0.5), "RandomCrop.aspect: expected a finite number >= 1"),
        (lambda: RandomCrop(mirror=1), "RandomCrop.mirror: expected True or False"),  # type: ignore[arg-type]
        (lambda: ColourJitter(hue=2.0), "ColourJitter.hue: expected a number from 0 to 1"),
    ],
)
def test_bad_fields_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.usefixtures("as_users_call")
def test_views_are_for_images(x):
    with pytest.raises(ShapeError, match="x: expected images"):
        RandomCrop()(x[0])
    with pytest.raises(ShapeError, match="colour images"):
        ColourJitter()(x[:, :1])
    with pytest.raises(ArgumentTypeError, match="floating point"):
        RandomCrop()((255 * x).byte())


def test_neighbours_by_learnt_patches_show_the_same(rng_untouched):
    x, kind = textures(300)
    tagged = x.clone()
    tagged[:, 0, 0, 0] = kind  # what is returned says which kind was drawn

    def purity(**how: Any) -> float:
        view = Neighbour(k=5, **how).prepare(tagged)
        drawn = view(tagged, index=torch.arange(len(x)), generator=seeded())
        return (drawn[:, 0, 0, 0] == kind).float().mean().item()

    change = Compose([RandomCrop(area=(0.6, 1.0)), ColourJitter()])
    learnt = learn_patches(x, view=change, n_filters=20, n_features=16)
    assert purity() < 0.9
    assert purity(features=learnt, n_components=16) > 0.99


def test_the_same_seed_learns_the_same_features(rng_untouched):
    x, _ = textures(60)
    how = {"view": lambda images: images + 0.1 * torch.randn_like(images), "n_filters": 6, "n_features": 4}
    first, again, other = (learn_patches(x, **how, seed=seed)(x) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert first.norm(dim=1).sub(1).abs().max() < 1e-5


def test_images_are_described_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = textures(60)
    features = learn_patches(x, view=RandomCrop(), n_filters=6, n_features=4)
    whole = features(x)
    monkeypatch.setattr(hm.photographs, "CHUNK", 7)
    torch.testing.assert_close(features(x), whole)


@pytest.mark.usefixtures("as_users_call")
def test_what_cannot_be_learnt_from_is_refused():
    x, _ = textures(60)
    with pytest.raises(ShapeError, match="at least 12 by 12 pixels"):
        learn_patches(x[:, :, :8], view=RandomCrop())
    with pytest.raises(DataError, match="images: expected more than 128, the number of features, got 60"):
        learn_patches(x, view=RandomCrop())
    with pytest.raises(DataError, match="finite"):
        learn_patches(x / 0, view=RandomCrop(), n_features=4)
    with pytest.raises(ArgumentError, match="n_views"):
        learn_patches(x, view=RandomCrop(), n_features=4, n_views=1)
    features = learn_patches(x, view=RandomCrop(), n_filters=6, n_features=4)
    with pytest.raises(ShapeError, match=r"images: expected \(n, 3, height, width\)"):
        features(x[:, :1])
