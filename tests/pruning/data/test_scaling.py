import pytest
from pydantic import ValidationError

from pruning.data.scaling import fitted_loss
from pruning.recipe_parts.data import Mixture


def law(num_parameters: float) -> float:
    return 9.0 * num_parameters**-0.08 + 1.1


@pytest.mark.parametrize("sizes", [(7e9, 13e9, 70e9), (1e8, 4e8, 2e9, 7e9, 7e10)])
def test_a_law_that_losses_follow_is_found_and_continued_to_smaller_sizes(
    sizes: tuple[float, ...],
) -> None:
    measured = [(int(size), law(size)) for size in sizes]
    assert fitted_loss(measured, 1_300_000_000) == pytest.approx(law(1.3e9), rel=2e-3)


def test_two_models_give_a_power_law() -> None:
    measured = [(100, 4.0), (400, 2.0)]
    assert fitted_loss(measured, 1600) == pytest.approx(1.0)


def test_losses_that_do_not_fall_with_size_are_not_continued_upwards() -> None:
    assert fitted_loss([(100, 2.0), (400, 2.1)], 1600) == pytest.approx(2.05)
    assert fitted_loss([(100, 2.0), (200, 2.1), (400, 2.2)], 1600) == pytest.approx(2.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": {"a": 1.0}}, "not both"),
        ({"measured_models": [{"num_parameters": 5, "losses": {"a": 1.0}}] * 2}, "two sizes"),
        (
            {
                "measured_models": [
                    {"num_parameters": 5, "losses": {"a": 1.0}},
                    {"num_parameters": 6, "losses": {"b": 1.0}},
                ]
            },
            "the same domains",
        ),
    ],
)
def test_measured_models_that_say_nothing_are_refused(
    change: dict[str, object], message: str
) -> None:
    models = [
        {"num_parameters": 100, "losses": {"a": 2.0}},
        {"num_parameters": 200, "losses": {"a": 1.9}},
    ]
    with pytest.raises(ValidationError, match=message):
        Mixture.model_validate({"kind": "dynamic", "measured_models": models, **change})
