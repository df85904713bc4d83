"""RMSNorm and SwiGLU that keep only what enters them, in families that have just those.

What they compute is what transformers' modules do; autograd would keep every step in between, which
is made again on the way back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm


@contextmanager
def lean_layers(model: PreTrainedModel) -> Iterator[None]:
    """Inside, norms and MLPs written word for word like Llama's keep only what enters them."""
    found = [(module, _leaner(module)) for module in model.modules()]
    replaced = [(module, forward) for module, forward in found if forward is not None]
    for module, forward in replaced:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in replaced:
            del module.forward


def _leaner(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if _runs(module, LlamaRMSNorm):
        return partial(_normalised, module)
    if _runs(module, LlamaMLP) and isinstance(module.act_fn, SiLUActivation):
        return partial(_transformed, module)
    return None


def _runs(module: nn.Module, pattern: type[nn.Module]) -> bool:
    """Whether a class has the same `forward`: transformers repeats its code in every family."""
    own, known = (getattr(kind.forward, "__code__", None) for kind in (type(module), pattern))
    parts = ("co_code", "co_consts", "co_names")
    return own is not None and all(getattr(own, part) == getattr(known, part) for part in parts)


def _normalised(module: Any, hidden: Tensor) -> Tensor:
    normed = _RMSNorm.apply(hidden, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]  # torch's own
    return cast(Tensor, normed)


def _transformed(module: Any, hidden: Tensor) -> Tensor:
    gated = _SwiGLU.apply(module.gate_proj(hidden), module.up_proj(hidden))  # type: ignore[no-untyped-call]  # torch's own
    return cast(Tensor, module.down_proj(gated))


class _RMSNorm(torch.autograd.Function):
    """weight [D] times hidden [..., D] over its root mean square, in fp32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = hidden.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(hidden, weight, inverse)
        return weight * (wide * inverse).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, inverse = ctx.saved_tensors
        normed = hidden.float() * inverse
        product = grad * normed
        grad_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        # What a longer token would change lies along the token itself, and is no gradient.
        along = (product @ weight / weight.numel()).unsqueeze(-1)
        grad_hidden = (grad * weight).addcmul_(normed, along, value=-1).mul_(inverse)
        return grad_hidden.to(hidden.dtype), grad_weight, None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, all of one shape."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, functional.silu(gate).mul_(grad)
