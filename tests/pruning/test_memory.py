import ctypes
from pathlib import Path

import pytest
import torch

from pruning.memory import give_back_memory

MEGABYTE = 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not the GNU C library")
def test_freed_memory_goes_back_where_tensors_of_the_device_lay_in_it() -> None:
    # Too small to be mapped each by itself, and the last one keeps the others inside the heap.
    tensors = [torch.zeros(10_000) for _ in range(2_000)]
    del tensors[:-1]
    held = resident_bytes()
    give_back_memory(torch.device("cuda"))
    assert resident_bytes() > held - 8 * MEGABYTE
    give_back_memory(torch.device("cpu"))
    assert resident_bytes() < held - 40 * MEGABYTE
