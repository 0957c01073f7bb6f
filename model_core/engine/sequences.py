# SPDX-License-Identifier: Apache-2.0
"""Sequences inside the engine, and the events that a computed batch means for them. Changes none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model_core.engine.attribution import to_ppm
from model_core.engine.batch import StepResult
from model_core.engine.requests import FinishReason, SequenceRequest, TokenEvent
from model_core.engine.sampling import draw, uniform
from model_core.errors import TensorsNotFinite
from model_core.network.bank import StateKey


@dataclass(slots=True)
class RunningSequence:
    """A sequence in the engine.

    Attributes:
        request: as it was submitted.
        experts: its current expert set, in canonical order.
        top_k: experts per token.
        key: of its states under the current set.
        tokens: prompt and new tokens.
        slot: of its states; None while it waits.
        n_new: new tokens so far.
    """

    request: SequenceRequest
    experts: tuple[str, ...]
    top_k: int
    key: StateKey
    tokens: list[int]
    slot: int | None = None
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
    uniforms = [uniform(seq.request.sampling.seed, seq.request.request_id, seq.n_new) for _, seq in emitting]
    with torch.inference_mode():
        rows = torch.tensor([row for row, _ in emitting])
        logits_BV = result.logits_BV[rows]
        finite_B = torch.isfinite(logits_BV).all(-1).tolist()
        if not all(finite_B):
            bad = [
                seq.request.request_id for (_, seq), fine in zip(emitting, finite_B, strict=True) if not fine
            ]
            raise TensorsNotFinite("Logits are not finite; cancel these sequences.", request_ids=bad)
        tokens_B = draw(logits_BV, samplings, uniforms)
        logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
        own = logprobs_BV.gather(-1, tokens_B[:, None]).squeeze(-1).tolist()
        width = max(sampling.logprobs for sampling in samplings)
        best = logprobs_BV.topk(width, dim=-1) if width else None
        shares = to_ppm(result.shares_BE[rows].numpy(), names)
    events = []
    for place, ((_, sequence), token) in enumerate(zip(emitting, tokens_B.tolist(), strict=True)):
        count = samplings[place].logprobs
        top: tuple[tuple[int, float], ...] = ()
        if best is not None and count:
            ids, values = best.indices[place, :count].tolist(), best.values[place, :count].tolist()
            top = tuple(zip(ids, values, strict=True))
        events.append(
            TokenEvent(
                request_id=sequence.request.request_id,
                token_id=token,
                logprob=own[place],
                top_logprobs=top,
                attribution_ppm=shares[place],
                finished=_finished(sequence, token, max_context),
            )
        )
    return events


def _finished(sequence: RunningSequence, token: int, max_context: int) -> FinishReason | None:
    sampling = sequence.request.sampling
    if token in sampling.stop_ids:
        return "stop"
    full = len(sequence.tokens) + 1 >= max_context
    return "length" if full or sequence.n_new + 1 >= sampling.max_tokens else None
