"""Forecasts from a registry's own history, and how often their intervals hold."""

import math

import numpy as np
import pytest

from registry.forecast import (
    INTERVAL,
    MIN_JOBS,
    PastPoint,
    Wanted,
    coverage,
    forecast,
)


def history(num_jobs: int, *, seed: int = 0, noise: float = 0.05) -> list[PastPoint]:
    """Jobs of one to four increments whose loss follows a law of our own, and chance by job."""
    generator = np.random.default_rng(seed)
    points = []
    for number in range(num_jobs):
        increments = int(generator.integers(1, 5))
        tokens, size = 10 ** generator.uniform(5, 7.5), 10 ** generator.uniform(8, 9.5)
        end, luck = generator.uniform(0.1, 0.6), generator.normal(0, noise)
        for index in range(1, increments + 1):
            removed, seen = end * index / increments, int(tokens * index / increments)
            points.append(
                PastPoint(
                    job_id=f"job_{number}",
                    method="espalier",
                    trained=True,
                    removed=removed,
                    num_tokens=seen,
                    base_num_parameters=int(size),
                    added_loss=law(removed, seen) + 3 * removed * luck,
                )
            )
    return points


def law(removed: float, num_tokens: int) -> float:
    learned = math.log10(1 + num_tokens / 1e6)
    return 1.2 * removed + 2.5 * removed**2 - 0.3 * removed * learned - 0.02 * learned


def wanted(removed: float = 0.3, num_tokens: int | None = 2_000_000) -> Wanted:
    return Wanted(
        method="espalier",
        trained=True,
        removed=removed,
        num_tokens=num_tokens,
        base_num_parameters=300_000_000,
    )


def test_enough_history_foretells_what_the_law_gives() -> None:
    found = forecast(history(30), wanted())
    assert found.ratio is not None
    assert found.low is not None
    assert found.high is not None
    assert found.ratio == pytest.approx(math.exp(law(0.3, 2_000_000)), rel=0.05)
    assert found.low < found.ratio < found.high


def test_the_intervals_hold_about_as_often_as_they_say() -> None:
    held = tried = 0
    for seed in range(8):
        covered, of = coverage(history(14, seed=seed))
        held, tried = held + covered, tried + of
    assert INTERVAL - 0.08 < held / tried < INTERVAL + 0.12


def test_a_worse_known_history_makes_a_wider_interval() -> None:
    quiet, noisy = (forecast(history(20, noise=n), wanted()) for n in (0.01, 0.2))
    assert quiet.low is not None
    assert quiet.high is not None
    assert noisy.low is not None
    assert noisy.high is not None
    assert quiet.high / quiet.low < noisy.high / noisy.low


@pytest.mark.parametrize(
    ("points", "asked", "reason"),
    [
        (history(MIN_JOBS - 1), wanted(), "4 past jobs were measured"),
        (history(20), wanted(removed=0.95), "no past job removed more than"),
        (history(20), wanted(num_tokens=None), "is not known before it runs"),
    ],
)
def test_without_grounds_there_is_no_forecast(
    points: list[PastPoint], asked: Wanted, reason: str
) -> None:
    found = forecast(points, asked)
    assert found.ratio is None
    assert found.reason is not None
    assert reason in found.reason


def test_other_methods_stand_in_where_a_method_has_too_few_runs() -> None:
    found = forecast(history(10), Wanted(**{**vars(wanted()), "method": "flap"}))
    assert found.ratio is not None
    assert not found.same_method
