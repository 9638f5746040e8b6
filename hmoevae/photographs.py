"""Photographs: random changes that leave what they show, and features by which they are compared.

Axes: `n` counts images; `patch` the pixels of a patch, `filter` what patches are compared with, `feature` features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BeforeValidator, PlainValidator
from torch import Tensor

from hmoevae.checks import check_integer, is_number
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError, mismatch
from hmoevae.nn.draws import Share, borrowed_random_state, for_batch
from hmoevae.spec.record import NonNegativeFloat, Probability, expected, record
from hmoevae.views import View, ViewLike, as_view

__all__ = [
    "ColourJitter",
    "PatchFeatures",
    "RandomCrop",
    "learn_patches",
]


def __dir__() -> list[str]:
    """The public names."""
    return __all__


Images = Float[Tensor, "n channel height width"]
LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""
SIDE, STRIDE, WINDOWS = 6, 2, 3
"""Side of the patches and their spacing, in pixels; responses are averaged over so many by so many windows."""
LEAST_CONTRAST = 10 / 255**2
"""Variance added to that of a patch before it is normalised, so that noise of even patches stays small."""
LEAST_VARIANCE = 0.1
"""Variance added to that of every principal component of patches before it is whitened."""
THRESHOLD = 0.25
N_PATCHES, ROUNDS = 50_000, 15
"""Number of patches from which filters are learnt, and rounds of k-means."""
MOST_LEARNT = 20_000
"""Largest number of images from which directions are learnt."""
N_COMPONENTS = 1000
"""Largest number of principal components among which directions are looked for."""
RIDGE = 0.03
"""Share of the mean variance between copies that is added to that along every direction."""
CHUNK = 50
"""Number of images processed at a time: intermediate results stay in the cache, which is four times faster than 250."""


# --- views ----------------------------------------------------------------------------------------------------------


def _area(value: object) -> tuple[float, float]:
    pair = value if isinstance(value, tuple | list) and len(value) == 2 else (None, None)
    if not all(is_number(share, positive=True) for share in pair) or not pair[0] <= pair[1] <= 1:  # type: ignore[operator]
        raise expected("two ascending numbers above 0, to 1")
    return float(pair[0]), float(pair[1])  # type: ignore[arg-type]


def _ratio(value: object) -> float:
    if not is_number(value) or value < 1:  # type: ignore[operator]
        raise expected("a finite number >= 1")
    return float(value)  # type: ignore[arg-type]


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise expected("True or False")
    return value


@record(kind="random_crop", error=ArgumentError)
class RandomCrop(View):
    """Replace every image by a random part of it, enlarged to the size of the image, and mirror every second one.

    Every image has its own draw. The interpolation is bilinear.

    Args:
        area: Smallest and largest share of the image's area.
        aspect: Largest stretch of the part along one side against the other; the logarithm of the stretch is uniform.
        mirror: Whether every second image, on average, is mirrored, left to right.

    Raises:
        ArgumentError: A field cannot be used.

    >>> RandomCrop()(torch.rand(5, 3, 32, 32)).shape
    torch.Size([5, 3, 32, 32])
    """

    area: Annotated[tuple[float, float], PlainValidator(_area)] = (0.4, 1.0)
    aspect: Annotated[float, BeforeValidator(_ratio)] = 4 / 3
    mirror: Annotated[bool, PlainValidator(_flag)] = True

    def __call__(
        self,
        x: Tensor,
        *,
        index: Tensor | None = None,  # noqa: ARG002
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Images:
        """Change every image by its own draw.

        Raises:
            ArgumentTypeError: The images are not floating point numbers.
            ShapeError: `x` are not images.
        """
        u = _uniform(x, 5, generator, share)
        size = self.area[0] + (self.area[1] - self.area[0]) * u[0]
        stretch = (math.log(self.aspect) * (2 * u[1] - 1)).exp()
        part = torch.stack([size * stretch, size / stretch], dim=1).sqrt().clamp_max(1)  # of the width, of the height
        centre = (2 * u[2:4].t() - 1) * (1 - part)
        if self.mirror:
            side = torch.where(u[4] < 0.5, -1.0, 1.0)
            part = torch.stack([part[:, 0] * side, part[:, 1]], dim=1)
        theta = torch.cat([torch.diag_embed(part), centre.unsqueeze(2)], dim=2).to(x.dtype)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


@record(kind="colour_jitter", error=ArgumentError)
class ColourJitter(View):
    """Change brightness, contrast, saturation and hue of every colour image by random amounts.

    Every image has its own draw. Pixels stay between 0 and 1.

    Args:
        brightness: The factor of the pixels is drawn from [1 - brightness, 1 + brightness].
        contrast: The factor of the pixels' distance to the image's mean brightness, likewise.
        saturation: The factor of the pixels' distance to their own brightness, likewise.
        hue: Colours are turned about grey by at most this share of a turn, from 0 to 0.5.
        grey: Probability that an image loses its colours.

    Raises:
        ArgumentError: A field cannot be used.

    >>> ColourJitter()(torch.rand(5, 3, 32, 32)).shape
    torch.Size([5, 3, 32, 32])
    """

    brightness: Probability = 0.4
    contrast: Probability = 0.4
    saturation: NonNegativeFloat = 0.4
    hue: Probability = 0.1
    grey: Probability = 0.2

    def __call__(
        self,
        x: Tensor,
        *,
        index: Tensor | None = None,  # noqa: ARG002
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Images:
        """Change every image by its own draw.

        Raises:
            ArgumentTypeError: The images are not floating point numbers.
            ShapeError: `x` are not images of three channels.
        """
        u = _uniform(x, 5, generator, share)
        if x.shape[1] != 3:
            raise ShapeError(mismatch("x", "colour images, (batch, 3, height, width)", tuple(x.shape)))
        shares = x.new_tensor(LUMINANCE).view(3, 1, 1)
        factor = 1 + x.new_tensor([self.brightness, self.contrast, self.saturation]).unsqueeze(1) * (2 * u[:3] - 1)
        factor[2] = torch.where(u[4] < self.grey, 0.0, factor[2].clamp_min(0))
        bright, contrast, saturated = factor.view(3, -1, 1, 1, 1)
        x = x * bright
        mean = (x * shares).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        x = mean + (x - mean) * contrast
        light = (x * shares).sum(1, keepdim=True)
        turned = torch.einsum("bij,bjhw->bihw", _turns(2 * math.pi * self.hue * (2 * u[3] - 1)), x - light)
        return (light + saturated * turned).clamp(0, 1)


def _turns(angle: Float[Tensor, " n"]) -> Float[Tensor, "n 3 3"]:
    """Rotations of colours about the axis of greys, in radians.

    >>> turn = _turns(torch.tensor([2 * math.pi / 3]))[0]
    >>> torch.allclose(turn @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    True
    """
    across, along = angle.sin() / math.sqrt(3), (1 - angle.cos()) / 3
    same, next_, last = angle.cos() + along, along - across, along + across
    rows = [[same, next_, last], [last, same, next_], [next_, last, same]]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _uniform(x: Tensor, rows: int, generator: torch.Generator | None, share: Share | None) -> Float[Tensor, "row n"]:
    """So many numbers from 0 to 1 for every image.

    Raises:
        ArgumentTypeError: The images are not floating point numbers.
        ShapeError: `x` are not images.
    """
    if x.ndim != 4:
        raise ShapeError(mismatch("x", "images, (batch, channels, height, width)", tuple(x.shape)))
    if not x.is_floating_point():
        raise ArgumentTypeError(mismatch("x", "floating point values (such as pixels / 255)", x.dtype))

    def draw(n: int) -> Tensor:
        return torch.rand(rows, n, generator=generator, device=x.device, dtype=x.dtype)

    return for_batch(draw, len(x), share)


# --- features -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PatchFeatures:
    """A function from images to features, as `learn_patches` makes it.

    Attributes:
        filters: What every patch is compared with.
        bias: Added to the comparisons.
        mean: Of the averaged comparisons, over images.
        directions: From averaged comparisons, less their mean, to features.

    >>> features = learn_patches(torch.rand(60, 3, 32, 32), view=RandomCrop(), n_filters=8, n_features=4)
    >>> isinstance(features, PatchFeatures), features, features(torch.rand(5, 3, 32, 32)).shape
    (True, <PatchFeatures: 4 of 8 filters>, torch.Size([5, 4]))
    """

    filters: Float[Tensor, "patch filter"]
    bias: Float[Tensor, " filter"]
    mean: Float[Tensor, " response"]
    directions: Float[Tensor, "response feature"]

    def __call__(self, images: Images) -> Float[Tensor, "n feature"]:
        """The features of images, of unit length.

        Raises:
            ShapeError: The images have other channels than those that the features were learnt from, or are too small.
        """
        found = [(_responses(part, self) - self.mean) @ self.directions for part in _chunks(images)]
        return F.normalize(torch.cat(found), dim=1)

    def __repr__(self) -> str:
        """The numbers of features and filters."""
        return f"<PatchFeatures: {self.directions.shape[1]} of {self.filters.shape[1]} filters>"


def learn_patches(
    images: Images, *, view: ViewLike, n_filters: int = 200, n_features: int = 128, n_views: int = 4, seed: int = 0
) -> PatchFeatures:
    """Learn features by which images are compared, from the images themselves, without labels and without clusters.

    Photographs of one kind share neither pixels nor edges, but surfaces and parts. Two steps find features of these,
    both without gradients:

    1. Patches of six by six pixels are normalised and whitened, and k-means finds `n_filters` filters among them. An
       image is described by how far its patches are beyond a threshold along each filter and against it, averaged over
       three by three windows, and the root of that (Coates & Ng 2011).
    2. What matters is what an image shares with changed copies of itself, and with few other images. Kept are the
       directions along which images differ most in proportion to how much the copies of one image differ, as in a
       discriminant analysis (Fisher 1936) where every image is a class of its own. This is the linear form of learning
       by contrast (Balestriero & LeCun 2022).

    The result is for `hmoevae.views.Neighbour(features=..., n_components=n_features)`.

    Args:
        images: Images with pixels from 0 to 1, of at least 12 by 12 pixels. Directions are learnt from the first
            20,000.
        view: The random change that makes the copies; it should leave what an image shows, and change all that does not
            matter.
        n_filters: Number of filters.
        n_features: Number of features.
        n_views: Number of changed copies of every image, at least 2.
        seed: Seed of the patches, the first filters and the changes.

    Raises:
        ArgumentError: A number is out of range.
        DataError: There are fewer images than features, or they have not finite values.
        ShapeError: The images are not four-dimensional, or too small.

    >>> features = learn_patches(torch.rand(60, 1, 28, 28), view=RandomCrop(), n_filters=8, n_features=4)
    >>> features(torch.rand(5, 1, 28, 28)).shape
    torch.Size([5, 4])
    """
    for name, value, least in (("n_filters", n_filters, 1), ("n_features", n_features, 1), ("n_views", n_views, 2)):
        check_integer(name, value, least=least)
    smallest = SIDE + STRIDE * WINDOWS
    if images.ndim != 4 or min(images.shape[2:]) < smallest:
        words = f"(n, channels, height, width), of at least {smallest} by {smallest} pixels"
        raise ShapeError(mismatch("images", words, tuple(images.shape)))
    if len(images) <= n_features:
        raise DataError(mismatch("images", f"more than {n_features}, the number of features", len(images)))
    if not images.isfinite().all():
        raise DataError(mismatch("images", "finite values", "NaN or infinite ones"))
    images = images.detach().cpu()
    generator = torch.Generator().manual_seed(seed)
    filters, bias = _filters(images, n_filters, generator)
    size = 2 * n_filters * WINDOWS**2
    plain = PatchFeatures(filters, bias, torch.zeros(size), torch.zeros(size, 0))
    some = images[torch.randperm(len(images), generator=generator)[:MOST_LEARNT]]
    mean, axes = _components(torch.cat([_responses(part, plain) for part in _chunks(some[: MOST_LEARNT // 2])]))

    def components(change: Callable[[Tensor], Tensor]) -> Float[Tensor, "n component"]:
        return torch.cat([(_responses(change(part), plain) - mean) @ axes for part in _chunks(some)])

    changed = as_view(view)
    with borrowed_random_state(seed):  # a view that is a plain callable draws from the global ones
        copies = torch.stack([components(lambda part: changed(part, generator=generator)) for _ in range(n_views)])
    return replace(plain, mean=mean, directions=axes @ _directions(copies)[:, :n_features])


def _chunks(images: Tensor) -> tuple[Tensor, ...]:
    return images.detach().cpu().float().split(CHUNK)


def _normalised(patches: Float[Tensor, "row patch"]) -> Float[Tensor, "row patch"]:
    """Patches less their mean, in units of their contrast."""
    centred = patches - patches.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + LEAST_CONTRAST).sqrt()


def _filters(
    images: Images, n_filters: int, generator: torch.Generator
) -> tuple[Float[Tensor, "patch filter"], Float[Tensor, " filter"]]:
    """Filters of normalised patches by k-means on the sphere, where a filter stands for its negative too."""

    def draw(below: int) -> Tensor:
        return torch.randint(below, (N_PATCHES,), generator=generator)

    image, top, left = (draw(n) for n in (len(images), images.shape[2] - SIDE + 1, images.shape[3] - SIDE + 1))
    steps = torch.arange(SIDE)
    rows, columns = (top.unsqueeze(1) + steps).unsqueeze(2), (left.unsqueeze(1) + steps).unsqueeze(1)
    drawn = images[image.view(-1, 1, 1), :, rows, columns].movedim(3, 1)
    patches = _normalised(drawn.flatten(1).float())
    mean = patches.mean(0)
    variance, axes = torch.linalg.eigh(torch.cov(patches.t()))
    whiten = axes * (variance.clamp_min(0) + LEAST_VARIANCE).rsqrt() @ axes.t()
    points = F.normalize((patches - mean) @ whiten, dim=1)
    found = points[torch.randperm(N_PATCHES, generator=generator)[:n_filters]]
    for _ in range(ROUNDS):
        likeness = points @ found.t()
        nearest = likeness.abs().argmax(1)
        sign = likeness.gather(1, nearest.unsqueeze(1)).sign()
        found = F.normalize((1e-6 * found).index_add_(0, nearest, points * sign), dim=1)
    filters = whiten @ found.t()
    return filters, -mean @ filters


def _responses(images: Images, features: PatchFeatures) -> Float[Tensor, "n response"]:
    """The comparisons of an image's patches with the filters, averaged over windows."""
    n, (size, n_filters) = len(images), features.filters.shape
    if images.ndim != 4 or images.shape[1] * SIDE**2 != size or min(images.shape[2:]) < SIDE:
        raise ShapeError(mismatch("images", f"(n, {size // SIDE**2}, height, width)", tuple(images.shape)))
    patches = F.unfold(images, SIDE, stride=STRIDE).transpose(1, 2)
    along = torch.addmm(features.bias, _normalised(patches.flatten(0, 1)), features.filters).view(n, -1, n_filters)
    average = _windows((images.shape[2] - SIDE) // STRIDE + 1, (images.shape[3] - SIDE) // STRIDE + 1)
    beyond = (along - THRESHOLD).relu_(), along.neg_().sub_(THRESHOLD).relu_()
    return torch.cat([average @ part for part in beyond], dim=2).transpose(1, 2).flatten(1).sqrt()


def _windows(height: int, width: int) -> Float[Tensor, "window patch"]:
    """The weights with which patches are averaged over windows, those of `torch.nn.AdaptiveAvgPool2d`.

    >>> _windows(14, 14).shape, torch.equal(_windows(3, 3), torch.eye(9))
    (torch.Size([9, 196]), True)
    """
    every = torch.eye(height * width).view(-1, 1, height, width)
    return F.adaptive_avg_pool2d(every, WINDOWS).flatten(1).t()


def _components(
    responses: Float[Tensor, "n response"],
) -> tuple[Float[Tensor, " response"], Float[Tensor, "response component"]]:
    """The mean, and the leading principal components of responses in units of their standard deviations."""
    mean, scale = responses.mean(0), responses.std(0).clamp_min(1e-6)
    axes = torch.linalg.eigh(torch.cov(((responses - mean) / scale).t()))[1].flip(1)
    kept = min(N_COMPONENTS, len(responses) - 1)
    return mean, axes[:, :kept] / scale.unsqueeze(1)


def _directions(copies: Float[Tensor, "view n component"]) -> Float[Tensor, "component direction"]:
    """Directions of largest variance, in units where the copies of an image have variance one; the largest first."""
    within = (copies - copies.mean(0)).flatten(0, 1)
    inner = within.t() @ within / (len(copies) - 1) / copies.shape[1]
    every = torch.cov(copies.flatten(0, 1).t())
    inner.diagonal().add_(RIDGE * inner.diagonal().mean() + 1e-9)
    root = torch.linalg.cholesky(inner)
    half = torch.linalg.solve_triangular(root, every, upper=False)
    ratio = torch.linalg.solve_triangular(root, half.t(), upper=False)
    axes = torch.linalg.eigh((ratio + ratio.t()) / 2)[1].flip(1)
    return torch.linalg.solve_triangular(root.t(), axes, upper=True)
