"""The GPUs that a child of this process would see, asked by NVIDIA's management library (NVML)."""

import os
from dataclasses import dataclass
from typing import Any

import pynvml  # type: ignore[import-untyped]

_MILLIJOULES = 1e-3


@dataclass(frozen=True)
class Gpu:
    """One device. A question raises `OSError` where the driver has no answer, or none any more."""

    handle: Any

    def joules(self) -> float:
        """Energy used since the driver was loaded."""
        return float(_ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, self.handle)) * _MILLIJOULES

    def utilisation(self) -> float:
        """The share of the last moment in which it computed, from 0 to 1."""
        return float(_ask(pynvml.nvmlDeviceGetUtilizationRates, self.handle).gpu) / 100


def _ask(question: Any, handle: Any) -> Any:
    try:
        return question(handle)
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error


def find_gpus() -> list[Gpu]:
    """In the order of `CUDA_VISIBLE_DEVICES`; none where there is no driver."""
    try:
        pynvml.nvmlInit()
        return [Gpu(_handle(name)) for name in _visible(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _visible(count: int) -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in named.split(",") if name.strip()]


def _handle(name: str) -> Any:
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)
