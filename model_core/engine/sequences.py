# SPDX-License-Identifier: Apache-2.0
"""Sequences inside the engine, and the events that a computed batch means for them. Changes none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from model_core.engine.attribution import to_ppm
from model_core.engine.logits import finite_rows, rows_of
from model_core.engine.requests import FinishReason, Sampling, SequenceRequest, TokenEvent
from model_core.engine.runner import Likeliest, StepResult
from model_core.engine.sampling import adjust, draw, log_probabilities, punishes, uniform
from model_core.engine.tables import Scope, Table
from model_core.errors import TensorsNotFinite

# Token, log-probability, alternatives, and shares by name.
_Drawn = tuple[int, float, tuple[tuple[int, float], ...], dict[str, int]]


@dataclass(slots=True, eq=False)
class RunningSequence:
    """A sequence in the engine.

    Attributes:
        request: as it was submitted.
        experts: its current expert set, in canonical order.
        top_k: experts per token.
        scope: of its states under the current set.
        tokens: prompt and new tokens.
        columns: columns of the bank for the current set; empty until asked for.
        table: its states; None while it waits.
        age: its place in the order in which sequences began; None before.
        reached: positions that were computed before, under this set or another.
        n_new: new tokens so far.
    """

    request: SequenceRequest
    experts: tuple[str, ...]
    top_k: int
    scope: Scope
    tokens: list[int] = field(repr=False)
    columns: tuple[int, ...] = ()
    table: Table | None = None
    age: int | None = None
    reached: int = 0
    n_new: int = 0


def token_events(
    result: StepResult,
    emitting: Sequence[tuple[int, RunningSequence]],
    *,
    names: Sequence[str],
    max_context: int,
) -> list[TokenEvent]:
    """Draws the next token of every sequence whose last position a batch has computed.

    Args:
        result: of the batch.
        emitting: rows of it, with their sequences.
        names: of the columns of its shares.
        max_context: longest prompt plus new tokens.

    Raises:
        TensorsNotFinite: logits of ``facts["request_ids"]`` are not finite.
    """
    likeliest = result.likeliest
    if likeliest is None:
        drawn = _drawn(result, emitting, names)
    else:
        _check_finite([likeliest.tokens_B[row] >= 0 for row, _ in emitting], emitting)
        # Each row by its own settings: no bit of an event depends on whether its neighbours are this simple.
        rest = [(row, sequence) for row, sequence in emitting if not _plain(sequence.request.sampling)]
        others = iter(_drawn(result, rest, names))
        drawn = [
            _likeliest(likeliest, row, names) if _plain(sequence.request.sampling) else next(others)
            for row, sequence in emitting
        ]
    return [
        TokenEvent(
            request_id=sequence.request.request_id,
            token_id=token,
            logprob=logprob,
            top_logprobs=best,
            attribution_ppm=shares,
            finished=_finished(sequence, token, max_context),
        )
        for (_, sequence), (token, logprob, best, shares) in zip(emitting, drawn, strict=True)
    ]


def _plain(sampling: Sampling) -> bool:
    """Whether the likeliest token is taken and nothing else asked for."""
    return not (sampling.temperature or sampling.logprobs or sampling.logit_bias or punishes(sampling))


def _likeliest(likeliest: Likeliest, row: int, names: Sequence[str]) -> _Drawn:
    width = len(likeliest.ppm_BE) // len(likeliest.tokens_B)
    ppm_E = likeliest.ppm_BE[row * width : (row + 1) * width]
    shares = {name: count for name, count in zip(names, ppm_E, strict=True) if count}
    # A difference, since the negative of 0 would be shown as -0.0.
    return likeliest.tokens_B[row], 0.0 - likeliest.log_totals_B[row], (), shares


def _drawn(
    result: StepResult, emitting: Sequence[tuple[int, RunningSequence]], names: Sequence[str]
) -> list[_Drawn]:
    """Token, log-probability, alternatives and shares of each row, out of its logits."""
    if not emitting:
        return []
    samplings = [sequence.request.sampling for _, sequence in emitting]
    with torch.inference_mode():
        logits_BV, shares_BE = result.logits_BV, result.shares_BE
        if len(emitting) < logits_BV.shape[0]:
            rows = [row for row, _ in emitting]
            logits_BV, shares_BE = rows_of(logits_BV, rows), rows_of(shares_BE, rows)
        if result.likeliest is None:
            _check_finite(finite_rows(logits_BV), emitting)
        adjusted_BV = adjust(logits_BV, samplings, [_said(sequence) for _, sequence in emitting])
        tokens_B = draw(adjusted_BV, samplings, [_uniform(sequence) for _, sequence in emitting])
        own, best = log_probabilities(logits_BV, tokens_B, samplings)
        shares = to_ppm(shares_BE.cpu().numpy(), names)
    return list(zip(tokens_B.tolist(), own, best, shares, strict=True))


def _check_finite(finite: Sequence[bool], emitting: Sequence[tuple[int, RunningSequence]]) -> None:
    if not all(finite):
        bad = [seq.request.request_id for (_, seq), fine in zip(emitting, finite, strict=True) if not fine]
        raise TensorsNotFinite("Logits are not finite; cancel these sequences.", request_ids=bad)


def _uniform(sequence: RunningSequence) -> float:
    request = sequence.request
    if request.sampling.temperature == 0:
        return 0.0
    return uniform(request.sampling.seed, request.request_id, request.n_said + sequence.n_new)


def _said(sequence: RunningSequence) -> Sequence[int]:
    """Tokens drawn for this answer so far, where they matter."""
    if not punishes(sequence.request.sampling):
        return ()
    return sequence.tokens[len(sequence.tokens) - sequence.n_new - sequence.request.n_said :]


def _finished(sequence: RunningSequence, token: int, max_context: int) -> FinishReason | None:
    sampling = sequence.request.sampling
    if token in sampling.stop_ids:
        return "stop"
    full = len(sequence.tokens) + 1 >= max_context
    return "length" if full or sequence.n_new + 1 >= sampling.max_tokens else None
