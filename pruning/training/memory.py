"""What the device, and the main memory beside it, can hold."""

from pathlib import Path

import torch

_MEMORY = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")
_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on the CPU torch says so by a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_ALLOCATOR)


def free_main_memory() -> int:
    """Bytes that this machine and the container this runs in can still give; 0 if neither says."""
    if not _MEMORY.exists():
        return 0
    fields = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
    free = 1024 * int(fields["MemAvailable"].split()[0])
    limit, used = (_CONTAINER / f"memory.{name}" for name in ("max", "current"))
    if not limit.exists() or (most := limit.read_text().strip()) == "max":
        return free
    return min(free, int(most) - int(used.read_text()))
