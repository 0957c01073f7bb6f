# SPDX-License-Identifier: Apache-2.0
"""Drawing tokens for a whole batch at once, each row by its own settings and seed.

A draw is a function of the sequence's seed and the index of the token alone (a hash, no generator state), so
neither neighbours nor a step that was computed twice can change it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.engine.requests import Sampling
from model_core.errors import RequestRefused


def uniform(seed: int | None, request_id: str, index: int) -> float:
    """A number in [0, 1) for the index-th new token of a sequence."""
    source = f"seed:{seed}:{index}" if seed is not None else f"request:{request_id}:{index}"
    word = hashlib.blake2b(source.encode(), digest_size=8).digest()
    # 52 bits, so that the product with any total stays below that total.
    return (int.from_bytes(word, "big") >> 12) / 2**52


def draw(logits_BV: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> Tensor:
    """Draws one token per row.

    Args:
        logits_BV: logits, fp32.
        samplings: settings of each row.
        uniforms: a number in [0, 1) for each row; rows with temperature 0 ignore it.

    Returns:
        Token ids ``[B]``.
    """
    tokens_B = _largest(logits_BV)
    warm = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    # Rows that cut draw from a sorted distribution, the others from the plain one: each row by its own
    # settings, never by those of a neighbour.
    for cuts in (False, True):
        rows = [row for row in warm if _cuts(samplings[row]) == cuts]
        if rows:
            index_R = torch.tensor(rows, device=logits_BV.device)
            chosen = [samplings[row] for row in rows]
            tokens_B[index_R] = _draw_warm(
                logits_BV[index_R], chosen, [uniforms[row] for row in rows], cuts=cuts
            )
    return tokens_B


def _largest(logits_BV: Tensor) -> Tensor:
    """The first of the largest logits of each row; numpy's search is 20 times as fast as torch's on CPU."""
    if logits_BV.device.type != "cpu":
        return logits_BV.argmax(-1)
    return torch.from_numpy(logits_BV.numpy().argmax(-1))


def adjust(logits_BV: Tensor, samplings: Sequence[Sampling], said: Sequence[Sequence[int]]) -> Tensor:
    """Adds biases and takes penalties off, each row by its own settings; rows without any are not touched.

    Args:
        logits_BV: logits, fp32; not changed.
        samplings: settings of each row.
        said: tokens drawn before for each row's answer; read only where the row ``punishes``.

    Returns:
        The logits to draw from; the same tensor where no row asks for anything.
    """
    changed = logits_BV
    for row, (sampling, drawn) in enumerate(zip(samplings, said, strict=True)):
        deltas = dict(sampling.logit_bias)
        if punishes(sampling):
            for token, count in Counter(drawn).items():
                penalty = sampling.presence_penalty + sampling.frequency_penalty * count
                deltas[token] = deltas.get(token, 0.0) - penalty
        if deltas:
            changed = logits_BV.clone() if changed is logits_BV else changed
            ids = torch.tensor(list(deltas), device=logits_BV.device)
            changed[row, ids] += torch.tensor(list(deltas.values()), device=logits_BV.device)
    return changed


def log_probabilities(
    logits_BV: Tensor, tokens_B: Tensor, samplings: Sequence[Sampling]
) -> tuple[list[float], list[tuple[tuple[int, float], ...]]]:
    """Log-probabilities of drawn tokens at temperature 1, and of the likeliest alternatives.

    Returns:
        Per row that of its token, and as many (token, log-probability) as its settings ask for, falling.
    """
    # Not logsumexp: its kernel may split a row's sum where the batch has one row and not where it has more.
    chances_BV = torch.log_softmax(logits_BV, dim=-1)
    own = chances_BV.gather(-1, tokens_B[:, None]).squeeze(-1).tolist()
    best: list[tuple[tuple[int, float], ...]] = [()] * len(own)
    rows = [row for row, sampling in enumerate(samplings) if sampling.logprobs]
    if rows:
        top = chances_BV[rows].topk(max(samplings[row].logprobs for row in rows), dim=-1)
        for row, ids, chances in zip(rows, top.indices.tolist(), top.values.tolist(), strict=True):
            best[row] = tuple(zip(ids, chances, strict=True))[: samplings[row].logprobs]
    return own, best


def punishes(sampling: Sampling) -> bool:
    """Whether what was drawn before changes the next draw."""
    return bool(sampling.presence_penalty or sampling.frequency_penalty)


def _cuts(sampling: Sampling) -> bool:
    return sampling.top_p < 1 or sampling.top_k > 0


def _draw_warm(
    logits_RV: Tensor, chosen: Sequence[Sampling], uniforms: Sequence[float], *, cuts: bool
) -> Tensor:
    device = logits_RV.device
    temperatures = [[sampling.temperature] for sampling in chosen]
    temperature_R1 = torch.tensor(temperatures, dtype=torch.float64, device=device)
    uniform_R1 = torch.tensor([[number] for number in uniforms], dtype=torch.float64, device=device)
    chances_RV = torch.softmax(logits_RV.double() / temperature_R1, dim=-1)
    order_RV = None
    if cuts:
        chances_RV, order_RV = chances_RV.sort(dim=-1, descending=True, stable=True)
        chances_RV = _cut(chances_RV, chosen)
    # Inverse of the cumulative distribution; scaling u by the kept mass renormalises without a division.
    reached_RV = chances_RV.cumsum(-1)
    drawn_R1 = torch.searchsorted(reached_RV, uniform_R1 * reached_RV[:, -1:], right=True)
    drawn_R1 = drawn_R1.clamp(max=logits_RV.shape[-1] - 1)
    return (drawn_R1 if order_RV is None else order_RV.gather(-1, drawn_R1)).squeeze(-1)


def _cut(sorted_RV: Tensor, chosen: Sequence[Sampling]) -> Tensor:
    """Zeroes what top-k and top-p leave out of probabilities sorted downwards; the first always stays."""
    device, n_tokens = sorted_RV.device, sorted_RV.shape[-1]
    top_p_R1 = torch.tensor([[sampling.top_p] for sampling in chosen], dtype=torch.float64, device=device)
    top_k_R1 = torch.tensor([[sampling.top_k or n_tokens] for sampling in chosen], device=device)
    before_RV = sorted_RV.cumsum(-1) - sorted_RV
    rank_V = torch.arange(n_tokens, device=device)
    out_RV = ((before_RV >= top_p_R1) & (top_p_R1 < 1)) | (rank_V >= top_k_R1)
    return sorted_RV.masked_fill(out_RV & (rank_V > 0), 0.0)


def check_sampling(sampling: Sampling) -> None:
    """Refuses settings that no draw can follow.

    Raises:
        RequestRefused: a setting is outside its bounds.
    """
    sound = (
        sampling.max_tokens >= 1
        and 0.0 <= sampling.temperature <= 100.0
        and 0.0 < sampling.top_p <= 1.0
        and sampling.top_k >= 0
        and 0 <= sampling.logprobs <= 20
        and abs(sampling.presence_penalty) <= 2.0
        and abs(sampling.frequency_penalty) <= 2.0
        and all(math.isfinite(value) for _, value in sampling.logit_bias)
    )
    if not sound:
        raise RequestRefused(
            "Sampling is impossible: max_tokens >= 1, temperature 0 to 100, top_p above 0 up to 1, "
            "top_k >= 0, logprobs 0 to 20, penalties -2 to 2 and finite biases are needed."
        )
