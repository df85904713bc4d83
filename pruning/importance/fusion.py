"""Fusing two importances of the same groups, as two noisy measurements (SAAP, arXiv 2412.15127)."""

import torch
from torch import Tensor


def fused_importance(by_vector_N: Tensor, by_element_N: Tensor) -> Tensor:
    """I_v / (2 s_v^2) + I_e / (2 s_e^2), fp32 [N], by the uncertainties s that explain them best.

    The paper learns s_v and s_e by descending on the mean of that plus log(s_v s_e). At its minimum
    s^2 is the mean of I, so nothing need be trained; the logarithm is the same for all groups.
    """
    tiny = torch.finfo(torch.float32).tiny
    return sum(
        (
            values_N / (2 * values_N.mean().clamp_min(tiny))
            for values_N in (by_vector_N, by_element_N)
        ),
        start=torch.zeros_like(by_vector_N),
    )
