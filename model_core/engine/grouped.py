# SPDX-License-Identifier: Apache-2.0
"""The mixture of a whole batch at once: rows sorted by expert, one product per expert, sums in one order.

Every row meets its experts in canonical order whatever its neighbours chose. An expert that nobody chose has
a group of no rows and is not multiplied. Nothing here asks the device for a number, so a step that uses
grouped products can be captured; only the fallback, one expert after the other, has to know group sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from model_core.network.ffn import RowFunction

_ALIGNED_BYTES = 64  # what torch aligns a tensor's memory to

# Rows [P, D] sorted by expert and the end of every expert's group [E] (int32) to rows [P, D]; what stands
# beyond the last end belongs to nobody, and neither does what comes out there.
GroupedFfn = Callable[[Tensor, Tensor], Tensor]


def chosen(weights_TE: Tensor, kept_TE: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
    """Each row's experts in ascending order.

    Args:
        weights_TE: routing weights, exactly 0 where an expert was not chosen.
        kept_TE: which were chosen; None where all were.
        width: most experts that any row chose (K).

    Returns:
        Experts ``[T, K]`` and their weights; the number of experts and weight 0 where a row has fewer.
    """
    n_experts = weights_TE.shape[-1]
    columns_E = torch.arange(n_experts, device=weights_TE.device)
    if kept_TE is None:
        return columns_E.expand_as(weights_TE), weights_TE
    experts_TK = torch.where(kept_TE, columns_E, n_experts).sort(-1).values[:, :width]
    weights_TK = weights_TE.gather(-1, experts_TK.clamp(max=n_experts - 1))
    return experts_TK, torch.where(experts_TK < n_experts, weights_TK, 0.0)


def combine(x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor, ffns: GroupedFfn, n_experts: int) -> Tensor:
    """Sums what each row's experts make of it, the first one first.

    Args:
        x_TD: rows that enter the mixture.
        experts_TK: each row's experts; ``n_experts`` and above stand for none.
        weights_TK: of them, fp32.
        ffns: the experts' networks.
        n_experts: how many there are.

    Returns:
        The mixture's output ``[T, D]``.
    """
    n_rows, width = experts_TK.shape
    flat_P = experts_TK.flatten()
    sorted_P, order_P = flat_P.sort(stable=True)
    every_E = torch.arange(n_experts, device=x_TD.device)
    ends_E = torch.searchsorted(sorted_P, every_E, right=True, out_int32=True)
    y_PD = ffns(x_TD.index_select(0, order_P // width), ends_E)
    # Whatever stands in rows of nobody may be NaN, which a weight of 0 would not take away.
    y_PD = torch.where((sorted_P < n_experts).unsqueeze(-1), y_PD, y_PD.new_zeros(()))
    back_P = torch.empty_like(order_P)
    back_P.scatter_(0, order_P, torch.arange(len(order_P), device=x_TD.device))
    y_TKD = y_PD.index_select(0, back_P).view(n_rows, width, -1)
    weights_TK1 = weights_TK.to(x_TD.dtype).unsqueeze(-1)
    out_TD = y_TKD[:, 0] * weights_TK1[:, 0]
    for place in range(1, width):
        out_TD = out_TD + y_TKD[:, place] * weights_TK1[:, place]
    return out_TD


def one_by_one(ffns: Sequence[RowFunction]) -> GroupedFfn:
    """Experts' networks called one after the other, each only where it has rows."""

    def compute(x_PD: Tensor, ends_E: Tensor) -> Tensor:
        bounds = [0, *ends_E.tolist()]
        parts = [ffn(_aligned(x_PD[begin:end])) for ffn, (begin, end) in _nonempty(ffns, bounds)]
        if bounds[-1] < len(x_PD):
            parts.append(x_PD.new_zeros(len(x_PD) - bounds[-1], x_PD.shape[1]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return compute


def _nonempty(
    ffns: Sequence[RowFunction], bounds: Sequence[int]
) -> list[tuple[RowFunction, tuple[int, int]]]:
    return [(ffn, part) for ffn, part in zip(ffns, pairwise(bounds), strict=True) if part[0] < part[1]]


def _aligned(x_RD: Tensor) -> Tensor:
    """The same rows where a tensor of their own would begin: some kernels add in another order elsewhere."""
    return x_RD if x_RD.data_ptr() % _ALIGNED_BYTES == 0 else x_RD.clone()


def of_single_row(
    x_1D: Tensor, weights_1E: Tensor, kept_1E: Tensor | None, ffns: Sequence[RowFunction]
) -> Tensor:
    """The mixture of one row on a device that is asked cheaply: nothing is sorted, gathered or put back."""
    out_1D = None
    columns = range(len(ffns)) if kept_1E is None else kept_1E[0].nonzero().flatten().tolist()
    for column in columns:
        part_1D = ffns[column](x_1D) * weights_1E[:, column : column + 1].to(x_1D.dtype)
        out_1D = part_1D if out_1D is None else out_1D + part_1D
    return torch.zeros_like(x_1D) if out_1D is None else out_1D
