"""The memory of this process as its machine sees it."""

import ctypes

import torch


def give_back_memory(device: torch.device | None = None) -> None:
    """Return to the system what has been freed, where what comes next needs other pieces.

    While the same pieces come and go they are better kept, and workers have the allocator keep all.
    What was freed were tensors on `device`, if it is given: those of a GPU were never here.
    """
    if device is not None and device.type != "cpu":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # The GNU C library has it.
    if trim is not None:
        trim(0)
