"""Checkpoints of any kind, one tensor at a time; nothing that a file brings is run."""

from zanalysis.checkpoints.contents import Checkpoint, StoredTensor
from zanalysis.checkpoints.opening import find_checkpoints, open_checkpoint, open_checkpoints

__all__ = ["Checkpoint", "StoredTensor", "find_checkpoints", "open_checkpoint", "open_checkpoints"]
