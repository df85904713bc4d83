"""Pruning while training: masks learned with the weights, and cuts by what the steps show."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from pruning.events import Event, IncrementFinished, PruneFinished, StepFinished
from pruning.importance.taylor import taylor_importance
from pruning.importance.training_saliency import TrainingSaliency
from pruning.manifest import read_manifest
from pruning.pipeline import run
from pruning.recipe import Recipe
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.test_presets import opened
from tests.pruning.tiny import make_tiny_model, random_ids

SHAPE = {
    "hidden_size": 36,
    "intermediate_size": 40,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
}


def recipe_of(method: str, model_dir: Path, corpus: Path, **changes: Any) -> Recipe:
    schedule = {"num_increments": 1, "num_tokens": 20 * 256, **changes.pop("schedule", {})}
    return make_recipe(model_dir, corpus, method=method, schedule=schedule, **changes)


def events_of(recipe: Recipe, out_dir: Path, **options: Any) -> list[Event]:
    events: list[Event] = []
    run(recipe, out_dir, events.append, device="cpu", **options)
    return events


def last_checkpoint(events: list[Event], out_dir: Path) -> Path:
    return out_dir / [e for e in events if isinstance(e, IncrementFinished)][-1].directory


def test_learned_masks_lead_to_exactly_the_shape(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = recipe_of(
        "sheared_llama",
        tiny_model_dir,
        write_corpus(tmp_path / "text.jsonl"),
        target={"shape": SHAPE},
    )
    events = events_of(recipe, tmp_path / "out")
    cut_at = next(i for i, e in enumerate(events) if isinstance(e, PruneFinished))
    assert sum(isinstance(e, StepFinished) for e in events[:cut_at]) == 4
    assert sum(isinstance(e, StepFinished) for e in events[cut_at:]) == 16
    config = AutoConfig.from_pretrained(last_checkpoint(events, tmp_path / "out"))
    assert {name: getattr(config, name) for name in SHAPE} == SHAPE


def test_without_training_masks_are_learned_alone(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = recipe_of(
        "sheared_llama",
        tiny_model_dir,
        write_corpus(tmp_path / "text.jsonl"),
        target={"shape": {"num_hidden_layers": 2}},
        recovery={"kind": "none"},
        output={"dtype": "float32"},
    )
    out = tmp_path / "out"
    found = opened(last_checkpoint(events_of(recipe, out), out)).state_dict()
    base = opened(tiny_model_dir).state_dict()
    assert torch.equal(found["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


def test_what_masks_leave_half_open_goes_into_the_cut(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = recipe_of(
        "sheared_llama",
        tiny_model_dir,
        write_corpus(tmp_path / "text.jsonl"),
        axes=["intermediate"],
        importance={"calibration": {"num_samples": 12, "sequence_length": 16, "batch_size": 1}},
        recovery={"kind": "none"},
        output={"dtype": "float32"},
    )
    out = tmp_path / "out"
    directory = last_checkpoint(events_of(recipe, out), out)
    kept = list(read_manifest(directory).plan.layers[0].intermediate)
    name = "model.layers.0.mlp.down_proj.weight"
    base = opened(tiny_model_dir).state_dict()[name][:, kept]
    found = opened(directory).state_dict()[name]
    factors = (found * base).sum(dim=0) / base.square().sum(dim=0)
    torch.testing.assert_close(found, base * factors)
    assert factors.min() < 0.99


def test_a_run_cuts_little_by_little_while_it_trains(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = recipe_of(
        "efficientllm",
        tiny_model_dir,
        write_corpus(tmp_path / "text.jsonl"),
        schedule={"pruning_share": 0.6, "steps_per_cut": 3},
        allocation={"layout": "per_layer", "constraints": {"width_multiple": 1}},
    )
    events = events_of(recipe, tmp_path / "out")
    trained_and_cut = [e for e in events if isinstance(e, StepFinished | PruneFinished)]
    cuts = [i for i, e in enumerate(trained_and_cut) if isinstance(e, PruneFinished)]
    assert cuts == [3, 7, 11, 15]
    sizes = [e.num_parameters for e in events if isinstance(e, PruneFinished)]
    assert sizes == sorted(set(sizes), reverse=True)
    manifest = read_manifest(last_checkpoint(events, tmp_path / "out"))
    assert manifest.num_parameters == sizes[-1] <= manifest.target_num_parameters
    assert [e.step for e in events if isinstance(e, StepFinished)] == list(range(1, 21))


@pytest.mark.parametrize("method", ["sheared_llama", "efficientllm"])
def test_a_run_stopped_while_it_prunes_ends_with_the_same_model(
    method: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    recipe = recipe_of(
        method,
        tiny_model_dir,
        write_corpus(tmp_path / "text.jsonl"),
        schedule={"num_increments": 2, "pruning_share": 0.5, "steps_per_cut": 2},
    )
    whole = events_of(recipe, tmp_path / "whole")
    steps: list[int] = []
    out, published = tmp_path / "stopped", []

    def emit(event: Event) -> None:
        if isinstance(event, StepFinished):
            steps.append(event.step)
        if isinstance(event, IncrementFinished):
            published.append(out / event.directory)

    # In the second increment, three steps into its pruning.
    second = next(e for e in whole if isinstance(e, IncrementFinished)).step
    assert (
        run(recipe, out, emit, stop=lambda: max(steps, default=0) >= second + 3, device="cpu")
        is None
    )
    assert (len(published), steps[-1]) == (1, second + 3)
    resumed = events_of(recipe, out, resume_from=published[0])
    expected = opened(last_checkpoint(whole, tmp_path / "whole")).state_dict()
    found = opened(last_checkpoint(resumed, out)).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_residual_stream_narrows_while_it_trains(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = recipe_of(
        "efficientllm",
        tiny_model_dir,
        write_corpus(tmp_path / "text.jsonl"),
        axes=["intermediate", "kv_group", "hidden"],
        allocation={
            "layout": "per_layer",
            "constraints": {"width_multiple": 1, "hidden_multiple": 2, "min_hidden_size": 8},
        },
    )
    out = tmp_path / "out"
    manifest = read_manifest(last_checkpoint(events_of(recipe, out), out))
    assert manifest.plan.hidden is not None
    assert manifest.num_parameters <= manifest.target_num_parameters


def test_saliency_of_the_stream_sums_every_weight_of_a_channel() -> None:
    model = make_tiny_model("llama", attention_bias=False, mlp_bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    saliency = TrainingSaliency(model, "first", hidden=True)
    ids = random_ids()
    model(input_ids=ids, labels=ids).loss.backward()
    expected_D = torch.zeros(model.config.hidden_size)
    for name, parameter in model.named_parameters():
        change = (parameter * parameter.grad).detach().abs()
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        by_channel = change.T if writes else change
        expected_D += by_channel.reshape(-1, len(expected_D)).sum(0)
    with saliency.watching(optimizer):
        optimizer.step()
    torch.testing.assert_close(saliency.scores().hidden, expected_D)


def test_saliency_sums_what_each_step_would_change() -> None:
    model = make_tiny_model("llama", attention_bias=False, mlp_bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    saliency = TrainingSaliency(model, "mix")
    expected_F = torch.zeros(64)
    for seed in (1, 2):
        optimizer.zero_grad()
        ids = random_ids(seed=seed)
        model(input_ids=ids, labels=ids).loss.backward()
        mlp = model.get_submodule("model.layers.1.mlp")
        for linear, dim in ((mlp.gate_proj, 1), (mlp.up_proj, 1), (mlp.down_proj, 0)):
            entries = taylor_importance(linear.weight.detach(), linear.weight.grad, "mix")
            expected_F += entries.sum(dim)
        with saliency.watching(optimizer):
            optimizer.step()
    torch.testing.assert_close(saliency.scores().layers[1].intermediate, expected_F)
