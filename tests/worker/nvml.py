"""NVIDIA's management library on a machine with two GPUs, of which the tests say what they do."""

from dataclasses import dataclass, field
from types import SimpleNamespace


class NvmlError(Exception):
    """What the library raises."""


@dataclass
class Nvml:
    """What the devices answer by their index; nothing at all once they are `lost`."""

    millijoules: dict[str, int] = field(default_factory=lambda: {"0": 5_000, "1": 70_000})
    percent: dict[str, int] = field(default_factory=lambda: {"0": 50, "1": 100})
    present: bool = True
    lost: bool = False

    NVMLError = NvmlError

    def nvmlInit(self) -> None:  # noqa: N802  # The library's own names, here and below.
        if not self.present:
            raise NvmlError("driver not loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.percent)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return str(index)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if self.lost or handle not in self.millijoules:
            raise NvmlError(handle)
        return self.millijoules[handle]

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        if self.lost:
            raise NvmlError(handle)
        return SimpleNamespace(gpu=self.percent[handle], memory=0)
