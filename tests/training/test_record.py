"""A training is data: it checks itself, reads and writes itself, and says what going on compares."""

import copy
import dataclasses
import functools
import json
import math
import pickle
import re
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, HMoEVAEError, SpecError
from hmoevae.training.processes import Processes
from hmoevae.training.resume import NOT_COMPARED, described_training
from hmoevae.training.words import described, from_data, to_data
from hmoevae.views import Compose, Neighbour, RandomAffine, View

FIELDS = {field.name for field in dataclasses.fields(hm.Training)}
CPU = torch.device("cpu")


def random_view(random: Random, depth: int = 2) -> View:
    """One that JSON holds."""
    kinds = ["affine", "neighbour", *["compose"] * (depth > 0)]
    match random.choice(kinds):
        case "affine":
            return RandomAffine(random.choice((0.0, 15.0, (-3.0, 4.5))), shear=(1.0, 2.0))
        case "neighbour":
            return Neighbour(random.randint(1, 5), features=random.choice((None, hm.features.oriented_gradients)))
        case _:
            return Compose([random_view(random, depth - 1) for _ in range(random.randint(0, 2))])


def random_training(seed: int) -> hm.Training:
    """A training of which JSON holds everything."""
    random = Random(seed)  # hypothesis forbids its strategies what the tests' type checks do

    def maybe(make: Callable[[], Any]) -> Any:
        return make() if random.random() < 0.6 else None

    def agreement() -> hm.Agreement:
        partner = maybe(lambda: random_view(random))
        return hm.Agreement(partner=partner, alone=0.25, levels=random.choice((None, (1, 2), (3,))))

    route = maybe(lambda: hm.TopK(random.randint(1, 9), explore=random.random())) or hm.routes.ALL
    return hm.Training(
        epochs=random.randint(8, 99),
        batch_size=random.randint(1, 10**6),
        lr=10 ** random.uniform(-9, 9),
        lr_schedule=random.choice(("constant", "cosine")),
        view=maybe(lambda: random_view(random)),
        agreement=maybe(agreement),
        init=random.choice(("random", "kmeans", "umap", "graph")),
        init_epochs=random.randint(1, 2),
        warmup=maybe(lambda: hm.Warmup(random.randint(1, 2), kl=random.random())),
        revive=random.random() < 0.5,
        route=route,
        kl_weight=10 ** random.uniform(-9, 9),
        max_grad_norm=maybe(lambda: 10 ** random.uniform(-9, 9)),
        early_stopping=maybe(lambda: hm.EarlyStopping(random.randint(1, 9), random.random())),
        seed=maybe(lambda: random.randint(-(1 << 63), (1 << 64) - 1)),
        precision=random.choice(("fp32", "bf16")),
        compile=route == hm.routes.ALL and random.random() < 0.5,
        device=random.choice(("auto", "cpu", "cuda:1")),
        checkpoint_every=random.randint(1, 9),
        checkpoint_keep=random.randint(1, 9),
    )


@pytest.mark.parametrize("seed", range(12))
def test_json_gives_an_equal_record(seed: int) -> None:
    training = random_training(seed)
    text = training.to_json()
    again = hm.training_from_json(text)
    assert again == training
    assert hash(again) == hash(training)
    assert again.described() == training.described()
    assert again.to_json() == text
    assert set(json.loads(text)) == {"kind", *FIELDS}
    assert pickle.loads(pickle.dumps(training)) == training


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_records_are_equal_if_all_their_options_are(name: str) -> None:
    training = dataclasses.replace(random_training(len(name)), route=hm.routes.ALL, compile=False)
    if name == "init_shared":
        training = dataclasses.replace(training, init="kmeans", init_shared=False)
    assert training == dataclasses.replace(training)
    other = {
        "epochs": 100,
        "batch_size": 10**7,
        "lr": 1e-10,
        "view": torch.sin,
        "agreement": hm.Agreement(weight=3.0),
        "optimizer": torch.optim.SGD,
        "init": torch.zeros(4),
        "init_epochs": 3,
        "init_shared": True,
        "warmup": hm.Warmup(1, temperature=7.0),
        "kl_weight": 1e10,
        "max_grad_norm": 1e10,
        "early_stopping": hm.EarlyStopping(20),
        "seed": 0 if training.seed != 0 else 1,
        "device": "mps",
        "checkpoint_every": 10,
        "checkpoint_keep": 10,
        "lr_schedule": "cosine" if training.lr_schedule == "constant" else "constant",
        "precision": "fp32" if training.precision == "bf16" else "bf16",
        "revive": not training.revive,
        "route": hm.TopK(3),
        "compile": True,
        "expert_parallel": 7,
    }
    changed = dataclasses.replace(training, **{name: other[name]})
    assert changed != training
    assert changed.described() != training.described()


def test_what_the_record_says_is_the_call_that_makes_it() -> None:
    assert repr(hm.Training()) == "Training()"
    training = hm.Training(lr=0.1, init=torch.zeros(3, dtype=torch.long), seed=None)
    assert repr(training).startswith("Training(lr=0.1, init=Tensor(3,) with sha256 ")
    assert eval(repr(hm.Training(epochs=3, init="kmeans")), {"Training": hm.Training}) == hm.Training(
        epochs=3, init="kmeans"
    )


@pytest.mark.usefixtures("as_users_call")
def test_numbers_of_numpy_are_numbers() -> None:
    training = hm.Training(epochs=np.int64(3), lr=np.float32(0.5), seed=np.int64(4))
    assert hm.training_from_json(training.to_json()) == training == hm.Training(epochs=3, lr=0.5, seed=4)


AFFINE = ((-3.0, 4.0), (0.0, 1.0), (1.0, 2.0), 7.0)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("given", "same"),
    [
        (lambda: hm.Warmup(np.int64(2), kl=0, temperature=np.float32(4)), lambda: hm.Warmup(2, 0.0, 4.0)),
        (lambda: hm.EarlyStopping(np.int64(2), min_delta=1), lambda: hm.EarlyStopping(2, 1.0)),
        (lambda: hm.Agreement(weight=10, alone=1), lambda: hm.Agreement(weight=10.0, alone=1.0)),
        (lambda: hm.Agreement(levels=[np.int64(1), 2]), lambda: hm.Agreement(levels=(1, 2))),
        (lambda: hm.Agreement(partner=Neighbour(np.int64(3))), lambda: hm.Agreement(partner=Neighbour(3))),
        (lambda: RandomAffine([-3, np.float64(4)], (0, 1), [1, 2], 7), lambda: RandomAffine(*AFFINE)),
        (lambda: Compose([RandomAffine(9)]), lambda: Compose((RandomAffine(9.0),))),
    ],
)
def test_equal_records_say_and_hash_the_same(given: Callable[[], Any], same: Callable[[], Any]) -> None:
    one, other = given(), same()
    assert one == other
    assert hash(one) == hash(other)
    assert described(one) == described(other)
    assert repr(one) == repr(other)
    assert to_data(one) == to_data(other)
    assert json.dumps(to_data(one)) == json.dumps(to_data(other))
    assert from_data(to_data(one), "Training.x") == one
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == dataclasses.replace(one) == one


def test_numbers_of_numpy_within_an_option_are_numbers() -> None:
    training = hm.Training(warmup=hm.Warmup(np.int64(2)))
    again = hm.training_from_json(training.to_json())
    assert again == training
    assert again.described() == training.described()


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hm.Warmup(3, foo=1), "Warmup.foo: expected no such field (there are epochs, kl, temperature), got 1"),
        (lambda: hm.Warmup(), "Warmup.epochs: expected a value, got nothing"),
        (lambda: hm.Warmup(True), "Warmup.epochs: expected an integer > 0, got True"),
        (lambda: hm.EarlyStopping(x=1), "EarlyStopping.x: expected no such field (there are patience, min_delta), got"),
        (lambda: hm.Agreement(None), "Agreement: expected at most the arguments (), got 1"),
        (lambda: hm.Agreement(partner=3), "Agreement.partner: expected None, a View or a callable from samples to s"),
        (lambda: hm.Agreement(partner=View), "Agreement.partner: expected None, a View or a callable from samples to"),
        (lambda: hm.Agreement(alone=True), "Agreement.alone: expected a number from 0 to 1, got True"),
        (lambda: Compose([RandomAffine(), 3]), "Compose.views[1]: expected a View or a callable from samples to sa"),
        (lambda: Compose(RandomAffine()), "Compose.views: expected a tuple of views, got RandomAffine()"),
        (lambda: Compose(), "Compose.views: expected a value, got nothing"),
        (lambda: Neighbour(n_components=0), "Neighbour.n_components: expected an integer > 0, got 0"),
        (
            lambda: Neighbour(features=3),
            "Neighbour.features: expected None or a callable from samples to features, got 3",
        ),
        (lambda: RandomAffine(degrees=True), "RandomAffine.degrees: expected an angle from 0 to 180, or two ascending"),
        (
            lambda: RandomAffine(angle=1),
            "RandomAffine.angle: expected no such field (there are degrees, translate, sca",
        ),
    ],
)
def test_a_bad_field_of_an_option_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}"):
        make()


def test_arrays_are_compared_by_what_they_hold() -> None:
    labels = torch.arange(4)
    assert hm.Training(init=labels) == hm.Training(init=labels.clone())
    assert hm.Training(init=labels) != hm.Training(init=labels.flip(0))
    assert hm.Training(init=labels) != hm.Training()


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": True}, r"Training.epochs: expected an integer > 0, got True"),
        ({"batch_size": 0}, r"Training.batch_size: expected an integer > 0, got 0"),
        ({"init_epochs": 0}, r"Training.init_epochs: expected an integer > 0, got 0"),
        ({"lr": math.inf}, r"Training.lr: expected a finite number > 0, got inf"),
        ({"lr": None}, r"Training.lr: expected a finite number > 0, got None"),
        ({"kl_weight": -1}, r"Training.kl_weight: expected a finite number >= 0, got -1"),
        ({"max_grad_norm": 0.0}, r"Training.max_grad_norm: expected a finite number > 0, got 0.0"),
        ({"early_stopping": 5}, r"Training.early_stopping: expected None or EarlyStopping\(...\), got 5"),
        ({"compile": 1}, r"Training.compile: expected True or False, got 1"),
        ({"view": View}, r"Training.view: expected a View or a callable .*, got the class View"),
        ({"init": "k-means"}, r"Training.init: expected one of 'random', .*'graph', labels .*got 'k-means'"),
        ({"init": 3}, r"Training.init: expected a name, an array of leaf indices or a callable, got int"),
        ({"warmup": hm.Warmup(20)}, r"Training.warmup: expected fewer epochs than those in which the experts learn"),
        (
            {"early_stopping": hm.EarlyStopping(), "agreement": hm.Agreement(alone=1.0)},
            r"Training.early_stopping: expected None where gates and experts never learn together at full weight",
        ),
        ({"epoch": 5}, r"Training.epoch: expected no such field \(there are epochs, batch_size, .*keep\), got 5"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        hm.Training(**options)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, r"EarlyStopping.patience: expected an integer > 0, got 0"),
        ({"min_delta": -1.0}, r"EarlyStopping.min_delta: expected a finite number >= 0, got -1.0"),
    ],
)
def test_bad_early_stopping_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        hm.EarlyStopping(**options)


def test_the_course_says_when_all_learn_at_full_weight() -> None:
    training = hm.Training(epochs=10, init="kmeans", agreement=hm.Agreement(alone=0.3), warmup=hm.Warmup(4))
    lessons = [training.course.lesson(epoch) for epoch in range(1, 11)]
    assert [lesson.is_full for lesson in lessons] == [False] * 7 + [True] * 3  # 1 start, 3 alone, 3 more of the warm-up
    assert [lesson.settings.kl_weight for lesson in lessons if lesson.is_full] == [1.0] * 3
    assert lessons[6].settings.kl_weight < 1


# --- files ------------------------------------------------------------------------------------------------------------


def edited(change: dict[str, object], training: hm.Training | None = None) -> str:
    return json.dumps(json.loads((training or hm.Training()).to_json()) | change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"Training: expected valid JSON"),
        ("[]", r"Training: expected a record of kind 'training', got \[\]"),
        ('{"kind": "vae"}', r"Training: expected a record of kind 'training'"),
        (edited({"epochs": 0}), r"Training.epochs: expected an integer > 0, got 0"),
        (edited({"epoch": 5}), r"Training.epoch: expected no such field \(there are epochs, .*\), got 5"),
        (edited({"warmup": {"kind": "warmup"}}), r"Training.warmup.epochs: expected a value, got nothing"),
        (
            edited({"warmup": {"kind": "warmup", "epochs": 0}}),
            r"Training.warmup.epochs: expected an integer > 0, got 0",
        ),
        (edited({"warmup": {"kind": "warmup", "epochs": 2, "x": 1}}), r"Training.warmup.x: expected no such field"),
        (edited({"view": {"kind": "brighter"}}), r"Training.view: expected a registered kind: import the module"),
        (edited({"view": {"by": 1}}), r"Training.view: expected a record with a known kind, got \{'by': 1\}"),
        (edited({"view": {"feature": "os.system"}}), r"Training.view: expected a feature among .*, got 'os.system'"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_a_bad_file_is_named(text: str, message: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError, SpecError), match=message):
        hm.training_from_json(text)


@pytest.mark.parametrize(
    ("options", "place", "words"),
    [
        ({"optimizer": functools.partial(torch.optim.SGD, lr=0.1)}, "optimizer", r"SGD\(lr=0.1\)"),
        ({"view": torch.sin}, "view", "sin"),
        ({"view": Compose([RandomAffine(), torch.sin])}, r"view.views\[1\]", "sin"),
        ({"init": np.zeros(3, dtype=int)}, "init", r"ndarray\(3,\) with sha256"),
        ({"agreement": hm.Agreement(partner=torch.cos)}, r"agreement.partner", "cos"),
    ],
)
def test_what_runs_code_is_described_and_given_again(options: dict[str, object], place: str, words: str) -> None:
    training = hm.Training(**options)
    text = training.to_json()
    assert '"described": ' in text
    (field,) = options
    message = (
        rf"Training.{place}: expected training_from_json\(text, {field}=...\) .*no.* file, got .*{words}.*in words"
    )
    with pytest.raises(ArgumentError, match=message):
        hm.training_from_json(text)
    assert hm.training_from_json(text, **options) == training
    with pytest.raises(ArgumentTypeError, match=r"Training.epoch: expected no such field"):
        hm.training_from_json(text, **options, epoch=5)


def test_a_view_of_a_user_that_is_a_record_is_read_by_its_kind() -> None:
    @hm.record(kind="test_record_brighter")
    class Brighter(View):
        by: float = 1.2

        def __call__(self, x, *, index=None, generator=None, share=None):
            return x * self.by

    training = hm.Training(view=Compose([Brighter(by=1.5), RandomAffine()]))
    again = hm.training_from_json(training.to_json())
    assert again == training
    assert again.view.views[0].by == 1.5


@pytest.mark.parametrize("own", [RandomAffine, View])
def test_a_view_of_a_user_that_is_no_record_is_only_described(own: type) -> None:
    """Not even where it inherits from a record, whose kind would be another view."""

    class Brighter(own):
        def __call__(self, x, *, index=None, generator=None, share=None):
            return x * 1.2

    view = Compose([Brighter()])
    training = hm.Training(view=view)
    with pytest.raises(ArgumentError, match=r"Training.view.views\[0\]: expected .*, got .*Brighter.* in words"):
        hm.training_from_json(training.to_json())
    assert hm.training_from_json(training.to_json(), view=view) == training


def test_a_history_keeps_its_training(tmp_path) -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 3), (4,))
    for training in (hm.Training(epochs=1, device="cpu"), hm.Training(epochs=1, device="cpu", view=torch.sin)):
        history = hm.fit(model, torch.rand(20, 4), training, progress=False)
        assert history.training is training
        history.to_json(tmp_path / "history.json")
        back = hm.History.from_json(tmp_path / "history.json").training
        whole = training.view is None
        assert back == (training if whole else json.loads(training.to_json()))


# --- going on ---------------------------------------------------------------------------------------------------------


def test_going_on_compares_the_fields_of_the_record() -> None:
    compared = described_training(hm.Training(), 0, CPU, Processes(CPU))
    assert NOT_COMPARED.keys() <= FIELDS
    assert {name.removeprefix("Training.") for name in compared} == FIELDS - NOT_COMPARED.keys()


def test_epochs_are_compared_where_they_say_what_is_done_when() -> None:
    def epochs(**options: object) -> str:
        return described_training(hm.Training(epochs=7, **options), 0, CPU, Processes(CPU))["Training.epochs"]

    assert epochs() == epochs(warmup=hm.Warmup(2)) == "None"
    assert epochs(lr_schedule="cosine") == epochs(agreement=hm.Agreement()) == epochs(revive=True) == "7"


# --- numbers of numpy, and what is no option --------------------------------------------------------------------------


@pytest.mark.usefixtures("as_users_call")
def test_numbers_of_numpy_are_those_of_json() -> None:
    """So that a training that is read from a file goes on from the checkpoints of the one that was written."""
    stopping, warmup = hm.EarlyStopping(np.int64(2), np.float64(0.5)), hm.Warmup(np.int32(2), kl=np.float32(0.25))
    training = hm.Training(epochs=5, early_stopping=stopping, warmup=warmup)
    read = hm.training_from_json(training.to_json())
    assert read == training
    assert read.described() == training.described()


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "training", "view": {"kind": ["a"]}}', r"Training\.view: expected a record with a known kind, got"),
        (
            '{"kind": "training", "view": {"kind": "compose", "views": 3}}',
            r"Training\.view\.views: expected a tuple of views",
        ),
        (None, r"Training: expected valid JSON"),
    ],
)
def test_json_of_another_shape(text: Any, message: str) -> None:
    with pytest.raises(HMoEVAEError, match=f"^{message}"):
        hm.training_from_json(text)


@pytest.mark.usefixtures("as_users_call")
def test_an_option_as_an_argument_of_fit_names_the_record() -> None:
    model = hm.HMoEVAE(hm.VAE(2, hm.MLP((4,)), hm.MLP((4,))), (4,))
    message = r"^epochs: expected this option in the argument training: Training\(epochs=\.\.\.\), got 3$"
    with pytest.raises(ArgumentTypeError, match=message):
        hm.fit(model, torch.rand(8, 4), epochs=3)  # type: ignore[call-arg]
