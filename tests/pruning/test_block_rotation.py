"""SliceGPT's rotations block by block: nothing changes until something is sliced."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pruning.errors import ExportRefused, UnsupportedModel
from pruning.estimate import estimate
from pruning.events import IncrementFinished
from pruning.export.export import export_checkpoint, open_canonical
from pruning.models.block_rotation import slice_blocks
from pruning.models.families import FAMILIES as SUPPORTED
from pruning.models.geometry import count_parameters, geometry_of, layer_widths, unpruned_plan
from pruning.pipeline import run
from pruning.recipe import Recipe
from pruning.recipe_parts.model import PathModel
from pruning.surgery import apply_mask, apply_plan
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.test_surgery import random_plan
from tests.pruning.tiny import FAMILIES, make_tiny_model, make_tiny_tokenizer, random_ids

SLICEABLE = sorted(name for name in FAMILIES if SUPPORTED[name].sliceable)
BATCHES = [random_ids(seed=seed, num_sequences=8, length=16) for seed in (1, 2)]


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=random_ids()).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", SLICEABLE)
def test_rotating_every_block_changes_no_logit(family: str, tied: bool) -> None:
    model = make_tiny_model(family, tied=tied)
    before = logits(model)
    slice_blocks(model, BATCHES, 48)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", SLICEABLE)
def test_a_sliced_model_opens_bit_equal(family: str, tmp_path: Path) -> None:
    model = make_tiny_model(family)
    widths = layer_widths(model)
    slice_blocks(model, BATCHES, 36)
    assert layer_widths(model) == widths
    assert geometry_of(model).num_parameters(unpruned_plan(model)) == count_parameters(model)
    model.save_pretrained(tmp_path)
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(reopened), logits(model))
    assert torch.equal(logits(copy.deepcopy(reopened)), logits(model))


def test_plain_transformers_refuses_it(tmp_path: Path) -> None:
    model = make_tiny_model("llama")
    slice_blocks(model, BATCHES, 36)
    model.save_pretrained(tmp_path)
    code = (
        "import sys; from transformers import AutoModelForCausalLM as A; "
        "A.from_pretrained(sys.argv[1])"
    )
    opened = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert opened.returncode != 0
    assert "o_proj.weight" in opened.stderr + opened.stdout


def test_generation_with_a_cache_equals_generation_without() -> None:
    model = make_tiny_model("llama")
    slice_blocks(model, BATCHES, 36)
    prompt = random_ids(num_sequences=1, length=6)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached, plain = (model.generate(prompt, **settings, use_cache=use) for use in (True, False))
    assert cached.tolist() == plain.tolist()


def test_its_layers_can_still_be_narrowed(tmp_path: Path) -> None:
    model = make_tiny_model("llama")
    slice_blocks(model, BATCHES, 36)
    masked, base, plan = copy.deepcopy(model), unpruned_plan(model), random_plan(model)
    apply_mask(masked, plan, previous=base)
    apply_plan(model, plan, previous=base)
    assert (logits(model) - logits(masked)).abs().max() < 1e-5
    assert count_parameters(model) == geometry_of(model).num_parameters(unpruned_plan(model))
    model.save_pretrained(tmp_path)
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(reopened), logits(model))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(SLICEABLE)))
def test_families_without_a_place_for_shortcuts_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"rotated residual stream|shortcuts"):
        slice_blocks(make_tiny_model(family), BATCHES, 36)


def by_block(model_dir: Path, corpus: Path, target: str) -> Recipe:
    return make_recipe(
        model_dir,
        corpus,
        method="slicegpt",
        target=target,
        importance={
            "rotation": "per_block",
            "calibration": {"num_samples": 8, "sequence_length": 32, "batch_size": 4},
        },
        allocation={"constraints": {"hidden_multiple": 2, "min_hidden_size": 6}},
        schedule={"num_increments": 1},
        recovery={"kind": "full", "sequence_length": 32, "precision": "float32"},
        output={"dtype": "float32"},
    )


def test_a_run_counts_the_shortcuts_in_its_target(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = by_block(tiny_model_dir, write_corpus(tmp_path / "text.jsonl"), "20%")
    finished: list[IncrementFinished] = []
    run(
        recipe,
        tmp_path / "out",
        lambda event: finished.append(event) if isinstance(event, IncrementFinished) else None,
        device="cpu",
    )
    directory = tmp_path / "out" / finished[-1].directory
    model = AutoModelForCausalLM.from_pretrained(directory)
    expected = estimate(recipe, AutoConfig.from_pretrained(tiny_model_dir).to_dict())
    assert count_parameters(model) == finished[-1].num_parameters
    assert finished[-1].num_parameters <= expected.final_num_parameters
    assert expected.floor_num_parameters <= finished[-1].num_parameters
    assert "shortcut" in (directory / "README.md").read_text().lower()
    again = recipe.model_copy(update={"model": PathModel(path=str(directory))})
    with pytest.raises(UnsupportedModel, match="no second run prunes"):
        run(again, tmp_path / "again", lambda _: None, device="cpu")


def test_no_other_engine_gets_a_model_with_shortcuts(tmp_path: Path) -> None:
    model = make_tiny_model("llama")
    slice_blocks(model, BATCHES, 36)
    model.save_pretrained(tmp_path / "model")
    make_tiny_tokenizer().save_pretrained(tmp_path / "model")
    canonical = open_canonical(tmp_path / "model")
    with pytest.raises(ExportRefused, match="shortcuts between blocks"):
        export_checkpoint(canonical, "gguf:f32", tmp_path)
