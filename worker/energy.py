"""Energy that the devices of this machine say they have used: GPUs by NVML, processors by RAPL.

Both count for whole devices, whoever uses them: with one worker a device it is the job's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from worker.gpus import find_gpus

POWERCAP = Path("/sys/class/powercap")
_MICROJOULES = 1e-6


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
    gpus = find_gpus()
    try:
        for gpu in gpus:
            gpu.joules()
    except OSError:
        return  # The sum without one that does not count would be wrong.
    for gpu in gpus:
        yield _Counter(gpu.joules)
