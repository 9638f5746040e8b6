"""A model on disk: config.json and model.safetensors, written whole or not at all, read without running any code."""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hmoevae.errors import ArgumentError, CheckpointError, mismatch

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
MODEL_CARD = """\
---
{{ card_data }}
---

# A hierarchical mixture of variational auto-encoders

```text
{{ tree }}
```

```python
import hmoevae as hm

model = hm.HMoEVAE.from_pretrained("{{ folder }}")
```
"""


@contextmanager
def replacing_files_of(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block ends well, move its files into `folder` one by one.

    A failure inside the block leaves `folder` as it was.

    Raises:
        ArgumentError: `folder` cannot be made, or not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside, not beside: `folder` may be a mounted volume, and files are moved within one file system only.
        beside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    except OSError as error:
        raise ArgumentError(mismatch(str(folder), "a folder that can be written", error.strerror)) from None
    try:
        yield beside
        # The config last: a crash in between leaves a pair whose digests differ, which loading refuses.
        for source in sorted(beside.iterdir(), key=lambda path: (path.name == CONFIG_NAME, path.name)):
            source.replace(folder / source.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        ArgumentError: The file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")  # mkstemp's would be private to the user
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(target)
    except OSError as error:
        raise ArgumentError(mismatch(str(target), "a file that can be written", error.strerror)) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_model(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write `config` and `state` into an empty folder; the weights carry the digest of the config they belong to."""
    text = json.dumps({"format": "hmoevae", "format_version": FORMAT_VERSION, **config}, indent=2) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    contiguous = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    save_file(contiguous, folder / WEIGHTS_NAME, metadata={"config_sha256": _digest(config), "format": "pt"})


def read_config(path: Path) -> dict[str, Any]:
    """Read and check config.json, without the two keys that say what format it is in.

    Raises:
        CheckpointError: The file is missing, damaged, or not ours.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(mismatch(str(path), "a saved model's config.json", "no such file")) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(mismatch(str(path), "a readable config.json", f"{error}")) from None
    if not isinstance(config, dict) or config.pop("format", None) != "hmoevae":
        raise CheckpointError(mismatch(str(path), "a config.json written by hmoevae", "another file's content"))
    version = config.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise CheckpointError(mismatch(str(path), f"format_version {FORMAT_VERSION}", repr(version)))
    return config


def read_weights(path: Path, config: dict[str, Any], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read the weights that belong to `config`, with the names and shapes of `like`.

    Raises:
        CheckpointError: The file is missing, damaged, or belongs to another tree.
    """
    if not path.is_file():
        raise CheckpointError(mismatch(str(path), "a saved model's weights", "no such file"))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(mismatch(str(path), "a whole safetensors file", f"{error}")) from None
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in like.items()}
    if metadata.get("config_sha256") != _digest(config) or found != wanted:
        odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        got = "those of another tree" + (f" (differing: {', '.join(odd[:3])})" if odd else "")
        raise CheckpointError(mismatch(str(path), f"the weights of the tree in {CONFIG_NAME}", got))
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise CheckpointError(mismatch(str(path), "finite weights", "NaN or infinity"))
    return state


def _digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
