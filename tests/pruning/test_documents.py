"""Several documents in one training sequence, kept apart."""

import copy

import pytest
import torch

from pruning.models.distillation import distillation_loss
from pruning.models.loss import document_positions, training_loss
from pruning.recipe_parts.recovery import Distillation
from tests.pruning.tiny import FAMILIES, make_tiny_model, random_ids

SEPARATOR = 7


def documents() -> list[torch.Tensor]:
    """Three of different lengths, int64 [T] each, closed by the separator."""
    found = []
    for seed, length in enumerate((9, 1, 14)):
        ids_T = random_ids(num_sequences=1, length=length, seed=seed)[0]
        ids_T[ids_T == SEPARATOR] += 1
        ids_T[-1] = SEPARATOR
        found.append(ids_T)
    return found


def test_positions_begin_anew_after_each_separator() -> None:
    ids_BT = torch.tensor([[5, 5, SEPARATOR, 5, SEPARATOR, SEPARATOR, 5, 5]])
    assert document_positions(ids_BT, SEPARATOR).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_learn_as_if_each_were_alone(family: str) -> None:
    model = make_tiny_model(family)
    alone = copy.deepcopy(model)
    loss = training_loss(model, torch.cat(documents())[None], "float32", separator=SEPARATOR)
    loss.backward()
    expected = sum(
        training_loss(alone, ids_T[None], "float32") for ids_T in documents() if len(ids_T) > 1
    )
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    gradients = dict(alone.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-4)


def test_without_a_separator_documents_see_each_other() -> None:
    model = make_tiny_model()
    ids_BT = torch.cat(documents())[None]
    joint = training_loss(model, ids_BT, "float32")
    assert not torch.isclose(joint, training_loss(model, ids_BT, "float32", separator=SEPARATOR))


def test_a_teacher_keeps_documents_apart_too() -> None:
    student, teacher = make_tiny_model(seed=0), make_tiny_model(seed=1)
    distillation = Distillation(weight=1.0)
    packed = distillation_loss(
        student,
        teacher,
        torch.cat(documents())[None],
        distillation,
        "float32",
        separator=SEPARATOR,
    )
    apart = sum(
        distillation_loss(student, teacher, ids_T[None], distillation, "float32")
        for ids_T in documents()
        if len(ids_T) > 1
    )
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-5)
