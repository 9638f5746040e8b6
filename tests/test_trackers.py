"""Tracking: what arrives at a tracker, when, and that the run is closed."""

import accelerate.tracking
import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, MissingExtraError

TREE = hm.Mixture(children=(hm.VAE(2, hm.MLP((4,)), hm.MLP((4,))), hm.Mixture.of(hm.VAE(2), 2)))
SHAPE = (1, 4, 4)


class Notebook(GeneralTracker):
    """A tracker that writes down what it is told, as trackers outside accelerate may."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self, run_name="own"):
        super().__init__()
        self.run_name = run_name
        self.notes = []

    @property
    def tracker(self):
        return self

    def log(self, values, step=None, **kwargs):
        self.notes.append((step, values))

    def log_images(self, values, step=None, **kwargs):
        self.notes.append((step, {name: [image.shape for image in images] for name, images in values.items()}))

    def finish(self):
        self.notes.append("finished")


def train(*callbacks, epochs=5, **options):
    torch.manual_seed(0)
    model = hm.HMoEVAE(TREE, SHAPE)
    x = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(0))
    return hm.fit(model, x, hm.Training(epochs=epochs, device="cpu"), callbacks=callbacks, progress=False, **options)


@pytest.mark.slow
def test_tensorboard_has_every_column_and_the_pictures(tmp_path):
    tracking = hm.Tracking("tensorboard", run="a", folder=tmp_path, images_every=2)
    history = train(tracking, validation_data=torch.rand(6, *SHAPE))
    events = EventAccumulator(str(tmp_path / "a"), {"images": 0, "scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == set(history.columns) - {"epoch"}
    assert {"loss", "balance", "val_elbo", "usage/root/1/0"} <= set(history.columns)
    for name in events.Tags()["scalars"]:
        sent = events.Scalars(name)
        assert [event.step for event in sent] == [1, 2, 3, 4, 5]
        np.testing.assert_allclose([event.value for event in sent], history[name], rtol=1e-6)
    assert set(events.Tags()["images"]) == {"samples", "tree"}
    for name in ("samples", "tree"):
        pictures = events.Images(name)
        assert [event.step for event in pictures] == [1, 2, 4, 5]
        assert all(event.encoded_image_string.startswith(b"\x89PNG") for event in pictures)
        assert min(pictures[0].width, pictures[0].height) > 50


def test_any_tracker_of_accelerate_will_do():
    notebook = Notebook()
    history = train(hm.Tracking(notebook, images_every=None), epochs=2)
    expected = [(row["epoch"], {k: v for k, v in row.items() if k != "epoch"}) for row in history.rows]
    assert notebook.notes == [*expected, "finished"]


def test_a_registered_tracker_goes_by_its_name(monkeypatch):
    made = []

    class Registered(Notebook):
        def __init__(self, run_name):
            super().__init__(run_name)
            made.append(self)

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "notebook", Registered)
    train(hm.Tracking("notebook", run="b"), epochs=1)
    assert [tracker.run_name for tracker in made] == ["b"]
    step, shapes = made[0].notes[1]
    assert (step, set(shapes)) == (1, {"samples", "tree"})
    assert all(len(images) == 1 and images[0][2] == 3 for images in shapes.values())


def test_the_run_is_closed_however_training_ends():
    def press(end):
        raise KeyboardInterrupt

    def fail(end):
        raise OSError("no space left on device")

    interrupted, failed = Notebook(), Notebook()
    assert train(hm.Tracking(interrupted, images_every=None), press).interrupted
    with pytest.raises(OSError, match="no space left"):
        train(hm.Tracking(failed, images_every=None), fail)
    assert [notebook.notes[-1] for notebook in (interrupted, failed)] == ["finished"] * 2


def test_only_the_main_process_tracks():
    notebook = Notebook()
    tracking = hm.Tracking(notebook, images_every=None)
    end = hm.EpochEnd(hm.HMoEVAE(TREE, SHAPE), hm.History([{"epoch": 1, "loss": 2.0}]), 1, 1, is_main=False)
    tracking(end)
    tracking.close()
    assert notebook.notes == []


def test_tracking_changes_nothing(tmp_path, rng_untouched):
    with torch.random.fork_rng():
        plain = train()
    with torch.random.fork_rng():
        tracked = train(hm.Tracking(folder=tmp_path, images_every=1))
    assert plain["loss"] == tracked["loss"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tracker": "abacus"}, ArgumentError, r"tracker: expected one of 'aim', .*, got 'abacus'"),
        ({"tracker": "wandb"}, MissingExtraError, r"tracker: expected wandb to be installed, got no such module"),
        ({"images_every": 0}, ArgumentError, r"images_every: expected an integer > 0 or None, got 0"),
        ({"images_every": 2.5}, ArgumentError, r"images_every: expected an integer > 0 or None, got 2.5"),
        ({"images_every": "a"}, ArgumentError, r"images_every: expected an integer > 0 or None, got 'a'"),
        ({"tracker": None}, ArgumentTypeError, r"tracker: expected a name or a GeneralTracker .*, got NoneType"),
        ({"tracker": Notebook}, ArgumentTypeError, r"tracker: expected a name or a GeneralTracker .*, got type"),
        ({"run": None}, ArgumentTypeError, r"run: expected a string, got NoneType"),
        ({"folder": 3}, ArgumentTypeError, r"folder: expected a path, got int"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_arguments_are_refused(arguments, error, message, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", ["tensorboard"])
    with pytest.raises(error, match=message):
        hm.Tracking(**arguments)


def test_a_tracker_without_images_is_refused_when_they_are_wanted(monkeypatch):
    class Plain(GeneralTracker):
        name, requires_logging_directory, tracker = "plain", False, None

    with pytest.raises(ArgumentError, match=r"images_every: expected None for 'plain', which takes none, got 10"):
        hm.Tracking(Plain())


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises(MissingExtraError, match=r"expected tensorboard \(in a clone: pip install -e '\.\[trackers\]'"):
        hm.Tracking("tensorboard")
