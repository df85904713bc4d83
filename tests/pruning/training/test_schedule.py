import pytest

from pruning.methods.increments import plan_increments
from pruning.recipe_parts.method import Schedule as ScheduleRecipe
from pruning.recipe_parts.recovery import LearningRate
from pruning.training.schedule import Schedule

TOTAL_STEPS = 400


def schedule(kind: str = "wsd", last_cut_step: int = 0, **options: float) -> Schedule:
    learning_rate = LearningRate(
        **{"peak": 1e-3, "warmup_fraction": 0.05, "decay_fraction": 0.1, "kind": kind, **options}
    )
    return Schedule(
        learning_rate=learning_rate, total_steps=TOTAL_STEPS, last_cut_step=last_cut_step
    )


def test_wsd_warms_up_stays_and_decays_to_the_floor() -> None:
    rates = [schedule().at(step) for step in range(TOTAL_STEPS)]
    assert rates[0] == pytest.approx(1e-3 / 20)
    assert rates[9] == pytest.approx(1e-3 / 2)
    assert set(rates[20:360]) == {1e-3}
    assert rates[359] > rates[360] > rates[380] > rates[399]
    assert rates[399] == pytest.approx(1e-4)


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant"])
def test_the_learning_rate_is_the_same_in_one_or_ten_increments(kind: str) -> None:
    rates = []
    for num_increments in (1, 10):
        increments = plan_increments(
            num_parameters=1000,
            targets=[500],
            total_steps=TOTAL_STEPS,
            schedule=ScheduleRecipe(num_increments=num_increments),
        )
        one = schedule(kind, last_cut_step=increments[-1].from_step)
        rates.append([one.at(step) for step in range(TOTAL_STEPS)])
    assert rates[0] == rates[1]


def test_the_decay_waits_for_the_last_cut() -> None:
    rates = [schedule(last_cut_step=390).at(step) for step in range(TOTAL_STEPS)]
    assert rates[389] == 1e-3
    assert rates[390] < 1e-3
    assert rates[399] == pytest.approx(1e-4)


def test_cosine_falls_from_the_peak_to_the_floor() -> None:
    rates = [schedule("cosine").at(step) for step in range(TOTAL_STEPS)]
    assert rates[19] == pytest.approx(1e-3)
    assert rates[210] == pytest.approx((1e-3 + 1e-4) / 2, rel=0.02)
    assert rates[399] == pytest.approx(1e-4)


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
def test_a_run_of_one_step_has_a_rate(kind: str) -> None:
    learning_rate = LearningRate(peak=1e-3, kind=kind)
    only = Schedule(learning_rate=learning_rate, total_steps=1, last_cut_step=0).at(0)
    assert 0 < only <= 1e-3
