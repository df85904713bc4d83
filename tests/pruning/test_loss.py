from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

import pruning.models.loss as loss_module
from pruning.models.distillation import distillation_loss, frozen_copy
from pruning.models.loss import token_losses, training_loss
from pruning.recipe_parts.recovery import Distillation
from tests.pruning.tiny import make_tiny_model, random_ids

CHUNK = 5


class LogitsSeen(TorchDispatchMode):
    """How many predictions any fp32 tensor of logits, or of their gradient, held at once."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.most = vocab_size, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and self._are_logits(found):
            self.most = max(self.most, found.numel() // self.vocab_size)
        return found

    def _are_logits(self, tensor: torch.Tensor) -> bool:
        return tensor.dtype == torch.float32 and tensor.shape[-1:] == (self.vocab_size,)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a batch takes several products of several chunks, the last ones short."""
    monkeypatch.setattr(loss_module, "_PRODUCT_TOKENS", 17)
    monkeypatch.setattr(loss_module, "_CHUNK_TOKENS", {"cpu": CHUNK})


def reference_loss(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    logits_BTV = model(ids_BT).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
    ).view(ids_BT.shape[0], -1)


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_chunked_cross_entropy_equals_torchs_with_its_gradients(family: str, tied: bool) -> None:
    model = make_tiny_model(family, tied=tied)
    ids_BT = random_ids(num_sequences=3, length=20)
    expected = reference_loss(model, ids_BT).mean()
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = training_loss(model, ids_BT, "float32") / (3 * 19)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-6)


def test_bfloat16_stays_near_float32(tiny_llama: PreTrainedModel) -> None:
    ids_BT = random_ids(num_sequences=3, length=20)
    low = training_loss(tiny_llama, ids_BT, "bfloat16")
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, training_loss(tiny_llama, ids_BT, "float32"), rtol=0.02, atol=0)


def test_token_losses_equal_torchs(tiny_llama: PreTrainedModel) -> None:
    ids_BT = random_ids(num_sequences=3, length=20)
    losses_BT = token_losses(tiny_llama, ids_BT, "float32")
    torch.testing.assert_close(losses_BT, reference_loss(tiny_llama, ids_BT), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("distillation", [None, Distillation(), Distillation(temperature=2.0)])
def test_logits_of_all_predictions_never_exist_in_fp32(
    tiny_llama: PreTrainedModel, distillation: Distillation | None
) -> None:
    ids_BT = random_ids(num_sequences=3, length=20)
    teacher = frozen_copy(tiny_llama, torch.bfloat16)
    with LogitsSeen(tiny_llama.config.vocab_size) as seen:
        if distillation is None:
            loss = training_loss(tiny_llama, ids_BT, "bfloat16")
        else:
            loss = distillation_loss(tiny_llama, teacher, ids_BT, distillation, "bfloat16")
        loss.backward()
    assert seen.most == CHUNK
