"""The ceiling of this machine: how fast it multiplies large bf16 matrices."""

import time

import torch

_SIZE = 2048
_REPEATS = 5


def matmul_flops() -> float:
    """Best floating-point operations per processor second and thread, over a few repeats."""
    left, right = (torch.randn(_SIZE, _SIZE).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.process_time()
        torch.mm(left, right)
        best = min(best, time.process_time() - started)
    return 2 * _SIZE**3 / best
