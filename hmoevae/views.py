"""Views: random changes of a sample that do not change its cluster, which the gates see in training.

Axes: `batch` counts the samples of a step, `n` those of the whole data set.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Annotated, Any, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import BeforeValidator, PlainValidator
from torch import Tensor

from hmoevae.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    MissingExtraError,
    ShapeError,
    from_extra,
    mismatch,
)
from hmoevae.features import principal_components
from hmoevae.nn.draws import Share, for_batch
from hmoevae.spec.record import PositiveInt, expected, record

__all__ = [
    "Compose",
    "Neighbour",
    "RandomAffine",
    "View",
    "ViewLike",
]


def __dir__() -> list[str]:
    """The public names."""
    return __all__


Index = Int[Tensor, " batch"]


class View(ABC):
    """A random change of samples; the same generator state gives the same change.

    To make your own, define `__call__`, and `prepare` if it needs the whole data set. Any callable from samples to
    samples is a view too; it may draw from the global random states, which `hmoevae.fit` seeds and restores. A view
    that draws its random numbers with `hmoevae.nn.draws.for_batch` gives the same result in any number of processes.
    A view with the decorator `hmoevae.record` is written with a training, and read back.

    >>> class Brighter(View):
    ...     def __call__(self, x, *, index=None, generator=None, share=None):
    ...         return (1.2 * x).clamp_max(1)
    >>> Brighter().prepare(None)(torch.tensor([[0.5, 1.0]]))
    tensor([[0.6000, 1.0000]])
    """

    def prepare(self, samples: Float[Tensor, "n *sample"] | None) -> "View":  # noqa: ARG002
        """Prepare the view for a data set; most views need no preparation.

        Args:
            samples: All samples, in the order of `index`; `None` where they are not in memory.
        """
        return self

    @abstractmethod
    def __call__(
        self,
        x: Float[Tensor, "batch *sample"],
        *,
        index: Index | None = None,
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Float[Tensor, "batch *sample"]:
        """Change the samples.

        Args:
            x: Samples.
            index: Indices of `x` in the samples that the view was prepared for.
            generator: Source of the random numbers, on the device of `x`; torch's global one if `None`.
            share: Which samples of the global batch these are, in one of several processes.
        """


ViewLike = View | Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Plain(View):
    """A callable from samples to samples as a view."""

    change: Callable[[Tensor], Tensor]

    def __call__(
        self,
        x: Tensor,
        *,
        index: Index | None = None,  # noqa: ARG002
        generator: torch.Generator | None = None,  # noqa: ARG002
        share: Share | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "batch *sample"]:
        return self.change(x)


def is_view(value: object) -> TypeGuard[ViewLike]:
    """Whether a value is a view: calling a class would make an instance, not a view.

    >>> is_view(torch.sin), is_view(RandomAffine()), is_view(RandomAffine), is_view(3)
    (True, True, False, False)
    """
    return callable(value) and not isinstance(value, type)


def as_view(view: ViewLike, argument: str = "view") -> View:
    """Turn a callable from samples to samples into a `View`; a `View` is returned unchanged.

    Raises:
        ArgumentTypeError: It cannot be called.
    """
    if isinstance(view, View):
        return view
    if not is_view(view):
        got = f"the class {view.__name__}" if isinstance(view, type) else type(view).__name__
        raise ArgumentTypeError(mismatch(argument, "a View or a callable from samples to samples", got))
    return _Plain(view)


def _views(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise expected("a tuple of views")
    return tuple(value)


def _view(value: Any) -> ViewLike:
    if not is_view(value):
        raise expected("a View or a callable from samples to samples")
    return value


@record(kind="compose", error=ArgumentError)
class Compose(View):
    """Views one after the other.

    Args:
        views: Views, or callables from samples to samples. `Neighbour`, which replaces the samples, has to come first.

    Raises:
        ArgumentError: One of them is no view.

    >>> flipped_and_moved = Compose([lambda x: x.flip(3), RandomAffine()])
    >>> flipped_and_moved(torch.rand(5, 1, 28, 28)).shape
    torch.Size([5, 1, 28, 28])
    """

    views: Annotated[Sequence[Annotated[ViewLike, PlainValidator(_view)]], BeforeValidator(_views)]

    def prepare(self, samples: Float[Tensor, "n *sample"] | None) -> "Compose":
        """Prepare every view."""
        return Compose(tuple(as_view(view).prepare(samples) for view in self.views))

    def __call__(
        self,
        x: Tensor,
        *,
        index: Index | None = None,
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Float[Tensor, "batch *sample"]:
        """Apply the views one after the other.

        Raises:
            ArgumentTypeError: One of the views does not return a tensor.
        """
        for view in self.views:
            x = as_view(view)(x, index=index, generator=generator, share=share)
            if not isinstance(x, Tensor):
                raise ArgumentTypeError(mismatch("view", "a tensor from the callable", type(x).__name__))
        return x


def _numbers(value: Any) -> tuple[float, ...]:
    """The numbers of a pair, or none if it is no pair of numbers."""
    pair = value if isinstance(value, tuple | list) and len(value) == 2 else ()
    return tuple(float(number) for number in pair if isinstance(number, Real) and not isinstance(number, bool))


def _angle(value: Any, *, largest: int) -> float | tuple[float, ...]:
    ends = _numbers(_between(value))
    if len(ends) != 2 or not -largest <= ends[0] <= ends[1] <= largest:
        raise expected(f"an angle from 0 to {largest}, or two ascending ones")
    return float(value) if isinstance(value, Real) else ends


def _shares(value: Any) -> tuple[float, ...]:
    pair = _numbers(value)
    if len(pair) != 2 or not all(0 <= share <= 1 for share in pair):
        raise expected("two numbers from 0 to 1")
    return pair


def _factors(value: Any) -> tuple[float, ...]:
    pair = _numbers(value)
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] < math.inf:
        raise expected("two ascending numbers > 0")
    return pair


Pair = tuple[float, float]
Angle = float | Pair


@record(kind="random_affine", error=ArgumentError)
class RandomAffine(View):
    """Rotate, shift, scale and shear every image by random amounts, with the conventions of torchvision's class.

    Torchvision's class draws once per batch and shifts by whole pixels. This one draws for each image, on the device of
    the batch. Pixels from outside the image are zero; the interpolation is bilinear.

    Args:
        degrees: Angles are drawn from [-degrees, degrees], or between two given angles.
        translate: Largest shifts along width and height, as fractions of them.
        scale: Smallest and largest scale factor.
        shear: Angles of the horizontal shear are drawn from [-shear, shear], or between two given angles, in degrees.

    Raises:
        ArgumentError: A number is out of range.

    >>> RandomAffine()(torch.rand(5, 1, 28, 28)).shape
    torch.Size([5, 1, 28, 28])
    """

    degrees: Annotated[Angle, PlainValidator(functools.partial(_angle, largest=180))] = 15.0
    translate: Annotated[Pair, PlainValidator(_shares)] = (0.15, 0.15)
    scale: Annotated[Pair, PlainValidator(_factors)] = (0.85, 1.15)
    shear: Annotated[Angle, PlainValidator(functools.partial(_angle, largest=89))] = 11.0

    def __call__(
        self,
        x: Tensor,
        *,
        index: Index | None = None,  # noqa: ARG002
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Float[Tensor, "batch channel height width"]:
        """Change every image by its own draw."""
        if x.ndim != 4:
            raise ShapeError(mismatch("x", "images, (batch, channels, height, width)", tuple(x.shape)))
        if not x.is_floating_point():
            raise ArgumentTypeError(mismatch("x", "floating point values (such as pixels / 255)", x.dtype))
        *_, height, width = x.shape

        def draw(n: int) -> Tensor:
            return torch.rand(5, n, generator=generator, device=x.device, dtype=x.dtype)

        draws = for_batch(draw, len(x), share)
        lowest, highest = x.new_tensor([_between(self.degrees), _between(self.shear)]).deg2rad().t().unsqueeze(2)
        angle, shear = (lowest + highest) / 2 + (2 * draws[:2] - 1) * (highest - lowest) / 2
        shift = (2 * draws[2:4] - 1) * x.new_tensor(self.translate).unsqueeze(1) * x.new_tensor([[width], [height]])
        low, high = self.scale
        return _affine(x, angle, shift, low + (high - low) * draws[4], shear)


def _between(angle: Any) -> Any:
    """The ends of the range of an angle; one number means from its negative to itself."""
    return (-angle, angle) if isinstance(angle, Real) and not isinstance(angle, bool) else angle


def _affine(
    x: Float[Tensor, "batch channel height width"],
    angle: Float[Tensor, " batch"],
    shift: Float[Tensor, "2 batch"],
    scale: Float[Tensor, " batch"],
    shear: Float[Tensor, " batch"],
) -> Float[Tensor, "batch channel height width"]:
    """Shear along the width, scale, rotate clockwise about the centre, then shift; in pixels and radians."""
    # grid_sample needs the inverse map, from output pixels to input pixels.
    cos, sin, tan = angle.cos(), angle.sin(), shear.tan()
    rows = torch.stack([cos - sin * tan, sin + cos * tan, -sin, cos]).unflatten(0, (2, 2)) / scale
    origin = -(rows * shift).sum(1)
    # affine_grid counts in half widths and half heights.
    half = x.new_tensor([x.shape[3] / 2, x.shape[2] / 2])
    rows = rows * (half / half.unsqueeze(1)).unsqueeze(2)
    theta = torch.cat([rows, (origin / half.unsqueeze(1)).unsqueeze(1)], dim=1)
    # affine_grid multiplies image by image. Computing the pixel centres once lets one product make all grids.
    identity = torch.eye(2, 3, device=x.device, dtype=x.dtype).unsqueeze(0)
    centres = F.affine_grid(identity, [1, 1, *x.shape[2:]], align_corners=False).squeeze(0)
    grid = torch.einsum("xkb,hwk->bhwx", theta, F.pad(centres, (0, 1), value=1.0))
    return F.grid_sample(x, grid, align_corners=False)


def _features(value: Any) -> Any:
    if value is not None and not callable(value):
        raise expected("None or a callable from samples to features")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise expected("True or False")
    return value


def _mutual(table: Int[np.ndarray, "n k"]) -> Int[np.ndarray, "n k"]:
    """Put the sample itself in the place of every neighbour that does not have it among its own.

    >>> _mutual(np.array([[1], [0], [1]])).tolist()
    [[1], [0], [2]]
    """
    own = np.arange(len(table))[:, None]
    there, back = own * len(table) + table, table * len(table) + own
    return np.where(np.isin(back, there), table, own)


@record(kind="neighbour", error=ArgumentError)
class Neighbour(View):
    """Replace every sample by one of its nearest neighbours, drawn anew each time.

    `prepare` finds the neighbours, by scikit-learn, in the space of the leading principal components.

    Args:
        k: Number of neighbours to draw from.
        n_components: Number of principal components; where samples have fewer features, all of them are used.
        features: A function from samples `(n, *sample)` to the features `(n, feature)` by which they are compared, such
            as `hmoevae.features.oriented_gradients`; by default the samples' values.
        mutual: Whether a neighbour has to have the sample among its own `k`, too. More of those that are left are of
            the sample's kind. Where a drawn neighbour is not mutual, the sample stays.

    Raises:
        ArgumentError: A field cannot be used.

    >>> samples = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> view = Neighbour(k=1).prepare(samples)
    >>> view(samples, index=torch.arange(4)).shape
    torch.Size([4, 1])
    """

    k: PositiveInt = 5
    n_components: PositiveInt = 50
    features: Annotated[Callable[[Tensor], Tensor] | None, PlainValidator(_features)] = None
    mutual: Annotated[bool, PlainValidator(_flag)] = False

    def prepare(self, samples: Float[Tensor, "n *sample"] | None) -> "View":
        """Find the neighbours.

        Raises:
            ArgumentTypeError: The data set is not in memory.
            DataError: There are too few samples.
            ShapeError: `features` does not return one row per sample.
            MissingExtraError: scikit-learn is not installed.
        """
        if samples is None:
            words = "a tensor or array in memory, for Neighbour"
            raise ArgumentTypeError(mismatch("data", words, "another source of samples"))
        if len(samples) <= self.k:
            raise DataError(mismatch("samples", f"more than {self.k} for Neighbour({self.k})", len(samples)))
        try:
            from sklearn.neighbors import NearestNeighbors
        except ImportError as error:
            raise MissingExtraError(mismatch("Neighbour", from_extra("scikit-learn", "sklearn"), f"{error}")) from None
        described = samples if self.features is None else self.features(samples)
        if len(described) != len(samples):
            words = f"a row for each of the {len(samples)} samples"
            raise ShapeError(mismatch("Neighbour.features", words, tuple(described.shape)))
        features = principal_components(described, self.n_components)
        table = NearestNeighbors(n_neighbors=self.k).fit(features).kneighbors(return_distance=False)
        if self.mutual:
            table = _mutual(table)
        return _NeighbourOf(samples, torch.from_numpy(table).to(samples.device))

    def __call__(
        self,
        x: Tensor,  # noqa: ARG002
        *,
        index: Index | None = None,  # noqa: ARG002
        generator: torch.Generator | None = None,  # noqa: ARG002
        share: Share | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "batch *sample"]:
        """Raise an error: call `prepare` first, which returns the view to use."""
        raise ArgumentError(mismatch("Neighbour", "prepare(samples) to be called first", "no samples"))


@dataclass(frozen=True, slots=True)
class _NeighbourOf(View):
    """The view that `Neighbour.prepare` returns."""

    samples: Float[Tensor, "n *sample"] = field(repr=False)
    table: Int[Tensor, "n k"] = field(repr=False)

    def __call__(
        self,
        x: Tensor,
        *,
        index: Index | None = None,
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Float[Tensor, "batch *sample"]:
        if index is None:
            raise ArgumentError(mismatch("index", "the samples' indices in the data set, for Neighbour", None))
        k = self.table.shape[1]

        def draw(n: int) -> Tensor:
            return torch.randint(k, (n,), generator=generator, device=x.device)

        which = for_batch(draw, len(x), share).to(self.table.device)
        chosen = self.table[index.to(self.table.device), which]
        return self.samples.index_select(0, chosen).to(x.device, x.dtype)
