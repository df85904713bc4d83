import copy
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from pruning.events import Event, RunWarning
from pruning.models.geometry import unpruned_plan
from pruning.models.loss import training_loss
from pruning.recipe_parts.recovery import Recovery
from pruning.surgery import apply_plan
from pruning.training.acceleration import accelerated
from tests.pruning.tiny import random_ids


def gradients(model: PreTrainedModel, events: list[Event], **options: Any) -> list[torch.Tensor]:
    model = copy.deepcopy(model).train()
    with accelerated(model, Recovery(**options), events.append):
        loss = training_loss(model, random_ids(num_sequences=2, length=24), "float32")
        loss.backward()
    return [p.grad for p in model.parameters()]


def test_activation_checkpointing_changes_no_gradient(tiny_llama: PreTrainedModel) -> None:
    plain = gradients(tiny_llama, [])
    checkpointed = gradients(tiny_llama, [], activation_checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


def test_activation_checkpointing_keeps_fewer_tensors(tiny_llama: PreTrainedModel) -> None:
    def bytes_kept(**options: bool) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            accelerated(tiny_llama.train(), Recovery(**options), lambda _: None),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            training_loss(tiny_llama, random_ids(num_sequences=4, length=64), "float32")
        return sum(kept.values())

    assert bytes_kept(activation_checkpointing=True) < 0.5 * bytes_kept()


def test_a_compiled_layer_computes_the_same_and_is_compiled_again_only_for_a_new_shape(
    tiny_llama: PreTrainedModel,
) -> None:
    def compiled_step() -> int:
        before = counters["stats"]["unique_graphs"]
        events: list[Event] = []
        for plain, compiled in zip(
            gradients(tiny_llama, events), gradients(tiny_llama, events, compile=True), strict=True
        ):
            torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-4)
        assert not events
        return counters["stats"]["unique_graphs"] - before

    torch._dynamo.reset()
    assert compiled_step() == 1
    assert compiled_step() == 0
    whole = unpruned_plan(tiny_llama)
    first = whole.layers[0].model_copy(update={"intermediate": tuple(range(32))})
    cut = whole.model_copy(update={"layers": (first, *whole.layers[1:])})
    apply_plan(tiny_llama, cut, previous=whole)
    assert compiled_step() == 1


def test_without_a_compiler_training_goes_on_with_a_warning(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    events: list[Event] = []
    gradients(tiny_llama, events, compile=True)
    (warning,) = events
    assert isinstance(warning, RunWarning)
    assert warning.code == "not_compiled"
