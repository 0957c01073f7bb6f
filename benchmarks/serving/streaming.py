# SPDX-License-Identifier: Apache-2.0
"""What streaming over HTTP keeps of the engine's speed, at sixteen streams.

A real marketplace is founded and brought up through its own command: gateway, office and model host are
processes of their own on this machine, and the clients are on it too. Then the same installation is served
by one process that is ingress and engine at once. An engine in this process serves the same bundles; both
sides take turns on the same prompts. Counted is everything from the first request to
the last token.
"""

from __future__ import annotations

import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import Row
from benchmarks.serving.arithmetic import Arithmetic, Room
from benchmarks.serving.clients import Door, StreamFailed, stream_all
from benchmarks.serving.ours import Ask, Ours
from benchmarks.serving.processes import Meter, Processes, part_of, per_thousand, this_process
from benchmarks.serving.stage import PREFILL_TOKENS
from benchmarks.serving.trace import median_ratio, take_turns
from cluster.home import Home
from cluster.settings import Settings
from examples.chaos.processes import family
from examples.demo.house import House
from examples.storm.goods import Sizes
from examples.storm.town import Town, found
from model_core.network.bank import ExpertBank
from model_core.packing.manifest import TOKENIZER_FILE
from model_core.text.tokenizer import TextTokenizer

STREAMS = 16
HOP_BAR, ENGINE_BAR = 0.65, 0.8
# As the smaller shape, but for a vocabulary that a tokenizer of no training data has.
SHAPE = Sizes(n_layers=8, d_model=512, d_ffn=1408, max_positions=512)
_EXPERTS, _TOP_K = 7, 2
_CONTEXT = 512
_LETTERS = "abcdefghijklmnopqrstuvwxyz     "


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """Figures of one way in, in tokens per second, round by round.

    Attributes:
        inside: of the engine in this process.
        over_http: that reach the clients.
        cpu_s: processor time of a thousand tokens over HTTP in seconds, by part of the service.
        inside_cpu_s: the same of the engine in this process.
    """

    inside: list[float]
    over_http: list[float]
    cpu_s: dict[str, float] = field(default_factory=dict)
    inside_cpu_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Streaming:
    """Figures of the comparison.

    Attributes:
        hop: gateway and model host are processes of their own, as ``marketplace up`` starts them.
        one: HTTP server and engine are one process.
    """

    hop: Way
    one: Way

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Streaming:
        """From what ``to_json`` gave."""
        return cls(hop=Way(**document["hop"]), one=Way(**document["one"]))


def measure_streaming(
    *,
    arithmetic: Arithmetic,
    threads: int,
    sizes: Sizes = SHAPE,
    new_tokens: int = 128,
    rounds: int = 5,
) -> Streaming:
    """Founds a marketplace, brings it up each way, lets it and an engine take turns, and takes it down."""
    folder = Path(tempfile.mkdtemp(prefix="bench-streaming-"))
    try:
        town = found(
            Settings(home=folder / "home", starter_base="none"),
            folder / "scratch",
            experts=_EXPERTS,
            endpoints=1,
            set_size=_EXPERTS,
            top_k=_TOP_K,
            sizes=sizes,
        )
        bank = _bank(folder / "scratch", town)
        tokenizer = TextTokenizer.load(folder / "scratch" / "base" / TOKENIZER_FILE)

        def measure(served: Served) -> Way:
            return _measure(bank, tokenizer, served, arithmetic, new_tokens=new_tokens, rounds=rounds)

        with _up(folder / "home", town, threads=threads, kernels=arithmetic.kernels) as served:
            hop = measure(served)
        with _one_process(folder / "home", town, threads=threads, kernels=arithmetic.kernels) as served:
            return Streaming(hop=hop, one=measure(served))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A service that is up.

    Attributes:
        door: where to ask.
        processes: of which it consists.
        part: how each of them is called, by its command line.
    """

    door: Door
    processes: Processes
    part: Callable[[str], str] = part_of


def _measure(
    bank: ExpertBank,
    tokenizer: TextTokenizer,
    served: Served,
    arithmetic: Arithmetic,
    *,
    new_tokens: int,
    rounds: int,
) -> Way:
    room = Room(sequences=STREAMS, context=_CONTEXT, prefill_tokens=PREFILL_TOKENS)
    engine = Ours(bank, arithmetic=arithmetic, room=room, top_k=_TOP_K)
    service, clients = Meter(served.processes, served.part), Meter(this_process, lambda _: "clients")
    alone, computed = Meter(this_process), 0

    def turn(number: int) -> float:
        nonlocal computed
        prompts = [tokenizer.encode(text) for text in texts(number)]
        trace = engine.turn([Ask(prompt=prompt, experts=bank.digests) for prompt in prompts], new_tokens)
        produced = sum(len(tokens) for tokens in trace.tokens)
        computed += produced
        return produced / (max(moments[-1] for moments in trace.moments_s) - trace.began_s)

    def streams(number: int) -> float:
        return STREAMS * new_tokens / stream_all(served.door, texts(number), new_tokens)

    def inside(number: int) -> float:
        return alone.run(lambda: turn(number))

    def over_http(number: int) -> float:
        return clients.run(lambda: service.run(lambda: streams(number)))

    taken = take_turns({"inside": inside, "over_http": over_http}, rounds=rounds)
    engine.close()
    streamed = (rounds + 1) * STREAMS * new_tokens  # processor time is counted in every round
    spent_s = per_thousand(service.spent_s + clients.spent_s, streamed)
    return Way(**taken, cpu_s=spent_s, inside_cpu_s=1000.0 * alone.spent_s.total() / computed)


def texts(number: int) -> list[str]:
    """The prompts of a round."""
    draw = random.Random(number)  # noqa: S311  (prompts, not secrets)
    return ["".join(draw.choices(_LETTERS, k=96)) for _ in range(STREAMS)]


def _bank(scratch: Path, town: Town) -> ExpertBank:
    bank = ExpertBank.open(town.base_digest, scratch / "base")
    for ware in town.wares:
        bank.add_folder(ware.digest, scratch / ware.name)
    return bank


@contextmanager
def _up(home: Path, town: Town, *, threads: int, kernels: Path | None) -> Iterator[Served]:
    settings = {
        "starter_base": "none",
        "threads": str(threads),
        "host_sequences": str(STREAMS),
        "host_context": str(_CONTEXT),
        "start_timeout_s": "240",
        "host_kernels": str(kernels is not None).lower(),
    }
    house = House(home=home, port=_free_port(), settings=settings)
    try:
        house.command("up", quiet=True)
        door = _door(house.port, town)
        _await_answer(door)
        yield Served(door=door, processes=lambda: family(Home(home)))
    finally:
        house.command("down", quiet=True)


@contextmanager
def _one_process(home: Path, town: Town, *, threads: int, kernels: Path | None) -> Iterator[Served]:
    figures = {"threads": threads, "sequences": STREAMS, "context": _CONTEXT}
    options = [f"--{name}={value}" for name, value in figures.items()]
    if kernels is not None:
        options.append(f"--kernels={kernels.resolve()}")
    command = [sys.executable, "-m", "benchmarks.serving.one_process", "--home", str(home)]
    with subprocess.Popen(
        [*command, "--base", town.base_digest, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None  # noqa: S101  (both are pipes)
        assert process.stdout is not None  # noqa: S101
        try:
            door = _door(int(process.stdout.readline()), town)
            _await_answer(door)
            itself = psutil.Process(process.pid)
            yield Served(door=door, processes=lambda: [itself], part=lambda _: "the one process")
        finally:
            process.stdin.close()


def _door(port: int, town: Town) -> Door:
    name, (tenant, _) = next(iter(town.endpoints.items()))
    return Door(port=port, key=town.keys[tenant], model=name)


def _await_answer(door: Door, *, patience_s: float = 180.0) -> None:
    """Asks until the model host has loaded the experts and answers."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            stream_all(door, ["hello"], 2)
        except (StreamFailed, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rows_of_streaming(measured: Streaming) -> list[Row]:
    """Rows of the comparison."""
    return [
        *_rows(measured.hop, "with a routing hop", bar=HOP_BAR),
        *_rows(measured.one, "from the engine's own process", bar=ENGINE_BAR),
    ]


def _rows(way: Way, how: str, *, bar: float) -> list[Row]:
    ratio = median_ratio(way.over_http, way.inside)
    speed = Row(
        name=f"streaming over HTTP {how} against the engine in process, {STREAMS} streams",
        ours=statistics.median(way.over_http),
        peer=statistics.median(way.inside),
        ratio=ratio,
        unit="tokens/s",
        bar=f">= {bar:g}",
        holds=ratio >= bar,
    )
    unit = "CPU s per 1,000 tokens"
    parts = sorted(way.cpu_s.items(), key=lambda part: -part[1])
    spent = [Row(name=f"streaming {how}, time of {part}", ours=cost, unit=unit) for part, cost in parts]
    if parts:
        whole, alone = sum(way.cpu_s.values()), way.inside_cpu_s
        name = f"streaming {how}, time of all processes against the engine in process"
        spent.insert(0, Row(name=name, ours=whole, peer=alone, ratio=whole / alone, unit=unit))
    return [speed, *spent]
