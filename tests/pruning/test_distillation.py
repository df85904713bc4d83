from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

import pruning.models.loss as loss_module
from pruning.events import Event, StepFinished
from pruning.models.distillation import (
    distillation_loss,
    divergence_with_gradient,
    freeze,
    frozen_copy,
    mixed_loss,
)
from pruning.models.loss import training_loss
from pruning.pipeline import run
from pruning.recipe_parts.recovery import Distillation
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import make_tiny_model, random_ids

KINDS = ("forward_kl", "reverse_kl", "jensen_shannon")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a batch takes several products of several chunks, the last ones short."""
    monkeypatch.setattr(loss_module, "_PRODUCT_TOKENS", 17)
    monkeypatch.setattr(loss_module, "_CHUNK_TOKENS", {"cpu": 5})


def make_logits(seed: int) -> torch.Tensor:
    return torch.randn(6, 11, generator=torch.Generator().manual_seed(seed)) * 2


def reference_divergence(
    logits: torch.Tensor, teacher_logits: torch.Tensor, kind: str, temperature: float
) -> torch.Tensor:
    log_q = functional.log_softmax(logits / temperature, dim=-1)
    log_p = functional.log_softmax(teacher_logits / temperature, dim=-1)
    log_m = ((log_p.exp() + log_q.exp()) / 2).log()

    def kl(log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
        return functional.kl_div(log_b, log_a, reduction="sum", log_target=True)

    return {
        "forward_kl": lambda: kl(log_p, log_q),
        "reverse_kl": lambda: kl(log_q, log_p),
        "jensen_shannon": lambda: (kl(log_p, log_m) + kl(log_q, log_m)) / 2,
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_each_divergence_and_its_gradient_equal_torchs(kind: str, temperature: float) -> None:
    logits, teacher_logits = make_logits(0).requires_grad_(), make_logits(1)
    expected = reference_divergence(logits, teacher_logits, kind, temperature)
    expected.backward()
    distillation = Distillation(divergence=kind, temperature=temperature)
    found, gradient = divergence_with_gradient(logits.detach(), teacher_logits, distillation)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(kind: str) -> None:
    logits = make_logits(0)
    loss, gradient = divergence_with_gradient(
        logits, logits.clone(), Distillation(divergence=kind, temperature=2.0)
    )
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert gradient.abs().max().item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_that_is_sure_of_the_labels_teaches_what_cross_entropy_does() -> None:
    labels = torch.tensor([3, 0, 10, 7, 7, 2])
    one_hot_logits = functional.one_hot(labels, 11).float() * 100
    logits = make_logits(0)
    taught = mixed_loss(logits, one_hot_logits, labels, Distillation(weight=1.0))
    told = mixed_loss(logits, one_hot_logits, labels, Distillation(weight=0.0))
    torch.testing.assert_close(taught, told, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_batch_equals_the_plain_formula_with_its_gradients(
    family: str, kind: str
) -> None:
    teacher = freeze(make_tiny_model(family, seed=1), torch.float32)
    student = make_tiny_model(family, seed=2)
    ids = random_ids(num_sequences=3, length=20)
    expected = plain_formula(student, teacher, ids, kind)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    distillation = Distillation(divergence=kind, temperature=2.0, weight=0.7, hidden_weight=0.3)
    loss = distillation_loss(student, teacher, ids, distillation, "float32")
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-4)


def plain_formula(
    student: PreTrainedModel, teacher: PreTrainedModel, ids: torch.Tensor, kind: str
) -> torch.Tensor:
    """0.7 T² divergence + 0.3 cross-entropy + 0.3 cosine distance, from whole logits, T = 2."""
    ours = student(ids, output_hidden_states=True)
    theirs = teacher(ids, output_hidden_states=True)
    logits, teacher_logits = (x.logits[:, :-1].flatten(0, 1) for x in (ours, theirs))
    hidden, teacher_hidden = (x.hidden_states[-1][:, :-1].flatten(0, 1) for x in (ours, theirs))
    similarity = functional.cosine_similarity(hidden, teacher_hidden, dim=-1)
    return (
        0.7 * 4 * reference_divergence(logits, teacher_logits, kind, 2.0)
        + 0.3 * functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")
        + 0.3 * (1 - similarity).sum()
    )


def test_what_the_teacher_says_after_the_last_token_is_not_learnt(
    tiny_llama: PreTrainedModel,
) -> None:
    """A mask shifted by one, or not at all, would let the last position in."""
    teacher = freeze(make_tiny_model("llama", seed=5), torch.float32)
    ids = random_ids(num_sequences=1, length=12)
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % 300 + 1
    distillation = Distillation(weight=1.0)
    losses = [
        distillation_loss(tiny_llama, teacher, x, distillation, "float32") for x in (ids, other)
    ]
    torch.testing.assert_close(*losses)


def test_without_weight_only_cross_entropy_is_left(tiny_llama: PreTrainedModel) -> None:
    teacher = freeze(make_tiny_model("llama", seed=5), torch.float32)
    ids = random_ids(num_sequences=2, length=20)
    found = distillation_loss(tiny_llama, teacher, ids, Distillation(weight=0.0), "float32")
    torch.testing.assert_close(found, training_loss(tiny_llama, ids, "float32"))


def test_a_teacher_in_bfloat16_keeps_its_rotary_frequencies(tiny_llama: PreTrainedModel) -> None:
    teacher = frozen_copy(tiny_llama, torch.bfloat16)
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in teacher.parameters())
    before, after = (dict(model.named_buffers()) for model in (tiny_llama, teacher))
    assert before
    assert all(torch.equal(before[name], after[name]) for name in before)


def steps_of(recipe: object, out_dir: Path, **options: Path) -> list[float]:
    events: list[Event] = []
    run(recipe, out_dir, events.append, device="cpu", **options)
    return [event.loss for event in events if isinstance(event, StepFinished)]


@pytest.mark.parametrize("teacher", ["base", "previous"])
def test_a_resumed_run_distils_from_the_same_teacher(
    teacher: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    recovery = {
        "sequence_length": 64,
        "batch_sequences": 4,
        "precision": "float32",
        "distillation": {"teacher": teacher, "weight": 1.0},
    }
    recipe = make_recipe(tiny_model_dir, corpus, recovery=recovery)
    whole = steps_of(recipe, tmp_path / "whole")
    first = tmp_path / "whole" / "increment-0001"
    assert steps_of(recipe, tmp_path / "again", resume_from=first) == whole[4:]


def test_distilling_from_the_base_brings_the_student_nearer_to_it(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    recovery = {
        "sequence_length": 64,
        "batch_sequences": 4,
        "precision": "float32",
        "learning_rate": {"peak": 3e-3},
        "distillation": {"weight": 1.0},
    }
    losses = steps_of(
        make_recipe(
            tiny_model_dir,
            corpus,
            target="60%",
            recovery=recovery,
            schedule={"num_increments": 1, "num_tokens": 40 * 256},
        ),
        tmp_path / "out",
    )
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
