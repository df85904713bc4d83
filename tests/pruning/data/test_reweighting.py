import math

import pytest

from pruning.data.reweighting import updated_weights
from pruning.recipe_parts.data import Mixture

WEIGHTS = {"web": 0.6, "code": 0.3, "wiki": 0.1}
REFERENCES = dict.fromkeys(WEIGHTS, 2.0)
FREE = Mixture(kind="dynamic", smoothing=0, max_change=1)


def test_weights_grow_with_the_excess_over_the_reference() -> None:
    losses = {"web": 2.0, "code": 2.5, "wiki": 3.0}
    found = updated_weights(WEIGHTS, losses, REFERENCES, FREE)
    raw = {"web": 0.6, "code": 0.3 * math.exp(0.5), "wiki": 0.1 * math.exp(1.0)}
    total = sum(raw.values())
    assert found == pytest.approx({name: value / total for name, value in raw.items()})


def test_a_domain_below_its_reference_is_not_punished_for_it() -> None:
    far_below = {"web": 0.5, "code": 1.9, "wiki": 2.0}
    assert updated_weights(WEIGHTS, far_below, REFERENCES, FREE) == pytest.approx(WEIGHTS)


def test_a_domain_without_a_measurement_keeps_its_place_and_spreads_no_nan() -> None:
    for losses in ({"web": 3.0}, {"web": 3.0, "code": math.nan, "wiki": math.inf}):
        found = updated_weights(WEIGHTS, losses, REFERENCES, FREE)
        assert sum(found.values()) == pytest.approx(1)
        assert found["code"] / found["wiki"] == pytest.approx(3)
        assert found["web"] > WEIGHTS["web"]


def test_smoothing_leaves_every_domain_its_share() -> None:
    mixture = FREE.model_copy(update={"smoothing": 0.03, "step_size": 50})
    losses = {"web": 9.0, "code": 2.0, "wiki": 2.0}
    found = updated_weights(WEIGHTS, losses, REFERENCES, mixture)
    assert found["wiki"] == pytest.approx(0.01)
    assert sum(found.values()) == pytest.approx(1)


def test_no_weight_changes_by_more_than_the_cap() -> None:
    mixture = FREE.model_copy(update={"max_change": 0.05})
    losses = {"web": 2.0, "code": 2.0, "wiki": 9.0}
    found = updated_weights(WEIGHTS, losses, REFERENCES, mixture)
    changes = [abs(found[name] - WEIGHTS[name]) for name in WEIGHTS]
    assert max(changes) == pytest.approx(0.05)
    assert sum(found.values()) == pytest.approx(1)


def test_a_loss_out_of_all_proportion_does_not_overflow() -> None:
    losses = {"web": 2.0, "code": 2.0, "wiki": 5e4}
    assert updated_weights(WEIGHTS, losses, REFERENCES, FREE)["wiki"] == pytest.approx(1)
