# SPDX-License-Identifier: Apache-2.0
"""Law 4: masking an expert equals a model that never contained it, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import bank_of, drain, in_bfloat16, prompt, random_world, request, tokens
from tensor_worlds import World, subsets, worlds

from model_core.engine.engine import Engine
from model_core.network.bank import forward_logits
from model_core.network.mixture import LayerExperts, mix, plan_rows, route
from model_core.network.router import RouterRows

SIZES = (4, 8, 15, 16, 17, 33, 64, 128)


def random_panel(n_experts: int, seed: int, width: int = 16) -> LayerExperts:
    """One layer with the public expert and others, each a plain matrix; half of them gated."""
    generator = torch.Generator().manual_seed(seed)
    gated = torch.rand(n_experts, generator=generator) < 0.5
    gated[0] = False
    weights = torch.randn(n_experts, width, width, generator=generator)
    gate_rows = torch.randn(n_experts, width, generator=generator, dtype=torch.float64)
    gate_biases = torch.randn(n_experts, generator=generator, dtype=torch.float64)
    rows = RouterRows(
        rows_ED=torch.randn(n_experts, width, generator=generator),
        biases_E=-torch.rand(n_experts, generator=generator) * (torch.arange(n_experts) > 0),
        gate_rows_ED=torch.where(gated[:, None], gate_rows, 0.0),
        gate_biases_E=torch.where(gated, gate_biases, torch.inf),
    )
    ffns = tuple(lambda x, w=weights[i]: x @ w for i in range(n_experts))
    return LayerExperts(rows=rows, ffns=ffns, gated=True)


def without(panel: LayerExperts, keep: list[int]) -> LayerExperts:
    """A layer that never had the other experts."""
    rows = RouterRows(
        rows_ED=torch.stack([panel.rows.rows_ED[i].clone() for i in keep]),
        biases_E=torch.stack([panel.rows.biases_E[i].clone() for i in keep]),
        gate_rows_ED=torch.stack([panel.rows.gate_rows_ED[i].clone() for i in keep]),
        gate_biases_E=torch.stack([panel.rows.gate_biases_E[i].clone() for i in keep]),
    )
    return LayerExperts(rows=rows, ffns=tuple(panel.ffns[i] for i in keep), gated=True)


def poisoned(panel: LayerExperts, keep: list[int]) -> LayerExperts:
    """The same layer with NaN in everything that belongs to the experts that are not kept."""
    gone = torch.tensor([i not in keep for i in range(len(panel.ffns))])
    nan = float("nan")
    rows = RouterRows(
        rows_ED=panel.rows.rows_ED.masked_fill(gone[:, None], nan),
        biases_E=panel.rows.biases_E.masked_fill(gone, nan),
        gate_rows_ED=panel.rows.gate_rows_ED.masked_fill(gone[:, None], nan),
        gate_biases_E=panel.rows.gate_biases_E.masked_fill(gone, nan),
    )
    ffns = tuple((lambda x: x * nan) if gone[i] else ffn for i, ffn in enumerate(panel.ffns))
    return LayerExperts(rows=rows, ffns=ffns, gated=True)


@pytest.mark.parametrize("n_experts", SIZES)
def test_a_masked_router_decides_as_one_that_never_had_the_expert(n_experts: int) -> None:
    """For every number of allowed experts and every k, weights and choices are equal bit for bit."""
    full = random_panel(n_experts + 5, seed=n_experts)
    order = torch.randperm(n_experts + 4, generator=torch.Generator().manual_seed(n_experts)) + 1
    keep = [0, *sorted(order[: n_experts - 1].tolist())]
    assert len(keep) == n_experts
    small, sick = without(full, keep), poisoned(full, keep)
    x_TD = torch.randn(40, 16)
    mean_TD = torch.randn(40, 16, dtype=torch.float64)
    for top_k in range(1, n_experts + 2):
        masked, kept = route(x_TD, mean_TD, sick, plan_rows([(tuple(keep), top_k)] * 40, x_TD.device))
        never, kept_never = route(
            x_TD, mean_TD, small, plan_rows([(tuple(range(n_experts)), top_k)] * 40, x_TD.device)
        )
        assert torch.equal(masked.logits[0], never.logits[0])
        assert torch.equal(masked.weights_TE[:, keep], never.weights_TE)
        assert torch.count_nonzero(masked.weights_TE).item() == 40 * min(top_k, n_experts)
        assert kept is not None
        assert torch.equal(kept[:, keep], kept_never if kept_never is not None else kept[:, keep])


@settings(max_examples=40, deadline=None)
@given(
    n_experts=st.integers(2, 20),
    n_rows=st.integers(1, 24),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_a_mixed_batch_forgets_excluded_experts_exactly(
    n_experts: int, n_rows: int, seed: int, data: st.DataObject
) -> None:
    """Rows with sets and k of their own: NaN experts that none allows change no bit of the outputs."""
    keep = [0, *sorted(data.draw(st.sets(st.integers(1, n_experts - 1)), label="kept"))]
    rows = [
        (
            tuple(sorted({0, *data.draw(st.sets(st.sampled_from(keep)), label="set")})),
            data.draw(st.integers(1, n_experts + 2), label="k"),
        )
        for _ in range(n_rows)
    ]
    full = random_panel(n_experts, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x_TD = torch.randn(n_rows, 16, generator=generator)
    mean_TD = torch.randn(n_rows, 16, generator=generator).double()
    here = {column: place for place, column in enumerate(keep)}
    moved = [(tuple(here[column] for column in columns), top_k) for columns, top_k in rows]
    masked, _ = mix(x_TD, mean_TD, poisoned(full, keep), plan_rows(rows, x_TD.device))
    never, _ = mix(x_TD, mean_TD, without(full, keep), plan_rows(moved, x_TD.device))
    assert torch.isfinite(masked).all()
    assert torch.equal(masked, never)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), n_experts=st.integers(1, 5), length=st.integers(1, 30), data=st.data())
def test_whole_model_logits_forget_a_poisoned_expert(
    seed: int, n_experts: int, length: int, data: st.DataObject
) -> None:
    """Logits with an expert NaN-filled in the bank equal those of a bank that never held it, for every k."""
    decoder, experts = random_world(seed, n_experts)
    gone = data.draw(st.sets(st.sampled_from(sorted(experts)), min_size=1), label="gone")
    left = {name: expert for name, expert in experts.items() if name not in gone}
    sick, fresh = bank_of(decoder, experts), bank_of(decoder, left)
    for name in gone:
        sick.poison(name)
    ids = prompt(seed, length)
    for top_k in range(1, n_experts + 2):
        masked = forward_logits(sick, ids, left, top_k)
        assert torch.isfinite(masked).all()
        assert torch.equal(masked, forward_logits(fresh, ids, left, top_k))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_engine_forgets_a_poisoned_expert_in_prefill_decode_and_mixed_batches(
    seed: int, data: st.DataObject
) -> None:
    """Sequences of different sets, prompts and k in one batch: every token and log-probability is equal."""
    decoder, experts = random_world(seed, 4)
    gone = sorted(experts)[seed % 4]
    left = {name: expert for name, expert in experts.items() if name != gone}
    sick, fresh = bank_of(decoder, experts), bank_of(decoder, left)
    sick.poison(gone)
    wanted = [
        (
            f"r{i}",
            prompt(seed + i, data.draw(st.integers(1, 40), label="length")),
            sorted(data.draw(st.sets(st.sampled_from(sorted(left))), label="set")),
            data.draw(st.integers(1, 6), label="k"),
        )
        for i in range(5)
    ]
    answers = []
    for bank in (sick, fresh):
        engine = Engine(bank, max_sequences=3, max_context=64, prefill_tokens=16)
        events: dict[str, list[object]] = {}
        asked = [request(bank, *one) for one in wanted]
        for one in asked[:3]:
            engine.submit(one)
        engine.step()
        engine.discard()
        engine.step()
        engine.commit()
        for name, said in drain(engine, asked[3:]).items():
            events[name] = [(event.token_id, event.logprob, event.attribution_ppm) for event in said]
        answers.append(events)
    assert answers[0] == answers[1]


def test_removal_is_exact_in_bfloat16_too() -> None:
    """Weights and states in bfloat16, routers in fp32: whole sequences and the engine, bit for bit."""
    decoder, experts = random_world(31, 3)
    in_bfloat16(decoder)
    for expert in experts.values():
        in_bfloat16(expert)
    gone = sorted(experts)[1]
    left = {name: expert for name, expert in experts.items() if name != gone}
    sick, fresh = bank_of(decoder, experts), bank_of(decoder, left)
    sick.poison(gone)
    assert sick.state_key(left, top_k=2, consumer="app").dtype == "bfloat16"
    ids, answers = prompt(31, 20), []
    for top_k in (1, 2, 3):
        masked = forward_logits(sick, ids, left, top_k)
        assert masked.dtype == torch.bfloat16
        assert torch.equal(masked, forward_logits(fresh, ids, left, top_k))
    for bank in (sick, fresh):
        asked = [request(bank, f"r{i}", prompt(i, 3 + 6 * i), sorted(left)[:i], 2) for i in range(3)]
        answers.append(drain(Engine(bank, max_sequences=3, max_context=48, prefill_tokens=8), asked))
    assert answers[0] == answers[1]


def test_a_recomposed_sequence_goes_on_as_one_that_never_had_the_expert() -> None:
    """After recompose and NaN, the sequence equals a fresh one that starts from prompt and tokens so far."""
    decoder, experts = random_world(7, 3)
    bank = bank_of(decoder, experts)
    names = sorted(experts)
    engine = Engine(bank, max_sequences=4, max_context=64)
    engine.submit(request(bank, "r", prompt(1, 12), names, 2, max_tokens=20))
    before = []
    for _ in range(6):
        before += tokens(engine.step())
        engine.commit()
    left = names[1:]
    engine.recompose("r", left, bank.state_key(left, top_k=2, consumer="app"))
    engine.drop_expert(names[0], poison=True)
    after = drain(engine)["r"]
    assert all(names[0] not in event.attribution_ppm for event in after)
    fresh = bank_of(decoder, {name: experts[name] for name in left})
    restarted = Engine(fresh, max_sequences=4, max_context=64)
    asked = request(fresh, "r", [*prompt(1, 12), *before], left, 2, max_tokens=20 - len(before))
    again = drain(restarted, [asked])["r"]
    assert [(event.token_id, event.logprob) for event in after] == [
        (event.token_id, event.logprob) for event in again
    ]


@settings(max_examples=20, deadline=None)
@given(
    world=worlds(),
    prefill=st.integers(1, 24),
    early=st.integers(0, 3),
    half=st.booleans(),
    data=st.data(),
)
def test_removal_is_exact_in_any_world_on_every_path(
    world: World, prefill: int, early: int, half: bool, data: st.DataObject
) -> None:
    """Families, shapes, kinds, gates, sets and k at random: NaN in the excluded changes no bit anywhere.

    Whole sequences, one sequence in chunks, and mixed batches of prefill and decoding in which every sequence
    has a set, a k and a length of its own.
    """
    if half and all(expert.form.kind != "int8" for expert in world.experts.values()):
        for module in (world.decoder, *world.experts.values()):
            in_bfloat16(module)
    gone = data.draw(subsets(world.names, min_size=1), label="gone")
    left = {name: expert for name, expert in world.experts.items() if name not in gone}
    sick, fresh = bank_of(world.decoder, world.experts), bank_of(world.decoder, left)
    for name in gone:
        sick.poison(name)
    wanted = [
        (
            f"r{place}",
            prompt(world.seed + place, data.draw(st.integers(1, 30), label="length")),
            data.draw(subsets(sorted(left)), label="set"),
            data.draw(st.integers(1, len(left) + 2), label="k"),
        )
        for place in range(4)
    ]
    _, ids, chosen, top_k = wanted[0]
    masked = forward_logits(sick, ids, chosen, top_k)
    assert torch.isfinite(masked).all()
    assert torch.equal(masked, forward_logits(fresh, ids, chosen, top_k))
    answers = []
    for bank in (sick, fresh):
        engine = Engine(bank, max_sequences=4, max_context=48, prefill_tokens=prefill)
        asked = [request(bank, *one, max_tokens=3 + place) for place, one in enumerate(wanted)]
        for one in asked[:early]:
            engine.submit(one)
        begun = engine.step()
        engine.commit()
        answers.append((begun, drain(engine, asked[early:])))
    assert answers[0] == answers[1]
