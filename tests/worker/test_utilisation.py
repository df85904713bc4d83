import pytest

from registry.db import reading
from registry.tables import Worker
from tests.worker.nvml import Nvml
from worker.heartbeat import Presence
from worker.utilisation import Utilisation
from worker.workplace import Workplace


def test_gpus_count_by_their_mean_and_only_those_that_a_child_may_use(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Utilisation("auto").read() == pytest.approx(0.75)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert Utilisation("auto").read() == pytest.approx(0.5)
    nvml.percent["0"] = 0
    assert Utilisation("auto").read() == 0.0


def test_gpus_that_answer_no_more_are_not_called_idle(nvml: Nvml) -> None:
    utilisation = Utilisation("auto")
    nvml.lost = True
    assert utilisation.read() is None


@pytest.mark.usefixtures("nvml")
def test_a_worker_that_trains_on_processors_counts_these() -> None:
    utilisation = Utilisation("cpu")
    total = sum(number * number for number in range(2_000_000))
    busy = utilisation.read()
    assert total > 0
    assert busy is not None
    assert 0.0 < busy <= 1.0


def test_a_heartbeat_says_how_busy_the_devices_are(workplace: Workplace, nvml: Nvml) -> None:
    presence = Presence(workplace)
    presence.stop()
    with reading(workplace.factory) as session:
        assert session.get_one(Worker, workplace.identity.id).utilisation == pytest.approx(0.75)
