"""What a teacher predicts, kept on disk."""

import math
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

import pruning.training.teacher_cache as module
from pruning.errors import InvalidRecipe
from pruning.events import Event, RunWarning, StepFinished
from pruning.models.distillation import (
    TopTokens,
    distillation_loss,
    distillation_loss_from,
    top_divergence_with_gradient,
    top_tokens,
)
from pruning.pipeline import run
from pruning.recipe_parts.recovery import Distillation
from pruning.training.teacher_cache import TeacherCache, cache_bytes
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import VOCAB_SIZE, make_tiny_model, random_ids

DISTILLATION = Distillation(weight=0.7, temperature=2.0)


def make_cache(directory: Path, *, top_k: int = 8) -> TeacherCache:
    return TeacherCache(
        directory, num_sequences=6, num_predictions=15, top_k=top_k, vocab_size=VOCAB_SIZE
    )


def predict(ids_BT: torch.Tensor) -> TopTokens:
    teacher = make_tiny_model(seed=3)
    return top_tokens(teacher, ids_BT, DISTILLATION, "float32", num_tokens=8)


def test_the_teacher_is_asked_once_for_each_sequence(tmp_path: Path) -> None:
    asked: list[int] = []

    def count(ids_BT: torch.Tensor) -> TopTokens:
        asked.append(len(ids_BT))
        return predict(ids_BT)

    cache = make_cache(tmp_path)
    first, both = random_ids(num_sequences=2), random_ids(num_sequences=4)
    cache.get(first, count)
    found = cache.get(both, count)
    assert asked == [2, 2]
    assert torch.equal(found.tokens, predict(both).tokens)
    torch.testing.assert_close(
        found.log_probabilities, predict(both).log_probabilities, rtol=1e-3, atol=1e-3
    )


def test_a_later_attempt_finds_what_an_earlier_one_kept(tmp_path: Path) -> None:
    ids_BT = random_ids(num_sequences=3)
    expected = make_cache(tmp_path).get(ids_BT, predict)

    def never(ids_BT: torch.Tensor) -> TopTokens:
        raise AssertionError("the teacher was asked again")

    found = make_cache(tmp_path).get(ids_BT, never)
    assert torch.equal(found.tokens, expected.tokens)


def test_a_full_cache_takes_what_was_estimated(tmp_path: Path) -> None:
    make_cache(tmp_path).get(random_ids(num_sequences=6), predict)
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert on_disk == cache_bytes((6, 15, 8), module.token_dtype(VOCAB_SIZE))


def test_a_disk_without_room_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(1000, 0, 1000))
    with pytest.raises(InvalidRecipe, match="would take 2,976 bytes, the disk has 1,000"):
        make_cache(tmp_path)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_of_top_tokens_has_the_gradient_that_torch_finds(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(5, 12, generator=generator) * 2).requires_grad_()
    log_p = torch.log_softmax(torch.randn(5, 12, generator=generator) * 2, dim=-1)
    top = log_p.topk(4, dim=-1)
    log_q = torch.log_softmax(logits / temperature, dim=-1)
    log_q_top = log_q.gather(1, top.indices)
    rest_p, rest_q = 1 - top.values.exp().sum(1), 1 - log_q_top.exp().sum(1)
    expected = (top.values.exp() * (top.values - log_q_top)).sum()
    expected = expected + (rest_p * (rest_p.log() - rest_q.log())).sum()
    expected.backward()
    found, gradient = top_divergence_with_gradient(
        logits.detach(), top.indices, top.values, temperature
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, logits.grad)


@pytest.mark.parametrize("separator", [None, 9])
def test_with_nearly_all_tokens_the_loss_is_that_of_the_teacher_itself(
    tiny_llama: PreTrainedModel, separator: int | None
) -> None:
    teacher, ids_BT = make_tiny_model(seed=3), random_ids(num_sequences=2, length=16)
    ids_BT[:, 5] = 9
    expected = distillation_loss(
        tiny_llama, teacher, ids_BT, DISTILLATION, "float32", separator=separator
    )
    known = top_tokens(
        teacher,
        ids_BT,
        DISTILLATION,
        "float32",
        num_tokens=VOCAB_SIZE - 1,
        separator=separator,
    )
    found = distillation_loss_from(
        tiny_llama, known, ids_BT, DISTILLATION, "float32", separator=separator
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)


def test_a_run_of_several_epochs_learns_from_its_cache(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", num_documents=6)
    recovery = {
        "sequence_length": 64,
        "batch_sequences": 4,
        "precision": "float32",
        "learning_rate": {"peak": 3e-3},
    }
    losses = []
    for cache in (None, {"top_k": VOCAB_SIZE - 1}):
        distillation = {"weight": 0.5, "teacher_cache": cache}
        recipe = make_recipe(
            tiny_model_dir, corpus, recovery={**recovery, "distillation": distillation}
        )
        events: list[Event] = []
        run(recipe, tmp_path / str(cache is None), events.append, device="cpu")
        losses.append([event.loss for event in events if isinstance(event, StepFinished)])
        assert not [e for e in events if isinstance(e, RunWarning) and "teacher" in e.code]
    assert losses[1] == pytest.approx(losses[0], abs=1e-2)
    assert math.isfinite(losses[1][-1])


def test_a_cache_goes_with_what_it_can_hold() -> None:
    with pytest.raises(ValidationError, match="teacher_cache holds the base model's"):
        Distillation(teacher="previous", teacher_cache={"top_k": 4})
