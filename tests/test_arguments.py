"""Bad arguments of callbacks, data and histories: each is named, with what was expected of it."""

import functools

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError

pytestmark = pytest.mark.usefixtures("as_users_call")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, hm.MLP((4,)), hm.MLP((4,))), 3, gate=hm.MLP((4,))), (4,))


fit = functools.partial(conftest.fit, epochs=1, batch_size=8)


# --- callbacks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_frames", [-1, 0, 1, 2.5, "a", True])
def test_a_recorder_keeps_two_epochs_or_more(n_frames):
    """The first and the last."""
    with pytest.raises(ArgumentError, match=f"n_frames: expected an integer > 1, got {n_frames!r}"):
        hm.SampleRecorder(n_frames)


def test_a_recorder_that_has_seen_no_epoch_has_no_frames():
    with pytest.raises(ArgumentError, match=r"SampleRecorder: expected a finished epoch of fit, got none"):
        _ = hm.SampleRecorder().frames


# --- data -----------------------------------------------------------------------------------------------------------


class Items(Dataset):
    """What `make` gives for every index, or a stream of it."""

    def __init__(self, make, n=20):
        self.make = make
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.make(i)


class Stream(IterableDataset):
    """The same, from end to end."""

    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return map(self.make, range(20))


class Endless(Dataset):
    """Items for any index."""

    def __getitem__(self, i):
        return torch.rand(4)


PICTURE = Image.new("L", (2, 2))


@pytest.mark.parametrize("source", [Items, Stream])
@pytest.mark.parametrize("make", [lambda i: PICTURE, lambda i: (PICTURE, i), lambda i: [PICTURE, i]])
def test_pictures_need_a_transform(model, source, make):
    message = r"data: expected items that are tensors, or tuples that begin with one, got an Image \(a "
    with pytest.raises(ArgumentTypeError, match=message):
        fit(model, source(make))
    with pytest.raises(ArgumentTypeError, match=f"validation_{message}"):
        fit(model, torch.rand(8, 4), validation_data=source(make))


@pytest.mark.parametrize("source", [Items, Stream])
@pytest.mark.parametrize("make", [torch.rand, np.ones])
def test_samples_are_of_one_shape(model, source, make):
    with pytest.raises(ShapeError, match=r"data: expected items of one shape, got \(\d,\) and \(\d,\)"):
        fit(model, source(lambda i: (make(1 + i % 3), i)))


def test_labels_may_be_anything(model):
    assert len(fit(model, Items(lambda i: (torch.rand(4), None)))) == 1


def test_an_error_in_a_data_set_is_its_own(model):
    def fail(i):
        raise TypeError("not an image")

    with pytest.raises(TypeError, match=r"^not an image"):
        fit(model, Items(fail))


def test_data_sets_have_a_length(model):
    with pytest.raises(DataError, match=r"data: expected at least one sample, got none"):
        fit(model, Items(torch.rand, n=0))
    with pytest.raises(DataError, match=r"validation_data: expected at least one sample, got none"):
        fit(model, torch.rand(8, 4), validation_data=Items(torch.rand, n=0))
    expected = "a torch Dataset with __len__, or an IterableDataset"
    with pytest.raises(ArgumentTypeError, match=f"data: expected {expected}, got Endless"):
        fit(model, Endless())


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (
            hm.datasets.LabelledImages("noise", torch.rand(8, 1, 2, 2), torch.zeros(8).long()),
            r"LabelledImages \(pass its .x\)",
        ),
        (pd.DataFrame(torch.rand(8, 4).numpy()), r"DataFrame \(pass its .to_numpy\(\), or make .*\)"),
    ],
)
def test_what_holds_the_samples_is_told_how_to_give_them(model, data, got):
    with pytest.raises(ArgumentTypeError, match=f"data: expected a tensor, a numpy array, .*, got a {got}$"):
        fit(model, data)
    with pytest.raises(ArgumentTypeError, match=r"data: expected a tensor, a numpy array, .*, got a list \(np.asarray"):
        fit(model, [[0.5] * 4])


# --- histories ------------------------------------------------------------------------------------------------------


def test_a_history_without_an_epoch(tmp_path):
    with pytest.raises(ArgumentError, match=r"column: expected a history of one epoch or more, got 'loss' of none"):
        _ = hm.History()["loss"]
    with pytest.raises(ArgumentError, match=r"column: expected one of epoch, loss, got 'los'"):
        _ = hm.History([{"epoch": 1, "loss": 2.0}])["los"]
    hm.History().to_csv(tmp_path / "history.csv")
    table = pd.read_csv(tmp_path / "history.csv")
    assert (list(table.columns), len(table)) == (["epoch", "seconds", "loss"], 0)
