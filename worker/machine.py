"""What this machine can run, found out without opening a device."""

from collections.abc import Mapping
from pathlib import Path

from registry.scheduling import queues_of
from registry.settings import Settings

_GPUS = Path("/proc/driver/nvidia/gpus")
"""Where the NVIDIA driver has one directory for each GPU."""


def with_queues(settings: Settings, environment: Mapping[str, str]) -> Settings:
    """The settings with the queues of this machine, unless the operator named some."""
    if settings.queues:
        return settings
    num_gpus = 0 if settings.child_device == "cpu" else count_gpus(environment)
    return settings.model_copy(update={"queues": queues_of(num_gpus)})


def count_gpus(environment: Mapping[str, str], gpus: Path = _GPUS) -> int:
    """How many GPUs a child will see."""
    present = len(list(gpus.iterdir())) if gpus.is_dir() else 0
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    named = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return min(present, len(named))
