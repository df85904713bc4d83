from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

import pruning.models.attention as attention_module
import pruning.models.loss as loss_module
from pruning.models.attention import blockwise_attention, causal_attention
from pruning.models.loss import training_loss
from tests.pruning.tiny import FAMILIES, make_tiny_model, random_ids


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a sequence takes several blocks, the last one short."""
    monkeypatch.setattr(attention_module, "_BLOCK_QUERIES", 7)


def random_heads(num_heads: int, length: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # As projections give them: tokens before heads.
    heads = torch.randn(2, length, num_heads, 8, generator=generator).to(dtype).transpose(1, 2)
    return heads.requires_grad_()


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 7, 24])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_in_blocks_equals_torchs_with_its_gradients(
    num_kv_heads: int, length: int, dtype: torch.dtype, tolerance: float
) -> None:
    heads = [
        random_heads(number, length, dtype, seed)
        for seed, number in enumerate((6, num_kv_heads, num_kv_heads))
    ]
    weight = random_heads(6, length, dtype, seed=3).detach()
    expected = functional.scaled_dot_product_attention(
        *heads, is_causal=True, scale=0.5, enable_gqa=True
    )
    wanted = torch.autograd.grad((expected * weight).sum(), heads)
    found = causal_attention(*heads, 0.5).transpose(1, 2)
    gradients = torch.autograd.grad((found * weight).sum(), heads)
    for ours, torchs in zip((found, *gradients), (expected, *wanted), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=tolerance, atol=tolerance)


def gradients(model: PreTrainedModel, ids_BT: Tensor, separator: int | None) -> list[Tensor]:
    model.zero_grad()
    training_loss(model, ids_BT, "float32", separator=separator).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@contextmanager
def torchs_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, losses attend as transformers has it."""
    with monkeypatch.context() as patch:
        patch.setattr(loss_module, "blockwise_attention", nullcontext)
        yield


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("separator", [None, 5])
def test_every_family_learns_the_same_with_its_windows_and_documents(
    family: str, separator: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_model(family).train()
    ids_BT = random_ids(num_sequences=2, length=24)
    with torchs_attention(monkeypatch):
        expected = gradients(model, ids_BT, separator)
    found = gradients(model, ids_BT, separator)
    for ours, torchs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)


def test_a_plain_causal_model_does_not_go_through_torchs_kernel(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("torch's attention was called")

    monkeypatch.setattr(functional, "scaled_dot_product_attention", refuse)
    ids_BT = random_ids(num_sequences=1, length=9)
    gradients(tiny_llama, ids_BT, None)
    with pytest.raises(AssertionError, match="was called"):
        tiny_llama(ids_BT)


def test_dropout_is_left_to_torch(tiny_llama: PreTrainedModel) -> None:
    heads = [random_heads(number, 9, torch.float32, number) for number in (6, 3, 3)]
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    with blockwise_attention(tiny_llama):
        attend = attention_module._attend
        torch.manual_seed(0)
        dropped, _ = attend(module, *heads, None, dropout=0.5, scaling=0.5)
        whole, _ = attend(module, *heads, None, dropout=0.0, scaling=0.5)
    assert not torch.allclose(dropped, whole)
