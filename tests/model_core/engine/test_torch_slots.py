# SPDX-License-Identifier: Apache-2.0
"""Slots, grouped products and captured steps: the path that CUDA takes, on CPU but for the capture itself.

``Tape`` stands for a CUDA graph: it notes every operation with the very tensors it was given, and repeats
them without asking Python again. Whatever a step read besides memory that stays, it would read as it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import bank_of, copy_of, drain, prompt, random_expert, random_world, request, tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model_core.engine.capture import Compute
from model_core.engine.engine import Engine
from model_core.engine.runner import Piece
from model_core.engine.slot_runner import SlotRunner
from model_core.engine.slots import SlotWeights
from model_core.engine.torch_runner import TorchRunner
from model_core.network.bank import ExpertBank
from model_core.packing.forms import EXPERT_KINDS

CPU = torch.device("cpu")
_ASKS = ("_local_scalar_dense", "nonzero", "item", "_to_copy.out")


class _Noting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(name in str(func) for name in _ASKS):
            raise RuntimeError(f"a captured step asks the device for numbers: {func}")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Tape:
    """Captures by noting operations; see the module."""

    def capture(self, compute: Compute) -> Compute:
        """See ``Capturer.capture``."""
        with _Noting() as noting:
            results = compute()

        def repeat() -> tuple[Tensor, ...]:
            for func, args, kwargs, noted in noting.calls:
                fresh = func(*args, **kwargs)
                pairs = zip(_tensors(noted), _tensors(fresh), strict=True)
                for old, new in pairs:
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)
            return results

        return repeat


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [part for part in found if isinstance(part, Tensor)] if isinstance(found, tuple | list) else []


def _world(seed: int, n_experts: int = 4, **shape: Any) -> ExpertBank:
    kinds = EXPERT_KINDS[seed % len(EXPERT_KINDS) :] + EXPERT_KINDS[: seed % len(EXPERT_KINDS)]
    return bank_of(*random_world(seed, n_experts, kinds=kinds, **shape))


def _runner(bank: ExpertBank, *, n_pages: int = 16, captured: bool = True) -> SlotRunner:
    return SlotRunner(bank, n_pages=n_pages, n_tails=4, device=CPU, capturer=Tape() if captured else None)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), captured=st.booleans())
def test_slots_answer_as_the_plain_runner_does(seed: int, captured: bool) -> None:
    """Every family and kind, mixed sets and k, widths that no grouped product takes: the same answers."""
    pick = random.Random(seed)
    bank = _world(
        seed,
        pick.randint(1, 5),
        family=pick.choice(["olmo2", "llama", "olmoe"]),
        d_ffn=pick.choice([40, 37]),
        renormalise=pick.random() < 0.5,
        norm_eps=1e-5,
    )
    plain, slots = TorchRunner(bank, n_pages=8, n_tails=4), _runner(bank, n_pages=8, captured=captured)
    sequences = [
        (
            prompt(seed + place, 40),
            bank.columns(pick.sample(bank.digests, pick.randint(0, len(bank.digests)))),
        )
        for place in range(3)
    ]
    ends = [pick.randint(1, 20) for _ in sequences]
    top_k = [pick.randint(1, 3) for _ in sequences]
    starts = [0, 0, 0]
    for _ in range(7):
        pieces = [
            Piece(
                ids=ids[start:end],
                start=start,
                pages=[2 * place, 2 * place + 1][: -(-end // 16)],
                tail=place,
                columns=columns,
                top_k=min(top_k[place], len(columns)),
            )
            for place, ((ids, columns), start, end) in enumerate(zip(sequences, starts, ends, strict=True))
        ]
        expected, found = plain.run(pieces), slots.run(pieces)
        assert torch.allclose(found.logits_BV, expected.logits_BV, atol=1e-4, rtol=1e-4)
        assert torch.allclose(found.shares_BE, expected.shares_BE, atol=1e-5)
        for runner in (plain, slots):
            runner.keep([(place, place) for place in range(3)])
        starts, ends = ends, [end + 1 for end in ends]
    assert not slots.row_exact
    assert (slots.captured > 0) == (captured and slots._slots.grouped)


def test_a_captured_step_reads_memory_that_stays_and_nothing_else() -> None:
    """Recomposed, an expert exchanged, neighbours gone: the first capture serves all of it, rightly."""
    bank = _world(3, 3)
    runner = _runner(bank)
    asked = [request(bank, f"r{i}", prompt(i, 3), bank.digests[i : i + 1], 2, max_tokens=6) for i in range(2)]
    engine = Engine(bank, max_sequences=4, max_context=16, runner=runner, prefix_reuse=False)
    first = drain(engine, asked)
    taken = runner.captured
    assert taken
    name, new = bank.digests[0], random_expert(bank.decoder, 77)
    bank.remove(name)
    other = "sha256:" + "0" * 64
    engine.add_expert(engine.prepare_expert(other, copy_of(new)))
    again = [request(bank, f"s{i}", prompt(i, 3), bank.digests[i : i + 1], 2, max_tokens=6) for i in range(2)]
    said = drain(engine, again)
    plain = Engine(bank, max_sequences=4, max_context=16, prefix_reuse=False)
    expected = drain(plain, again)
    assert {key: tokens(found) for key, found in said.items()} == {
        key: tokens(found) for key, found in expected.items()
    }
    assert tokens(first["r0"]) != tokens(said["s0"])
    # What the bank holds of networks was copied; neither a captured step nor a prompt reads it again.
    networks = [bank.decoder.layer(index).ffn for index in range(2)]
    networks += [bank.held(name).layer(index).ffn for name in bank.digests for index in range(2)]
    with torch.no_grad():
        for tensor in (tensor for network in networks for tensor in network.state_dict().values()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else -128)
    assert {key: tokens(found) for key, found in drain(engine, again).items()} == {
        key: tokens(found) for key, found in said.items()
    }
    assert runner.captured == taken


def test_what_nobody_may_use_is_nan_and_meets_nobody() -> None:
    """Slots of poisoned and removed experts hold NaN, router rows too; answers stay equal, bit for bit."""
    bank = _world(4, 4)
    runner = _runner(bank)
    kept = bank.digests[1:2]

    def answer() -> list[Tensor]:
        found = []
        for ids, start in (([1, 2, 3], 0), ([4], 3), ([5], 4)):
            piece = Piece(ids=ids, start=start, pages=[0], tail=0, columns=bank.columns(kept), top_k=2)
            found.append(runner.run([piece]).logits_BV.clone())
            runner.keep([(0, 0)])
        runner.begin(0, None)
        return found

    before = answer()
    gone, withdrawn = bank.digests[0], bank.digests[2]
    slots = runner._slots
    of = dict(zip(bank.names(), slots.slots_of(range(len(bank.names()))), strict=True))
    bank.poison(withdrawn)
    bank.remove(gone)
    runner.refresh()
    for slot in (of[gone], of[withdrawn]):
        for parts in slots._stacks:
            assert all(part[slot].isnan().all() for part in parts)
        assert all(table.rows_ED[slot].isnan().all() for table in slots.tables)
    assert all(torch.equal(one, other) for one, other in zip(before, answer(), strict=True))
    caught = Piece(ids=[1], start=0, pages=[1], tail=1, columns=(0, bank.names().index(withdrawn)), top_k=2)
    assert runner.run([caught]).logits_BV.isnan().all()


def test_the_stack_is_the_only_copy_and_grows_when_it_must() -> None:
    """The base looks into slot 0; more experts than slots move the stacks, and answers stay equal."""
    bank = _world(5, 1)
    weights = SlotWeights(bank, CPU, capacity=3)
    gate = weights.decoder.layer(1).ffn.gate.weight
    assert gate.data_ptr() == weights._stacks[1][0][0].data_ptr()
    assert torch.equal(gate, bank.decoder.layer(1).ffn.gate.weight)
    assert weights.n_free == 1
    runner = _runner(bank)
    piece = Piece(ids=[1], start=0, pages=[0], tail=0, columns=(0, 1), top_k=2)
    before = runner.run([piece]).logits_BV.clone()
    generation, name = runner._slots.generation, bank.digests[0]
    for number in range(12):
        bank.add(f"sha256:{number:064x}", random_expert(bank.decoder, number))
    runner.refresh()
    assert runner._slots.generation > generation
    again = Piece(ids=[1], start=0, pages=[0], tail=0, columns=bank.columns([name]), top_k=2)
    assert torch.equal(runner.run([again]).logits_BV, before)
    moved = runner._slots.decoder.layer(0).ffn.down.weight
    assert moved.data_ptr() == runner._slots._stacks[0][1][0].data_ptr()


def test_an_expert_is_copied_once_and_a_stray_one_gives_its_slot_back() -> None:
    """Prepared and installed without another copy; one that never comes frees its slot."""
    bank = _world(6, 1)
    runner = _runner(bank)
    slots, n_free = runner._slots, runner._slots.n_free
    expert, stray = (copy_of(random_expert(bank.decoder, seed)) for seed in (1, 2))
    runner.prepare("sha256:" + "0" * 64, expert)
    runner.prepare("sha256:" + "1" * 64, stray)
    assert slots.n_free == n_free - 2
    place = slots._prepared["sha256:" + "0" * 64].slot
    bank.add("sha256:" + "0" * 64, expert)
    del stray
    runner.refresh()
    assert slots.slots_of([1]) == [place]
    assert slots.n_free == n_free - 1


def test_a_step_that_cannot_be_captured_is_computed_as_it_comes() -> None:
    """A capturer that refuses is asked once; answers are those of the plain runner."""

    class Refusing:
        asked = 0

        def capture(self, compute: Compute) -> Compute:
            """Refuses."""
            self.asked += 1
            raise RuntimeError("no graphs here")

    bank, refusing = _world(7, 2), Refusing()
    runner = SlotRunner(bank, n_pages=8, n_tails=2, device=CPU, capturer=refusing)
    asked = [request(bank, f"r{i}", prompt(i, 5), bank.digests, 2, max_tokens=20) for i in range(2)]
    said = drain(Engine(bank, max_sequences=2, max_context=48, runner=runner), asked)
    plain = drain(Engine(bank, max_sequences=2, max_context=48), asked)
    assert {key: tokens(found) for key, found in said.items()} == {
        key: tokens(found) for key, found in plain.items()
    }
    assert refusing.asked == 1


def test_the_tape_is_a_fair_judge() -> None:
    """It repeats what it noted over fixed memory, keeps what Python said, and refuses to ask the device."""
    static, numbers = torch.ones(2), [3.0]
    repeat = Tape().capture(lambda: (static * numbers[0],))
    static.fill_(2.0)
    numbers[0] = 100.0
    assert repeat()[0].tolist() == [6.0, 6.0]
    with pytest.raises(RuntimeError, match="asks the device"):
        Tape().capture(lambda: (static * static.sum().item(),))
