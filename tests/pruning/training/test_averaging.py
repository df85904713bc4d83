"""Publishing an average of the weights."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from pruning.events import EvaluationFinished, Event, StepFinished
from pruning.models.geometry import unpruned_plan
from pruning.pipeline import run
from pruning.recipe import Recipe
from pruning.recipe_parts.recovery import Recovery
from pruning.surgery import apply_plan
from pruning.training.averaging import keeping_distance
from pruning.training.optimizer import build_optimizer
from tests.pruning.recipes import make_recipe, write_corpus

DECAY = 0.5
RECOVERY = {
    "sequence_length": 64,
    "batch_sequences": 4,
    "precision": "float32",
    "learning_rate": {"peak": 3e-3},
    "average_decay": DECAY,
}


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path) -> Recipe:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    output = {"dtype": "float32"}
    return make_recipe(tiny_model_dir, corpus, recovery=RECOVERY, output=output)


def test_the_average_is_published_and_the_weights_are_kept(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path, lambda _: None, device="cpu")
    directory = tmp_path / "increment-0003"
    published = load_file(directory / "model.safetensors")
    weights = load_file(directory / "training_state" / "weights.safetensors")
    moments = load_file(directory / "training_state" / "optimizer.safetensors")
    for name, tensor in published.items():
        assert torch.equal(tensor, moments[f"average.{name}"])
        assert not torch.equal(tensor, weights[name])


def test_what_is_published_is_what_was_measured(recipe: Recipe, tmp_path: Path) -> None:
    events: list[Event] = []
    run(recipe, tmp_path / "out", events.append, device="cpu")
    plain = recipe.model_copy(
        update={"recovery": recipe.recovery.model_copy(update={"average_decay": None})}
    )
    others: list[Event] = []
    run(plain, tmp_path / "plain", others.append, device="cpu")
    of_steps = [
        [event.loss for event in found if isinstance(event, StepFinished)]
        for found in (events, others)
    ]
    assert of_steps[0] == of_steps[1]
    recovered = [
        [
            event.value
            for event in found
            if isinstance(event, EvaluationFinished) and event.stage == "recovered"
        ]
        for found in (events, others)
    ]
    assert all(ours != theirs for ours, theirs in zip(*recovered, strict=True))


def test_an_average_survives_a_stop_bit_for_bit(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "whole", lambda _: None, device="cpu")
    seen: list[Event] = []
    out_dir = tmp_path / "out"
    run(recipe, out_dir, seen.append, stop=lambda: len(steps(seen)) >= 6, device="cpu")
    run(recipe, out_dir, lambda _: None, resume_from=out_dir / "increment-0001", device="cpu")
    whole, found = (
        load_file(directory / "increment-0003" / "model.safetensors")
        for directory in (tmp_path / "whole", out_dir)
    )
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_a_repair_moves_the_average_as_far_as_the_weights(tiny_llama: PreTrainedModel) -> None:
    optimizer = build_optimizer(tiny_llama, Recovery())
    weight = tiny_llama.base_model.layers[0].mlp.down_proj.weight
    optimizer.state[weight]["average"] = weight.detach() + 1
    with keeping_distance(optimizer), torch.no_grad():
        weight.mul_(3)
    torch.testing.assert_close(optimizer.state[weight]["average"], weight + 1)


def test_an_average_is_cut_with_its_weight(tiny_llama: PreTrainedModel) -> None:
    optimizer = build_optimizer(tiny_llama, Recovery())
    down = tiny_llama.get_submodule("model.layers.0.mlp.down_proj")
    average = torch.rand_like(down.weight)
    optimizer.state[down.weight]["average"] = average
    whole = unpruned_plan(tiny_llama)
    first = whole.layers[0].model_copy(update={"intermediate": (1, 4, 6)})
    plan = whole.model_copy(update={"layers": (first, *whole.layers[1:])})
    apply_plan(tiny_llama, plan, previous=whole, optimizer=optimizer)
    assert torch.equal(optimizer.state[down.weight]["average"], average[:, [1, 4, 6]])


def steps(events: list[Event]) -> list[StepFinished]:
    return [event for event in events if isinstance(event, StepFinished)]


def test_low_rank_factors_have_no_average() -> None:
    with pytest.raises(ValidationError, match="average_decay goes with kind 'full'"):
        Recovery(kind="lora", average_decay=0.9)
