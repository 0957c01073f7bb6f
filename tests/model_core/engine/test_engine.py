# SPDX-License-Identifier: Apache-2.0
"""The engine's loop: batches, two-phase steps, admission, recomposition, cancellation."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
from tensor_builders import bank_of, digest, drain, prompt, random_world, request, tokens

from model_core.engine.engine import Engine
from model_core.engine.plain import generate
from model_core.engine.torch_runner import TorchRunner
from model_core.errors import (
    EngineFull,
    ExpertNotResident,
    RequestRefused,
    StepPending,
    TensorsNotFinite,
    UnknownRequest,
)
from model_core.network.bank import ExpertBank, forward_logits


@pytest.fixture(scope="module")
def bank() -> ExpertBank:
    """Four gated experts; tests do not change it."""
    return bank_of(*random_world(21, 4))


@pytest.mark.parametrize("seed", range(24))
def test_a_mixed_batch_answers_each_request_as_if_it_were_alone(bank: ExpertBank, seed: int) -> None:
    """Sets, k, prompts and sampling of their own; arrivals in between; chunks: tokens as from plain loops."""
    pick = random.Random(seed)
    engine = Engine(bank, max_sequences=3, max_context=64, prefill_tokens=pick.randint(1, 40))
    asked = [
        request(
            bank,
            f"r{i}",
            prompt(seed + i, pick.randint(1, 30)),
            pick.sample(bank.digests, pick.randint(0, 4)),
            pick.randint(1, 6),
            max_tokens=pick.randint(1, 10),
            temperature=pick.choice([0.0, 0.7, 1.3]),
            top_p=pick.choice([1.0, 0.8]),
            top_k=pick.choice([0, 5]),
            seed=pick.randint(0, 1000),
        )
        for i in range(6)
    ]
    events: dict[str, list[int]] = {}
    waiting = list(asked)
    while waiting or not engine.idle:
        for _ in range(min(len(waiting), pick.randint(0, 3))):
            try:
                engine.submit(waiting[0])
            except EngineFull:
                break
            waiting.pop(0)
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event.token_id)
        engine.commit()
    for one in asked:
        assert events[one.request_id] == generate(bank, one.prompt_ids, one.experts, one.top_k, one.sampling)


def test_log_probabilities_are_those_of_the_whole_model(bank: ExpertBank) -> None:
    """Within 1e-4 of an uncached forward pass, alternatives in falling order."""
    chosen = bank.digests[:2]
    ids = prompt(3, 11)
    said = drain(Engine(bank, max_context=64), [request(bank, "r", ids, chosen, 2, logprobs=4)])["r"]
    context = list(ids)
    for event in said:
        expected = torch.log_softmax(forward_logits(bank, context, chosen, 2)[-1], -1)
        assert event.logprob == pytest.approx(float(expected[event.token_id]), abs=1e-4)
        assert [token for token, _ in event.top_logprobs] == expected.topk(4).indices.tolist()
        assert event.top_logprobs[0] == (event.token_id, event.logprob)
        context.append(event.token_id)


def test_a_discarded_step_leaves_everything_as_it_was(bank: ExpertBank) -> None:
    """Each step computed two or three times, only the last one kept: equal events to a run without."""
    asked = [
        request(bank, f"r{i}", prompt(i, 3 + 9 * i), bank.digests[:i], 2, temperature=1.0, seed=i)
        for i in range(4)
    ]
    plain = drain(Engine(bank, max_sequences=4, max_context=64, prefill_tokens=8), asked)
    engine = Engine(bank, max_sequences=4, max_context=64, prefill_tokens=8)
    for one in asked:
        engine.submit(one)
    events: dict[str, list[Any]] = {}
    turn = 0
    while not engine.idle:
        turn += 1
        tries = [engine.step()]
        for _ in range(turn % 3):
            engine.discard()
            tries.append(engine.step())
        assert all(again == tries[0] for again in tries)
        engine.commit()
        for event in tries[-1]:
            events.setdefault(event.request_id, []).append(event)
    assert events == plain
    assert engine.counts.discarded == sum(turn % 3 for turn in range(1, engine.counts.steps + 1))


def test_nothing_changes_while_a_step_waits_for_its_verdict(bank: ExpertBank) -> None:
    """Between step and verdict every other call is refused; afterwards all work."""
    engine = Engine(bank, max_context=32)
    first = request(bank, "r", prompt(1, 4), bank.digests, 2)
    engine.submit(first)
    engine.step()
    for act in (
        engine.step,
        lambda: engine.submit(dataclasses.replace(first, request_id="s")),
        lambda: engine.cancel("r"),
        lambda: engine.recompose("r", (), bank.state_key((), top_k=1, consumer="app")),
        lambda: engine.drop_expert(bank.digests[0], poison=False),
    ):
        with pytest.raises(StepPending):
            act()
    engine.discard()
    engine.discard()
    engine.cancel("r")
    assert engine.idle
    engine.commit()
    assert engine.step() == []


def test_every_token_is_attributed_to_the_last_millionth(bank: ExpertBank) -> None:
    """Parts per million sum to one token, name allowed experts only, and match the routing weights."""
    chosen = bank.digests[1:3]
    asked = [request(bank, "pair", prompt(5, 7), chosen, 2), request(bank, "base", prompt(6, 3), (), 4)]
    events = drain(Engine(bank, max_context=64), asked)
    for event in events["pair"]:
        assert sum(event.attribution_ppm.values()) == 1_000_000
        assert set(event.attribution_ppm) <= {"public", *chosen}
    assert all(event.attribution_ppm == {"public": 1_000_000} for event in events["base"])

    shares: list[torch.Tensor] = []
    experts = [bank._experts[name] for name in chosen]

    def watch(_layer: int, _h: torch.Tensor, routing: Any) -> None:
        last = routing.weights_TE[-1].double()
        shares.append(last / last.sum())

    with torch.inference_mode():
        bank.decoder(torch.tensor([prompt(5, 7)]), experts, top_k=2, observe=watch)
    expected = torch.stack(shares).mean(0) * 1e6
    got = [events["pair"][0].attribution_ppm.get(name, 0) for name in ("public", *chosen)]
    assert got == pytest.approx(expected.tolist(), abs=20)


def test_an_answer_that_was_restarted_draws_as_if_it_were_not(bank: ExpertBank) -> None:
    """Tokens said before go back in as prompt: draws by seed, and penalties, go on where they stopped."""
    settings: dict[str, Any] = {
        "temperature": 1.0,
        "seed": 5,
        "presence_penalty": 2.0,
        "frequency_penalty": 0.5,
    }
    whole = request(bank, "r", prompt(3, 9), bank.digests[:2], 2, max_tokens=12, **settings)
    said = tokens(drain(Engine(bank, max_context=64), [whole])["r"])
    rest = request(bank, "r", [*prompt(3, 9), *said[:5]], bank.digests[:2], 2, max_tokens=7, **settings)
    again = drain(Engine(bank, max_context=64), [dataclasses.replace(rest, n_said=5)])["r"]
    assert tokens(again) == said[5:]
    assert len(set(said)) > 8


def test_a_forbidden_token_is_not_said(bank: ExpertBank) -> None:
    """A bias of -100 on the greedy choice takes the next best; the probability told is the model's own."""
    free = drain(Engine(bank, max_context=64), [request(bank, "r", prompt(4, 6), (), 1, logprobs=2)])["r"][0]
    bias = ((free.token_id, -100.0),)
    held = drain(Engine(bank, max_context=64), [request(bank, "r", prompt(4, 6), (), 1, logit_bias=bias)])[
        "r"
    ]
    assert (held[0].token_id, held[0].logprob) == free.top_logprobs[1]


def test_a_memory_that_holds_no_whole_sequence_is_refused(bank: ExpertBank) -> None:
    """Too few pages for one sequence, or fewer places than sequences."""
    with pytest.raises(RequestRefused):
        Engine(bank, max_context=64, n_pages=3)
    with pytest.raises(RequestRefused):
        Engine(bank, max_sequences=3, max_context=32, runner=TorchRunner(bank, n_pages=9, n_tails=2))


def test_a_tenant_with_much_waiting_does_not_keep_another_waiting(bank: ExpertBank) -> None:
    """One place: the other tenant's first request is second to begin, behind one of a crowd of twenty."""
    engine = Engine(bank, max_sequences=1, max_context=32, max_waiting=40, max_waiting_per_tenant=20)
    crowd = request(bank, "crowd", prompt(1, 6), (), 1, max_tokens=2)
    for place in range(20):
        engine.submit(dataclasses.replace(crowd, request_id=f"crowd{place}"))
    with pytest.raises(EngineFull):
        engine.submit(dataclasses.replace(crowd, request_id="crowd20"))
    engine.step()
    engine.commit()
    key = bank.state_key((), top_k=1, consumer="other")
    engine.submit(dataclasses.replace(crowd, request_id="other", state_key=key))
    order = list(drain(engine))
    assert order.index("other") <= 2
    assert engine.n_waiting == 0


def test_prompts_take_smaller_steps_while_somebody_waits_for_a_token(bank: ExpertBank) -> None:
    """Alone a prompt of 60 is computed in steps of 32; beside a stream in steps of 16, a token in each."""
    engine = Engine(bank, max_sequences=2, max_context=80, prefill_tokens=32, prefill_beside=16)
    long = request(bank, "long", prompt(1, 60), bank.digests, 2, max_tokens=2)
    drain(engine, [long])
    assert engine.counts.steps == 3
    engine = Engine(bank, max_sequences=2, max_context=80, prefill_tokens=32, prefill_beside=16)
    engine.submit(request(bank, "stream", prompt(2, 3), bank.digests, 2, max_tokens=30))
    engine.step()
    engine.commit()
    engine.submit(long)
    heard = []
    for _ in range(4):
        heard.append([event.request_id for event in engine.step()])
        engine.commit()
    assert heard == [["stream"]] * 3 + [["stream", "long"]]


def test_sequences_end_by_stop_length_and_context(bank: ExpertBank) -> None:
    """The stop token is reported; max_tokens and a full context end as length."""
    ids = prompt(8, 5)
    engine = Engine(bank, max_context=12)
    free = drain(engine, [request(bank, "r", ids, (), 1, max_tokens=100)])["r"]
    assert len(ids) + len(free) == 12
    assert [event.finished for event in free] == [None] * (len(free) - 1) + ["length"]
    stop = tokens(free)[2]
    first = tokens(free).index(stop)
    ended = drain(engine, [request(bank, "r", ids, (), 1, max_tokens=100, stop_ids=(stop,))])["r"]
    assert tokens(ended) == tokens(free)[: first + 1]
    assert ended[-1].finished == "stop"
    assert drain(engine, [request(bank, "r", ids, (), 1, max_tokens=1)])["r"][0].finished == "length"


def test_admission_is_bounded_and_refusals_change_nothing(bank: ExpertBank) -> None:
    """Two run and two wait; a fifth is told to come back; impossible requests get their own code."""
    engine = Engine(bank, max_sequences=2, max_context=16)
    good = request(bank, "r0", prompt(1, 4), bank.digests[:1], 2)
    engine.submit(good)
    engine.submit(dataclasses.replace(good, request_id="r1"))
    engine.step()
    engine.commit()
    for name in ("r2", "r3"):
        engine.submit(dataclasses.replace(good, request_id=name))
    with pytest.raises(EngineFull):
        engine.submit(dataclasses.replace(good, request_id="r4"))
    with pytest.raises(RequestRefused):
        engine.submit(good)
    for change in (
        {"prompt_ids": ()},
        {"prompt_ids": (1,) * 16},
        {"prompt_ids": (61,)},
        {"prompt_ids": (-1,)},
        {"weight": 0.0},
        {"weight": float("inf")},
        {"n_said": 5},
    ):
        with pytest.raises(RequestRefused):
            engine.submit(dataclasses.replace(good, request_id="x", **change))
    for setting in (
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"logprobs": 21},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"logit_bias": ((61, 1.0),)},
        {"logit_bias": ((1, float("nan")),)},
    ):
        sampling = dataclasses.replace(good.sampling, **setting)
        with pytest.raises(RequestRefused):
            engine.submit(dataclasses.replace(good, request_id="x", sampling=sampling))
    with pytest.raises(ExpertNotResident):
        engine.submit(dataclasses.replace(good, request_id="x", experts=(digest(5),)))
    with pytest.raises(UnknownRequest):
        engine.cancel("x")
    with pytest.raises(UnknownRequest):
        engine.experts_of("x")
    assert engine.request_ids == ("r0", "r1", "r2", "r3")
    engine.cancel("r3")
    assert set(drain(engine)) == {"r0", "r1", "r2"}
    with pytest.raises(RequestRefused):
        Engine(bank, max_context=97)


def test_cancelling_moves_no_other_sequence(bank: ExpertBank) -> None:
    """Sequences that leave from the middle of the batch: the others' tokens are those of a full run."""
    asked = [request(bank, f"r{i}", prompt(i, 4 + i), bank.digests[i:], 3, max_tokens=12) for i in range(5)]
    full = drain(Engine(bank, max_sequences=5, max_context=64), asked)
    engine = Engine(bank, max_sequences=5, max_context=64)
    for one in asked:
        engine.submit(one)
    events: dict[str, list[int]] = {}
    for turn in range(100):
        if engine.idle:
            break
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event.token_id)
        engine.commit()
        if turn in {2, 5}:
            engine.cancel("r1" if turn == 2 else "r0")
    assert engine.idle
    for name in ("r2", "r3", "r4"):
        assert events[name] == tokens(full[name])
    assert len(events["r1"]) == 3
    assert len(events["r0"]) == 6


def test_an_expert_in_use_cannot_be_dropped_and_a_dropped_one_not_used() -> None:
    """Recompose first; then it is gone for requests, poisoned or removed, and may come back."""
    decoder, experts = random_world(22, 2)
    bank = bank_of(decoder, experts)
    low, high = sorted(experts)
    engine = Engine(bank, max_sequences=2, max_context=32)
    engine.submit(request(bank, "r", prompt(1, 4), (low, high), 3))
    with pytest.raises(RequestRefused) as refused:
        engine.drop_expert(low, poison=True)
    assert refused.value.facts["request_ids"] == ["r"]
    engine.recompose("r", (high,), bank.state_key((high,), top_k=3, consumer="app"))
    assert engine.experts_of("r") == (high,)
    engine.drop_expert(low, poison=True)
    with pytest.raises(ExpertNotResident):
        request(bank, "s", prompt(1, 4), (low,), 2)
    assert len(drain(engine)["r"]) == 8
    engine.drop_expert(high, poison=False)
    assert bank.names() == ("public", low)


def test_a_poisoned_expert_that_is_used_all_the_same_is_noticed() -> None:
    """NaN behind the bank's back: the step is refused with the sequences it hit; the others go on."""
    decoder, experts = random_world(23, 2)
    bank = bank_of(decoder, experts)
    low, high = sorted(experts)
    engine = Engine(bank, max_sequences=2, max_context=32)
    engine.submit(request(bank, "hit", prompt(1, 4), (low,), 2))
    engine.submit(request(bank, "fine", prompt(2, 4), (high,), 2))
    with torch.no_grad():
        bank._experts[low].layer(1).ffn.up.weight.fill_(float("nan"))
    with pytest.raises(TensorsNotFinite) as refused:
        engine.step()
    assert refused.value.facts["request_ids"] == ["hit"]
    engine.cancel("hit")
    alone = generate(bank, prompt(2, 4), (high,), 2, request(bank, "x", (1,), (high,), 2).sampling)
    assert tokens(drain(engine)["fine"]) == alone
