"""Tensors cut over processes, on disk: a safetensors file for each process, by torch.distributed.checkpoint.

Any number of processes can read what any other number has written. PyTorch's own format is not used: it is a pickle.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from hmoevae.errors import ArgumentError, CheckpointError, mismatch, unwarned
from hmoevae.nn.exchange import Peers

FOLDER = "experts"
"""The folder of the tensors in that of a model or a checkpoint."""
WEIGHTS = "model."
"""What the names of a model's own weights begin with."""


def write(folder: Path, parts: dict[str, Tensor], peers: Peers, mesh: DeviceMesh) -> None:
    """Write the rows of every process. All processes call this, with the same names.

    Args:
        folder: An empty folder that all of them see.
        parts: The rows of this process, first axis; the names are the same in all processes.
        peers: The processes that hold the other rows.
        mesh: The axes `"replica"` and `"expert"` of all processes.

    Raises:
        ArgumentError: This version of PyTorch cannot write safetensors.
        OSError: The files cannot be written.
    """
    try:  # not at the top: it loads slowly, and few programs need it
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save
    except ImportError:
        expected = "2.8 or newer, for checkpoints of experts that are cut over processes"
        raise ArgumentError(mismatch("torch", expected, torch.__version__)) from None
    lengths = peers.numbers(_device(mesh), *(len(part) for part in parts.values()))
    totals = [sum(column) for column in zip(*lengths, strict=True)]
    whole = {name: _placed(part, n, mesh) for (name, part), n in zip(parts.items(), totals, strict=True)}
    try:
        save(whole, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        raise OSError(f"{next(iter(error.failures.values()))[0]}") from error


def read(folder: Path, peers: Peers | None = None, mesh: DeviceMesh | None = None) -> dict[str, Tensor]:
    """Read this process's rows of every tensor, in all processes; or, without `peers`, all rows.

    Args:
        folder: The folder that `write` has filled.
        peers: The processes that hold the other rows.
        mesh: The axes `"replica"` and `"expert"` of all processes.

    Raises:
        CheckpointError: The files cannot be read.
    """
    expected = "a folder with the rows of experts that hmoevae wrote"
    try:  # not at the top, as above
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load
    except ImportError:
        got = f"torch {torch.__version__}"
        raise CheckpointError(mismatch(str(folder), f"{expected}, and torch 2.8 or newer", got)) from None
    try:
        reader = HuggingFaceStorageReader(str(folder))
        parts: dict[str, Tensor] = {}
        placed: dict[str, Tensor] = {}
        for name, about in reader.read_metadata().state_dict_metadata.items():
            n, *shape = about.size  # pyright: ignore[reportAttributeAccessIssue]  # all of them are tensors
            rows = slice(n) if peers is None else peers.rows(n)
            how = {"dtype": about.properties.dtype, "device": "cpu" if mesh is None else _device(mesh)}  # pyright: ignore[reportAttributeAccessIssue]
            parts[name] = torch.empty(rows.stop - rows.start if peers else n, *shape, **how)
            placed[name] = parts[name] if mesh is None else _placed(parts[name], n, mesh)
        with unwarned("torch.distributed is disabled"):  # where nothing is cut
            load(placed, storage_reader=reader, no_dist=mesh is None)
    except (OSError, ValueError, KeyError, CheckpointException) as error:
        raise CheckpointError(mismatch(str(folder), expected, f"{error}".strip().splitlines()[0])) from error
    return parts


def read_model(folder: Path) -> dict[str, Tensor]:
    """Read all rows of a model's own weights, without those that a checkpoint keeps beside them.

    Raises:
        CheckpointError: The files cannot be read.
    """
    return {name.removeprefix(WEIGHTS): part for name, part in read(folder).items() if name.startswith(WEIGHTS)}


def _placed(part: Tensor, n: int, mesh: DeviceMesh) -> Tensor:
    """The rows of this process as a part of a tensor with `n` rows."""
    from torch.distributed.tensor import DTensor, Replicate, Shard  # not at the top, as above

    whole = torch.empty(n, *part.shape[1:], device="meta")
    where = [Replicate(), Shard(0)]
    part = part.contiguous()
    return DTensor.from_local(part, mesh, where, run_check=False, shape=whole.shape, stride=whole.stride())


def _device(mesh: DeviceMesh) -> torch.device:
    is_cuda = mesh.device_type == "cuda"
    return torch.device("cuda", torch.cuda.current_device()) if is_cuda else torch.device(mesh.device_type)
