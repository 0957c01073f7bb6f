# SPDX-License-Identifier: Apache-2.0
"""``make memory``: what fifty endpoints over sixteen experts cost on one node, and what a publication costs.

Weights are counted over all replicas: the proportional share of every mapped weight file, plus what the
replicas hold beyond those of a tiny model, pages of keys and values included. Prints what was measured, and
exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from cluster.hosting.facts import HostSettings
from cluster.settings import Settings
from examples.chaos.__main__ import free_port
from examples.demo.house import HouseFailed
from examples.storm import play
from examples.storm.distant import DistantCrowd, ask_from_afar
from examples.storm.gaps import largest_gap_ms, median_gap_ms
from examples.storm.goods import SMALL, Sizes
from examples.storm.held import Held, held_by
from examples.storm.hosts import Orders
from examples.storm.house import KERNELS, ServedHouse
from examples.storm.local import LocalHouse
from examples.storm.publisher import Publisher
from examples.storm.streams import Answer, Load, Refused, ask
from examples.storm.town import Town, found
from model_core.errors import ProductError

if TYPE_CHECKING:
    from model_core.engine.engine import Engine

PROMPT = "def wrap(text, width):\n    lines = []\n    for line in text.splitlines():\n"
PARTS = ("weights", "prefixes", "arrival")
_APART = 12
_STRETCH_S = 1.5
_STRETCH_US = 1_500_000


@contextmanager
def _house(
    folder: Path, sizes: Sizes, *, endpoints: int, replicas: int, kv_mib: int = 4, watched: bool = True
) -> Iterator[tuple[ServedHouse, Town]]:
    house = ServedHouse(
        home=folder / "home",
        port=free_port(),
        settings={
            "starter_base": "none",
            "kernels_folder": str(KERNELS),
            "ray_cpus": "4",
            "start_timeout_s": "240",
            "host_replicas": str(replicas),
            "host_sequences": "16",
            "host_context": str(sizes.max_positions),
            "host_kv_mib": str(kv_mib),
        },
    )
    settings = Settings(home=house.home, starter_base="none")
    town = found(settings, folder / "scratch", endpoints=endpoints, sizes=sizes)
    shutil.rmtree(folder / "scratch")
    try:
        if watched:
            house.watched_up(Orders(record=str(folder / "record")))
        else:
            house.command("up", quiet=True)
        play.wait_for_servers(house, town, replicas, timeout_s=180)
        yield house, town
    finally:
        house.down()


def _ask(place: play.Place, town: Town, names: list[str], *, tokens: int) -> int:
    """The same prompt of these endpoints; how many answers came whole."""

    async def one(http: httpx.AsyncClient, name: str, gate: asyncio.Semaphore) -> bool:
        answer = Answer(endpoint=name)
        key = town.keys[town.endpoints[name][0]]
        async with gate:
            await ask(http, key, answer, {"prompt": PROMPT, "max_tokens": tokens})
        return answer.ended

    async def everything() -> int:
        gate = asyncio.Semaphore(6)
        async with httpx.AsyncClient(base_url=place.url, timeout=120, trust_env=False) as http:
            return sum(await asyncio.gather(*(one(http, name, gate) for name in names)))

    return asyncio.run(everything())


class Memory:
    """All measurements, with the bars they are held against.

    Args:
        options: of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folder: Path = options.folder.absolute()
        self.rows: list[tuple[str, str, bool | None]] = []

    def note(self, what: str, value: str, holds: bool | None = None) -> None:
        """One line of the table; ``holds`` is None where there is no bar."""
        self.rows.append((what, value, holds))
        verdict = "" if holds is None else ("holds" if holds else "MISSED")
        print(f"  {what:<58} {value:>24}  {verdict}", flush=True)

    def weights(self) -> None:
        """What all replicas hold of one base and sixteen experts, dtype by dtype."""
        _, tiny = self._held(SMALL, "tiny")
        for dtype in self._options.dtypes.split(","):
            files, held = self._held(_large(dtype), dtype)
            private = max(0, held.anonymous - tiny.anonymous)
            total = held.mapped + private
            self.note(f"{dtype}: one copy of base and 16 experts", _mb(files))
            self.note(f"{dtype}: weight files, proportional share of all replicas", _mb(held.mapped))
            self.note(f"{dtype}: beyond a tiny model's replicas, pages included", _mb(private))
            self.note(f"{dtype}: all of it over one copy", f"{total / files:.3f} x", total <= 1.1 * files)

    def _held(self, sizes: Sizes, called: str) -> tuple[int, Held]:
        """Bytes of weight files in the store, and what all replicas hold after every endpoint answered."""
        replicas = self._options.replicas
        folder = self._folder / called
        with _house(folder, sizes, endpoints=50, replicas=replicas) as (house, town):
            whole = _ask(house, town, 2 * sorted(town.endpoints), tokens=24)
            hosts = house.hosts()
            held = held_by(host.pid for host in hosts)
            files = sum(file.stat().st_size for file in house.home.rglob("artifacts/**/*.safetensors"))
            said = f"{len(hosts)}, 50, {whole}"
            self.note(f"{called}: replicas, endpoints, whole answers", said, whole == 100)
        shutil.rmtree(folder)
        return files, held

    def prefixes(self) -> None:
        """A common prompt under fifty sets in little room, and what hundreds of publications leave of it."""
        folder = self._folder / "prefixes"
        settings = Settings(home=folder / "home", starter_base="none")
        town = found(settings, folder / "scratch", endpoints=50, sizes=SMALL)
        choices = HostSettings(
            max_sequences=8,
            max_context=128,
            kv_bytes=2 * 2**20,  # 128 pages; fifty sets leave two hundred
            kernels=KERNELS,
            weights=folder / "home" / "weights",
        )
        with LocalHouse(settings, town.base_digest, hosts=1, host_settings=choices) as house:
            play.wait_for_servers(house, town, 1, timeout_s=60)
            engine = house.servers[0].room.engine
            whole = _ask(house, town, sorted(3 * list(town.endpoints)), tokens=24)
            counts, size = engine.counts, engine.runner.size_bytes()
            self.note("50 sets, 1 prompt: whole answers", f"{whole} of 150", whole == 150)
            said = f"{engine.runner.n_pages}, {_mb(size)}"
            self.note("pages of keys and values, with all scratch space", said, size <= 2 * choices.kv_bytes)
            self.note("pages given back to make room", f"{counts.evicted_pages}", counts.evicted_pages > 0)
            self.note("prefix hits, positions used again", f"{counts.prefix_hits}, {counts.reused_tokens}")
            self._publish_beside(house, town, engine)

    def _publish_beside(self, house: LocalHouse, town: Town, engine: Engine) -> None:
        ware, publishes = town.wares[0], self._options.publishes
        names = sorted(town.endpoints)
        apart = [name for name in names if ware.name not in town.endpoints[name][1]][:_APART]
        touched = next(name for name in names if ware.name in town.endpoints[name][1])
        _ask(house, town, [*apart, touched], tokens=8)
        publisher = Publisher(house.client, town)
        took: list[float] = []
        for done in range(0, publishes, 2):
            for act in (publisher.withdraw, publisher.give):
                began = time.monotonic()
                act(ware)
                took.append(time.monotonic() - began)
            if done % 100 == 0:
                print(f"    {done} of {publishes} publications", flush=True)
        publisher.close()
        before = engine.counts.prefix_hits
        whole = _ask(house, town, apart, tokens=8)
        hits = engine.counts.prefix_hits - before
        what = f"untouched sets' prefixes found after {publishes} publications"
        self.note(what, f"{hits} of {len(apart)}", whole == hits == len(apart))
        _ask(house, town, [touched], tokens=8)
        again = engine.counts.prefix_hits - before - hits
        self.note("a touched set's prefix found", f"{again} of 1", again == 0)
        said = f"{statistics.median(took):.3f}, {max(took):.3f}"
        self.note("seconds per publication: median, largest", said)

    def arrival(self) -> None:
        """How soon an expert that comes into a live endpoint speaks, and what open streams notice of it."""
        options, folder = self._options, self._folder / "arrival"
        # Room for every stream to its end: one that has to wait for pages would count as an arrival's doing.
        # Unwatched: who looks at every product takes time of every step.
        sizes = replace(_large("fp32"), max_positions=1024)
        large = _house(folder, sizes, endpoints=16, replicas=1, kv_mib=64, watched=False)
        with large as (house, town):
            publisher = Publisher(house.client, town)
            # Else the clients' own collections, up to 6 ms at their priority, would count as gaps of streams.
            gc.disable()
            # And their threads' waiting for each other's turn of the interpreter.
            sys.setswitchinterval(0.0005)
            waits = []
            for turn in range(options.arrivals):
                gc.collect()
                ware = town.wares[turn]
                # To the host it is a version that it never had: memory and packed file are gone.
                publisher.wait_until_acknowledged(publisher.withdraw(ware).epoch, 1, timeout_s=30)
                packed = house.home / "weights"
                gone = not list(packed.glob(f"*{ware.digest.removeprefix('sha256:')}*.weights"))
                others = {name: one for name, one in town.endpoints.items() if ware.name not in one[1]}
                load = Load(streams=options.open_streams, tokens=options.tokens, seed=turn)
                crowd = DistantCrowd(house.url, town.keys, others, load)
                crowd.start()
                play.await_streams(crowd, options.open_streams, timeout_s=60)
                time.sleep(_STRETCH_S)
                name = next(name for name, one in town.endpoints.items() if ware.name in one[1])
                act = publisher.give(ware)
                waits.append((_first_token_us(house, town, name, ware.name) - act.told_us) / 1e6)
                time.sleep(_STRETCH_S)
                crowd.stop()
                begin_us, end_us = act.sent_us - _STRETCH_US, act.told_us + _STRETCH_US
                quiet = largest_gap_ms(crowd.answers, begin_us, act.sent_us)
                during = largest_gap_ms(crowd.answers, act.sent_us, end_us)
                median = median_gap_ms(crowd.answers)
                said = f"{median:.1f}, {quiet:.1f}, {during:.1f} ms"
                self.note("open streams' gaps: median, before, during", said, during <= 2 * median + 20)
                whole = sum(answer.ended and not answer.failed for answer in crowd.answers)
                said = f"{whole} of {len(crowd.answers)}"
                self.note("open streams that came whole", said, whole == len(crowd.answers))
                stayed = sum(
                    answer.arrivals_us[0] < begin_us and answer.arrivals_us[-1] > end_us
                    for answer in crowd.answers
                )
                self.note("of them open all the time", f"{stayed} of {options.open_streams}")
                self.note("its packed file was gone before", "yes" if gone else "no", gone)
            publisher.close()
            gc.enable()
        shutil.rmtree(folder)
        said = f"{statistics.median(waits):.2f}, at most {max(waits):.2f} s"
        self.note("a new version's first token after its publication", said, max(waits) <= 1)


def _first_token_us(house: play.Place, town: Town, name: str, expert: str) -> int:
    """When the first token of an endpoint's answer arrived that the expert had a share in."""
    key = town.keys[town.endpoints[name][0]]
    while True:
        answer = Answer(endpoint=name)
        ask_from_afar(house.url, key, answer, {"prompt": PROMPT, "max_tokens": 8})
        if not answer.ended:
            raise play.PlayFailed(f"The answer of {name} did not come to its end.")
        if any(part["experts"].get(expert) for part in answer.segments):
            return answer.arrivals_us[0]


def _large(dtype: str) -> Sizes:
    """Models that weigh about 300 MB in each dtype, so that fixed costs are small beside them."""
    width = {"fp32": 384, "bf16": 512, "int8": 640}[dtype]
    return Sizes(
        n_layers=4, d_model=width, d_ffn=3 * width, bf16=dtype in ("bf16", "int8"), int8=dtype == "int8"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def main() -> int:
    """Measures everything; 0 if every bar holds."""
    options = _options()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True, mode=0o700)
    memory = Memory(options)
    try:
        for part in options.parts:
            getattr(memory, part)()
    except (play.PlayFailed, HouseFailed, ProductError, Refused, httpx.HTTPError) as error:
        print(f"\n{type(error).__name__}: {error}", flush=True)
        return 1
    missed = [what for what, _, holds in memory.rows if holds is False]
    print("\n".join(["", "Missed:", *missed] if missed else ["", "Every bar holds."]))
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make memory", description=__doc__)
    parser.add_argument("--replicas", type=int, default=2, help="model hosts that share the weights")
    parser.add_argument("--dtypes", default="fp32,bf16,int8", help="of the weights, one after the other")
    parser.add_argument("--publishes", type=int, default=500, help="beside an untouched set")
    parser.add_argument("--arrivals", type=int, default=5, help="experts that come into a live endpoint")
    parser.add_argument("--open-streams", type=int, default=4, help="beside every arrival")
    parser.add_argument(
        "--tokens",
        type=int,
        nargs=2,
        default=(900, 990),
        metavar=("FEWEST", "MOST"),
        help="of every open stream; by default it stays open all the time, with 90 100 clients ask anew",
    )
    parser.add_argument("--folder", type=Path, default=Path("build/memory"), help="where everything happens")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=list(PARTS),
        choices=PARTS,
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
