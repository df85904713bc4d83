"""Causal self-attention on a CPU, in blocks of queries whose scores stay in the caches.

B sequences, N query heads, K KV heads with G = N / K query heads each, T tokens, Q queries of a
block, S tokens that the last of them sees, H width of a head. Scores of a block are recomputed on
the way back, so no more than queries, keys and values are kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "espalier_blocks"
_BLOCK_QUERIES = 128
_UNKNOWN = ("is_causal", "position_bias", "cache", "softcap", "s_aux")
"""Options that change what attention computes, and are left to torch."""


@contextmanager
def blockwise_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model on the CPU attends block by block wherever nothing but causality masks."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not on_cpu or model.config._attn_implementation != "sdpa":
        yield
        return
    model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = "sdpa"


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers' layers call with query [B, N, T, H] and key, value [B, K, T, H]."""
    causal = attention_mask is None and getattr(module, "is_causal", False)
    plain = not dropout and query.shape[2] == key.shape[2]
    if not (causal and plain) or any(options.get(name) is not None for name in _UNKNOWN):
        outcome: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return outcome
    # Rotary embeddings and norms of queries and keys leave autocast's precision; products do not.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return causal_attention(query, key, value, scale), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)


@torch.library.custom_op("espalier::causal_attention", mutates_args=())
def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """[B, T, N, H] from query [B, N, T, H] and key, value [B, K, T, H]."""
    out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
    heads = _Heads(key, value)
    for start, queries in heads.blocks(query):
        probabilities = heads.probabilities(queries, start, scale)
        attended = torch.bmm(probabilities, heads.value[:, : probabilities.shape[2]])
        heads.write(out, start, attended)
    return out


@causal_attention.register_fake
def _(query: Tensor, _key: Tensor, value: Tensor, _scale: float) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


@torch.library.custom_op("espalier::causal_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value from that of the output."""
    heads = _Heads(key, value)
    grad_query = query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])
    # Sums over blocks, so in fp32 whatever the products are in.
    grad_key = torch.zeros_like(heads.key, dtype=torch.float32)
    grad_value = torch.zeros_like(heads.value, dtype=torch.float32)
    blocks = zip(heads.blocks(query), heads.blocks(grad.transpose(1, 2)), strict=True)
    for (start, queries), (_, grads) in blocks:
        probabilities = heads.probabilities(queries, start, scale)
        seen = slice(probabilities.shape[2])
        grad_value[:, seen] += torch.bmm(probabilities.mT, grads)
        grad_scores = torch._softmax_backward_data(
            torch.bmm(grads, heads.value[:, seen].mT), probabilities, -1, probabilities.dtype
        )
        heads.write(grad_query, start, torch.bmm(grad_scores, heads.key[:, seen]).mul_(scale))
        grad_key[:, seen] += torch.bmm(grad_scores.mT, queries).mul_(scale)
    return (
        grad_query.transpose(1, 2),
        grad_key.view(key.shape).to(key.dtype),
        grad_value.view(value.shape).to(value.dtype),
    )


@_backward.register_fake
def _(
    _grad: Tensor, query: Tensor, key: Tensor, value: Tensor, _scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_query = query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])
    return grad_query.transpose(1, 2), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], **_: object) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*_backward(grad, *ctx.saved_tensors, ctx.scale), None)


causal_attention.register_autograd(_gradients, setup_context=_keep)


class _Heads:
    """Keys and values as [B K, T, H], to be multiplied with the queries of all heads of a group."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self._num_heads = key.shape[1]
        self.key, self.value = key.flatten(0, 1), value.flatten(0, 1)

    def blocks(self, query: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The first place of each block, and its [B K, G Q, H] of something shaped like queries."""
        grouped = query.unflatten(1, (self._num_heads, -1))  # type: ignore[no-untyped-call]
        for start in range(0, query.shape[2], _BLOCK_QUERIES):
            block = grouped[:, :, :, start : start + _BLOCK_QUERIES]
            yield start, block.reshape(self.key.shape[0], -1, query.shape[3])

    def write(self, out: Tensor, start: int, block: Tensor) -> None:
        """Put the [B K, G Q, H] of a block where it belongs in [B, T, N, H]."""
        rows = out[:, start : start + _BLOCK_QUERIES]
        place = rows.unflatten(2, (self._num_heads, -1))  # type: ignore[no-untyped-call]
        num_sequences, num_queries, num_heads, num_grouped, width = place.shape
        shaped = block.view(num_sequences, num_heads, num_grouped, num_queries, width)
        place.copy_(shaped.permute(0, 3, 1, 2, 4))

    def probabilities(self, queries: Tensor, start: int, scale: float) -> Tensor:
        """[B K, G Q, S]: how much each query of the block from `start` on takes of each token."""
        end = min(start + _BLOCK_QUERIES, self.key.shape[1])
        scores = torch.bmm(queries, self.key[:, :end].mT).mul_(scale)
        # Added rather than filled in: the same, at a sixth of the time.
        later = scores.new_full((end - start, end - start), -torch.inf).triu(1)
        scores.view(len(scores), -1, end - start, end)[..., start:].add_(later)
        return scores.softmax(-1)
