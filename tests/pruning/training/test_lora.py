from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from pruning.events import EvaluationFinished, Event
from pruning.pipeline import run
from pruning.recipe import Recipe
from pruning.recipe_parts.recovery import Lora
from pruning.training.lora import low_rank
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import random_ids


def test_merging_leaves_the_modules_that_were_there_with_what_the_factors_learnt(
    tiny_llama: PreTrainedModel,
) -> None:
    names = [name for name, _ in tiny_llama.named_parameters()]
    before = tiny_llama(random_ids()).logits
    with low_rank(tiny_llama, Lora(rank=4)):
        assert torch.equal(tiny_llama(random_ids()).logits, before)
        with torch.no_grad():
            for name, parameter in tiny_llama.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        learnt = tiny_llama(random_ids()).logits
    assert [name for name, _ in tiny_llama.named_parameters()] == names
    assert all(p.requires_grad for p in tiny_llama.parameters())
    merged = tiny_llama(random_ids()).logits
    torch.testing.assert_close(merged, learnt, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged, before, atol=1e-3)


@pytest.mark.parametrize("with_norms", [False, True])
def test_only_what_was_asked_for_learns(tiny_llama: PreTrainedModel, with_norms: bool) -> None:
    with low_rank(tiny_llama, Lora(train_norms_and_embeddings=with_norms)):
        kinds = {
            next(word for word in ("lora_", "norm", "embed", "proj") if word in name)
            for name, parameter in tiny_llama.named_parameters()
            if parameter.requires_grad
        }
    assert kinds == ({"lora_", "norm", "embed"} if with_norms else {"lora_"})


def lora_recipe(model_dir: Path, corpus: Path) -> Recipe:
    recovery: dict[str, Any] = {
        "kind": "lora",
        "sequence_length": 64,
        "batch_sequences": 4,
        "precision": "float32",
        "learning_rate": {"peak": 1e-2},
    }
    return make_recipe(model_dir, corpus, recovery=recovery)


def test_a_run_recovers_by_low_rank_factors_and_resumes_bit_for_bit(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = lora_recipe(tiny_model_dir, write_corpus(tmp_path / "corpus.jsonl"))
    events: list[Event] = []
    run(recipe, tmp_path / "whole", events.append, device="cpu")
    found = {
        (e.increment, e.stage): e.value
        for e in events
        if isinstance(e, EvaluationFinished) and e.suite == "perplexity"
    }
    assert all(found[k, "recovered"] < found[k, "pruned"] for k in (1, 2, 3))
    first = tmp_path / "whole" / "increment-0001"
    run(recipe, tmp_path / "again", lambda _: None, device="cpu", resume_from=first)
    whole, again = (
        load_file(tmp_path / name / "increment-0003" / "training_state" / "weights.safetensors")
        for name in ("whole", "again")
    )
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
