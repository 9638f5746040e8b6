"""Checkpoints: folders that are written whole or not at all, each with everything that resuming a training needs."""

import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hmoevae.errors import ArgumentError, ArgumentTypeError, CheckpointError, CheckpointWarning, mismatch, warn
from hmoevae.model import HMoEVAE
from hmoevae.saving import card, files, sharded
from hmoevae.training.states import pack, unpack

FORMAT_VERSION = 3
"""The options of the training, for people and `training_from_json`."""
STATE_NAME = "state.json"
TENSORS_NAME = "state.safetensors"
SUMS_NAME = "SHA256SUMS"
"""Digests of the files in `NEEDED`, in the format of `sha256sum --check`."""
LOCK_NAME = ".in-use"
"""A file that the operating system locks while a run lives. The file itself stays."""
NEEDED = (files.CONFIG_NAME, files.WEIGHTS_NAME, card.TRAINING_NAME, STATE_NAME, TENSORS_NAME)
Resume = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        path: Its folder.
        epoch: The epoch after which it was written.
        validation_loss: The objective on the validation data; `None` without validation data.
        kept: Epochs and validation losses of the run's checkpoints that were on the disk when it was written.
        arguments: Everything that training depends on, in words: the model, the data, and options as `Training.<name>`.
        tree: The model's tree, as `json.loads` returns it.
        weights: The model's weights; those of experts that were cut over processes are in the folder `experts`.
        state: The `state` that `Checkpoints.write` was called with.
    """

    path: Path
    epoch: int
    validation_loss: float | None
    kept: dict[int, float | None]
    arguments: dict[str, Any]
    tree: Any
    weights: dict[str, Tensor]
    state: Any

    @property
    def experts(self) -> Path | None:
        """The folder of the rows of experts that were cut over processes; `None` if they were not."""
        folder = self.path / sharded.FOLDER
        return folder if folder.is_dir() else None

    def require(self, arguments: dict[str, Any], tree: Any) -> None:
        """Check that training would resume with the arguments it began with.

        Args:
            arguments: The arguments now, in the form of this checkpoint's.
            tree: The tree now, in the form of this checkpoint's.

        Raises:
            ArgumentError: One of them differs.
        """
        for name in self.arguments | arguments:
            before, now = self.arguments.get(name), arguments.get(name)
            if name == "tree" and before != now:
                first, *others = [*_differences(self.tree, tree), "another"]
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                raise ArgumentError(mismatch(name, f"that of the checkpoint {self.path}", f"{first}{more}"))
            if before != now:
                raise ArgumentError(mismatch(name, f"{before}, as in the checkpoint {self.path}", now))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint after checking the digests of its files.

    Raises:
        CheckpointError: It is missing, damaged or not a checkpoint of this package.
    """
    expected = "a whole checkpoint"
    try:
        sums = dict(_sums(path))
        for name in NEEDED:
            if name not in sums:
                raise CheckpointError(mismatch(str(path), expected, f"no digest of {name} in {SUMS_NAME}"))
        for name, digest in sums.items():
            if _sha256(path / name) != digest:
                raise CheckpointError(mismatch(str(path), expected, f"{name} with another content than was written"))
        content = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
        version = content["format_version"] if content["format"] == "hmoevae-checkpoint" else "of something else"
        if version != FORMAT_VERSION:
            raise CheckpointError(mismatch(str(path), f"a checkpoint of format_version {FORMAT_VERSION}", version))
        return Checkpoint(
            path,
            content["epoch"],
            content["validation_loss"],
            dict(map(tuple, content["kept"])),
            content["arguments"],
            json.loads((path / files.CONFIG_NAME).read_text(encoding="utf-8"))["tree"],
            load_file(path / files.WEIGHTS_NAME),
            unpack(content["state"], load_file(path / TENSORS_NAME)),
        )
    except OSError as error:
        reason = f"{Path(error.filename).name}: {error.strerror}" if error.filename else f"{error}"
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = f"{type(error).__name__}: {error}"
    raise CheckpointError(mismatch(str(path), expected, reason))


def _differences(before: Any, now: Any, path: str = "root") -> Iterator[str]:
    """The differences of two trees, given as JSON data, in words."""
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict) and before.get("kind") == now.get("kind"):
        for name in before | now:
            yield from _differences(before.get(name), now.get(name), f"{path}.{name}")
    elif path.endswith(".children") and len(before) != len(now):
        yield f"{path}: {len(now)} in place of {len(before)}"
    elif path.endswith(".children"):
        for i, pair in enumerate(zip(before, now, strict=True)):
            yield from _differences(*pair, f"{path}[{i}]")
    else:
        was, is_ = (value.get("kind") if isinstance(value, dict) else value for value in (before, now))
        yield f"{path}: {is_} in place of {was}"


def last_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """The newest whole checkpoint in a `checkpoint_dir`; `HMoEVAE.from_pretrained` reads the model in it.

    Raises:
        CheckpointError: There is no whole checkpoint. A `CheckpointWarning` names damaged ones.

    >>> import tempfile
    >>> from hmoevae import VAE, Mixture, Training, fit
    >>> model, folder = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,)), tempfile.TemporaryDirectory()
    >>> _ = fit(model, torch.rand(64, 4), Training(epochs=5), checkpoint_dir=folder.name, progress=False)
    >>> sorted(path.name for path in Path(folder.name).glob("epoch-*")), last_checkpoint(folder.name).name
    (['epoch-000003', 'epoch-000004', 'epoch-000005'], 'epoch-000005')
    >>> HMoEVAE.from_pretrained(last_checkpoint(folder.name)).plan.n_leaves
    3
    >>> folder.cleanup()
    """
    newest = next(_whole(Path(folder)), None)
    if newest is not None:
        return newest.path
    raise CheckpointError(mismatch(str(folder), "a folder with a whole checkpoint", "none"))


def best_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """The whole checkpoint in a `checkpoint_dir` with the smallest validation loss, measured by the model's objective.

    Raises:
        CheckpointError: There is no whole checkpoint with a validation loss. A `CheckpointWarning` names damaged ones.

    >>> import tempfile
    >>> from hmoevae import VAE, Mixture, Training, fit
    >>> model, folder = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,)), tempfile.TemporaryDirectory()
    >>> x = torch.rand(64, 4)
    >>> how = {"validation_data": x[:8], "checkpoint_dir": folder.name, "progress": False}
    >>> history = fit(model, x[8:], Training(epochs=5), **how)
    >>> best = 1 + min(range(5), key=history["val_expected"].__getitem__)
    >>> best_checkpoint(folder.name).name == f"epoch-{best:06}"
    True
    >>> folder.cleanup()
    """
    losses: dict[Path, float] = {}
    for checkpoint in _whole(Path(folder)):
        if checkpoint.validation_loss is not None:
            losses[checkpoint.path] = checkpoint.validation_loss
    if not losses:
        raise CheckpointError(mismatch(str(folder), "a folder with a checkpoint that has a validation loss", "none"))
    return min(losses, key=lambda path: losses[path])


class Checkpoints:
    """The checkpoints of one run: finds the one to resume from, writes new ones and deletes old ones.

    As a context manager it locks the folder against other runs.

    Args:
        folder: The folder of the checkpoints; `None` for a run without checkpoints.
        every: Number of epochs between checkpoints.
        keep: Number of newest checkpoints to keep. The one with the smallest validation loss is kept beside them.

    Raises:
        ArgumentError: The folder cannot be created or written, or another run is using it.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, every: int, keep: int) -> None:
        self.folder = None if folder is None else Path(folder)
        self.every = every
        self.keep = keep
        self.kept: dict[int, float | None] = {}
        self._lock: FileLock | None = None
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / LOCK_NAME)
            self._lock.acquire(timeout=0)
            (self.folder / _hidden("probe")).mkdir()
            for path in self.folder.glob(".epoch-*"):  # left behind by a run that was killed during a write or deletion
                shutil.rmtree(path)
        except Timeout:
            expected = "a folder that no other run is using"
            raise ArgumentError(mismatch("checkpoint_dir", expected, folder)) from None
        except OSError as error:
            self.__exit__()
            expected = "a folder that can be written"
            raise ArgumentError(mismatch("checkpoint_dir", expected, f"{folder} ({error.strerror})")) from None

    def __enter__(self) -> "Checkpoints":  # noqa: PYI034 (beartype reads Self in whole classes only)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def last(self) -> Path | None:
        """The newest checkpoint that this run has written or resumed from."""
        return None if self.folder is None or not self.kept else self.folder / _name(max(self.kept))

    def find(self, resume: Resume) -> Checkpoint | None:
        """The checkpoint to resume from; `None` to start anew.

        Args:
            resume: As in `hmoevae.fit`.

        Raises:
            ArgumentError: Training would overwrite checkpoints.
            CheckpointError: The checkpoint that `resume` names is not a whole one.
        """
        expected = "'auto', 'never' or the path of a checkpoint"
        if not isinstance(resume, str | os.PathLike):
            raise ArgumentTypeError(mismatch("resume", expected, repr(resume)))
        there = [] if self.folder is None else _paths(self.folder)
        if resume == "never":
            found = None
            if there:
                expected = "a folder without checkpoints for resume='never'"
                raise ArgumentError(mismatch("checkpoint_dir", expected, f"{there[0].name} in {self.folder}"))
        elif resume == "auto":
            found = None if self.folder is None else next(_whole(self.folder), None)
        else:
            if not Path(resume).is_dir():
                raise ArgumentError(mismatch("resume", expected, f"{resume}, which is no folder"))
            found = read_checkpoint(Path(resume))
            later = [path for path in there if not self._is_own(found) or _epoch(path) > found.epoch]
            if later:
                expected = f"a folder without checkpoints later than {found.path}"
                raise ArgumentError(mismatch("checkpoint_dir", expected, later[0].name))
        if found is not None and self.folder is not None and self._is_own(found):
            self.kept = {epoch: loss for epoch, loss in found.kept.items() if (self.folder / _name(epoch)).is_dir()}
        return found

    def _is_own(self, checkpoint: Checkpoint) -> bool:
        return self.folder is not None and checkpoint.path.resolve().parent == self.folder.resolve()

    def due(self, epoch: int, *, last: bool) -> bool:
        """Whether to write a checkpoint after this epoch, which may be the run's last."""
        return self.folder is not None and (last or epoch % self.every == 0)

    def write(
        self,
        model: HMoEVAE,
        epoch: int,
        validation_loss: float | None,
        training: card.TrainingRecord,
        arguments: Mapping[str, Any],
        state: Any,
        write_model: Callable[[Path], None] | None = None,
    ) -> None:
        """Write the checkpoint of an epoch, and delete old ones.

        Args:
            model: The model, whose weights are written.
            epoch: The epoch just finished.
            validation_loss: The loss by which the best checkpoint is chosen.
            training: The options of the training.
            arguments: See `Checkpoint`.
            state: Everything else, for `hmoevae.training.states.pack`.
            write_model: Writes the model to an empty folder in place of `save_pretrained`.

        Raises:
            CheckpointError: The checkpoint cannot be written, for example because the disk is full. Earlier checkpoints
                are intact.
            ArgumentTypeError: `state` holds something that cannot be written without a pickle.
        """
        assert self.folder is not None
        target = self.folder / _name(epoch)
        loss = validation_loss if validation_loss is None or math.isfinite(validation_loss) else None
        packed, tensors = pack(state, "state")
        content = {
            "format": "hmoevae-checkpoint",
            "format_version": FORMAT_VERSION,
            "torch": torch.__version__,
            "epoch": epoch,
            "validation_loss": loss,
            "kept": [*self.kept.items(), (epoch, loss)],
            "arguments": dict(arguments),
            "state": packed,
        }
        try:
            with _folder_in_place(target) as beside:
                info = card.CardInfo(training=training)
                if write_model is None:
                    model.save_pretrained(beside, info=info)
                else:
                    write_model(beside)
                    card.write_training(beside / card.TRAINING_NAME, info)
                save_file(tensors, beside / TENSORS_NAME)
                (beside / STATE_NAME).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
                rows = sorted(f"{sharded.FOLDER}/{path.name}" for path in (beside / sharded.FOLDER).glob("*"))
                sums = "".join(f"{_sha256(beside / name)}  {name}\n" for name in (*NEEDED, *rows))
                (beside / SUMS_NAME).write_text(sums, encoding="utf-8")
        except (OSError, SafetensorError, ArgumentError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"
            kept = "there is no earlier one" if self.last is None else f"the last one is {self.last}"
            expected = "a checkpoint that can be written"
            raise CheckpointError(mismatch(str(target), expected, f"{reason}; {kept}")) from None
        self.kept[epoch] = loss
        self._prune()

    def _prune(self) -> None:
        assert self.folder is not None
        stays = set(sorted(self.kept)[-self.keep :])
        losses = {epoch: loss for epoch, loss in self.kept.items() if loss is not None}
        if losses:
            stays.add(min(losses, key=lambda epoch: losses[epoch]))
        for epoch in self.kept.keys() - stays:
            path, doomed = self.folder / _name(epoch), self.folder / _hidden(_name(epoch))
            with suppress(FileNotFoundError):  # somebody else has deleted it
                path.rename(doomed)  # so that a half-deleted folder is not mistaken for a damaged checkpoint
                shutil.rmtree(doomed, ignore_errors=True)
            del self.kept[epoch]


@contextmanager
def _folder_in_place(target: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `target` when the block succeeds, and deleted when it fails."""
    beside = target.with_name(_hidden(target.name))
    try:
        beside.mkdir()
        yield beside
        for path in beside.rglob("*"):
            _to_disk(path)
        _to_disk(beside)
        if target.exists():  # a damaged checkpoint that was passed over: keep it, under another name
            target.rename(target.with_name(f"{target.name}.refused-{secrets.token_hex(4)}"))
        beside.rename(target)
        _to_disk(target.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call for folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sums(path: Path) -> Iterator[tuple[str, str]]:
    """Names and digests of the files of a checkpoint."""
    for line in (path / SUMS_NAME).read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ", 1)
        if name in NEEDED or Path(name).parts[:-1] == (sharded.FOLDER,):
            yield name, digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole(folder: Path) -> Iterator[Checkpoint]:
    """The whole checkpoints in a folder, newest first. A warning names those that cannot be read."""
    for path in _paths(folder):
        try:
            yield read_checkpoint(path)
        except CheckpointError as error:
            warn(f"{error}; passed over", CheckpointWarning)


def _paths(folder: Path) -> list[Path]:
    """The folders that have the name of a checkpoint, newest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in paths if re.fullmatch(r"epoch-\d{6,}", path.name)), key=_epoch, reverse=True)


def _name(epoch: int) -> str:
    return f"epoch-{epoch:06d}"


def _epoch(path: Path) -> int:
    return int(path.name.removeprefix("epoch-"))


def _hidden(name: str) -> str:
    return f".epoch-{name.removeprefix('epoch-')}-{secrets.token_hex(4)}"
