"""Images from a folder, errors for damaged or missing files, and the images that come with other packages."""

import struct

import numpy as np
import pytest
import torch

from hmoevae import datasets
from hmoevae.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """A folder laid out as torchvision does, with seven training and three test images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", 7), ("t10k", 3)):
        pixels = (np.arange(n * 28 * 28) % 256).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + bytes(range(n)))
    return tmp_path


def test_reads_a_folder(folder):
    train, test = datasets.mnist(folder)
    assert (train.name, len(train), len(test)) == ("mnist", 7, 3)
    assert train.x.shape == (7, 1, 28, 28)
    assert train.x.flatten()[:256].tolist() == pytest.approx([v / 255 for v in range(256)])
    assert train.y.tolist() == list(range(7))
    assert train.x.dtype == torch.float32


def test_fashion_mnist_has_a_folder_of_its_own(folder):
    with pytest.raises(datasets.DatasetUnavailableError, match=r"root: expected a folder with FashionMNIST/raw/ in it"):
        datasets.fashion_mnist(folder)
    (folder / "MNIST").rename(folder / "FashionMNIST")
    train, test = datasets.fashion_mnist(folder)
    assert (train.name, len(train), len(test)) == ("fashion_mnist", 7, 3)


def test_environment_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv("HMOEVAE_DATA", str(folder))
    assert len(datasets.mnist()[1]) == 3


def test_missing_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(datasets.DatasetUnavailableError, match=r"root: .*without train-images-idx3-ubyte"):
        datasets.mnist(tmp_path)
    monkeypatch.setenv("HMOEVAE_DATA", str(tmp_path))
    with pytest.raises(datasets.DatasetUnavailableError, match=r"HMOEVAE_DATA: .*without train-images-idx3-ubyte"):
        datasets.mnist()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:6],
        lambda content: b"\x1f\x8b" + content[2:],
        lambda content: b"",
    ],
)
def test_damaged_files_are_refused(folder, damage):
    path = folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte: expected a whole IDX file"):
        datasets.mnist(folder)


def test_labels_must_match_images(folder):
    path = folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(struct.pack(">2i", 2049, 2) + bytes(2))
    with pytest.raises(DataError, match=r"expected 3 labels, one per image, got 2"):
        datasets.mnist(folder)


@pytest.mark.parametrize(("name", "dataset"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_a_failed_download_says_so(name, dataset, tmp_path, monkeypatch):
    monkeypatch.delenv("HMOEVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(root, *, download):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    torchvision = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(torchvision, dataset, refuse)
    with pytest.raises(
        datasets.DatasetUnavailableError, match=f"{name}: expected to download {dataset} into .*, got Err"
    ):
        getattr(datasets, name)()


def test_mnist5k_is_whole_and_split_evenly():
    train, test = datasets.mnist5k()
    assert (len(train), len(test)) == (4000, 1000)
    assert torch.bincount(train.y).tolist() == [400] * 10
    assert torch.bincount(test.y).tolist() == [100] * 10
    assert train.x.shape == (4000, 1, 28, 28)
    assert (train.x.min(), train.x.max()) == (0.0, 1.0)


def test_digits_are_whole_and_always_split_alike():
    train, test = datasets.digits()
    assert (len(train), len(test), test.y.unique().tolist()) == (1438, 359, list(range(10)))
    assert train.x.shape == (1438, 1, 8, 8)
    assert (train.x.min(), train.x.max()) == (0.0, 1.0)
    assert torch.equal(datasets.digits()[1].x, test.x)
