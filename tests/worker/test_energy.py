from pathlib import Path

import pytest

from tests.worker.nvml import Nvml
from worker.energy import EnergyMeter


def set_counter(powercap: Path, domain: str, microjoules: int, *, largest: int = 10**9) -> None:
    """A counter as the kernel shows it."""
    directory = powercap / domain
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "energy_uj").write_text(f"{microjoules}\n")
    (directory / "max_energy_range_uj").write_text(f"{largest}\n")


@pytest.mark.usefixtures("no_nvml")
def test_processors_count_by_package_and_past_the_end_of_their_counters(tmp_path: Path) -> None:
    set_counter(tmp_path, "intel-rapl:0", 9_000_000, largest=10_000_000)
    set_counter(tmp_path, "intel-rapl:1", 4_000_000)
    set_counter(tmp_path, "intel-rapl:0:0", 123_000_000)
    meter = EnergyMeter(tmp_path)
    set_counter(tmp_path, "intel-rapl:0", 2_000_000, largest=10_000_000)
    set_counter(tmp_path, "intel-rapl:1", 4_500_000)
    set_counter(tmp_path, "intel-rapl:0:0", 999_000_000)
    assert meter.joules() == pytest.approx(3.0 + 0.5)
    set_counter(tmp_path, "intel-rapl:1", 5_500_000)
    assert meter.joules() == pytest.approx(4.5)


@pytest.mark.usefixtures("no_nvml")
def test_a_machine_that_counts_nothing_says_so(tmp_path: Path) -> None:
    set_counter(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert EnergyMeter(tmp_path).joules() is None


def test_only_the_gpus_that_a_child_may_use_count(
    tmp_path: Path, nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = EnergyMeter(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    second = EnergyMeter(tmp_path)
    nvml.millijoules["0"] += 2_000
    nvml.millijoules["1"] += 30_000
    assert (both.joules(), second.joules()) == (pytest.approx(32.0), pytest.approx(30.0))


@pytest.mark.usefixtures("no_nvml")
def test_a_device_that_says_nothing_any_more_ends_the_count(tmp_path: Path) -> None:
    set_counter(tmp_path, "intel-rapl:0", 1)
    meter = EnergyMeter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert (meter.joules(), meter.joules()) == (None, None)


def test_a_gpu_that_fell_off_the_bus_ends_the_count(tmp_path: Path, nvml: Nvml) -> None:
    meter = EnergyMeter(tmp_path)
    nvml.lost = True
    assert meter.joules() is None


def test_a_sum_without_one_of_the_gpus_is_not_given(tmp_path: Path, nvml: Nvml) -> None:
    del nvml.millijoules["1"]
    assert EnergyMeter(tmp_path).joules() is None
