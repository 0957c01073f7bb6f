# SPDX-License-Identifier: Apache-2.0
"""Sequences inside the engine, and the events that a computed batch means for them. Changes none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from model_core.engine.attribution import to_ppm
from model_core.engine.logits import finite_rows, rows_of
from model_core.engine.requests import FinishReason, SequenceRequest, TokenEvent
from model_core.engine.runner import StepResult
from model_core.engine.sampling import adjust, draw, log_probabilities, punishes, uniform
from model_core.engine.tables import Scope, Table
from model_core.errors import TensorsNotFinite


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
    if not emitting:
        return []
    samplings = [sequence.request.sampling for _, sequence in emitting]
    with torch.inference_mode():
        logits_BV, shares_BE = result.logits_BV, result.shares_BE
        if len(emitting) < logits_BV.shape[0]:
            rows = [row for row, _ in emitting]
            logits_BV, shares_BE = rows_of(logits_BV, rows), rows_of(shares_BE, rows)
        finite_B = finite_rows(logits_BV)
        if not all(finite_B):
            bad = [
                seq.request.request_id for (_, seq), fine in zip(emitting, finite_B, strict=True) if not fine
            ]
            raise TensorsNotFinite("Logits are not finite; cancel these sequences.", request_ids=bad)
        adjusted_BV = adjust(logits_BV, samplings, [_said(sequence) for _, sequence in emitting])
        tokens_B = draw(adjusted_BV, samplings, [_uniform(sequence) for _, sequence in emitting])
        own, best = log_probabilities(logits_BV, tokens_B, samplings)
        shares = to_ppm(shares_BE.cpu().numpy(), names)
    return [
        TokenEvent(
            request_id=sequence.request.request_id,
            token_id=token,
            logprob=own[place],
            top_logprobs=best[place],
            attribution_ppm=shares[place],
            finished=_finished(sequence, token, max_context),
        )
        for place, ((_, sequence), token) in enumerate(zip(emitting, tokens_B.tolist(), strict=True))
    ]


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
