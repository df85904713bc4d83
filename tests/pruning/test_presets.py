"""Each named method runs from its name alone, and lands on its target."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import PreTrainedModel

from pruning.events import Event, IncrementFinished
from pruning.manifest import read_manifest
from pruning.models.geometry import count_parameters, count_prunable_parameters
from pruning.models.load import load_base_model
from pruning.pipeline import run
from pruning.presets import PRESETS
from pruning.recipe import Recipe
from pruning.recipe_parts.method import MethodName
from pruning.recipe_parts.model import PathModel
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import make_tiny_model, make_tiny_tokenizer

SMALL = {
    "importance": {"calibration": {"num_samples": 8, "sequence_length": 32, "batch_size": 4}},
    "schedule": {"num_increments": 1, "num_tokens": 512, "token_share": "constant"},
}


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers, so that some are left between those that LLM-Pruner protects."""
    directory = tmp_path_factory.mktemp("deep-llama")
    model = make_tiny_model("llama", num_hidden_layers=8, attention_bias=False, mlp_bias=False)
    model.save_pretrained(directory)
    make_tiny_tokenizer().save_pretrained(directory)
    return directory


def recipe_of(method: str, model_dir: Path, corpus: Path, **changes: Any) -> Recipe:
    small = {"target": "15%", **SMALL, **changes}
    if PRESETS[method]["axes"] != ("layer",):
        small["allocation"] = {"constraints": {"width_multiple": 8, "min_intermediate_size": 8}}
    if PRESETS[method]["axes"] == ("hidden",):
        small["allocation"] = {"constraints": {"hidden_multiple": 2, "min_hidden_size": 6}}
    return make_recipe(model_dir, corpus, method=method, **small)


def published_by(recipe: Recipe, out_dir: Path, *, resume_from: Path | None = None) -> list[Path]:
    """The checkpoints of a run, in order."""
    directories: list[Path] = []

    def collect(event: Event) -> None:
        if isinstance(event, IncrementFinished):
            directories.append(out_dir / event.directory)

    run(recipe, out_dir, collect, resume_from=resume_from, device="cpu")
    return directories


def opened(directory: Path) -> PreTrainedModel:
    return load_base_model(PathModel(path=str(directory)), dtype=torch.float32).model


def test_every_method_is_a_preset() -> None:
    assert set(get_args(MethodName)) == set(PRESETS)


@pytest.mark.parametrize("method", PRESETS)
def test_a_preset_reaches_its_target(method: str, deep_model: Path, tmp_path: Path) -> None:
    recipe = recipe_of(method, deep_model, write_corpus(tmp_path / "text.jsonl"))
    (directory,) = published_by(recipe, tmp_path / "out")
    base = opened(deep_model)
    prunable = count_prunable_parameters(base)
    target = count_parameters(base) - round(0.15 * prunable)
    assert target - prunable // 8 < count_parameters(opened(directory)) <= target
    assert read_manifest(directory).recipe == recipe


def test_llm_pruner_leaves_the_first_four_and_the_last_two_layers(
    deep_model: Path, tmp_path: Path
) -> None:
    recipe = recipe_of("llm_pruner", deep_model, write_corpus(tmp_path / "text.jsonl"))
    (directory,) = published_by(recipe, tmp_path / "out")
    widths = read_manifest(directory).widths
    assert [layer == widths[0] for layer in widths] == [True] * 4 + [False] * 2 + [True] * 2


@pytest.mark.parametrize("method", ["shortgpt", "flap"])
def test_a_preset_in_several_cuts_resumes_to_the_same_model(
    method: str, deep_model: Path, tmp_path: Path
) -> None:
    schedule = {"num_increments": 3, "num_tokens": 12 * 256}
    corpus, target = write_corpus(tmp_path / "text.jsonl"), "40%"
    training = {"kind": "full", "sequence_length": 64, "batch_sequences": 4}
    recipe = recipe_of(
        method, deep_model, corpus, schedule=schedule, target=target, recovery=training
    )
    first, second, last = published_by(recipe, tmp_path / "out")
    resumed = published_by(recipe, tmp_path / "again", resume_from=second)
    expected, found = (opened(d).state_dict() for d in (last, resumed[-1]))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert count_parameters(opened(second)) < count_parameters(opened(first))


@pytest.mark.parametrize("axes", [["layer"], ["attention_block", "mlp_block"]])
def test_the_default_takes_whole_blocks_where_it_is_asked_to(
    axes: list[str], deep_model: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(
        "espalier",
        deep_model,
        write_corpus(tmp_path / "text.jsonl"),
        axes=axes,
        target="40%",
        schedule={"num_increments": 2, "num_tokens": 512},
    )
    last = published_by(recipe, tmp_path / "out")[-1]
    plan, base = read_manifest(last).plan, opened(deep_model)
    assert any(not layer.kv_groups or not layer.intermediate for layer in plan.layers)
    removed = count_parameters(base) - count_parameters(opened(last))
    assert removed >= 0.4 * count_prunable_parameters(base)


@pytest.mark.parametrize("kind", ["block_influence", "taylor", "fluctuation"])
def test_blocks_can_go_in_several_cuts_with_training_between(
    kind: str, deep_model: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(
        deep_model,
        write_corpus(tmp_path / "text.jsonl"),
        method="adapt_pruner",
        axes=["attention_block", "mlp_block"],
        importance={"kind": kind, **SMALL["importance"]},
        target="40%",
    )
    _, second, last = published_by(recipe, tmp_path / "out")
    resumed = published_by(recipe, tmp_path / "again", resume_from=second)
    expected, found = (opened(d).state_dict() for d in (last, resumed[-1]))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    plan = read_manifest(last).plan
    assert any(not layer.kv_groups or not layer.intermediate for layer in plan.layers)
