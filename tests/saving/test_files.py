"""Models on disk: bit-equal after loading, refused when damaged or foreign, and never lost to a save that fails."""

import errno
import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Case, about, build, cases, data_for, fit
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.distributions import ContinuousBernoulli

import hmoevae as hm
from hmoevae.errors import ArgumentError, CheckpointError, HMoEVAEError
from hmoevae.nn.grouped import GroupedMLP
from hmoevae.nn.likelihoods import ContinuousBernoulliModule
from hmoevae.saving import files

LEAF = hm.VAE(2, hm.MLP((4,)), hm.MLP((4,)), hm.Gaussian(0.3))
TREE = hm.Mixture((LEAF, hm.Mixture.of(hm.VAE(3, hm.MLP((4,)), hm.MLP(())), 2, prior="learned")), gate=hm.MLP((3,)))
SHAPE = (2, 3)
FOLDER = "a folder with a saved model, or a repository on the Hugging Face Hub"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def make(seed: int = 0) -> hm.HMoEVAE:
    return build(TREE, SHAPE, objective="marginal", seed=seed).float()


def assert_equal(a: hm.HMoEVAE, b: hm.HMoEVAE) -> None:
    """Same tree, same settings, and the same bits in every parameter."""
    assert (a.tree, a.input_shape, a.objective, a.dtype) == (b.tree, b.input_shape, b.objective, b.dtype)
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a good checkpoint."""
    make().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- there and back -------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(cases(depth=4), st.sampled_from((torch.float32, torch.float64, torch.bfloat16)))
def test_a_loaded_model_is_the_saved_one(
    tmp_path_factory: pytest.TempPathFactory, case: Case, dtype: torch.dtype
) -> None:
    """Trees of any shape, batches down to one sample: the same bits in, and the same bits out."""
    folder = tmp_path_factory.mktemp("saved")
    model = case.model.to(dtype)
    model.save_pretrained(folder / "first")
    loaded = hm.HMoEVAE.from_pretrained(folder / "first")
    assert_equal(loaded, model)
    assert not loaded.training
    loaded.save_pretrained(folder / "again")
    assert (folder / "first" / CONFIG).read_bytes() == (folder / "again" / CONFIG).read_bytes()
    assert_equal(hm.HMoEVAE.from_pretrained(folder / "again"), model)
    x = case.x.to(dtype)
    first, again = (m(x, generator=torch.Generator().manual_seed(0)) for m in (model, loaded))
    assert torch.equal(first.loss, again.loss)
    assert torch.equal(first.leaf_elbo, again.leaf_elbo)
    assert torch.equal(model.predict_proba(x), loaded.predict_proba(x))


def test_double_precision_survives(tmp_path: Path) -> None:
    model = make().double()
    with torch.no_grad():
        model.prior.logits[2] = 0.1  # not a float32
    model.save_pretrained(tmp_path)
    assert_equal(hm.HMoEVAE.from_pretrained(tmp_path), model)


def test_a_loaded_model_can_be_trained_on(saved: Path) -> None:
    model = hm.HMoEVAE.from_pretrained(saved).train()
    model(data_for(TREE, SHAPE, 4).float()).loss.backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())


def test_paths_may_be_strings_and_folders_are_made(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    make().save_pretrained(str(folder))
    assert_equal(hm.HMoEVAE.from_pretrained(str(folder)), make())


def test_a_folder_named_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "runs/model"):
        make().save_pretrained(folder)
        assert_equal(hm.HMoEVAE.from_pretrained(folder), make())


def test_the_folder_holds_these_files_and_leaves_others_alone(saved: Path) -> None:
    (saved / "history.csv").write_text("epoch\n")
    make(1).save_pretrained(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", CONFIG, "history.csv", WEIGHTS]
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]
    assert (saved / "history.csv").read_text() == "epoch\n"
    assert_equal(hm.HMoEVAE.from_pretrained(saved), make(1))


def test_the_config_is_readable_json(saved: Path) -> None:
    config = json.loads((saved / CONFIG).read_text(encoding="utf-8"))
    assert config == {
        "format": "hmoevae",
        "format_version": files.FORMAT_VERSION,
        "tree": json.loads(TREE.to_json()),
        "input_shape": [2, 3],
        "objective": "marginal",
    }
    assert hm.tree_from_json(json.dumps(config["tree"])) == TREE


def test_names_in_any_script_survive(tmp_path: Path) -> None:
    tree = hm.Mixture((hm.VAE(1, hm.MLP(()), hm.MLP(()), name="Ä 数 \n\"'"), hm.VAE(1, hm.MLP(()), hm.MLP(()))))
    hm.HMoEVAE(tree, (2,)).save_pretrained(tmp_path)
    assert hm.HMoEVAE.from_pretrained(tmp_path).tree == tree


def test_only_what_is_learned_is_saved(saved: Path) -> None:
    """Index tables follow from the tree."""
    assert load_file(saved / WEIGHTS).keys() == dict(make().named_parameters()).keys()


def test_no_pickle_is_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    model.save_pretrained(tmp_path)
    assert_equal(hm.HMoEVAE.from_pretrained(tmp_path), model)


def test_a_pickle_is_no_checkpoint(saved: Path) -> None:
    """Neither beside the weights, nor in their place, and nothing in it is run."""
    (saved / WEIGHTS).unlink()
    trap = b"cos\nmkdir\n(V" + os.fsencode(saved / "trap") + b"\ntR."
    (saved / "pytorch_model.bin").write_bytes(trap)
    assert refusal(saved) == (
        f"{saved / WEIGHTS}: expected a saved model's weights, "
        "got only pytorch_model.bin, a pickle, which is not read because it may run code"
    )
    (saved / WEIGHTS).write_bytes(trap)
    with pytest.raises(CheckpointError, match="a whole safetensors file"):
        hm.HMoEVAE.from_pretrained(saved)
    assert not (saved / "trap").exists()


def test_loading_leaves_the_global_random_state_alone(saved: Path, rng_untouched: None) -> None:
    hm.HMoEVAE.from_pretrained(saved)


# --- what is refused ------------------------------------------------------------------------------------------------


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def edit_weights(folder: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    result = change(content)
    (folder / WEIGHTS).write_bytes(content if result is None else result)


def refusal(folder: Path) -> str:
    """What is said of the checkpoint."""
    with pytest.raises(CheckpointError) as caught:
        hm.HMoEVAE.from_pretrained(folder)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, 0.5, -1])
def test_truncated_weights(saved: Path, size: float) -> None:
    edit_weights(saved, lambda b: b[: int(len(b) * size) if size == 0.5 else size])
    assert refusal(saved).startswith(f"{saved / WEIGHTS}: expected a whole safetensors file, got ")


@pytest.mark.parametrize("byte", [0, 3, 7, 8, 9, 20, 60])
def test_a_flipped_bit_in_the_weights_header(saved: Path, byte: int) -> None:
    def flip(content: bytearray) -> None:
        content[byte] ^= 0x40

    edit_weights(saved, flip)
    assert refusal(saved).startswith(f"{saved / WEIGHTS}: expected ")


def test_trailing_bytes_in_the_weights(saved: Path) -> None:
    edit_weights(saved, lambda b: b + b"more")
    assert "a whole safetensors file" in refusal(saved)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"PK\x03\x04", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"{}"]
)
def test_a_foreign_file_as_weights(saved: Path, content: bytes) -> None:
    (saved / WEIGHTS).write_bytes(content)
    assert refusal(saved).startswith(f"{saved / WEIGHTS}: expected ")


def test_another_trees_weights(saved: Path, tmp_path: Path) -> None:
    """Of another shape, and of the same shapes."""
    bigger = hm.HMoEVAE(hm.Mixture.of(LEAF, 4), SHAPE)
    bigger.save_pretrained(tmp_path / "bigger")
    shutil.copy(tmp_path / "bigger" / WEIGHTS, saved)
    other = f"{saved / WEIGHTS}: expected the weights of the tree in config.json, got those of another tree"
    other += ", or config.json has been edited"
    assert refusal(saved) == other

    twin = TREE.children[0], hm.Mixture(TREE.children[1].children, prior="learned", balance=hm.Balance("kl"))
    build(hm.Mixture(twin, gate=TREE.gate), SHAPE, objective="marginal").float().save_pretrained(tmp_path / "twin")
    shutil.copy(tmp_path / "twin" / WEIGHTS, saved)
    assert refusal(saved) == other


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(objective="elbo"),
        lambda c: c.update(input_shape=[3, 2]),
        lambda c: c["tree"].update(name="other"),
        lambda c: c["tree"]["children"][0]["likelihood"].update(scale=0.31),
        lambda c: c["tree"]["children"].reverse(),
    ],
)
def test_a_changed_config_no_longer_fits_its_weights(saved: Path, change: Callable[[dict], object]) -> None:
    edit_config(saved, change)
    assert refusal(saved).startswith(
        f"{saved / WEIGHTS}: expected the weights of the tree in config.json, got those of another"
    )


def seal(folder: Path, state: dict[str, torch.Tensor], **metadata: str) -> None:
    """Write weights whose digests are right, as nobody but us or a forger would."""
    config = {k: v for k, v in json.loads((folder / CONFIG).read_text()).items() if not k.startswith("format")}
    digests = {"config_sha256": files._config_digest(config), "weights_sha256": files._weights_digest(state)}
    save_file(state, folder / WEIGHTS, {**digests, **metadata})


def test_other_safetensors_files(saved: Path) -> None:
    """Without our digests, with wrong ones, with a weight too few, too many, or of another shape."""
    state = load_file(saved / WEIGHTS)
    save_file(state, saved / WEIGHTS)
    assert "another tree" in refusal(saved)
    seal(saved, state, weights_sha256="0" * 64)
    assert "got other weights: the file is damaged" in refusal(saved)
    name = next(iter(state))
    seal(saved, {k: v for k, v in state.items() if k != name})
    assert refusal(saved).endswith(f"got those of another tree (differing: {name})")
    seal(saved, {**state, "extra": torch.zeros(1)})
    assert refusal(saved).endswith("(differing: extra)")
    seal(saved, {**state, name: state[name].flatten()})
    assert refusal(saved).endswith(f"(differing: {name})")
    seal(saved, {})
    assert refusal(saved).endswith("expected weights of one floating point type, got none")
    seal(saved, state)
    assert_equal(hm.HMoEVAE.from_pretrained(saved), make())


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float64])
def test_weights_of_another_type(saved: Path, dtype: torch.dtype) -> None:
    """Numbers that no parameter can be, and one double among floats."""
    state = load_file(saved / WEIGHTS)
    name = next(iter(state))
    seal(saved, {**state, name: state[name].to(dtype)})
    assert "expected weights of one floating point type, got " in refusal(saved)


def test_any_flipped_bit_of_a_weight_is_noticed(saved: Path) -> None:
    """The number that it makes is as good as any other, and so is the file to safetensors."""
    content = (saved / WEIGHTS).read_bytes()
    for byte in range(len(content) - 64, len(content)):
        damaged = bytearray(content)
        damaged[byte] ^= 1
        (saved / WEIGHTS).write_bytes(damaged)
        assert (
            refusal(saved)
            == f"{saved / WEIGHTS}: expected the weights that were saved, got other weights: the file is damaged"
        )


def test_a_model_of_mixed_precision_is_not_saved(saved: Path) -> None:
    """It could not be loaded as it is."""
    model = make()
    model.gates.half()
    refuses_to_save(model, saved, "parameters of one floating point type, got float16, float32")


def refuses_to_save(model: hm.HMoEVAE, saved: Path, message: str) -> None:
    """And leaves what is there."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ArgumentError, match=message):
        model.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


class OtherGates(torch.nn.Module):
    """Somebody's own, with nothing to be saved: it asks for the same weights as no gates at all."""

    def forward(self, x: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        return torch.full((4, x.shape[1]), 0.5).log()


class Doubled(GroupedMLP):
    """The same weights, another answer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def swap_for_the_same_weights(model: hm.HMoEVAE) -> None:
    other = Doubled(1, 6, 2, hm.MLP((3,)))
    other.load_state_dict(model.gates.groups[0].network.state_dict())
    model.gates.groups[0].network = other


CHANGES: dict[str, tuple[Callable[[hm.HMoEVAE], object], str]] = {
    "gates": (
        lambda model: setattr(model, "gates", OtherGates()),
        "model.gates: expected Gates, as loading builds it from the tree, got OtherGates",
    ),
    "a layer": (
        lambda model: setattr(model.experts.groups[0], "encoder", torch.nn.Linear(6, 4)),
        "model.experts.groups.0.encoder: expected GroupedMLP, as loading builds it from the tree, got Linear",
    ),
    "a layer of the same weights": (
        swap_for_the_same_weights,
        "model.gates.groups.0.network: expected GroupedMLP, as loading builds it from the tree, got Doubled",
    ),
    "no gates": (
        lambda model: setattr(model, "gates", None),
        "model.gates: expected Gates, as loading builds it from the tree, got nothing",
    ),
    "another module": (
        lambda model: model.add_module("head", torch.nn.Linear(2, 2)),
        "model.head: expected nothing, as loading builds it from the tree, got Linear",
    ),
    "another parameter": (
        lambda model: model.experts.register_parameter("scale", torch.nn.Parameter(torch.ones(3))),
        "model.experts.scale: expected nothing, as loading builds it from the tree, got a parameter of shape (3,)",
    ),
    "another buffer": (
        lambda model: model.register_buffer("mean", torch.ones(6)),
        "model.mean: expected nothing, as loading builds it from the tree, got a buffer of shape (6,)",
    ),
    "a buffer that is not saved": (
        lambda model: model.register_buffer("mean", torch.ones(6), persistent=False),
        "model.mean: expected nothing, as loading builds it from the tree, got a buffer of shape (6,)",
    ),
    "another shape": (
        lambda model: setattr(model.gates.groups[0].network.layers[0], "bias", torch.nn.Parameter(torch.zeros(1, 4))),
        "model.gates.groups.0.network.layers.0.bias: expected a parameter of shape (1, 3), "
        "as loading builds it from the tree, got a parameter of shape (1, 4)",
    ),
    "a buffer for a parameter": (
        lambda model: (
            delattr(model.gates.groups[0].network.layers[0], "bias"),
            model.gates.groups[0].network.layers[0].register_buffer("bias", torch.zeros(1, 3)),
        ),
        "model.gates.groups.0.network.layers.0.bias: expected a parameter of shape (1, 3), "
        "as loading builds it from the tree, got a buffer of shape (1, 3)",
    ),
    "an activation": (
        lambda model: setattr(model.experts.groups[0].decoder, "activation", "tanh"),
        "model.experts.groups.0.decoder.activation: expected 'relu', as loading builds it from the tree, got 'tanh'",
    ),
    "a likelihood": (
        lambda model: setattr(model.experts.groups[0].likelihood, "scale", 2.0),
        "model.experts.groups.0.likelihood.scale: expected 0.3, as loading builds it from the tree, got 2.0",
    ),
    "a shape of the samples": (
        lambda model: setattr(model, "input_shape", (7,)),
        "model.gates.groups.0.network.layers.0.weight: expected a parameter of shape (1, 3, 7), as loading",
    ),
    "shared weights": (
        lambda model: setattr(
            model.experts.groups[1].decoder.layers[0],
            "bias",
            torch.nn.Parameter(model.experts.groups[1].decoder.layers[0].weight.detach()[:, 0]),
        ),
        "model.experts.groups.1.decoder.layers.0.bias: expected memory of its own, got that of",
    ),
    "no values": (lambda model: model.to("meta"), "expected a dense tensor with values, got meta, torch.strided"),
    "sparse weights": (
        lambda model: setattr(
            model.gates.groups[0].network.layers[0], "bias", torch.nn.Parameter(torch.zeros(1, 3).to_sparse())
        ),
        "model.gates.groups.0.network.layers.0.bias: expected a dense tensor with values, got cpu, torch.sparse_coo",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_loading_would_not_make_again_is_not_saved(saved: Path, change: str) -> None:
    model = make()
    make_it, message = CHANGES[change]
    make_it(model)
    refuses_to_save(model, saved, re.escape(message))


def test_a_model_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 3), (4,))
    model.gates = torch.nn.Linear(4, 3)  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match=r"model.gates: expected Gates"):
        model.save_pretrained(tmp_path / "new" / "model")
    assert not list(tmp_path.iterdir())


def test_a_run_with_checkpoints_refuses_such_a_model_before_it_begins(tmp_path: Path) -> None:
    model = make()
    swap_for_the_same_weights(model)
    seen = []
    x = data_for(TREE, SHAPE, 8).float()
    with pytest.raises(ArgumentError, match=r"model\.gates\.groups\.0\.network: expected GroupedMLP"):
        fit(model, x, checkpoint_dir=tmp_path / "run", epochs=1, callbacks=[seen.append])
    assert not (tmp_path / "run").exists()
    assert not seen


@pytest.mark.filterwarnings("ignore::hmoevae.errors.CollapseWarning")
def test_a_module_swapped_in_between_checkpoints_is_named_and_the_ones_before_stay(tmp_path: Path) -> None:
    def swap(end: hm.EpochEnd) -> None:
        if end.epoch == 2:
            end.model.gates.groups[0].network.activation = "tanh"

    model, x = make(), data_for(TREE, SHAPE, 8).float()
    message = r"epoch-000002: .* got model\.gates\.groups\.0\.network\.activation: expected 'relu', .*epoch-000001$"
    with pytest.raises(CheckpointError, match=message):
        hm.fit(model, x, hm.Training(epochs=3, device="cpu"), progress=False, callbacks=[swap], checkpoint_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == ["epoch-000001"]
    assert hm.HMoEVAE.from_pretrained(tmp_path / "epoch-000001").tree == TREE


@hm.record(kind="tests.tied")
class Tied(hm.Network):
    """A network with one weight in two places."""

    def build(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> torch.nn.Module:
        size = torch.Size(input_shape).numel()
        first, second = torch.nn.Linear(size, size), torch.nn.Linear(size, size)
        second.weight = first.weight
        return torch.nn.Sequential(
            torch.nn.Flatten(), first, torch.nn.Tanh(), second, torch.nn.Linear(size, *output_shape)
        )


@pytest.mark.filterwarnings("ignore::hmoevae.errors.CollapseWarning")
def test_tied_weights_of_a_users_network_are_saved_and_stay_tied(tmp_path: Path) -> None:
    tree = hm.Mixture.of(hm.VAE(2, Tied(), hm.MLP((4,))), 2, gate=Tied())
    models = [build(tree, SHAPE).float() for _ in range(2)]
    x = data_for(tree, SHAPE, 16).float()
    fit(models[0], x, epochs=4, batch_size=8)
    for epochs in (2, 4):
        fit(models[1], x, epochs=epochs, batch_size=8, checkpoint_dir=tmp_path / "run")
    assert_equal(models[0], models[1])
    models[0].save_pretrained(tmp_path / "model")
    loaded = hm.HMoEVAE.from_pretrained(tmp_path / "model")
    assert_equal(models[0], loaded)
    network = loaded.gates.groups[0].network.module
    assert network[1].weight is network[3].weight
    network[3].weight = torch.nn.Parameter(network[1].weight.detach().clone())  # loading would tie them
    with pytest.raises(ArgumentError, match=r"3\.weight: expected the memory of .*1\.weight, got memory of its own"):
        loaded.save_pretrained(tmp_path / "untied")


@pytest.mark.filterwarnings("ignore::hmoevae.errors.CollapseWarning")
def test_a_model_survives_that_the_class_of_its_network_is_defined_anew(tmp_path: Path) -> None:
    """As when a cell of a notebook runs twice: the model has records of the class that was."""

    def define() -> type[hm.Network]:
        @hm.record(kind="tests.cell")
        class Cell(hm.Network):
            def build(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> torch.nn.Module:
                return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, *output_shape))

        return Cell

    model = build(hm.Mixture.of(hm.VAE(2, define()(), hm.MLP((4,))), 2), SHAPE).float()
    define()
    model.save_pretrained(tmp_path / "model")
    loaded = hm.HMoEVAE.from_pretrained(tmp_path / "model")
    assert loaded.tree.to_json() == model.tree.to_json()
    fit(model, data_for(model.tree, SHAPE, 8).float(), epochs=1, checkpoint_dir=tmp_path / "run")


def test_a_subclass_that_is_made_otherwise_is_not_saved(tmp_path: Path) -> None:
    class Mine(hm.HMoEVAE):
        def __init__(self, size: int) -> None:
            super().__init__(LEAF, (size,))

    class Same(hm.HMoEVAE):
        def predict(self, x: torch.Tensor) -> torch.Tensor:
            return super().predict(x) + 1

    with pytest.raises(ArgumentError, match=r"model: expected a class with the constructor of HMoEVAE, got .*__init__"):
        Mine(3).save_pretrained(tmp_path / "mine")
    Same(LEAF, (3,)).save_pretrained(tmp_path / "same")
    assert isinstance(Same.from_pretrained(tmp_path / "same"), Same)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(saved: Path, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    with torch.no_grad():
        model.experts.groups[1].decoder.layers[0].bias[0, 0] = value
    refuses_to_save(model, saved, "model: expected finite weights, got NaN or infinity")
    with monkeypatch.context() as patch:  # as a version before that did
        patch.setattr(files, "_is_finite", lambda state: True)
        model.save_pretrained(saved)
    assert refusal(saved) == f"{saved / WEIGHTS}: expected finite weights, got NaN or infinity"


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    what = "config.json" if name == CONFIG else "weights"
    assert refusal(saved) == f"{saved / name}: expected a saved model's {what}, got no such file"


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_folder_in_the_place_of_a_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    (saved / name).mkdir()
    assert refusal(saved).startswith(f"{saved / name}: expected ")


def test_no_folder(saved: Path) -> None:
    absent = saved / "absent"
    assert refusal(absent) == f"{absent}: expected {FOLDER}, got no such folder"
    assert refusal(saved / CONFIG) == f"{saved / CONFIG}: expected {FOLDER}, got a file"


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path / CONFIG}: expected a saved model's config.json, got no such file"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a readable config.json"),
        ("{", "a readable config.json"),
        ('{"format": "hmoe', "a readable config.json"),
        ("[" * 100_000, "a readable config.json"),
        ("[]", "a config.json written by hmoevae"),
        ("null", "a config.json written by hmoevae"),
        ("{}", "a config.json written by hmoevae"),
        ('{"model_type": "bert", "hidden_size": 768}', "a config.json written by hmoevae"),
    ],
    ids=["empty", "brace", "cut", "deep", "list", "null", "object", "bert"],
)
def test_a_damaged_or_foreign_config(saved: Path, text: str, expected: str) -> None:
    (saved / CONFIG).write_text(text)
    assert refusal(saved).startswith(f"{saved / CONFIG}: expected {expected}, got ")


def test_a_config_in_another_encoding(saved: Path) -> None:
    (saved / CONFIG).write_bytes(b"\xff\xfe{\x00}\x00")
    assert refusal(saved).startswith(f"{saved / CONFIG}: expected a readable config.json, got ")


@pytest.mark.parametrize("version", [0, -1, "2", 2.0, True, None, [2]])
def test_an_unknown_format_version(saved: Path, version: object) -> None:
    edit_config(saved, lambda c: c.update(format_version=version))
    assert refusal(saved) == f"{saved / CONFIG}: expected format_version 1 to {files.FORMAT_VERSION}, got {version!r}"


def test_a_newer_format_asks_for_an_upgrade(saved: Path) -> None:
    known = files.FORMAT_VERSION
    edit_config(saved, lambda c: c.update(format_version=known + 1))
    expected = f"expected format_version 1 to {known}, got {known + 1} (written by a newer hmoevae: upgrade to read it)"
    assert refusal(saved) == f"{saved / CONFIG}: {expected}"


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda c: c.pop("tree"), "tree"),
        (lambda c: c.pop("objective"), "objective"),
        (lambda c: c.update(tree=None), "root: expected VAE(...) or Mixture(...), got None"),
        (
            lambda c: c["tree"].update(children=c["tree"]["children"][:1]),
            "root.children: expected at least 2 items, got 1",
        ),
        (
            lambda c: c["tree"]["children"][0].update(latent_dim=0),
            "root.children[0].latent_dim: expected an integer > 0, got 0",
        ),
        (lambda c: c["tree"].update(gates=1), "root.gates: expected no such field (there are children, "),
        (lambda c: c.update(input_shape=[]), "input_shape: expected a tuple of integers > 0, got ()"),
        (lambda c: c.update(input_shape=None), "input_shape"),
        (lambda c: c.update(input_shape=6), "input_shape"),
        (
            lambda c: c.update(objective="mse"),
            "(import the module that registers another), got 'mse'",
        ),
        (
            lambda c: c.update(objective=["elbo"]),
            "(import the module that registers another), got ['elbo']",
        ),
        (
            lambda c: c["tree"]["children"][0]["likelihood"].update(kind="gamma"),
            "expected a registered kind: import the module that registers 'gamma' first",
        ),
        (lambda c: c.update(input_shape=[2**62]), "one that cannot be built ("),
        (lambda c: c.update(input_shape=[2**40, 2**40]), "one that cannot be built ("),
        (lambda c: c["tree"]["children"][0].update(latent_dim=10**40), "one that cannot be built ("),
    ],
)
def test_a_config_that_describes_no_model(saved: Path, change: Callable[[dict], object], detail: str) -> None:
    """And whose digest is right."""
    edit_config(saved, change)
    seal(saved, make().state_dict())
    message = refusal(saved)
    assert message.startswith(f"{saved / CONFIG}: expected the description of a model, got ")
    assert detail in message


@pytest.mark.parametrize("size", [10**6, 10**12])
def test_a_config_that_asks_for_more_than_the_weights_fill(saved: Path, size: int) -> None:
    """Memory is taken for what is there, not for what is claimed; of 10^12 numbers there is none."""
    edit_config(saved, lambda c: c["tree"]["children"][0].update(latent_dim=size))
    seal(saved, make().state_dict())
    assert "(differing: experts.groups.0." in refusal(saved)


# --- older formats --------------------------------------------------------------------------------------------------

FORMAT_1, FORMAT_2, FORMAT_3 = (Path(__file__).parents[1] / "fixtures" / f"format_{n}" for n in (1, 2, 3))
"""A model, as the last code of each format wrote it, and what it answered."""


@pytest.mark.parametrize(
    ("folder", "answers_in", "input_shape"),
    [(FORMAT_1, FORMAT_1, (1, 4, 3)), (FORMAT_2, FORMAT_1, (1, 4, 3)), (FORMAT_3, FORMAT_3, (2, 5, 4))],
    ids=["format_1", "format_2", "format_3"],
)
def test_a_model_of_an_older_format_loads_for_ever(
    folder: Path, answers_in: Path, input_shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of format 3: gates with convolutions, alone and in a group of two, dense ones and learned priors."""
    if answers_in == FORMAT_1:  # of a time when the mean of a continuous Bernoulli was that of torch.distributions
        monkeypatch.setattr(ContinuousBernoulliModule, "mean", lambda _, raw: ContinuousBernoulli(logits=raw).mean)
    model = hm.HMoEVAE.from_pretrained(folder)
    answers = {k: torch.tensor(v) for k, v in json.loads((answers_in / "outputs.json").read_text()).items()}
    assert (model.tree.name, model.input_shape, model.objective) == ("tiny", input_shape, "elbo")
    x, leaves = answers["x"], torch.arange(model.plan.n_leaves)
    for name, value in {
        "predict_proba": model.predict_proba(x),
        "encode": model.encode(x),
        "reconstruct": model.reconstruct(x),
        "decode": model.decode(answers["z"], leaves),
        "leaf_log_prior": model.prior.leaf_log_prob().detach(),
    }.items():
        torch.testing.assert_close(value, answers[name], msg=about(name))


def test_format_4_has_convolutions_with_their_group_first() -> None:
    """And networks of gates under a name, and the prior in a room of its own; every number is still there."""
    before = load_file(FORMAT_3 / WEIGHTS)
    after = files.read_model(FORMAT_3 / CONFIG, FORMAT_3 / WEIGHTS).state
    assert {name: tuple(tensor.shape) for name, tensor in sorted(after.items()) if ".convolutions." in name} == {
        "gates.groups.0.network.convolutions.0.bias": (1, 2),
        "gates.groups.0.network.convolutions.0.weight": (1, 2, 2, 5, 5),
        "gates.groups.1.network.convolutions.0.bias": (2, 3),
        "gates.groups.1.network.convolutions.0.weight": (2, 3, 2, 3, 3),
        "gates.groups.1.network.convolutions.1.bias": (2, 2),
        "gates.groups.1.network.convolutions.1.weight": (2, 2, 3, 3, 3),
    }
    assert len(after) == len(before)
    for name, tensor in before.items():
        new = name.replace("paths.prior_logits", "prior.logits")
        new = re.sub(r"^(gates\.groups\.\d+)\.", r"\1.network.", new)
        assert torch.equal(after[new].flatten(), tensor.flatten()), name


@pytest.mark.parametrize("head", [{}, {"gates.head.layers.0.weight": torch.ones(3, 2, 2)}], ids=["none", "of three"])
def test_convolutions_that_no_head_divides_are_left_as_they_are(head: dict[str, torch.Tensor]) -> None:
    """They are of another tree, and refused as such afterwards, in words that name them."""
    state = {"gates.convolutions.0.bias": torch.ones(4), **head}
    after = files._MIGRATIONS[3](files.Saved({}, state)).state
    assert sorted(tensor.shape for tensor in after.values()) == sorted(tensor.shape for tensor in state.values())


@pytest.mark.parametrize("folder", [FORMAT_1, FORMAT_2, FORMAT_3], ids=lambda folder: folder.name)
def test_a_model_of_an_older_format_is_saved_in_the_current_one(folder: Path, tmp_path: Path) -> None:
    model = hm.HMoEVAE.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["format_version"] == files.FORMAT_VERSION
    assert_equal(hm.HMoEVAE.from_pretrained(tmp_path), model)


def test_every_format_up_to_the_current_one_can_be_read() -> None:
    assert [*files._MIGRATIONS] == [*range(1, files.FORMAT_VERSION)]


def test_a_damaged_model_of_format_1_is_refused(tmp_path: Path) -> None:
    shutil.copytree(FORMAT_1, tmp_path, dirs_exist_ok=True)
    edit_config(tmp_path, lambda c: c["tree"].update(name="other"))
    assert "another tree" in refusal(tmp_path)
    edit_config(tmp_path, lambda c: c["tree"].update(name="tiny"))
    edit_config(tmp_path, lambda c: c.update(format_version=2))  # which has a digest of the weights
    assert "the file is damaged" in refusal(tmp_path)


# --- saves that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
def test_a_save_that_fails_leaves_the_old_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The config of the new model is already written when the disk fills up, or Ctrl-C comes."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(folder: Path, *args: object) -> None:
        (folder / CONFIG).write_text("half of")
        raise error

    monkeypatch.setattr(files, "write_model", fail)
    with pytest.raises(ArgumentError if isinstance(error, OSError) else type(error)):
        make(1).save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    assert_equal(hm.HMoEVAE.from_pretrained(saved), make())


def test_a_crash_between_the_files_is_noticed(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new weights are in place, the new config is not: refused, rather than mixed."""
    replace = Path.replace

    def crash(self: Path, target: Path) -> Path:
        if self.name == CONFIG:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    other = hm.HMoEVAE(hm.Mixture.of(LEAF, 2), SHAPE)
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(saved)
    monkeypatch.undo()
    assert "another tree" in refusal(saved)


def test_a_folder_in_place_of_a_file(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    (saved / WEIGHTS).mkdir()
    with pytest.raises(ArgumentError, match=r"model: expected a folder that can be written, got Is a directory"):
        make().save_pretrained(saved)


@pytest.mark.parametrize("below", [(), ("a",), ("a", "b")])
def test_a_folder_that_cannot_be_made(tmp_path: Path, below: tuple[str, ...]) -> None:
    """Below a regular file there can be no folder, whoever asks."""
    (tmp_path / "file").write_text("content")
    folder = tmp_path.joinpath("file", *below)
    with pytest.raises(HMoEVAEError) as caught:
        make().save_pretrained(folder)
    assert str(caught.value).startswith(f"{folder}: expected a folder that can be written, got ")
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(saved: Path) -> None:
    saved.chmod(0o500)
    try:
        with pytest.raises(HMoEVAEError, match="expected a folder that can be written"):
            make(1).save_pretrained(saved)
    finally:
        saved.chmod(0o700)
    assert_equal(hm.HMoEVAE.from_pretrained(saved), make())


def test_a_folder_on_another_disk_than_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a mounted volume, or a link to one, is: files cannot be moved into it from beside it."""
    folder, replace = tmp_path / "mount", Path.replace
    folder.mkdir()

    def replace_on_one_disk(self: Path, target: Path) -> Path:
        if (folder in self.parents) != (folder in Path(target).parents):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_on_one_disk)
    make().save_pretrained(folder)
    assert_equal(hm.HMoEVAE.from_pretrained(folder), make())


# --- text files -----------------------------------------------------------------------------------------------------


def test_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "runs" / "a.csv"
    files.write_text(target, "ä\n")
    assert target.read_bytes() == "ä\n".encode()

    def fail(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(target, "other")
    assert target.read_bytes() == "ä\n".encode()
    assert [path.name for path in target.parent.iterdir()] == ["a.csv"]


def test_text_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    for target in (tmp_path / "file" / "a.csv", tmp_path / "file" / "b" / "a.csv", tmp_path):
        with pytest.raises(HMoEVAEError) as caught:
            files.write_text(target, "text")
        assert str(caught.value).startswith(f"{target}: expected a file that can be written, got ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_saved_files_have_the_usual_permissions(saved: Path) -> None:
    (saved / "usual").touch()
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


def test_written_text_has_the_usual_permissions(tmp_path: Path) -> None:
    files.write_text(tmp_path / "ours", "")
    (tmp_path / "usual").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
