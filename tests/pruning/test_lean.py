from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pruning.models.lean import _RMSNorm, _SwiGLU, lean_layers
from pruning.models.loss import training_loss
from tests.pruning.tiny import FAMILIES, make_tiny_model, random_ids


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_norm_is_llamas_to_the_bit_and_its_gradients_to_round_off(
    dtype: torch.dtype, tolerance: float
) -> None:
    norm = LlamaRMSNorm(24, eps=1e-5)
    norm.weight.data = random_tensor(24, seed=1).detach()
    hidden = random_tensor(3, 5, 24, dtype=dtype)
    expected = norm(hidden)
    grad = random_tensor(3, 5, 24, seed=2).detach()
    wanted = torch.autograd.grad(expected, (hidden, norm.weight), grad)
    found = _RMSNorm.apply(hidden, norm.weight, 1e-5)
    gradients = torch.autograd.grad(found, (hidden, norm.weight), grad)
    assert torch.equal(found, expected)
    for ours, torchs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_and_its_gradients_are_torchs_to_the_bit(dtype: torch.dtype) -> None:
    gate, up = (random_tensor(3, 5, 16, dtype=dtype, seed=seed) for seed in (0, 1))
    grad = random_tensor(3, 5, 16, dtype=dtype, seed=2).detach()
    expected = functional.silu(gate) * up
    wanted = torch.autograd.grad(expected, (gate, up), grad)
    found = _SwiGLU.apply(gate, up)
    gradients = torch.autograd.grad(found, (gate, up), grad)
    for ours, torchs in zip((found, *gradients), (expected, *wanted), strict=True):
        assert torch.equal(ours, torchs)


def learned(model: PreTrainedModel, *, lean: bool) -> list[Tensor]:
    """The loss and all gradients."""
    model.zero_grad()
    with lean_layers(model) if lean else nullcontext():
        loss = training_loss(model, random_ids(num_sequences=2, length=24), "float32")
        loss.backward()
    return [loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_the_same(family: str) -> None:
    model = make_tiny_model(family).train()
    for ours, torchs in zip(learned(model, lean=True), learned(model, lean=False), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)


def kept_bytes(model: PreTrainedModel) -> int:
    """What autograd keeps of a forward pass, each storage once, besides the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        training_loss(model, random_ids(num_sequences=2, length=24), "float32")
    return sum(
        tensor.untyped_storage().nbytes()
        for place, tensor in kept.items()
        if place not in parameters
    )


def test_less_is_kept_by_an_activation_of_each_norm_and_one_of_each_mlp() -> None:
    model = make_tiny_model(hidden_size=48, intermediate_size=64, num_hidden_layers=3).train()
    usual = kept_bytes(model)
    with lean_layers(model):
        lean = kept_bytes(model)
    num_tokens, bytes_per_number = 48, 4
    assert usual - lean == num_tokens * bytes_per_number * (7 * 48 + 3 * 64)


@pytest.mark.parametrize("family", ["gemma", "olmo2", "gpt_neox"])
def test_norms_written_otherwise_stay_as_they_are(family: str) -> None:
    model = make_tiny_model(family)
    with lean_layers(model):
        assert not [m for m in model.modules() if "Norm" in type(m).__name__ and replaced(m)]


def test_an_mlp_with_another_activation_stays_as_it_is() -> None:
    with lean_layers(model := make_tiny_model("gemma")):
        assert not any(replaced(layer.mlp) for layer in model.model.layers)


def test_afterwards_the_modules_are_what_they_were(tiny_llama: PreTrainedModel) -> None:
    with lean_layers(tiny_llama):
        assert any(replaced(module) for module in tiny_llama.modules())
    assert not any(replaced(module) for module in tiny_llama.modules())


def replaced(module: nn.Module) -> bool:
    return "forward" in vars(module)
