"""Energy that the devices of this machine say they have used: GPUs by NVML, processors by RAPL.

Both count for whole devices, whoever uses them: with one worker a device it is the job's.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
_MICROJOULES, _MILLIJOULES = 1e-6, 1e-3


@dataclass
class _Counter:
    """One device: joules since some time in the past, beginning anew at `wraps_at`."""

    read: Callable[[], float]
    wraps_at: float = float("inf")
    last: float = 0.0

    def lap(self) -> float:
        """Joules since the lap before."""
        now = self.read()
        used = now - self.last if now >= self.last else now - self.last + self.wraps_at
        self.last = now
        return used


class EnergyMeter:
    """Counts from when it is made; read it often enough that no counter wraps twice."""

    def __init__(self, powercap: Path | None = None) -> None:
        self._counters = [*_processors(powercap or POWERCAP), *_gpus()]
        self._joules = 0.0
        self._lap()

    def _lap(self) -> float:
        return sum(counter.lap() for counter in self._counters)

    def joules(self) -> float | None:
        """What was used until now; None where no device says, or one no longer does."""
        if not self._counters:
            return None
        try:
            self._joules += self._lap()
        except (OSError, ValueError):
            # A device that fell off the bus ends the count, not the job.
            self._counters.clear()
            return None
        return self._joules


def _processors(powercap: Path) -> Iterator[_Counter]:
    """The packages of this machine; the domains inside them are parts of these."""
    for package in sorted(powercap.glob("*-rapl:*")):
        if package.name.count(":") > 1:
            continue
        try:
            wraps_at = float((package / "max_energy_range_uj").read_text()) * _MICROJOULES
            file = package / "energy_uj"
            float(file.read_text())
        except (OSError, ValueError):
            continue  # Most kernels let only root read it.
        yield _Counter(partial(_package_joules, file), wraps_at)


def _package_joules(file: Path) -> float:
    return float(file.read_text()) * _MICROJOULES


def _gpus() -> Iterator[_Counter]:
    """The GPUs that a child of this process would see."""
    try:
        import pynvml  # type: ignore[import-not-found, unused-ignore]  # nvidia-ml-py, if it is there.
    except ImportError:
        return
    try:
        pynvml.nvmlInit()
        handles = [_handle(pynvml, name) for name in _visible(pynvml.nvmlDeviceGetCount())]
        for handle in handles:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return  # No driver, or devices that do not count.
    for handle in handles:
        yield _Counter(partial(_gpu_joules, pynvml, handle))


def _gpu_joules(pynvml: Any, handle: Any) -> float:
    """Joules since the driver was loaded.

    Raises:
        OSError: the driver no longer says.
    """
    try:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * _MILLIJOULES
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error


def _visible(count: int) -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in named.split(",") if name.strip()]


def _handle(pynvml: Any, name: str) -> Any:
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)
