# SPDX-License-Identifier: Apache-2.0
"""The dropless mixture of one layer: every chosen expert computes exactly the rows that chose it.

Outputs are added in canonical order of experts, the public one first, so an absent expert leaves the sums of
the others as they were. The weights of an expert that no row chose are never multiplied. Where every row
takes every expert (training beside the public expert: k = n = 2) no row is gathered or scattered. The module
does not know how rows came to be allowed which experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.network.ffn import RowFunction
from model_core.network.router import Group, RouterRows, group_rows, keep_top, router_logits, softmax


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerExperts:
    """Everything one layer can route to, in canonical order (public first).

    Attributes:
        rows: the router's view of the experts.
        ffns: their feed-forward networks; each maps ``[R, D]`` to ``[R, D]`` row by row.
        gated: whether any of them has a domain gate.
    """

    rows: RouterRows
    ffns: tuple[RowFunction, ...]
    gated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Who may compute which row of a batch; the same in every layer.

    Attributes:
        groups: rows by number of allowed experts and k.
        used: columns that at least one row may use, ascending.
        renormalise: whether the weights of the chosen experts are divided by their sum.
    """

    groups: tuple[Group, ...]
    used: tuple[int, ...]
    renormalise: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """What the router of one layer decided.

    Attributes:
        weights_TE: weight of each expert for each row; exactly 0 where it was not chosen.
        logits: router logits of each group of the plan, over its allowed columns only.
    """

    weights_TE: Tensor
    logits: tuple[Tensor, ...]


def plan_rows(
    allowed: Sequence[tuple[tuple[int, ...], int]], device: torch.device, *, renormalise: bool = False
) -> Plan:
    """Plans a batch from every row's allowed columns and k (see ``group_rows``)."""
    used = sorted({column for columns, _ in allowed for column in columns})
    return Plan(groups=group_rows(allowed, device), used=tuple(used), renormalise=renormalise)


def plan_uniform(
    columns: Sequence[int], top_k: int, device: torch.device, *, renormalise: bool = False
) -> Plan:
    """Plans a batch whose rows all allow the same columns."""
    group = Group(
        token_rows=None,
        columns=torch.tensor(list(columns), dtype=torch.long, device=device),
        top_k=max(1, min(top_k, len(columns))),
    )
    return Plan(groups=(group,), used=tuple(columns), renormalise=renormalise)


def route(
    x_TD: Tensor, mean_TD: Tensor | None, experts: LayerExperts, plan: Plan
) -> tuple[Routing, Tensor | None]:
    """Chooses experts and weights for every row.

    Returns:
        The routing, and which experts each row takes ``[T, E]`` (None: every row takes all of them).
    """
    n_experts, n_rows = len(experts.ffns), x_TD.shape[0]
    whole = _whole_group(plan, n_experts)
    if whole is not None:
        logits_TE = router_logits(x_TD, mean_TD, experts.rows)
        weights_TE, kept = keep_top(softmax(logits_TE), whole.top_k, renormalise=plan.renormalise)
        return Routing(weights_TE=weights_TE, logits=(logits_TE,)), kept
    weights_TE = torch.zeros(n_rows, n_experts, dtype=torch.float32, device=x_TD.device)
    kept_TE = torch.zeros(n_rows, n_experts, dtype=torch.bool, device=x_TD.device)
    logits = []
    for group in plan.groups:
        x_RD, mean_RD = x_TD, mean_TD
        if group.token_rows is not None:
            x_RD = x_TD[group.token_rows]
            mean_RD = None if mean_TD is None else mean_TD[group.token_rows]
        logits_Rn = router_logits(x_RD, mean_RD, experts.rows.take(group.columns))
        weights_Rn, kept_Rn = keep_top(softmax(logits_Rn), group.top_k, renormalise=plan.renormalise)
        kept_Rn = torch.ones_like(weights_Rn, dtype=torch.bool) if kept_Rn is None else kept_Rn
        rows = group.token_rows
        rows_R1 = (torch.arange(n_rows, device=x_TD.device) if rows is None else rows).unsqueeze(-1)
        weights_TE = weights_TE.index_put((rows_R1, group.columns), weights_Rn)
        kept_TE[rows_R1, group.columns] = kept_Rn
        logits.append(logits_Rn)
    return Routing(weights_TE=weights_TE, logits=tuple(logits)), kept_TE


def mix(
    x_TD: Tensor, mean_TD: Tensor | None, experts: LayerExperts, plan: Plan
) -> tuple[Tensor, Routing | None]:
    """Computes the mixture of one layer.

    Args:
        x_TD: residual rows that enter it.
        mean_TD: their prefix means (fp64), where experts are gated.
        experts: what there is to route to.
        plan: who may use what.

    Returns:
        The mixture's output ``[T, D]`` before the layer's norm, and the routing (None where only the public
        expert is allowed anywhere: its weight is 1 and no router runs).
    """
    if plan.used == (0,):
        return experts.ffns[0](x_TD), None
    routing, kept_TE = route(x_TD, mean_TD, experts, plan)
    weights_TE = routing.weights_TE.to(x_TD.dtype)
    out_TD = torch.zeros_like(x_TD)
    for column in plan.used:
        weight_T1 = weights_TE[:, column].unsqueeze(-1)
        rows = None if kept_TE is None else kept_TE[:, column].nonzero().squeeze(-1)
        if rows is None or rows.shape[0] == x_TD.shape[0]:
            out_TD = out_TD + weight_T1 * experts.ffns[column](x_TD)
        elif rows.shape[0]:
            out_TD = out_TD.index_add(0, rows, weight_T1[rows] * experts.ffns[column](x_TD[rows]))
    return out_TD, routing


def _whole_group(plan: Plan, n_experts: int) -> Group | None:
    """The plan's only group if every row may use every expert that there is."""
    group = plan.groups[0]
    alone = len(plan.groups) == 1 and group.token_rows is None and group.columns.dim() == 1
    return group if alone and len(plan.used) == n_experts else None
