"""Structured optimal brain surgeon: pure functions of a weight and its second moments.

Hassibi & Stork 1993 for groups of columns (ZipLM, arXiv 2302.04089), with the K-FAC metric of
Martens & Grosse 2015 (arXiv 1503.05671). A linear layer y = W x whose columns S are removed, and
whose other columns K are refitted by least squares, changes the loss to second order by
`1/2 tr(G W_S (H^-1_SS)^-1 W_S^T)` nats per token, where H = E[x x^T], G = E[g g^T], g = dL/dy.

Shapes: I inputs, O outputs, N groups of E consecutive inputs, S columns removed, K columns kept.
All products and solves are in fp64: H is often close to singular.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_GREEDY_SHARE = 96
"""Groups leave in steps of at most this fraction of those there at first, then are scored anew."""
_SILENT = 1e-12
_WORTH_KEEPING = 0.8


@dataclass(frozen=True)
class Elimination:
    """The groups of one layer in the order in which they go, and what that costs.

    `order` [N] lists all groups. `costs` [N] follows it: the nats per token that a group costs once
    those before it are gone and the rest is refitted, the mean over the groups that go together;
    infinite for those beyond the smallest width. `scores` [N] follows the groups themselves: what
    each would cost if it were the only one to go.
    """

    order: Tensor
    costs: Tensor
    scores: Tensor


def damped(inputs_II: Tensor, ridge: float) -> Tensor:
    """fp64 H with its diagonal raised by the share `ridge`, whatever the scale of each channel.

    A few channels of a language model are thousands of times larger than the rest: a ridge that is
    the same for all would leave nothing of the small ones.
    """
    damped_II = inputs_II.to(torch.float64, copy=True)
    diagonal_I = damped_II.diagonal()
    # What never fires can be solved for too.
    floor = _SILENT * diagonal_I.mean() + torch.finfo(torch.float32).tiny
    diagonal_I += ridge * diagonal_I + floor
    return damped_II


def refitted(weight_OI: Tensor, inputs_II: Tensor, kept_K: Tensor, *, ridge: float) -> Tensor:
    """The weight [O, K] whose outputs from the kept inputs are closest to the whole weight's."""
    damped_II = damped(inputs_II, ridge)
    factor_KK = torch.linalg.cholesky(damped_II[kept_K][:, kept_K])
    targets_KO = damped_II[kept_K] @ weight_OI.double().T
    return torch.cholesky_solve(targets_KO, factor_KK).T.to(weight_OI.dtype)


def output_cost(weight_OI: Tensor, inputs_II: Tensor, gradients_OO: Tensor) -> float:
    """1/2 tr(G W H W^T): nats per token that losing the whole output costs, to second order."""
    weight = weight_OI.double()
    moments_OO = weight @ inputs_II.double() @ weight.T
    return float((gradients_OO.double() * moments_OO).sum() / 2)


def eliminate(
    weight_OI: Tensor,
    inputs_II: Tensor,
    gradients_OO: Tensor,
    *,
    group_size: int,
    widths: Sequence[int],
    ridge: float,
) -> Elimination:
    """Remove the cheapest groups, refit, and go on, down to each of `widths` (descending) in turn.

    The inverse of H, W and G W are kept for the columns still there: block elimination, so that one
    inversion serves the whole curve. Groups that go together are scored together, so on the way to
    a width only a few go at a time.
    """
    state = _State.of(weight_OI, inputs_II, gradients_OO, group_size=group_size, ridge=ridge)
    scores_N = state.scores()
    costs_N = torch.full_like(scores_N, torch.inf)
    order: list[Tensor] = []
    num_groups = len(scores_N)
    at_once = max(1, num_groups // _GREEDY_SHARE)
    for before, width in pairwise((num_groups, *widths)):
        cost = 0.0
        while (left_over := state.num_left() - width) > 0:
            gone, its_cost = state.remove_cheapest(min(at_once, left_over))
            order.append(gone)
            cost += its_cost
        costs_N[num_groups - before : num_groups - width] = max(cost, 0.0) / (before - width)
    return Elimination(torch.cat([*order, state.left()]), costs_N, scores_N)


@dataclass
class _State:
    """What elimination works on: groups [N], H^-1 [I, I], W and G W [O, I].

    Groups that are gone stay behind as zeros for a while (`is_gone` [N]), because copying what is
    left costs more than taking a few out.
    """

    groups: Tensor
    is_gone: Tensor
    inverse: Tensor
    weight: Tensor
    sensitivity: Tensor
    group_size: int

    @classmethod
    def of(
        cls,
        weight_OI: Tensor,
        inputs_II: Tensor,
        gradients_OO: Tensor,
        *,
        group_size: int,
        ridge: float,
    ) -> "_State":
        weight = weight_OI.detach().to(torch.float64, copy=True)
        num_groups = weight.shape[1] // group_size
        return cls(
            groups=torch.arange(num_groups, device=weight.device),
            is_gone=torch.zeros(num_groups, dtype=torch.bool, device=weight.device),
            inverse=torch.cholesky_inverse(torch.linalg.cholesky(damped(inputs_II, ridge))),
            weight=weight,
            sensitivity=gradients_OO.double() @ weight,
            group_size=group_size,
        )

    def scores(self) -> Tensor:
        """What each group would cost if it went next, nats per token [N]; infinite once gone."""
        num_groups, size = len(self.groups), self.group_size
        if size == 1:
            squares_I = (self.weight * self.sensitivity).sum(dim=0)
            costs_N = squares_I / self.inverse.diagonal() / 2
        else:
            blocks_NENE = self.inverse.view(num_groups, size, num_groups, size)
            blocks_NEE = blocks_NENE.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            weight_NEO = self.weight.T.reshape(num_groups, size, -1)
            sensitivity_NEO = self.sensitivity.T.reshape(num_groups, size, -1)
            solved_NEO = torch.cholesky_solve(weight_NEO, torch.linalg.cholesky(blocks_NEE))
            costs_N = (solved_NEO * sensitivity_NEO).sum(dim=(1, 2)) / 2
        return costs_N.masked_fill(self.is_gone, torch.inf)

    def num_left(self) -> int:
        return len(self.groups) - int(self.is_gone.sum())

    def left(self) -> Tensor:
        """The groups still there, ascending."""
        return self.groups[~self.is_gone]

    def remove_cheapest(self, num_groups: int) -> tuple[Tensor, float]:
        """Take groups out, refit, and return which they were and their joint cost."""
        going = torch.argsort(self.scores(), stable=True)[:num_groups]
        gone = self.groups[going]
        gone_S = self._columns(going)
        cross_SI = self.inverse[gone_S]
        factor_SS = torch.linalg.cholesky(cross_SI[:, gone_S])
        update_SI = torch.cholesky_solve(cross_SI, factor_SS)
        weight_OS, sensitivity_OS = self.weight[:, gone_S], self.sensitivity[:, gone_S]
        cost = (torch.cholesky_solve(weight_OS.T, factor_SS) * sensitivity_OS.T).sum() / 2
        self.weight.addmm_(weight_OS, update_SI, alpha=-1)
        self.sensitivity.addmm_(sensitivity_OS, update_SI, alpha=-1)
        self.inverse.addmm_(cross_SI.T, update_SI, alpha=-1)
        self.is_gone[going] = True
        # The blocks of larger groups are factorised together, and what is gone cannot be.
        if self.group_size > 1 or self.num_left() < _WORTH_KEEPING * len(self.groups):
            self._drop_gone()
        return gone, float(cost)

    def _drop_gone(self) -> None:
        positions = (~self.is_gone).nonzero().flatten()
        kept_K = self._columns(positions)
        self.weight, self.sensitivity = self.weight[:, kept_K], self.sensitivity[:, kept_K]
        self.inverse = self.inverse[kept_K][:, kept_K]
        self.groups, self.is_gone = self.groups[positions], self.is_gone[positions]

    def _columns(self, positions: Tensor) -> Tensor:
        offsets = torch.arange(self.group_size, device=positions.device)
        return (positions[:, None] * self.group_size + offsets).flatten()
