# SPDX-License-Identifier: Apache-2.0
"""The router: which experts compute a token, and with which weight.

A token's logit for an expert is ``x . row + log share``, less what its bias takes off (``reserve``). The
share comes from domain gates, which look at the mean of the residual over the sequence so far: a gate's
logit is its evidence for its owner's domain against public text, and a softmax over the evidence of all
allowed gates, with 0 for public text, divides one belief between them. Gates that were fitted alone against
the same public text compose this way into the fit that all owners would have made together; beside the
public expert alone the share is the gate's sigmoid. Softmax over the logits runs over the experts that the
token's sequence is allowed to use, then the k largest are taken without renormalising (FlexOlmo, arXiv
2507.07024, section 3).

Everything here keeps one law: **masking an expert equals never having had it, bit for bit.** Four choices
carry it, and each is needed:

* Logits are computed expert by expert as ``(x * row).sum(-1)``. A matrix product over all experts would
  choose its blocking by their number, and so change the last bits of the others when one leaves.
* Disallowed columns are removed before the maximum, the exponentials and the sum. A softmax with -inf
  entries adds the same numbers in another order from 16 columns on.
* k is clamped to the number of allowed experts, else top-k would pick an excluded one with weight 0, and
  0 times NaN is NaN.
* Ties are broken by the canonical order of experts (stable sort), never by what a top-k kernel does first.

The prefix mean is an fp64 sum from left to right, carried between chunks, so that a prompt in one piece, in
chunks, or token by token has the same bits. This module does not know who may use what, nor what an expert
computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Nats. An honest gate is this sure of its owner's text only where nothing is left to decide.
EVIDENCE_CAP = 6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterRows:
    """What the router of one layer knows about each expert, in canonical order (public first).

    Attributes:
        rows_ED: router rows, fp32.
        biases_E: fixed non-positive biases, fp32; 0 for the public expert.
        gate_rows_ED: gate weights divided by the gate's scale, fp64; zeros where there is no gate.
        gate_biases_E: gate biases with the gate's mean folded in, fp64; +inf where there is no gate: such an
            expert takes no part in the sharing and keeps its logit.
    """

    rows_ED: Tensor
    biases_E: Tensor
    gate_rows_ED: Tensor
    gate_biases_E: Tensor

    def take(self, columns: Tensor) -> RouterRows:
        """The same for the given columns ``[n]`` (or ``[R, n]``); the others are not read."""
        return RouterRows(
            rows_ED=self.rows_ED[columns],
            biases_E=self.biases_E[columns],
            gate_rows_ED=self.gate_rows_ED[columns],
            gate_biases_E=self.gate_biases_E[columns],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Rows of a batch whose sequences allow equally many experts and take equally many of them.

    Attributes:
        token_rows: indices ``[R]`` into the batch, or None for all rows.
        columns: allowed columns in ascending order: ``[n]`` where all rows agree, else ``[R, n]``.
        top_k: experts per token, at most n.
    """

    token_rows: Tensor | None
    columns: Tensor
    top_k: int


def running_sum(x_BSD: Tensor, carry_BD: Tensor | None = None) -> Tensor:
    """Sum over positions 0..t for every t, fp64, strictly left to right.

    ``torch.cumsum`` adds in order on CPU; elsewhere it scans in parallel, so positions are added one by one.

    Args:
        x_BSD: residual rows of consecutive positions.
        carry_BD: the sum over all earlier positions, fp64.

    Returns:
        Sums ``[B, S, D]``, fp64.
    """
    wide = x_BSD.double()
    if carry_BD is not None:
        wide = torch.cat((carry_BD.unsqueeze(1), wide), dim=1)
    if wide.device.type == "cpu":
        sums = wide.cumsum(dim=1)
    else:
        parts = [wide[:, 0]]
        for position in range(1, wide.shape[1]):
            parts.append(parts[-1] + wide[:, position])
        sums = torch.stack(parts, dim=1)
    return sums if carry_BD is None else sums[:, 1:]


def prefix_mean(x_BSD: Tensor) -> Tensor:
    """Mean of the residual over positions 0..t for every t of whole sequences, fp64 ``[B, S, D]``."""
    counts_S1 = torch.arange(1, x_BSD.shape[1] + 1, dtype=torch.float64, device=x_BSD.device)[:, None]
    return running_sum(x_BSD) / counts_S1


def fold_gate(weight_D: Tensor, bias: Tensor, mean_D: Tensor, scale_D: Tensor) -> tuple[Tensor, Tensor]:
    """A gate on standardised features as one row and one bias on raw ones, fp64.

    ``weight . ((m - mean) / scale) + bias = (weight / scale) . m + (bias - mean . weight / scale)``; fp64
    keeps the cancellation between the two terms below anything fp32 can see.
    """
    row_D = weight_D.double() / scale_D.double()
    return row_D, bias.double() - (row_D * mean_D.double()).sum()


def gate_logits(mean_TD: Tensor, rows: RouterRows) -> Tensor:
    """Logit of every expert's domain gate for prefix means ``[T, D]`` (fp64); returns fp64 ``[T, E]``."""
    return (mean_TD.unsqueeze(-2) * rows.gate_rows_ED).sum(-1) + rows.gate_biases_E


def log_shares(gates_TE: Tensor) -> Tensor:
    """Log of each expert's share in the belief about whose domain a text is, fp64 ``[T, E]``.

    Evidence for a domain is bent towards a cap, so that a gate that claims every text lowers another
    expert's logit by at most the cap, while of two honest gates the surer one stays ahead.

    Args:
        gates_TE: logits of the gates of the allowed experts; +inf where an expert has no gate.
    """
    ungated_TE = gates_TE.isposinf()
    # Masked before anything is computed: an infinity would come back as NaN in the gradient of its zero.
    claims_TE = gates_TE.masked_fill(ungated_TE, 0.0)
    excess_TE = claims_TE.clamp(min=0.0, max=1e9) / EVIDENCE_CAP
    evidence_TE = claims_TE.clamp(max=1e9) / (1 + excess_TE.square()).sqrt()
    evidence_TE = evidence_TE.masked_fill(ungated_TE, -torch.inf)
    peak_T1 = evidence_TE.amax(-1, keepdim=True).clamp(min=0.0).detach()
    total_T1 = (-peak_T1).exp() + (evidence_TE - peak_T1).exp().sum(-1, keepdim=True)
    return (evidence_TE - peak_T1 - total_T1.log()).masked_fill(ungated_TE, 0.0)


def reserve(gates_TE: Tensor, biases_E: Tensor) -> Tensor:
    """What an expert's bias takes off its logit, fp64 ``[T, E]``, 0 or below.

    All of it without a gate. With one, ``log sigmoid(gate + bias) - log sigmoid(gate)``: nearly all where the
    gate doubts the text, nearly nothing where it is sure. So calibration against public text lowers an
    expert against the public one, and leaves the evidence between owners as it is.

    Args:
        gates_TE: logits of the gates; +inf where an expert has none.
        biases_E: fixed biases, 0 or below (``[T, E]`` with one choice of experts per row).
    """
    ungated_TE = gates_TE.isposinf()
    claims_TE = gates_TE.masked_fill(ungated_TE, 0.0)
    plain_TE = biases_E.double().expand_as(claims_TE)
    soft_TE = F.logsigmoid(claims_TE + plain_TE) - F.logsigmoid(claims_TE)
    return torch.where(ungated_TE, plain_TE, soft_TE)


def router_logits(x_TD: Tensor, mean_TD: Tensor | None, rows: RouterRows) -> Tensor:
    """Router logits of rows, fp32.

    Args:
        x_TD: residual that enters the layer's mixture.
        mean_TD: its prefix means, fp64; None where no expert of the batch has a gate.
        rows: the layer's router, ``[E, D]`` for all rows or ``[T, E, D]`` with one choice per row.

    Returns:
        Logits ``[T, E]``.
    """
    logits_TE = (x_TD.float().unsqueeze(-2) * rows.rows_ED).sum(-1)
    if mean_TD is None:
        return logits_TE + rows.biases_E
    gates_TE = gate_logits(mean_TD, rows)
    return logits_TE + (log_shares(gates_TE) + reserve(gates_TE, rows.biases_E)).float()


def softmax(logits_Tn: Tensor) -> Tensor:
    """Softmax over compacted columns: only allowed experts are among them."""
    exponents_Tn = (logits_Tn - logits_Tn.amax(-1, keepdim=True)).exp()
    return exponents_Tn / exponents_Tn.sum(-1, keepdim=True)


def keep_top(weights_Tn: Tensor, top_k: int, *, renormalise: bool = False) -> tuple[Tensor, Tensor | None]:
    """Keeps the k largest weights of each row, ties going to the earlier column.

    Args:
        weights_Tn: softmax over the allowed experts.
        top_k: how many to keep; clamped to 1..n.
        renormalise: whether kept weights are divided by their sum.

    Returns:
        Weights with zeros elsewhere, and which were kept (None: all of them).
    """
    n = weights_Tn.shape[-1]
    top_k = max(1, min(top_k, n))
    if top_k == n:
        kept = None
    else:
        order = weights_Tn.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
        kept = torch.zeros_like(weights_Tn, dtype=torch.bool).scatter_(-1, order, True)
        weights_Tn = torch.where(kept, weights_Tn, weights_Tn.new_zeros(()))
    if renormalise:
        weights_Tn = weights_Tn / weights_Tn.sum(-1, keepdim=True)
    return weights_Tn, kept


def group_rows(allowed: Sequence[tuple[tuple[int, ...], int]], device: torch.device) -> tuple[Group, ...]:
    """Groups rows by number of allowed experts and k, so that each group is one dense computation.

    Args:
        allowed: per row its allowed columns (ascending, the public expert's 0 among them) and its k.
        device: where index tensors live.

    Returns:
        Groups in order of (n, k); every row is in exactly one.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for row, (columns, top_k) in enumerate(allowed):
        by_size.setdefault((len(columns), max(1, min(top_k, len(columns)))), []).append(row)
    groups = []
    for (_, top_k), rows in sorted(by_size.items()):
        choices = [allowed[row][0] for row in rows]
        same = all(choice == choices[0] for choice in choices)
        index = None if len(rows) == len(allowed) else torch.tensor(rows, dtype=torch.long, device=device)
        columns_Rn = torch.tensor(choices[0] if same else choices, dtype=torch.long, device=device)
        groups.append(Group(token_rows=index, columns=columns_Rn, top_k=top_k))
    return tuple(groups)
