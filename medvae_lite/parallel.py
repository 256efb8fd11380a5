"""Data-parallel training: the processes that `torchrun` starts hold the same model and divide every batch.

Nothing here is needed for a process alone: a team of one does everything without a message.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Team"]


@dataclass(frozen=True)
class Team:
    """The processes that train one model together.

    Arguments:
        rank: Which of them this is; 0 is the one that reads and writes files.
        size: How many they are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Team:
        """The team of this process: all that `torchrun` started, or the process group that has been set up; else itself alone."""
        if not dist.is_available():
            return cls()
        if not dist.is_initialized() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
            if device.type == "cuda":
                torch.cuda.set_device(_local(device))
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def first(self) -> bool:
        """Whether this process is the one that reads and writes files."""
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """Where this process computes: on a GPU of its own where GPUs are asked for."""
        return _local(device) if self.size > 1 and device.type == "cuda" else device

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces every tensor by its mean over the team, in one message."""
        if self.size == 1 or not tensors:
            return
        message = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(message)
        for tensor, mean in zip(tensors, (message / self.size).split([t.numel() for t in tensors])):
            tensor.copy_(mean.view_as(tensor))

    def gather(self, rows: Tensor) -> Tensor:
        """Everyone's rows, stacked by rank; all must bring equally many. No gradient flows through."""
        if self.size == 1:
            return rows
        found = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(found, rows.contiguous())
        return torch.cat(found)

    def tell(self, value: Any = None) -> Any:
        """What the first process holds, in every process; nobody goes on before it has been said."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said)
        return said[0]


def _local(device: torch.device) -> torch.device:
    """The GPU with this process's number on its machine, unless one is named."""
    return device if device.index is not None else torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
