"""One file of weights, whatever its format: recognized by what it holds, not by its name."""

import os
from pathlib import Path

from zanalysis.checkpoints.archives import ZIP_MAGIC
from zanalysis.checkpoints.contents import Checkpoint
from zanalysis.checkpoints.faults import check_readable, naming
from zanalysis.checkpoints.safetensors_files import describe_safetensors
from zanalysis.checkpoints.torchfiles import describe_torch
from zanalysis.errors import CheckpointError

__all__ = ["describe_file", "is_hdf5"]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_FOREIGN = {
    b"GGUF": "is a GGUF file, whose weights are quantized; pass the checkpoint that it was made from.",
    b"\x93NUM": "is a numpy array; save it with torch.save or as safetensors.",
    b"\x1f\x8b\x08": "is compressed by gzip; unpack it first.",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it first.",
    b"version ": "is the pointer of a file that git-lfs has not fetched; run git lfs pull.",
    _HDF5: "is an HDF5 file within a checkpoint, where only weights can be; pass it alone.",
}


def is_hdf5(path: Path) -> bool:
    """Tell whether a file is HDF5, as our run files are.

    Args:
        path: a regular file.

    Returns:
        Whether it begins as one.
    """
    with naming(path), path.open("rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def describe_file(path: Path) -> Checkpoint:
    """Describe a safetensors file or a file of torch.

    Args:
        path: the file.

    Returns:
        Its weights.

    Raises:
        CheckpointError: if it is missing, foreign or damaged, or brings what is refused.
    """
    if check_readable(path):
        raise CheckpointError(f"{path} is a folder where a file of weights should be; pass a file.")
    with naming(path), path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        head = file.read(16)
        if not head:
            raise CheckpointError(f"{path} is empty; restore it from a copy.")
        for magic, what in _FOREIGN.items():
            if head.startswith(magic):
                raise CheckpointError(f"{path} {what}")
        if path.suffix == ".safetensors" or head[4:9] == b"\0\0\0\0{":
            return describe_safetensors(path, file, length)
        if not head.startswith((ZIP_MAGIC, b"\x80")) and path.suffix == ".onnx":
            raise CheckpointError(f"{path} is an ONNX file; pass the checkpoint that it was made from.")
        return describe_torch(path, file, length)
