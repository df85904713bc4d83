"""The memory of this process as its machine sees it."""

import ctypes


def give_back_memory() -> None:
    """Return to the system what has been freed, where what comes next needs other pieces.

    While the same pieces come and go they are better kept, and workers have the allocator keep all.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # The GNU C library has it.
    if trim is not None:
        trim(0)
