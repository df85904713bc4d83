import random
from pathlib import Path

import pytest
from pydantic import ValidationError

from pruning.errors import InvalidData
from pruning.events import EvaluationFinished, Event, MixtureChanged, StepFinished
from pruning.pipeline import run
from pruning.recipe import Recipe
from tests.pruning.recipes import make_recipe
from tests.pruning.text import make_documents


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """Prose that the tiny model can learn, and digits without any order that it cannot."""
    directory = tmp_path / "domains"
    directory.mkdir()
    generator = random.Random(0)
    digits = [" ".join(str(generator.randrange(10**6)) for _ in range(60)) for _ in range(40)]
    (directory / "digits.txt").write_text("\n\n".join(digits))
    (directory / "prose.txt").write_text("\n\n".join(make_documents(40)))
    return directory


def recipe_for(model_dir: Path, domains: Path, **mixture: object) -> Recipe:
    data = {
        "train": str(domains),
        "held_out_fraction": 0.15,
        "mixture": {"kind": "dynamic", "update_steps": 2, **mixture},
    }
    return make_recipe(model_dir, domains, data=data)


def events_of(recipe: Recipe, out_dir: Path, **options: Path) -> list[Event]:
    events: list[Event] = []
    run(recipe, out_dir, events.append, device="cpu", **options)
    return events


def only(events: list[Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def test_every_evaluation_says_the_loss_of_each_domain(
    tiny_model_dir: Path, domains: Path, tmp_path: Path
) -> None:
    events = events_of(recipe_for(tiny_model_dir, domains), tmp_path / "out")
    by_domain = [e for e in only(events, EvaluationFinished) if e.suite == "domains"]
    stages = [(0, "base"), *((k, s) for k in (1, 2, 3) for s in ("pruned", "recovered"))]
    expected = [(*stage, name) for stage in stages for name in ("digits", "prose")]
    assert [(e.increment, e.stage, e.metric) for e in by_domain] == expected


def test_the_domain_furthest_above_its_reference_gets_more_of_the_next_steps(
    tiny_model_dir: Path, domains: Path, tmp_path: Path
) -> None:
    references = {"digits": 100.0, "prose": 0.1}
    recipe = recipe_for(tiny_model_dir, domains, references=references, step_size=0.05)
    events = events_of(recipe, tmp_path / "out")
    weights = [event.domain_weights["prose"] for event in only(events, StepFinished)]
    assert weights == sorted(weights)
    assert weights[-1] > weights[0]


def test_references_may_be_fitted_to_what_other_models_reached(
    tiny_model_dir: Path, domains: Path, tmp_path: Path
) -> None:
    losses = {"digits": 100.0, "prose": 0.1}
    sizes = ({"num_parameters": size, "losses": losses} for size in (10_000, 1_000_000))
    fitted = recipe_for(tiny_model_dir, domains, measured_models=list(sizes))
    given = recipe_for(tiny_model_dir, domains, references=losses)
    paths = [
        [event.weights for event in only(events_of(recipe, tmp_path / name), MixtureChanged)]
        for name, recipe in (("fitted", fitted), ("given", given))
    ]
    assert paths[0] == [pytest.approx(weights) for weights in paths[1]]


def test_weights_change_after_the_cut_and_every_so_many_steps(
    tiny_model_dir: Path, domains: Path, tmp_path: Path
) -> None:
    events = events_of(recipe_for(tiny_model_dir, domains), tmp_path / "out")
    changes = only(events, MixtureChanged)
    assert [(e.increment, e.step) for e in changes] == [
        *((1, step) for step in (0, 2, 4)),
        *((2, step) for step in (4, 6, 8)),
        *((3, step) for step in (8, 10, 12)),
    ]
    assert all(sum(e.weights.values()) == pytest.approx(1) for e in changes)


def test_a_resumed_run_follows_the_same_path_of_weights(
    tiny_model_dir: Path, domains: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(tiny_model_dir, domains)
    whole = only(events_of(recipe, tmp_path / "whole"), StepFinished)
    first = tmp_path / "whole" / "increment-0001"
    resumed = only(events_of(recipe, tmp_path / "again", resume_from=first), StepFinished)
    assert [(e.loss, e.domain_weights) for e in resumed] == [
        (e.loss, e.domain_weights) for e in whole[4:]
    ]


def test_a_reference_for_a_domain_that_is_not_there_is_refused(
    tiny_model_dir: Path, domains: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(tiny_model_dir, domains, references={"poetry": 1.0})
    with pytest.raises(InvalidData, match="no domain is called poetry"):
        events_of(recipe, tmp_path / "out")


def test_a_dynamic_mixture_needs_text_held_out_of_each_domain(
    tiny_model_dir: Path, domains: Path
) -> None:
    data = {
        "train": str(domains),
        "evaluation": str(domains),
        "mixture": {"kind": "dynamic"},
    }
    with pytest.raises(ValidationError, match="leave out data"):
        make_recipe(tiny_model_dir, domains, data=data)
