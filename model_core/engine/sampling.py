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

import numpy as np
import torch
from torch import Tensor

from model_core.engine.logits import block_sums, copied, largest, log_chances, rows_of, weights_at
from model_core.engine.requests import Sampling
from model_core.errors import RequestRefused

_BLOCK = 256
_CANDIDATES = 512


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
    tokens_B = largest(logits_BV)
    warm = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    # Rows that cut draw from a sorted distribution, the others from the plain one: each row by its own
    # settings, never by those of a neighbour.
    for cuts in (False, True):
        rows = [row for row in warm if _cuts(samplings[row]) == cuts]
        if rows:
            index_R = torch.tensor(rows, device=logits_BV.device)
            chosen = [samplings[row] for row in rows]
            tokens_B[index_R] = _draw_warm(
                rows_of(logits_BV, rows), chosen, [uniforms[row] for row in rows], cuts=cuts
            )
    return tokens_B


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
            changed = copied(logits_BV) if changed is logits_BV else changed
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
    chances_BV = log_chances(logits_BV)
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
    # No temperature is so low that fp32 would lose it: 0 divided by it must stay 0.
    temperatures = [[max(sampling.temperature, 1e-20)] for sampling in chosen]
    temperature_R1 = torch.tensor(temperatures, device=device)
    uniform_R1 = torch.tensor([[number] for number in uniforms], dtype=torch.float64, device=device)
    weights_RV = weights_at(logits_RV, temperature_R1)
    if cuts:
        return _draw_cut(weights_RV, chosen, uniform_R1, n_candidates=_CANDIDATES)
    # Inverse of the cumulative distribution, first by blocks, then inside one: a cumulative sum over the
    # whole vocabulary of every row would cost more than all else here.
    reached_RN = _reached(weights_RV)
    block_R1 = _invert(reached_RN, uniform_R1 * reached_RN[:, -1:])
    before_R1 = torch.where(block_R1 > 0, reached_RN.gather(-1, (block_R1 - 1).clamp(min=0)), 0.0)
    ids_RW = block_R1 * _BLOCK + torch.arange(_BLOCK, device=device)
    inside_RW = weights_RV.gather(-1, ids_RW.clamp(max=weights_RV.shape[-1] - 1))
    inside_RW = inside_RW.where(ids_RW < weights_RV.shape[-1], 0.0).double().cumsum(-1)
    place_R1 = _invert(inside_RW, uniform_R1 * reached_RN[:, -1:] - before_R1)
    return (block_R1 * _BLOCK + place_R1).squeeze(-1)


def _reached(weights_RV: Tensor) -> Tensor:
    """Sums up to the end of each block, fp64 ``[R, N]``."""
    return block_sums(weights_RV, _BLOCK).double().cumsum(-1)


def _invert(reached_RN: Tensor, target_R1: Tensor) -> Tensor:
    """Where a cumulative sum first exceeds its target ``[R, 1]``: never at a place that adds nothing."""
    below_R1 = torch.nextafter(reached_RN[:, -1:], torch.zeros_like(reached_RN[:, -1:]))
    return torch.searchsorted(reached_RN, torch.minimum(target_R1, below_R1), right=True)


def _draw_cut(
    weights_RV: Tensor, chosen: Sequence[Sampling], uniform_R1: Tensor, *, n_candidates: int
) -> Tensor:
    """Draws from the likeliest tokens; rows that keep more than the candidates are sorted whole."""
    device, n_tokens = weights_RV.device, weights_RV.shape[-1]
    top_p_R1 = torch.tensor([[sampling.top_p] for sampling in chosen], dtype=torch.float64, device=device)
    top_k_R1 = torch.tensor([[sampling.top_k or n_tokens] for sampling in chosen], device=device)
    width = min(n_candidates, n_tokens)
    # Ties go to the lower token id, whatever order the search finds them in.
    ids_RC = _likeliest(weights_RV, width).sort(-1).values
    found_RC, order_RC = weights_RV.gather(-1, ids_RC).sort(dim=-1, descending=True, stable=True)
    ids_RC = ids_RC.gather(-1, order_RC)
    chances_RC = found_RC.double() / _reached(weights_RV)[:, -1:]
    enough_R1 = torch.ones_like(top_k_R1, dtype=torch.bool)
    if width < n_tokens:
        # Of tokens as likely as the last candidate some may be missing: they do not count as found.
        sure_RC = found_RC > found_RC[:, -1:]
        mass_R1 = chances_RC.where(sure_RC, 0.0).sum(-1, keepdim=True)
        enough_R1 = (sure_RC.sum(-1, keepdim=True) >= top_k_R1) | ((top_p_R1 < 1) & (mass_R1 > top_p_R1))
    before_RC = chances_RC.cumsum(-1) - chances_RC
    rank_C = torch.arange(width, device=device)
    out_RC = ((before_RC >= top_p_R1) & (top_p_R1 < 1)) | (rank_C >= top_k_R1)
    reached_RC = chances_RC.masked_fill(out_RC & (rank_C > 0), 0.0).cumsum(-1)
    place_R1 = _invert(reached_RC, uniform_R1 * reached_RC[:, -1:])
    tokens_R = ids_RC.gather(-1, place_R1).squeeze(-1)
    rest = (~enough_R1.squeeze(-1)).nonzero().squeeze(-1)
    if len(rest):
        settings = [chosen[row] for row in rest.tolist()]
        left_RV = rows_of(weights_RV, rest.tolist())
        tokens_R[rest] = _draw_cut(left_RV, settings, uniform_R1[rest], n_candidates=n_tokens)
    return tokens_R


def _likeliest(weights_RV: Tensor, width: int) -> Tensor:
    """Ids of so many of the largest weights of each row, in any order ``[R, C]``."""
    rows, n_tokens = weights_RV.shape
    if width == n_tokens:
        return torch.arange(n_tokens, device=weights_RV.device).expand(rows, -1)
    if weights_RV.device.type != "cpu":
        return weights_RV.topk(width, dim=-1).indices
    # numpy's selection is several times as fast as torch's on CPU.
    places = np.argpartition(weights_RV.numpy(), n_tokens - width, axis=-1)
    return torch.from_numpy(places[:, n_tokens - width :].copy())


def check_sampling(sampling: Sampling) -> None:
    """Refuses settings that no draw can follow.

    Raises:
        RequestRefused: a setting is outside its bounds.
    """
    sound = (
        sampling.max_tokens >= 1
        and 0.0 <= sampling.temperature <= 100.0
        and 0.0 < sampling.top_p <= 1.0
        and 0 <= sampling.top_k < 2**31
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
