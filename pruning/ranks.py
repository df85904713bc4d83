"""The processes that share a run, and tensors of which each holds a part."""

import io
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

T = TypeVar("T")
_PATIENCE = timedelta(days=1)
"""Others wait while the first rank measures; who started them notices a rank that has died."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that share a run; by default it is the only one.

    Every method but the properties is called by all ranks alike. The first rank alone reads text,
    measures, decides and writes; training is shared.
    """

    rank: int = 0
    count: int = 1
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank decides, writes and reports."""
        return self.rank == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank; no other calls it."""
        if self.count == 1:
            return make()
        payload = [_dumps(make()) if self.is_first else None]
        dist.broadcast_object_list(payload, src=0, device=torch.device("cpu"))
        return cast(T, pickle.loads(cast(bytes, payload[0])))

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return self.sum(float(flag)) > 0

    def sum(self, value: float) -> float:
        """Over all ranks, in double precision."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    @torch.no_grad()
    def copy_from_first(self, model: nn.Module) -> None:
        """Give every rank the first one's weights."""
        if self.count > 1:
            for parameter in model.parameters():
                dist.broadcast(parameter.data, src=0)


class _Pickler(pickle.Pickler):
    """Sends memory-mapped files by name. Only ranks of one run read what it writes."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, np.memmap):
            return np.memmap, (value.filename, value.dtype, "r")
        return NotImplemented


def _dumps(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """This process among the ranks that its environment names, as torchrun sets it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        mesh = init_device_mesh(device.type, (count,))
        yield Ranks(rank=dist.get_rank(), count=count, mesh=mesh)
    finally:
        dist.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that ranks may hold in parts; all of them ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def select(tensor: Tensor, dim: int, indices: Tensor) -> Tensor:
    """`index_select`, of a tensor held in parts as well: only this one is ever whole."""
    selected = whole(tensor).index_select(dim, indices).contiguous()
    return in_parts(selected, tensor.device_mesh) if isinstance(tensor, DTensor) else selected


def in_parts(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """Cut a tensor that every rank holds whole along its first dimension, as FSDP does."""
    # src_data_rank=None: each takes its own part, and nothing is sent.
    return distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None)
