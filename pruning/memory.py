"""The memory of this process as its machine sees it."""

import ctypes


def give_back_memory() -> None:
    """Return to the system what has been freed, between two phases that need different amounts.

    Inside a phase freed memory is better kept, and workers have the allocator keep all of it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # The GNU C library has it.
    if trim is not None:
        trim(0)
