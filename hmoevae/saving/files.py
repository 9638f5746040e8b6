"""A model on disk: config.json and model.safetensors, written whole or not at all, and read without running code."""

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hmoevae.errors import ArgumentError, CheckpointError, mismatch
from hmoevae.nn.attributes import is_plain, is_same, plain_attributes
from hmoevae.saving import sharded

FORMAT_VERSION = 4
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
TYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
"""Endings of files in which other programs pickle weights; reading a pickle may run code."""


@contextmanager
def replacing_files_of(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block succeeds, move its files into `folder` one by one.

    An error inside the block leaves `folder` unchanged.

    Raises:
        ArgumentError: `folder` cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside `folder`, not beside it: `folder` may be a mounted volume, and moves must stay in one file system.
        beside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    except OSError as error:
        raise ArgumentError(mismatch(str(folder), "a folder that can be written", error.strerror)) from None
    try:
        yield beside
        # The config is moved last: a crash before that leaves files whose digests do not match, which loading refuses.
        for source in sorted(beside.iterdir(), key=lambda path: (path.name == CONFIG_NAME, path.name)):
            source.replace(folder / source.name)
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or f"{error}"
        raise ArgumentError(mismatch(str(folder), "a folder that can be written", reason)) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        ArgumentError: The file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")  # mkstemp would make it unreadable to others
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(target)
    except OSError as error:
        raise ArgumentError(mismatch(str(target), "a file that can be written", error.strerror)) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Saved:
    """The content of a model's two files.

    Attributes:
        config: config.json without the keys of its format and version.
        state: The weights by name.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]


def _from_1(saved: Saved) -> Saved:
    """Format 2 added the digest of the weights; config and weights are the same."""
    return saved


def _from_2(saved: Saved) -> Saved:
    """In format 3 the weights of a decoder's last layer are (group, inp, out) instead of (group, out, inp)."""
    last: dict[str, int] = {}
    for name in saved.state:
        if found := _DECODER_WEIGHT.fullmatch(name):
            last[found[1]] = max(last.get(found[1], 0), int(found[2]))
    state = dict(saved.state)
    for decoder, layer in last.items():
        name = f"{decoder}.{layer}.weight"
        if name in state and state[name].ndim == 3:  # weights of another tree are refused by `check_weights`
            state[name] = state[name].mT.contiguous()
    return Saved(saved.config, state)


def _from_3(saved: Saved) -> Saved:
    """In format 4 convolutions are (group, out, inp, k, k), and the gates' networks and the prior have new names."""
    state = {}
    for name, tensor in saved.state.items():
        found = _CONVOLUTION.fullmatch(name)
        head = saved.state.get(f"{found[1]}.head.layers.0.weight") if found else None
        # Weights of another tree, which do not fit here, are refused by `check_weights`.
        if head is not None and head.ndim == 3 and tensor.ndim > 0 and len(tensor) % len(head) == 0:
            tensor = tensor.unflatten(0, (len(head), -1))
        new = _GATE.sub(r"\1.network.", name).replace("paths.prior_logits", "prior.logits")
        state[new] = tensor
    return Saved(saved.config, state)


_DECODER_WEIGHT = re.compile(r"(experts\.groups\.\d+\.decoder\.layers)\.(\d+)\.weight")
_GATE = re.compile(r"^(gates\.groups\.\d+)\.")
_CONVOLUTION = re.compile(r"(.+)\.convolutions\.\d+\.(?:weight|bias)")
_MIGRATIONS: dict[int, Callable[[Saved], Saved]] = {1: _from_1, 2: _from_2, 3: _from_3}
"""The migration of each older format to the next one, for files whose digests have been checked."""


def check_rebuilds(model: nn.Module, rebuilt: nn.Module) -> None:
    """Check that loading would rebuild a model from its config and weights alone.

    Args:
        model: The model to be saved.
        rebuilt: The model that loading makes from the config, without weights, on the meta device.

    Raises:
        ArgumentError: A module, a parameter, a buffer or an attribute differs; the message names it.
    """
    has, wanted = _parts(model), _parts(rebuilt)
    for name in wanted | has:
        if has.get(name) != wanted.get(name):
            expected = f"{wanted.get(name, 'nothing')}, as loading builds it from the tree"
            raise ArgumentError(mismatch(_below_model(name), expected, has.get(name, "nothing")))
    owners, own = _owners(model), _owners(rebuilt)
    for name in owners | own:
        owner, wanted_owner = owners.get(name, name), own.get(name, name)
        if owner != wanted_owner:
            expected = "memory of its own" if wanted_owner == name else f"the memory of {wanted_owner}"
            got = "memory of its own" if owner == name else f"that of {owner}"
            raise ArgumentError(mismatch(_below_model(name), expected, got))
    for name, module in rebuilt.named_modules():
        ours = vars(model.get_submodule(name))
        for key, value in plain_attributes(module):
            if key in ours and not is_same(ours[key], value):
                expected = f"{_in_words(value)}, as loading builds it from the tree"
                raise ArgumentError(mismatch(_below_model(f"{name}.{key}"), expected, _in_words(ours[key])))


def _below_model(name: str) -> str:
    return f"model.{name}".strip(".").replace("..", ".")


def _parts(model: nn.Module) -> dict[str, str]:
    """Every module, parameter and buffer in words, by name; modules come first, because they explain the others."""
    parts = {name: type(module).__qualname__ for name, module in model.named_modules(remove_duplicate=False)}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        parts[name] = f"a parameter of shape {tuple(tensor.shape)}"
    for name, tensor in model.named_buffers(remove_duplicate=False):
        parts[name] = f"a buffer of shape {tuple(tensor.shape)}"
    return parts


def _owners(model: nn.Module) -> dict[str, str]:
    """For every parameter the first one in the same memory: itself, unless weights are tied. Buffers do not learn."""
    owners: dict[str, str] = {}
    firsts: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.numel() > 0 and tensor.layout == torch.strided:
            # Tensors without memory, on the meta device, are told apart by their identity.
            memory = id(tensor) if tensor.is_meta else tensor.untyped_storage().data_ptr()
            if isinstance(tensor, nn.Parameter) or memory in firsts:
                owners[name] = firsts.setdefault(memory, name)
    return owners


def _in_words(value: object) -> str:
    return f"{type(value).__name__} with {vars(value)}" if is_plain(value) else f"{value!r:.200}"


def write_model(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write `config` and `state` to an empty folder; the file of the weights holds the digests of both.

    Raises:
        ArgumentError: The weights have several types, are not finite, or overlap, so they could not be read again.
    """
    state = dict(state)
    text = json.dumps({"format": "hmoevae", "format_version": FORMAT_VERSION, **config}, indent=2) + "\n"
    owners: dict[int, str] = {}
    for name, tensor in state.items():
        if tensor.is_meta or tensor.layout != torch.strided:
            got = f"{tensor.device}, {tensor.layout}"
            raise ArgumentError(mismatch(f"model.{name}", "a dense tensor with values", got))
        owner = owners.setdefault(tensor.untyped_storage().data_ptr(), name)
        if owner != name and tensor.numel() > 0 and not tensor.is_set_to(state[owner]):
            raise ArgumentError(mismatch(f"model.{name}", "memory of its own", f"that of {owner}"))
        if owner != name:  # a tied weight is written for each of its names
            state[name] = tensor.clone()
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if state and not _is_of_one_type(state):  # gates may have none, and cut experts are written elsewhere
        raise ArgumentError(mismatch("model", "parameters of one floating point type", _types(state)))
    if not _is_finite(state):
        raise ArgumentError(mismatch("model", "finite weights", "NaN or infinity"))
    metadata = {"config_sha256": _config_digest(config), "weights_sha256": _weights_digest(state), "format": "pt"}
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    save_file(state, folder / WEIGHTS_NAME, metadata=metadata)
    (folder / WEIGHTS_NAME).chmod((folder / CONFIG_NAME).stat().st_mode)  # safetensors makes it private to the user


def read_model(config_file: Path, weights_file: Path) -> Saved:
    """Read the two files of a model, of this format or an older one.

    Returns:
        Config and weights in the current format. Their digests match and the weights are finite.

    Raises:
        CheckpointError: A file is missing, damaged, not of this package, of a newer format, or of another tree.
    """
    config, version = _read_config(config_file)
    saved = Saved(config, _read_weights(weights_file, config, version))
    for older in range(version, FORMAT_VERSION):
        saved = _MIGRATIONS[older](saved)
    return saved


def may_be_repository(name: str) -> bool:
    """Whether a name has the form of a repository on the Hugging Face Hub, `owner/name`, and not of a path.

    >>> may_be_repository("me/digits"), may_be_repository("runs/a/b"), may_be_repository("./digits")
    (True, False, False)
    """
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def check_reach(
    repository: str, revision: str | None, cache_dir: str | os.PathLike[str] | None, token: str | bool | None
) -> None:
    """Check that the Hub can be reached, unless the repository's model is in the cache.

    Without this check, the client's download tries for half a minute before it fails.

    Raises:
        OSError: The Hub cannot be reached, or answers with an error.
    """
    cache = None if cache_dir is None else str(cache_dir)
    if isinstance(try_to_load_from_cache(repository, CONFIG_NAME, cache, revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, CONFIG_NAME, revision=revision), token)
    except (OSError, ValueError):
        raise
    except Exception as error:  # its type depends on the HTTP client that huggingface_hub uses
        raise ConnectionError(f"it cannot be reached ({error})") from error


def check_weights(path: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Check that weights have the names and shapes of a tree's weights.

    Raises:
        CheckpointError: They do not.
    """
    shapes = {name: tensor.shape for name, tensor in found.items()}
    asked = {name: tensor.shape for name, tensor in wanted.items()}
    odd = sorted(name for name in shapes.keys() | asked.keys() if shapes.get(name) != asked.get(name))
    if odd:
        raise _of_another_tree(path, f" (differing: {', '.join(odd[:3])})")


def _read_config(path: Path) -> tuple[dict[str, Any], int]:
    """The config without its format and version, and the version."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path, "config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(mismatch(str(path), "a readable config.json", f"{error}")) from None
    if not isinstance(config, dict) or config.pop("format", None) != "hmoevae":
        raise CheckpointError(mismatch(str(path), "a config.json written by hmoevae", "another file's content"))
    version = config.pop("format_version", None)
    known = range(1, FORMAT_VERSION + 1)
    if type(version) is not int or version not in known:  # 1.0 and true would be equal to 1
        newer = type(version) is int and version > FORMAT_VERSION
        hint = " (written by a newer hmoevae: upgrade to read it)" if newer else ""
        raise CheckpointError(mismatch(str(path), f"format_version {known[0]} to {known[-1]}", f"{version!r}{hint}"))
    return config, version


def _read_weights(path: Path, config: dict[str, Any], version: int) -> dict[str, Tensor]:
    """Read the weights, and check that they belong to `config`, have one floating point type and are finite."""
    if not path.is_file():
        raise _missing(path, "weights")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("config_sha256") != _config_digest(config):
                raise _of_another_tree(path, f", or {CONFIG_NAME} has been edited")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(mismatch(str(path), "a whole safetensors file", f"{error}")) from None
    if version > 1 and metadata.get("weights_sha256") != _weights_digest(state):
        raise CheckpointError(mismatch(str(path), "the weights that were saved", "other weights: the file is damaged"))
    is_elsewhere = not state and (path.parent / sharded.FOLDER).is_dir()
    if not is_elsewhere and not _is_of_one_type(state):
        raise CheckpointError(mismatch(str(path), "weights of one floating point type", _types(state)))
    if not _is_finite(state):
        raise CheckpointError(mismatch(str(path), "finite weights", "NaN or infinity"))
    return state


def _missing(path: Path, what: str) -> CheckpointError:
    pickles = sorted(beside.name for beside in path.parent.glob("*") if beside.suffix in PICKLES)
    got = f"only {pickles[0]}, a pickle, which is not read because it may run code" if pickles else "no such file"
    return CheckpointError(mismatch(str(path), f"a saved model's {what}", got))


def _of_another_tree(path: Path, detail: str) -> CheckpointError:
    return CheckpointError(
        mismatch(str(path), f"the weights of the tree in {CONFIG_NAME}", f"those of another tree{detail}")
    )


def _is_finite(state: dict[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def _is_of_one_type(state: dict[str, Tensor]) -> bool:
    types = {tensor.dtype for tensor in state.values()}
    return len(types) == 1 and types <= TYPES


def _types(state: dict[str, Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})) or "none"


def _config_digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _weights_digest(state: dict[str, Tensor]) -> str:
    """The digest of the weights' names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
