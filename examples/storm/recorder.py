# SPDX-License-Identifier: Apache-2.0
"""A witness inside a model host that believes nothing the engine says about itself.

It sits at the call of the matrix product: ``torch.nn.functional.linear`` is replaced by one that looks at the
address of the weights, packed matrices are known by themselves since they have no address, and compiled steps
tell the addresses of what they multiplied. Addresses and matrices are noted
when an expert comes into the bank or is packed, by the digest of the bundle that it was loaded from; how the
engine masks, routes, names its columns or attributes plays no part. What it saw is written line by line to a
file of each engine, in the order in which the engine's thread did it.

Only plays and tests install it: the product has no switch for it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch.nn.functional as F

from cluster.hosting import server as serving
from cluster.hosting.room import EngineRoom
from model_core.engine.engine import Engine
from model_core.engine.native.step import NativeRunner
from model_core.engine.native.weights import matrices
from model_core.engine.weights import PackedFfn, PackedLinear, PackedWeights
from model_core.network.bank import PUBLIC, CheckedExpert, ExpertBank


def short(digest: str) -> str:
    """Enough of a digest to tell experts apart in a long file; ``public`` stays."""
    return digest.removeprefix("sha256:")[:12]


class Recorder:
    """Writes what engines of this process really multiply.

    Args:
        folder: one file per engine is written into it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._here = threading.local()
        self._owner: dict[int, str] = {}  # address of a gate matrix -> digest of its bundle
        self._packs: WeakKeyDictionary[PackedLinear, str] = WeakKeyDictionary()  # the same of packed ones
        self._logs: dict[int, _Log] = {}  # by the identity of an engine
        self._undo: list[tuple[Any, str, Any]] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[Recorder]:
        """Records for the duration of the block."""
        self.install()
        try:
            yield self
        finally:
            for holder, name, original in reversed(self._undo):
                setattr(holder, name, original)
            self._undo.clear()

    def install(self) -> None:
        """Puts the witness in its places, for as long as the process lives."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._around(F, "linear", self._linear)
        for name in ("forward", "silu", "times"):
            self._around(PackedLinear, name, self._packed_product)
        self._around(PackedWeights, "__init__", self._torch_packs)
        self._around(PackedWeights, "prepare", self._torch_prepares)
        self._around(PackedWeights, "_hold", self._torch_holds)
        self._around(ExpertBank, "__init__", self._opened)
        self._around(ExpertBank, "install", self._installed)
        self._around(EngineRoom, "__init__", self._room)
        self._around(EngineRoom, "apply", self._applied)
        self._around(EngineRoom, "_change", self._changed)
        self._around(Engine, "step", self._stepped)
        self._around(Engine, "commit", self._kept)
        self._around(serving.ModelServer, "__init__", self._server)
        self._around(NativeRunner, "__init__", self._native)
        self._around(NativeRunner, "_take_base", self._packed_base)
        self._around(NativeRunner, "_hold", self._packed)
        self._around(NativeRunner, "run", self._native_step)

    def _around(self, holder: Any, name: str, instead: Callable[..., Any]) -> None:
        original = getattr(holder, name)
        self._undo.append((holder, name, original))

        @functools.wraps(original)
        def around(*arguments: Any, **named: Any) -> Any:
            return instead(original, *arguments, **named)

        setattr(holder, name, around)

    # -- at the matrix product ------------------------------------------------------------------------

    def _linear(self, original: Any, x: Any, weight: Any, *rest: Any, **named: Any) -> Any:
        self._count(self._owner.get(weight.data_ptr()), x)
        return original(x, weight, *rest, **named)

    def _packed_product(self, original: Any, matrix: PackedLinear, x: Any, *rest: Any) -> Any:
        self._count(self._packs.get(matrix), x)
        return original(matrix, x, *rest)

    def _count(self, digest: str | None, x: Any) -> None:
        rows = getattr(self._here, "rows", None)
        if digest is not None and rows is not None:
            rows[digest] += x.numel() // x.shape[-1]

    def _native(self, original: Any, runner: NativeRunner, *arguments: Any, **named: Any) -> None:
        original(runner, *arguments, **named)
        runner.record(on=True)

    def _native_step(self, original: Any, runner: NativeRunner, pieces: Any) -> Any:
        answer = original(runner, pieces)
        rows = getattr(self._here, "rows", None)
        if rows is not None:
            for address, count in runner.recorded():
                digest = self._owner.get(address)
                if digest is not None:
                    rows[digest] += count
        return answer

    # -- where weights come from ----------------------------------------------------------------------

    def _packed_base(self, original: Any, runner: NativeRunner) -> Any:
        base = original(runner)
        self._note(PUBLIC, [layer.public for layer in base.layers])
        return base

    def _packed(self, original: Any, runner: NativeRunner, digest: str, *arguments: Any, **named: Any) -> Any:
        held = original(runner, digest, *arguments, **named)
        self._note(short(digest), held.packed.layers)
        return held

    def _torch_packs(self, original: Any, weights: PackedWeights, bank: ExpertBank) -> None:
        original(weights, bank)
        layers = range(bank.shape.n_layers)
        self._note_packed(PUBLIC, [weights.decoder.layer(index).ffn for index in layers])

    def _torch_prepares(self, original: Any, weights: PackedWeights, digest: str, expert: Any) -> None:
        original(weights, digest, expert)
        self._note_packed(short(digest), weights._prepared[digest].layers)

    def _torch_holds(self, original: Any, weights: PackedWeights, name: str) -> Any:
        held = original(weights, name)
        self._note_packed(short(name), held.layers)
        return held

    def _note_packed(self, name: str, layers: Iterable[Any]) -> None:
        for network in layers:
            if isinstance(network, PackedFfn):
                self._packs[network.gate] = name

    def _note(self, name: str, layers: Any) -> None:
        """One matrix of each layer speaks for the network, so that rows are counted once."""
        for layer in layers:
            self._owner[next(matrices(layer.network)).data.data_ptr()] = name

    def _opened(self, original: Any, bank: ExpertBank, *arguments: Any, **named: Any) -> None:
        original(bank, *arguments, **named)
        for index in range(bank.shape.n_layers):
            self._owner[bank.decoder.layer(index).ffn.gate.weight.data_ptr()] = PUBLIC

    def _installed(self, original: Any, bank: ExpertBank, checked: CheckedExpert) -> None:
        original(bank, checked)
        for index in range(len(checked.expert.layers)):
            address = checked.expert.layer(index).ffn.gate.weight.data_ptr()
            self._owner[address] = short(checked.digest)

    # -- what the engine does -------------------------------------------------------------------------

    def _server(self, original: Any, server: Any, *arguments: Any, **named: Any) -> None:
        original(server, *arguments, **named)
        # The office is wrapped here and not patched as a class: it may be a client or the office itself.
        server._office = _Told(server._office, lambda kind, epoch: self._passed(server, kind, epoch))

    def _passed(self, server: Any, kind: str, epoch: int) -> None:
        log = self._logs[id(server.room.engine)]
        log.write(kind=kind, server=server.server_id, epoch=epoch, at_us=_now_us())

    def _room(self, original: Any, room: EngineRoom, *arguments: Any, **named: Any) -> None:
        original(room, *arguments, **named)
        path = self._folder / f"{os.getpid()}-{len(self._logs)}-{time.time_ns()}.jsonl"
        self._logs[id(room.engine)] = _Log(path)

    def _applied(self, original: Any, room: EngineRoom, roster: Any) -> Any:
        answer = original(room, roster)
        self._logs[id(room.engine)].write(kind="applied", epoch=roster.epoch, at_us=_now_us())
        return answer

    def _changed(self, original: Any, room: EngineRoom, choice: Any, *arguments: Any) -> Any:
        again = len(choice.prompt_ids) + len(choice.released_ids)
        self._logs[id(room.engine)].write(kind="recomposed", tokens=again)
        return original(room, choice, *arguments)

    def _stepped(self, original: Any, engine: Engine) -> Any:
        rows: Counter[str] = Counter()
        self._here.rows = rows
        began_us = _now_us()
        try:
            events = original(engine)
        finally:
            self._here.rows = None
            log = self._logs.get(id(engine))
            if log is not None and rows:
                log.write(kind="step", from_us=began_us, to_us=_now_us(), rows=dict(rows))
        if log is not None and events:
            told: Counter[str] = Counter()
            for event in events:
                told.update(event.attribution_ppm)
            log.held = {"ppm": {short(name): ppm for name, ppm in told.items() if ppm}, "tokens": len(events)}
        return events

    def _kept(self, original: Any, engine: Engine) -> None:
        original(engine)
        log = self._logs.get(id(engine))
        if log is not None and log.held:
            log.write(kind="kept", **log.held)
            log.held = {}
        if log is not None and engine.idle:
            log.write(kind="idle", used_pages=engine._store.n_used, at_us=_now_us())


class _Log:
    """One engine's file; a line is with the kernel before the engine goes on, so a killed host loses none."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.held: dict[str, Any] = {}

    def write(self, **facts: Any) -> None:
        os.write(self._descriptor, json.dumps(facts, separators=(",", ":")).encode() + b"\n")


class _Told:
    """The office, with a word to the recorder when news arrives and before an acknowledgement leaves."""

    def __init__(self, office: Any, tell: Callable[[str, int], None]) -> None:
        self._office, self._tell = office, tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._office, name)

    async def acknowledge(self, server_id: str, epoch: int, *rest: Any) -> Any:
        self._tell("acknowledged", epoch)
        return await self._office.acknowledge(server_id, epoch, *rest)

    async def wait_epoch(self, server_id: str, seen_epoch: int, *rest: Any) -> Any:
        news = await self._office.wait_epoch(server_id, seen_epoch, *rest)
        if news.epoch > seen_epoch:
            self._tell("heard", news.epoch)
        return news


def _now_us() -> int:
    return time.time_ns() // 1000
