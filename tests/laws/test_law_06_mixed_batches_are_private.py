# SPDX-License-Identifier: Apache-2.0
"""Law 6: a request's result does not depend on its neighbours in the batch.

Held here on torch, whose sums follow the shapes of a batch, is the law's second half: in fp32, logits within
1e-4 and tokens equal wherever the two largest logits are more than 2e-4 apart. Bit for bit it is held in
``test_laws_on_compiled_kernels``.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensor_builders import bank_of, drain, prompt, request
from tensor_worlds import World, subsets, worlds
from torch import Tensor

from model_core.engine import engine as engine_module
from model_core.engine.engine import Engine
from model_core.engine.requests import SequenceRequest
from model_core.engine.runner import StepResult
from model_core.engine.sequences import RunningSequence
from model_core.network.bank import ExpertBank

Told = dict[str, list[tuple[int, Tensor]]]


def _told(bank: ExpertBank, asked: Sequence[SequenceRequest], *, prefill: int) -> Told:
    """Every sequence's tokens with the logits that they were chosen by."""
    engine = Engine(bank, max_sequences=len(asked), max_context=64, prefill_tokens=prefill)
    found: Told = {}
    plain = engine_module.token_events

    def listen(
        result: StepResult, emitting: Sequence[tuple[int, RunningSequence]], **rest: object
    ) -> list[object]:
        events = plain(result, emitting, **rest)  # type: ignore[arg-type]
        for (row, sequence), event in zip(emitting, events, strict=True):
            name = sequence.request.request_id
            found.setdefault(name, []).append((event.token_id, result.logits_BV[row].clone()))
        return list(events)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "token_events", listen)
        drain(engine, asked)
    return found


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds(max_experts=6), prefill=st.integers(1, 24), data=st.data())
def test_neighbours_move_no_logit_and_turn_no_token(world: World, prefill: int, data: st.DataObject) -> None:
    """Alone or among sequences of other sets, lengths and k, a request hears the same."""
    bank = bank_of(world.decoder, world.experts)
    asked = [
        request(
            bank,
            f"r{place}",
            prompt(world.seed + place, data.draw(st.integers(1, 30), label="length")),
            data.draw(subsets(world.names), label="set"),
            data.draw(st.integers(1, len(world.names) + 1), label="k"),
            max_tokens=6,
        )
        for place in range(data.draw(st.integers(2, 5), label="requests"))
    ]
    together = _told(bank, asked, prefill=prefill)
    for one in asked:
        alone = _told(bank, [one], prefill=prefill)[one.request_id]
        assert len(alone) == len(together[one.request_id])
        for (token, logits_V), (other, others_V) in zip(alone, together[one.request_id], strict=True):
            assert float((logits_V - others_V).abs().max()) <= 1e-4 * max(1.0, float(logits_V.abs().max()))
            if token != other:
                first, second = torch.topk(logits_V, 2).values.tolist()
                assert first - second <= 2e-4 * max(1.0, abs(first))
                break  # from here on the two stand after different tokens
