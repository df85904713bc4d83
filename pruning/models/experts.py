"""Routing without some experts: the reference that cutting them must equal."""

from typing import Any

import torch
from torch import Tensor, nn


def mask_router(router: nn.Module, keep_E: Tensor) -> None:
    """Let a router choose among the experts `keep_E` alone, in place, however often it is called.

    Its weights cannot say so: a row of zeros is a logit like any other.
    """
    already = getattr(router, "kept_experts", None)
    router.kept_experts = keep_E if already is None else already & keep_E
    if already is None:
        router.register_forward_hook(_route_among_kept)


def _route_among_kept(
    router: Any, _args: object, output: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    logits_NE = output[0].masked_fill(~router.kept_experts, -torch.inf)
    scores_NE = logits_NE.softmax(dim=-1, dtype=torch.float)
    scores_NK, chosen_NK = scores_NE.topk(router.top_k, dim=-1)
    if router.norm_topk_prob:
        scores_NK = scores_NK / scores_NK.sum(dim=-1, keepdim=True)
    return logits_NE, scores_NK.to(logits_NE.dtype), chosen_NK
