# SPDX-License-Identifier: Apache-2.0
"""What streaming over HTTP keeps of the engine's speed, at sixteen streams.

A real marketplace is founded and brought up through its own command: gateway, office and model host are
processes of their own on this machine, and the clients are on it too. The same bundles are served by an
engine in this process; both take turns on the same prompts. Counted is everything from the first request to
the last token.
"""

from __future__ import annotations

import random
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Row
from benchmarks.serving.arithmetic import Arithmetic, Room
from benchmarks.serving.clients import Door, StreamFailed, stream_all
from benchmarks.serving.ours import Ask, Ours
from benchmarks.serving.stage import PREFILL_TOKENS
from benchmarks.serving.trace import median_ratio, take_turns
from cluster.settings import Settings
from examples.demo.house import House
from examples.storm.goods import Sizes
from examples.storm.town import Town, found
from model_core.network.bank import ExpertBank
from model_core.packing.manifest import TOKENIZER_FILE
from model_core.text.tokenizer import TextTokenizer

STREAMS = 16
HOP_BAR = 0.65
# As the smaller shape, but for a vocabulary that a tokenizer of no training data has.
SHAPE = Sizes(n_layers=8, d_model=512, d_ffn=1408, max_positions=1024)
_EXPERTS, _TOP_K = 7, 2
_LETTERS = "abcdefghijklmnopqrstuvwxyz     "


@dataclass(frozen=True, kw_only=True, slots=True)
class Streaming:
    """Figures of the comparison.

    Attributes:
        inside: tokens per second of the engine in this process, round by round.
        over_http: tokens per second that reach the clients.
    """

    inside: list[float]
    over_http: list[float]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def measure_streaming(
    *,
    arithmetic: Arithmetic,
    threads: int,
    sizes: Sizes = SHAPE,
    new_tokens: int = 128,
    rounds: int = 5,
) -> Streaming:
    """Founds a marketplace, brings it up, lets both sides take turns, and takes it down."""
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
        with _up(folder / "home", town, threads=threads, context=sizes.max_positions) as door:
            return _measure(bank, tokenizer, door, arithmetic, new_tokens=new_tokens, rounds=rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(
    bank: ExpertBank,
    tokenizer: TextTokenizer,
    door: Door,
    arithmetic: Arithmetic,
    *,
    new_tokens: int,
    rounds: int,
) -> Streaming:
    room = Room(sequences=STREAMS, context=512, prefill_tokens=PREFILL_TOKENS)
    engine = Ours(bank, arithmetic=arithmetic, room=room, top_k=_TOP_K)

    def inside(number: int) -> float:
        prompts = [tokenizer.encode(text) for text in texts(number)]
        trace = engine.turn([Ask(prompt=prompt, experts=bank.digests) for prompt in prompts], new_tokens)
        produced = sum(len(tokens) for tokens in trace.tokens)
        return produced / (max(moments[-1] for moments in trace.moments_s) - trace.began_s)

    def over_http(number: int) -> float:
        return STREAMS * new_tokens / stream_all(door, texts(number), new_tokens)

    taken = take_turns({"inside": inside, "over_http": over_http}, rounds=rounds)
    engine.close()
    return Streaming(**taken)


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
def _up(home: Path, town: Town, *, threads: int, context: int) -> Iterator[Door]:
    name, (tenant, _) = next(iter(town.endpoints.items()))
    settings = {
        "starter_base": "none",
        "threads": str(threads),
        "host_sequences": str(2 * STREAMS),
        "host_context": str(context),
        "start_timeout_s": "240",
    }
    house = House(home=home, port=_free_port(), settings=settings)
    door = Door(port=house.port, key=town.keys[tenant], model=name)
    try:
        house.command("up", quiet=True)
        _await_answer(door)
        yield door
    finally:
        house.command("down", quiet=True)


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
    inside, over_http = measured.inside, measured.over_http
    ratio = median_ratio(over_http, inside)
    return [
        Row(
            name=f"streaming over HTTP with a routing hop against the engine in process, {STREAMS} streams",
            ours=statistics.median(over_http),
            peer=statistics.median(inside),
            ratio=ratio,
            unit="tokens/s",
            bar=f">= {HOP_BAR:g}",
            holds=ratio >= HOP_BAR,
        )
    ]
