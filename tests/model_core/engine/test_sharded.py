# SPDX-License-Identifier: Apache-2.0
"""Steps spread over two processes: the same answers, the same laws, and an end in bounded time."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import bank_of, copy_of, drain, in_bfloat16, prompt, random_world, request, tokens

from model_core.engine.engine import Engine
from model_core.engine.requests import SequenceRequest, TokenEvent
from model_core.engine.runner import Piece
from model_core.engine.sharded.exchange import Exchange, over_lines
from model_core.engine.sharded.gang import Gang
from model_core.engine.sharded.rank import Rank
from model_core.engine.sharded.runner import ShardedRunner
from model_core.engine.sharded.slices import UNIT, Part, base_slices, expert_slices, part_shape
from model_core.engine.sharded.wire import Message, encode, receive
from model_core.engine.torch_runner import TorchRunner
from model_core.errors import RankLost, RanksRefused
from model_core.network.bank import CheckedExpert, ExpertBank
from model_core.packing.forms import EXPERT_KINDS

FAMILIES = ("olmo2", "llama", "olmoe")


@pytest.fixture(scope="module")
def ranks() -> Iterator[Callable[[], Gang]]:
    """Two ranks, started once; anew where a test has ended them."""
    running: list[Gang] = []

    def give() -> Gang:
        if not running or not running[0].alive:
            running[:] = [Gang.start(2, patience_s=60)]
        return running[0]

    yield give
    for gang in running:
        if not gang.alive:  # the last test ended it
            gang.close()
            continue
        folder = gang.folder
        assert folder is not None
        assert folder.stat().st_mode & 0o077 == 0
        gang.close()
        # They ended by themselves when their line did; nothing had to be killed, and nothing stays behind.
        assert not folder.exists()
        assert [process.returncode for process in gang._processes] == [0, 0]


def spread(bank: ExpertBank, gang: Gang, *, deterministic: bool = False, n_pages: int = 24) -> ShardedRunner:
    """A runner with few places."""
    return ShardedRunner(bank, gang, n_pages=n_pages, n_tails=4, deterministic=deterministic)


def piece(bank: ExpertBank, seed: int, length: int, n_experts: int, top_k: int, place: int = 0) -> Piece:
    """A prompt from its first position, on pages of its own."""
    pages = range(6 * place, 6 * place + -(-length // 16))
    columns = bank.columns(bank.digests[:n_experts])
    return Piece(
        ids=prompt(seed, length), start=0, pages=list(pages), tail=place, columns=columns, top_k=top_k
    )


def drain_with_discards(
    engine: Engine, asked: list[SequenceRequest], pick: random.Random
) -> dict[str, list[TokenEvent]]:
    """All events of requests; many a step is discarded and computed again."""
    for one in asked:
        engine.submit(one)
    said: dict[str, list[TokenEvent]] = {}
    while not engine.idle:
        events = engine.step()
        if pick.random() < 0.4:
            engine.discard()
            continue
        engine.commit()
        for event in events:
            said.setdefault(event.request_id, []).append(event)
    return said


class LocalRanks:
    """Ranks in threads of this process, so that a test can look into them.

    Args:
        folder: for their parts of weights.
        size: how many.
    """

    def __init__(self, folder: Path, size: int = 2) -> None:
        self.folder, self.size = folder, size
        self._parts: list[torch.Tensor | None] = [None] * self.size
        self._barrier = threading.Barrier(self.size, timeout=30)
        cpu = torch.device("cpu")
        self.ranks = [
            Rank(Part(rank=n, n_ranks=self.size), Exchange(lambda mine, n=n: self._gather(n, mine)), cpu)
            for n in range(self.size)
        ]
        self._threads = ThreadPoolExecutor(self.size)

    def ask(self, document: dict[str, Any]) -> list[Message]:
        """As a gang's."""
        return self.ask_each([document] * self.size)

    def ask_each(self, documents: list[dict[str, Any]], **_: Any) -> list[Message]:
        """As a gang's; what is sent is what JSON makes of it."""
        sent = [json.loads(json.dumps(document)) for document in documents]
        return list(self._threads.map(lambda rank, one: rank.obey(one), self.ranks, sent))

    def _gather(self, rank: int, mine: torch.Tensor) -> list[torch.Tensor]:
        self._parts[rank] = mine
        self._barrier.wait()
        found = [part.clone() for part in self._parts if part is not None]
        self._barrier.wait()
        return found


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), half=st.booleans())
def test_two_processes_compute_what_one_does(ranks: Callable[[], Gang], seed: int, half: bool) -> None:
    """Logits and shares of every family, kind, width and set of experts, in one mixed batch."""
    pick = random.Random(seed)
    kinds = ["full", "low_rank"] if half else pick.sample(EXPERT_KINDS, pick.randint(1, 5))
    decoder, experts = random_world(
        seed,
        4,
        kinds=kinds,  # type: ignore[arg-type]
        family=pick.choice(FAMILIES),
        tie_embeddings=pick.random() < 0.5,
        renormalise=pick.random() < 0.5,
        d_ffn=pick.choice([5, 12, 24, 40]),
        n_heads=pick.choice([3, 6]),
        n_kv_heads=3,
        d_head=pick.choice([6, 12]),
    )
    if half:
        for module in (decoder, *experts.values()):
            in_bfloat16(module)
    bank = bank_of(decoder, experts)
    pieces = [piece(bank, seed + n, pick.randint(1, 40), n, pick.randint(1, n + 1), n) for n in (4, 1, 0, 3)]
    pieces = [replace(one, tail=n) for n, one in enumerate(pieces)]
    one = TorchRunner(bank, n_pages=30, n_tails=4).run(pieces)
    two = spread(bank, ranks(), n_pages=30).run(pieces)
    tolerance = 0.3 if half else 3e-4
    assert two.logits_BV.dtype == one.logits_BV.dtype
    assert torch.allclose(two.logits_BV, one.logits_BV, rtol=tolerance, atol=tolerance)
    assert torch.allclose(two.shares_BE, one.shares_BE, atol=0.5 if half else 1e-4)


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_answers_depend_on_nothing_but_their_request(ranks: Callable[[], Gang], seed: int) -> None:
    """Deterministic: neighbours, chunks, reused prefixes and discarded steps change no bit of the events."""
    pick = random.Random(seed)
    world = random_world(seed, 3, kinds=EXPERT_KINDS, family=pick.choice(FAMILIES))
    bank, twin = bank_of(*world), bank_of(*world)
    runner = spread(bank, ranks(), deterministic=True, n_pages=9)
    if not runner.row_exact:
        pytest.skip("torch's kernels do not keep the bits of rows on this machine")
    lengths = [pick.randint(17, 40) for _ in range(4)]
    asked, plain = (
        [
            request(one, f"r{n}", prompt(n % 2, length), one.digests[: 3 - n % 2], 2 + n % 2, max_tokens=4)
            for n, length in enumerate(lengths)
        ]
        for one in (bank, twin)
    )
    engine = Engine(bank, max_sequences=2, max_context=48, runner=runner, prefill_tokens=9, max_waiting=4)
    together = drain_with_discards(engine, asked, pick)
    assert engine.counts.discarded
    assert engine.counts.prefix_hits
    for one in asked:
        alone = Engine(bank, max_sequences=1, max_context=48, runner=runner, prefix_reuse=False)
        assert drain(alone, [one])[one.request_id] == together[one.request_id]
    expected = drain(Engine(twin, max_sequences=4, max_context=48), plain)
    assert {n: tokens(e) for n, e in expected.items()} == {n: tokens(e) for n, e in together.items()}


def test_removal_is_exact_over_ranks(ranks: Callable[[], Gang]) -> None:
    """Poisoned before the ranks had it, poisoned after, removed, never there, come again: equal bits."""
    decoder, experts = random_world(7, 4, kinds=EXPERT_KINDS)
    gone = sorted(experts)[1]
    left = {name: expert for name, expert in experts.items() if name != gone}

    def bits(bank: ExpertBank, runner: ShardedRunner) -> torch.Tensor:
        columns = bank.columns(left)
        asked = [replace(piece(bank, n, 20 - 9 * n, 0, k, n), columns=columns) for n, k in enumerate((2, 4))]
        return runner.run(asked).logits_BV

    never = bank_of(decoder, left)
    expected = bits(never, spread(never, ranks()))
    assert torch.isfinite(expected).all()
    bank = bank_of(decoder, experts)
    bank.poison(gone)
    runner = spread(bank, ranks())
    assert torch.equal(bits(bank, runner), expected)
    bank.add(gone, copy_of(experts[gone]))
    runner.refresh()
    whole = runner.run([piece(bank, 3, 9, 4, 5)]).logits_BV
    assert torch.isfinite(whole).all()
    assert torch.equal(bits(bank, runner), expected)
    bank.poison(gone)
    runner.refresh()
    assert torch.equal(bits(bank, runner), expected)
    bank.remove(gone)
    runner.refresh()
    assert torch.equal(bits(bank, runner), expected)
    bank.add(gone, copy_of(experts[gone]))
    runner.refresh()
    assert torch.equal(runner.run([piece(bank, 3, 9, 4, 5)]).logits_BV, whole)


def test_poison_and_erasure_reach_every_rank(tmp_path: Path) -> None:
    """When refresh returns, each rank's copy holds nothing but NaN; erased pages hold nothing on any."""
    bank = bank_of(*random_world(8, 3, kinds=("full", "int8", "low_rank")))
    local = LocalRanks(tmp_path)
    runner = ShardedRunner(bank, local, n_pages=12, n_tails=2)  # type: ignore[arg-type]
    runner.run([piece(bank, 1, 40, 3, 2)])
    runner.keep([(0, 0)])
    gone = bank.digests[1]
    bank.poison(gone)
    runner.refresh()
    runner.erase([0, 1, 2], [0])
    for rank in local.ranks:
        inner = rank.runner
        assert inner is not None
        floats = [t for t in inner.bank.held(gone).state_dict().values() if t.is_floating_point()]
        assert all(tensor.isnan().all() for tensor in floats)
        assert not any(tensor.any() for tensor in (*inner.keys, *inner.values, *inner.page_sums))
        assert not inner.tail_sums_LND.any()
        assert inner.bank.digests == bank.digests
    # Whoever multiplied it nevertheless would show it: in each rank's logits.
    column = sorted((*bank.digests, gone)).index(gone) + 1
    sick = runner.run([replace(piece(bank, 2, 5, 0, 2), columns=(0, column))])
    assert sick.logits_BV.isnan().all()
    assert torch.isfinite(runner.run([piece(bank, 2, 5, 2, 3)]).logits_BV).all()


def test_states_of_other_numbers_of_ranks_are_never_shared(ranks: Callable[[], Gang]) -> None:
    """The number of ranks is a part of the key of states."""
    bank = bank_of(*random_world(9, 1))
    alone = bank.state_key(bank.digests, top_k=2, consumer="app")
    spread(bank, ranks())
    both = bank.state_key(bank.digests, top_k=2, consumer="app")
    assert both != alone
    assert replace(both, dtype=alone.dtype) == alone


def test_each_rank_holds_its_part_and_no_more(ranks: Callable[[], Gang]) -> None:
    """What a rank maps is half of what is cut, beside what all hold; of the other's part it maps nothing."""
    shape = {"d_model": 64, "d_ffn": 2048, "n_heads": 8, "n_kv_heads": 4, "n_layers": 4}
    decoder, experts = random_world(10, 1, **shape)
    bank, gang = bank_of(decoder, experts), ranks()
    spread(bank, gang)
    sources = [decoder.state_dict(), bank.expert(bank.digests[0]).state_dict()]
    whole = sum(tensor.nbytes for source in sources for tensor in source.values())
    cut = sum(t.nbytes for source in sources for name, t in source.items() if t.dim() == 2)
    cut -= decoder.embed.weight.nbytes
    for rank, pid in enumerate(gang.pids):
        mapped = {"mine": 0, "other": 0}
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
        owner = ""
        for line in lines:
            if "-" in line.split(maxsplit=1)[0]:
                owner = "mine" if f"part{rank}of2" in line else "other" if "of2-" in line else ""
            elif line.startswith("Size:") and owner:
                mapped[owner] += 1024 * int(line.split()[1])
        assert mapped["other"] == 0
        assert abs(mapped["mine"] - (cut / 2 + whole - cut)) < 0.05 * whole


@given(
    n_ranks=st.integers(1, 7),
    heads=st.sampled_from([(8, 8), (14, 7)]),
    d_ffn=st.integers(1, 200),
    seed=st.integers(0, 50),
)
@settings(max_examples=25, deadline=None)
def test_parts_together_are_the_whole(n_ranks: int, heads: tuple[int, int], d_ffn: int, seed: int) -> None:
    """Every weight is in exactly one part; widths end at multiples of a register, filled up with zeros."""
    fields = {"n_heads": heads[0], "n_kv_heads": heads[1], "d_model": 4 * heads[0], "n_layers": 1}
    kind = EXPERT_KINDS[seed % len(EXPERT_KINDS)]
    decoder, experts = random_world(seed, 1, d_ffn=d_ffn, kinds=(kind,), **fields)
    parts = [Part(rank=rank, n_ranks=n_ranks) for rank in range(n_ranks)]
    (expert,) = experts.values()
    for source, cut in ((decoder, base_slices), (expert, expert_slices)):
        slices = [cut(source, part) for part in parts]  # type: ignore[operator]
        for name, tensor in source.state_dict().items():
            if tensor.dim() == 2 and "embed" not in name and ".pieces." not in name:
                pieces = [one[name].double().abs().sum() for one in slices]
                whole = n_ranks if name.endswith(("gate.a", "up.a", "down.b")) else 1
                assert torch.allclose(sum(pieces) / whole, tensor.double().abs().sum())  # type: ignore[arg-type]
    shapes = [part_shape(decoder.shape, part) for part in parts]
    assert sum(shape.n_kv_heads for shape in shapes) == heads[1]
    assert all(shape.d_ffn % UNIT == 0 and shape.head_dim == 4 for shape in shapes)


def test_too_many_ranks_are_refused(tmp_path: Path) -> None:
    """A base of one key-value head stays whole; nothing is asked of the ranks."""
    bank = bank_of(*random_world(11, 0, n_kv_heads=1))
    with pytest.raises(RanksRefused) as caught:
        ShardedRunner(bank, LocalRanks(tmp_path), n_pages=4, n_tails=1)  # type: ignore[arg-type]
    assert caught.value.facts == {"n_kv_heads": 1, "n_ranks": 2}
    assert bank.ranks == 1


def test_a_rank_killed_in_the_middle_of_a_step_ends_the_runner(ranks: Callable[[], Gang]) -> None:
    """The step fails with a typed error, every rank is gone, and whatever is asked later is refused too."""
    gang = ranks()
    bank = bank_of(*random_world(12, 1))
    runner = spread(bank, gang)
    os.kill(gang.pids[1], signal.SIGSTOP)  # so that the step cannot end before the kill
    with ThreadPoolExecutor(1) as threads:
        step = threads.submit(runner.run, [piece(bank, 1, 20, 1, 2)])
        os.kill(gang.pids[1], signal.SIGKILL)
        with pytest.raises(RankLost):
            step.result(timeout=50)
    assert not gang.alive
    for pid in gang.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    for ask in (runner.refresh, partial(runner.erase, [0]), partial(runner.run, [piece(bank, 1, 2, 0, 1)])):
        with pytest.raises(RankLost):
            ask()


def test_silence_failure_and_disagreement_end_a_gang() -> None:
    """A rank that does not answer in time, one that says that it failed, and two that differ."""
    pairs = [socket.socketpair() for _ in range(2)]
    silent = Gang([ours for ours, _ in pairs], patience_s=0.05)
    pairs[0][1].sendall(encode(Message(document={})))
    with pytest.raises(RankLost, match="does not answer"):
        silent.ask({"do": "refresh"})
    assert not silent.alive
    assert receive(pairs[1][1]).document == {"do": "refresh"}
    pairs = [socket.socketpair() for _ in range(2)]
    failing = Gang([ours for ours, _ in pairs], patience_s=30)
    pairs[1][1].sendall(encode(Message(document={"failed": "OutOfMemoryError"})))
    with pytest.raises(RankLost, match="OutOfMemoryError"):
        failing.ask({"do": "refresh"})


def test_ranks_that_choose_other_experts_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks compute what one does; a step in which one's routing differs never becomes a result."""
    bank = bank_of(*random_world(13, 2, n_heads=3, n_kv_heads=3, kinds=("split", "low_rank")))
    local = LocalRanks(tmp_path, size=3)
    runner = ShardedRunner(bank, local, n_pages=12, n_tails=2)  # type: ignore[arg-type]
    expected = TorchRunner(bank, n_pages=12, n_tails=2).run([piece(bank, 1, 9, 2, 2)]).logits_BV
    assert torch.allclose(runner.run([piece(bank, 1, 9, 2, 2)]).logits_BV, expected, rtol=3e-4, atol=3e-4)
    inner = local.ranks[1].runner
    assert inner is not None
    with torch.no_grad():
        inner.bank.decoder.layer(1).router.row.add_(5.0)
    inner.bank.install(
        CheckedExpert(digest=bank.digests[0], expert=inner.bank.held(bank.digests[0]), router="")
    )
    inner.refresh()
    monkeypatch.setattr(local, "close", lambda: None, raising=False)
    with pytest.raises(RankLost, match="do not agree"):
        runner.run([piece(bank, 1, 9, 2, 2)])


def test_sums_are_added_in_rank_order_and_wide() -> None:
    """Three ranks' parts in bfloat16: as fp32 adds them from the first to the last, every bit."""
    parts = [torch.randn(5, 7).bfloat16() * scale for scale in (1e3, 1.0, -1e3)]
    exchange = Exchange(lambda _: [part.view(-1).view(torch.uint8) for part in parts])
    wide = (parts[0].float() + parts[1].float()) + parts[2].float()
    assert torch.equal(exchange.sum(parts[1]), wide.bfloat16())


def test_every_rank_gets_every_part_however_long() -> None:
    """Four ranks at once, with parts longer than any buffer of a line: the same on all, in rank order."""
    lines: list[dict[int, socket.socket]] = [{} for _ in range(4)]
    for low, high in combinations(range(4), 2):
        lines[low][high], lines[high][low] = socket.socketpair()
    parts = [torch.full((3_000_000,), number, dtype=torch.uint8) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda number: over_lines(number, lines[number])(parts[number]), range(4))
        assert all(torch.equal(torch.stack(one), torch.stack(parts)) for one in found)
    for line in (line for others in lines for line in others.values()):
        line.close()


@given(
    document=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=3),
)
@settings(max_examples=20, deadline=None)
def test_messages_arrive_as_they_were_sent(document: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
    """Documents and tensors of any shape, empty ones too."""
    sent = [torch.randn(size, dtype=(torch.float32, torch.float64)[n % 2]) for n, size in enumerate(sizes)]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode(Message(document=document, tensors=sent)))
        came = receive(theirs)
    assert came.document == document
    assert len(came.tensors) == len(sent)
    assert all(
        torch.equal(one, other) and one.dtype == other.dtype
        for one, other in zip(came.tensors, sent, strict=True)
    )
