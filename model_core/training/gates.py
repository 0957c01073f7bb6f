# SPDX-License-Identifier: Apache-2.0
"""Domain gates and router rows, fitted by one owner alone from its own text and the base's public text.

A gate is a logistic regression per layer: does the mean of the residual over the sequence so far look like
the owner's text or like public text? Its log-sigmoid is added to the owner's router logit. Since each owner
compares itself only with the public text that travels with the base, nothing is shared between owners, and
removing one changes nothing in the others. How well two private domains are told apart is therefore not
fitted here, only measured later. This is our own step beyond the paper, whose router sees single tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.mixture import Routing
from model_core.network.router import prefix_mean
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class GateFit:
    """How a layer's gate was fitted.

    Attributes:
        accuracy: share of positions on the right side, of those fitted on.
        loss: cross-entropy there, nats.
        iterations: Newton steps taken.
    """

    accuracy: float
    loss: float
    iterations: int


def token_rows(documents: Sequence[Document], tokenizer: TextTokenizer, *, max_tokens: int) -> list[Tensor]:
    """Every document from its beginning, opened by the token that opens sequences and cut, ``[S]`` each."""
    encoded = tokenizer.encode_batch([document.text[: 16 * max_tokens] for document in documents])
    return [torch.tensor([tokenizer.begin_id, *ids][:max_tokens]) for ids in encoded if ids]


def residual_means(decoder: Decoder, rows: Sequence[Tensor], experts: Sequence[Expert] = ()) -> Tensor:
    """Mean residual at every layer's router over all tokens of the rows, fp64 ``[L, D]``."""
    total_LD = torch.zeros(decoder.shape.n_layers, decoder.shape.d_model, dtype=torch.float64)

    def watch(layer: int, h_BSD: Tensor, _routing: Routing | None) -> None:
        total_LD[layer] += h_BSD.double().sum((0, 1)).cpu()

    with torch.no_grad():
        for row in rows:
            decoder.hidden(row[None].to(decoder.embed.weight.device), experts, top_k=2, observe=watch)
    return total_LD / sum(len(row) for row in rows)


def set_router_rows(expert: Expert, own_LD: Tensor, public_LD: Tensor, *, lift: float = 1.0) -> None:
    """Starts each router row from the difference of mean residuals, own text less public text.

    The row is made orthogonal to the public mean, so that it says nothing about average public text, and
    scaled so that the owner's average token gets the logit ``lift``. Layers get rows of their own, since the
    residual's scale grows with depth.

    Args:
        expert: whose rows are set.
        own_LD: mean residuals of the owner's text.
        public_LD: mean residuals of public text.
        lift: logit of the owner's mean residual.
    """
    with torch.no_grad():
        for layer in range(own_LD.shape[0]):
            public_D = public_LD[layer]
            difference_D = own_LD[layer] - public_D
            along = (difference_D @ public_D) / (public_D @ public_D).clamp(min=1e-12)
            row_D = difference_D - along * public_D
            reach = row_D @ own_LD[layer]
            row_D = row_D * (lift / reach) if reach > 1e-9 else torch.zeros_like(row_D)
            part = expert.layer(layer).router
            part.row.copy_(row_D.to(part.row.dtype))


def gate_features(
    decoder: Decoder, expert: Expert, rows: Sequence[Tensor], *, positions: int
) -> list[Tensor]:
    """Prefix means that each layer's gate sees in the owner's two-expert model.

    Args:
        decoder: the base.
        expert: the owner's expert, with whatever gates it has.
        rows: token rows.
        positions: how many evenly spread positions of each row are kept.

    Returns:
        Per layer ``[N, D]``, fp64.
    """
    found: list[list[Tensor]] = [[] for _ in range(decoder.shape.n_layers)]

    def watch(layer: int, h_BSD: Tensor, _routing: Routing | None) -> None:
        n_tokens = h_BSD.shape[1]
        # Geometric spacing: early positions are few but every text passes through them.
        wanted = torch.logspace(0, 1, positions, base=float(n_tokens), dtype=torch.float64)
        chosen = (wanted.round().long() - 1).clamp(0, n_tokens - 1).unique()  # type: ignore[no-untyped-call]
        found[layer].append(prefix_mean(h_BSD)[0, chosen].cpu())

    with torch.no_grad():
        for row in rows:
            decoder.hidden(row[None].to(decoder.embed.weight.device), (expert,), top_k=2, observe=watch)
    return [torch.cat(parts) for parts in found]


def fit_gates(
    decoder: Decoder,
    expert: Expert,
    own_rows: Sequence[Tensor],
    public_rows: Sequence[Tensor],
    *,
    positions: int = 24,
    ridge: float = 2e-3,
    strength: float = 1.0,
) -> list[GateFit]:
    """Fits every layer's gate on the residual of the owner's two-expert model without gates.

    That is the model that was trained. On the owner's own text the fitted gates stay open, so the residual
    there is nearly the same once they are in place.

    Args:
        decoder: the base.
        expert: the owner's expert; its gates are replaced and its biases set to 0.
        own_rows: token rows of the owner's text.
        public_rows: token rows of public text.
        positions: positions of each row.
        ridge: weight of the squared norm of a gate's weights, per observation.
        strength: what weights and bias are multiplied by after the fit, which counts neighbouring positions
            of a text as if each stood alone and so is less sure than it could be.

    Returns:
        One fit per layer.
    """
    for index in range(decoder.shape.n_layers):
        part = expert.layer(index)
        part.gate = None
        if part.router.bias is not None:
            part.router.bias.zero_()
    own_L = gate_features(decoder, expert, own_rows, positions=positions)
    public_L = gate_features(decoder, expert, public_rows, positions=positions)
    expert.add_gates()
    fits = []
    for index, (own_ND, public_ND) in enumerate(zip(own_L, public_L, strict=True)):
        gate, fit = _logistic(own_ND, public_ND, ridge=ridge)
        _set_gate(expert, index, gate, strength)
        fits.append(fit)
    return fits


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gate:
    weight_D: Tensor
    bias: Tensor
    mean_D: Tensor
    scale_D: Tensor


def _set_gate(expert: Expert, layer: int, gate: _Gate, strength: float) -> None:
    module = expert.layer(layer).gate
    assert module is not None  # noqa: S101  (add_gates gave every layer one)
    with torch.no_grad():
        module.weight.copy_(strength * gate.weight_D)
        module.bias.copy_(strength * gate.bias)
        module.mean.copy_(gate.mean_D)
        module.scale.copy_(gate.scale_D)


def _logistic(
    own_ND: Tensor, public_ND: Tensor, *, ridge: float, max_iterations: int = 50
) -> tuple[_Gate, GateFit]:
    """Ridge logistic regression by Newton's method in fp64; both classes weigh the same."""
    x_ND = torch.cat((own_ND, public_ND))
    y_N = torch.cat((torch.ones(len(own_ND)), torch.zeros(len(public_ND)))).double()
    w_N = torch.where(y_N > 0, 0.5 / len(own_ND), 0.5 / len(public_ND)).double()
    mean_D = (w_N[:, None] * x_ND).sum(0)
    scale_D = (w_N[:, None] * (x_ND - mean_D).square()).sum(0).sqrt().clamp(min=1e-6)
    # fp32 is what the bundle keeps: round first, so that what is fitted is what is served.
    mean_D, scale_D = mean_D.float().double(), scale_D.float().double()
    z_NP = torch.cat(((x_ND - mean_D) / scale_D, torch.ones(len(x_ND), 1, dtype=torch.float64)), dim=1)
    penalty_P = torch.full((z_NP.shape[1],), ridge, dtype=torch.float64)
    penalty_P[-1] = 1e-6
    beta_P = torch.zeros(z_NP.shape[1], dtype=torch.float64)
    iteration = 0
    for iteration in range(1, max_iterations + 1):  # noqa: B007
        p_N = torch.sigmoid(z_NP @ beta_P)
        gradient_P = z_NP.T @ (w_N * (p_N - y_N)) + penalty_P * beta_P
        curvature_N = (w_N * p_N * (1 - p_N)).clamp(min=1e-10)
        hessian_PP = z_NP.T @ (curvature_N[:, None] * z_NP) + torch.diag(penalty_P)
        step_P = torch.linalg.solve(hessian_PP, gradient_P)
        # Damped far from the optimum, where a full Newton step of logistic regression can overshoot.
        step_P = step_P * min(1.0, 5.0 / float((z_NP @ step_P).abs().max().clamp(min=1e-9)))
        beta_P = beta_P - step_P
        if float(step_P.abs().max()) < 1e-8:
            break
    score_N = z_NP @ beta_P
    loss = float((w_N * torch.nn.functional.softplus(torch.where(y_N > 0, -score_N, score_N))).sum())
    accuracy = float((w_N * ((score_N > 0) == (y_N > 0)).double()).sum())
    gate = _Gate(weight_D=beta_P[:-1], bias=beta_P[-1], mean_D=mean_D, scale_D=scale_D)
    return gate, GateFit(accuracy=accuracy, loss=loss, iterations=iteration)
