"""How much text a cut is measured on, where the recipe leaves that open."""

from pathlib import Path
from typing import Any

import pytest

from pruning.events import Event, RunStarted
from pruning.pipeline import run
from pruning.presets import PRESETS
from pruning.recipe import Recipe
from tests.pruning.recipes import make_recipe, write_corpus

LEAST, MOST = 8_192, 32_768


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"model": "a/model", "target": "30%", "data": "a/text", **changes})


def num_tokens(found: Recipe, *, trained: int, increments: int = 3) -> int:
    return found.calibration_size(num_tokens=trained, num_increments=increments).num_tokens


@pytest.mark.parametrize(
    ("trained", "calibrated"),
    [(0, LEAST), (30_000, LEAST), (60_000, 19 * 512), (6 * MOST, MOST), (10**9, MOST)],
)
def test_the_default_calibrates_on_half_of_what_it_trains_on_between_cuts(
    trained: int, calibrated: int
) -> None:
    assert num_tokens(recipe(), trained=trained) == calibrated


def test_where_nothing_trains_the_default_takes_the_most() -> None:
    assert num_tokens(recipe(recovery={"kind": "none"}), trained=0) == MOST


@pytest.mark.parametrize("trained", [0, 10**9])
def test_sums_of_gradients_take_8192_tokens_whatever_follows(trained: int) -> None:
    assert num_tokens(recipe(method="adapt_pruner"), trained=trained) == LEAST


def test_cuts_every_few_steps_take_the_least() -> None:
    continuous = recipe(schedule={"kind": "continuous", "num_increments": 1})
    assert num_tokens(continuous, trained=10**9) == LEAST


@pytest.mark.parametrize(
    "method", [name for name, p in PRESETS.items() if "calibration" in p["importance"]]
)
def test_presets_that_say_how_much_are_taken_at_their_word(method: str) -> None:
    said = PRESETS[method]["importance"]["calibration"]
    size = recipe(method=method).calibration_size(num_tokens=10**9, num_increments=1)
    assert (size.num_samples, size.sequence_length) == (
        said["num_samples"],
        said["sequence_length"],
    )


@pytest.mark.parametrize(
    ("written", "samples", "length"),
    [
        ({"num_samples": 7}, 7, 512),
        ({"sequence_length": 64}, MOST // 64, 64),
        ({"num_samples": "auto", "sequence_length": "auto"}, 64, 512),
    ],
)
def test_what_is_written_wins_and_the_rest_follows(
    written: dict[str, Any], samples: int, length: int
) -> None:
    found = recipe(importance={"calibration": written})
    size = found.calibration_size(num_tokens=10**9, num_increments=1)
    assert (size.num_samples, size.sequence_length) == (samples, length)


def test_sequences_are_no_longer_than_the_text() -> None:
    size = recipe().calibration_size(num_tokens=10**9, num_increments=1, longest=100)
    assert (size.num_samples, size.sequence_length) == (MOST // 100, 100)


def test_a_run_says_how_much_text_its_cuts_were_measured_on(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    wanted = make_recipe(
        tiny_model_dir, write_corpus(tmp_path / "corpus.jsonl"), importance={"kind": "fisher"}
    )
    events: list[Event] = []
    run(wanted, tmp_path / "out", events.append)
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    assert started.num_calibration_samples * started.calibration_sequence_length == LEAST
