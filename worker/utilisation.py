"""How busy the devices are that a worker gives to its jobs."""

import statistics

import psutil

from worker.gpus import find_gpus


class Utilisation:
    """Of the GPUs that a child would see, or else, and with `device` "cpu", of the processors."""

    def __init__(self, device: str) -> None:
        self._gpus = [] if device == "cpu" else find_gpus()
        psutil.cpu_percent()  # The first call only starts the count.

    def read(self) -> float | None:
        """From 0 to 1; processors since the last call. None where a GPU answers no more."""
        if not self._gpus:
            return psutil.cpu_percent() / 100
        try:
            return statistics.fmean(gpu.utilisation() for gpu in self._gpus)
        except OSError:
            return None
