# SPDX-License-Identifier: Apache-2.0
"""``make memory``: what fifty endpoints over sixteen experts cost on one node, and what a publication costs.

Weights are counted over all replicas: the proportional share of every mapped weight file, plus what the
replicas hold beyond those of a tiny model and their pages of keys and values. Prints what was measured, and
exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from cluster.hosting.facts import HostSettings
from cluster.settings import Settings
from examples.chaos.__main__ import free_port
from examples.demo.house import HouseFailed
from examples.storm import play
from examples.storm.goods import SMALL, Sizes
from examples.storm.hosts import Orders
from examples.storm.house import KERNELS, ServedHouse
from examples.storm.local import LocalHouse
from examples.storm.publisher import Publisher
from examples.storm.streams import Answer, Crowd, Load, Refused, ask
from examples.storm.town import Town, found
from model_core.errors import ProductError

PROMPT = "def wrap(text, width):\n    lines = []\n    for line in text.splitlines():\n"
PARTS = ("weights", "prefixes", "arrival")
_WEIGHTS = ("/artifacts/", ".safetensors", "/derived/", "/weights/")


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Memory of all replicas of a base together, in bytes.

    Attributes:
        mapped: proportional share of weight files, private changes of them included.
        anonymous: everything that no file stands behind.
    """

    mapped: int
    anonymous: int


def held_by(processes: list[psutil.Process]) -> Held:
    """Reads what processes hold, from the kernel's own account of every mapping."""
    mapped = anonymous = 0
    for process in processes:
        for path, facts in mappings(Path(f"/proc/{process.pid}/smaps").read_text()):
            if any(mark in path for mark in _WEIGHTS):
                mapped += facts.get("Pss", 0)
            else:
                anonymous += facts.get("Anonymous", 0)
    return Held(mapped=mapped * 1024, anonymous=anonymous * 1024)


def mappings(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Path and kibibytes by name of every mapping in a ``smaps`` file."""
    path, facts = "", {}
    for line in text.splitlines():
        head, _, rest = line.partition(" ")
        if not head.endswith(":"):
            if facts:
                yield path, facts
            parts = line.split(maxsplit=5)
            path, facts = (parts[5] if len(parts) > 5 else ""), {}
        elif rest.strip().endswith("kB"):
            facts[head[:-1]] = int(rest.split()[0])
    if facts:
        yield path, facts


@contextmanager
def _house(
    folder: Path, sizes: Sizes, *, endpoints: int, replicas: int
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
            "host_context": "128",
        },
    )
    settings = Settings(home=house.home, starter_base="none")
    town = found(settings, folder / "scratch", endpoints=endpoints, sizes=sizes)
    shutil.rmtree(folder / "scratch")
    try:
        house.watched_up(Orders(record=str(folder / "record")))
        play.wait_for_servers(house, town, replicas, timeout_s=180)
        yield house, town
    finally:
        house.down()


def _ask_everywhere(house: play.Place, town: Town, *, times: int, tokens: int) -> int:
    """The same prompt under every set; how many answers came whole."""

    async def one(http: httpx.AsyncClient, name: str, gate: asyncio.Semaphore) -> bool:
        answer = Answer(endpoint=name)
        async with gate:
            await ask(
                http, town.keys[town.endpoints[name][0]], answer, {"prompt": PROMPT, "max_tokens": tokens}
            )
        return answer.ended

    async def everything() -> int:
        gate = asyncio.Semaphore(6)
        async with httpx.AsyncClient(base_url=house.url, timeout=120, trust_env=False) as http:
            asked = [one(http, name, gate) for name in sorted(town.endpoints) for _ in range(times)]
            return sum(await asyncio.gather(*asked))

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

    def weights(self, dtype: str) -> None:
        """What all replicas hold of one base and sixteen experts."""
        options = self._options
        held = {}
        for size in ("tiny", "large"):
            sizes = SMALL if size == "tiny" else _large(options, dtype)
            folder = self._folder / f"{size}-{dtype}"
            with _house(folder, sizes, endpoints=50, replicas=options.replicas) as (house, town):
                whole = _ask_everywhere(house, town, times=2, tokens=24)
                hosts = house.hosts()
                held[size] = held_by(hosts)
                if size == "large":
                    files = sum(
                        file.stat().st_size for file in house.home.rglob("artifacts/**/*.safetensors")
                    )
                    pages = len(hosts) * _pages_bytes(sizes)
                    self.note(
                        f"{dtype}: replicas, endpoints, whole answers",
                        f"{len(hosts)}, 50, {whole}",
                        whole == 100,
                    )
            shutil.rmtree(folder)
        private = max(0, held["large"].anonymous - held["tiny"].anonymous - pages)
        total = held["large"].mapped + private
        self.note(f"{dtype}: one copy of base and 16 experts", _mb(files))
        self.note(f"{dtype}: weight files, proportional share of all replicas", _mb(held["large"].mapped))
        self.note(f"{dtype}: beyond a tiny model's replicas and pages", _mb(private))
        self.note(f"{dtype}: all of it over one copy", f"{total / files:.2f} x", total <= 1.1 * files)

    def prefixes(self) -> None:
        """A common prompt under fifty sets in little room, and what hundreds of publications leave of it."""
        folder = self._folder / "prefixes"
        settings = Settings(home=folder / "home", starter_base="none")
        town = found(settings, folder / "scratch", endpoints=50, sizes=SMALL)
        choices = HostSettings(max_sequences=8, max_context=128)
        with LocalHouse(settings, town.base_digest, hosts=1, host_settings=choices) as house:
            play.wait_for_servers(house, town, 1, timeout_s=60)
            engine = house.servers[0].room.engine
            whole = _ask_everywhere(house, town, times=3, tokens=24)
            counts = engine.counts
            self.note("50 sets, 1 prompt: whole answers", f"{whole} of 150", whole == 150)
            self.note("pages of keys and values", f"{engine.runner.n_pages}")
            self.note("prefix hits, positions used again", f"{counts.prefix_hits}, {counts.reused_tokens}")
            self.note("pages given back to make room", f"{counts.evicted_pages}", counts.evicted_pages > 0)
            self._publish_beside(house, town, engine)

    def _publish_beside(self, house: LocalHouse, town: Town, engine: object) -> None:
        first = town.wares[0].name
        apart = next(name for name, (_, names) in sorted(town.endpoints.items()) if first not in names)
        single = Town(
            keys=town.keys,
            base_digest=town.base_digest,
            wares=town.wares[:1],
            endpoints={apart: town.endpoints[apart]},
        )
        _ask_everywhere(house, single, times=1, tokens=8)
        before = engine.counts.prefix_hits  # type: ignore[attr-defined]
        publisher = Publisher(house.client, single)
        began = time.monotonic()
        for done in range(0, self._options.publishes, 2):
            publisher.withdraw(town.wares[0])
            publisher.give(town.wares[0])
            if done % 100 == 0:
                print(f"    {done} of {self._options.publishes} publications", flush=True)
        took_s = time.monotonic() - began
        publisher.close()
        whole = _ask_everywhere(house, single, times=1, tokens=8)
        hits = engine.counts.prefix_hits - before  # type: ignore[attr-defined]
        what = f"an untouched set's prefix after {self._options.publishes} publications"
        self.note(what, "hit" if hits else "miss", whole == 1 and hits >= 1)
        self.note("seconds per publication without load", f"{took_s / self._options.publishes:.3f}")

    def arrival(self) -> None:
        """How soon an expert that comes into a live endpoint speaks, and what open streams notice of it."""
        options = self._options
        folder = self._folder / "arrival"
        sizes = _large(options, "fp32")
        with _house(folder, sizes, endpoints=16, replicas=1) as (house, town):
            publisher = Publisher(house.client, town)
            waits, ratios = [], []
            for turn in range(options.arrivals):
                ware = town.wares[turn]
                without = {name: one for name, one in town.endpoints.items() if ware.name not in one[1]}
                publisher.wait_until_acknowledged(publisher.withdraw(ware).epoch, 1, timeout_s=30)
                load = Load(streams=4, tokens=(90, 100), seed=turn)
                crowd = Crowd(house.url, town.keys, without, load)
                crowd.start()
                play.await_streams(crowd, 4, timeout_s=60)
                time.sleep(1.0)
                act = publisher.give(ware)
                name = next(name for name, one in town.endpoints.items() if ware.name in one[1])
                waits.append((_first_token_us(house, town, name, ware.name) - act.told_us) / 1e6)
                time.sleep(0.5)
                crowd.stop()
                ratios.append(_gaps(crowd, act.sent_us, act.told_us + 1_500_000))
            publisher.close()
        shutil.rmtree(folder)
        said = f"{statistics.median(waits):.2f}, at most {max(waits):.2f} s"
        self.note("an expert's first token after its publication", said, max(waits) <= 1)
        for median_ms, largest_ms in ratios:
            holds = largest_ms <= 2 * median_ms + 20
            self.note("open streams' gaps: median, largest", f"{median_ms:.1f}, {largest_ms:.1f} ms", holds)


def _first_token_us(house: play.Place, town: Town, name: str, expert: str) -> int:
    """When the first token of an answer arrived that the expert had a share in."""
    key = town.keys[town.endpoints[name][0]]

    async def until() -> int:
        async with httpx.AsyncClient(base_url=house.url, timeout=60, trust_env=False) as http:
            while True:
                answer = Answer(endpoint=name)
                await ask(http, key, answer, {"prompt": PROMPT, "max_tokens": 8})
                if any(part["experts"].get(expert) for part in answer.segments):
                    return answer.arrivals_us[0]

    return asyncio.run(until())


def _gaps(crowd: Crowd, from_us: int, to_us: int) -> tuple[float, float]:
    """Median gap of all streams, and the largest in a stretch of time, in milliseconds."""
    every, within = [], [0.0]
    for answer in crowd.answers:
        for earlier, later in zip(answer.arrivals_us, answer.arrivals_us[1:], strict=False):
            every.append((later - earlier) / 1000)
            if later >= from_us and earlier <= to_us:
                within.append((later - earlier) / 1000)
    return statistics.median(every), max(within)


def _large(options: argparse.Namespace, dtype: str) -> Sizes:
    width = options.width
    return Sizes(n_layers=4, d_model=width, d_ffn=3 * width, bf16=dtype == "bf16")


def _pages_bytes(sizes: Sizes, sequences: int = 16, context: int = 128) -> int:
    """Keys and values of as many positions as a host of these choices may hold at once."""
    return 2 * sizes.n_layers * sizes.d_model * sequences * context * (2 if sizes.bf16 else 4)


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
            if part == "weights":
                for dtype in options.dtypes.split(","):
                    memory.weights(dtype)
            else:
                getattr(memory, part)()
    except (play.PlayFailed, HouseFailed, ProductError, Refused, httpx.HTTPError) as error:
        print(f"\n{type(error).__name__}: {error}", flush=True)
        return 1
    missed = [what for what, _, holds in memory.rows if holds is False]
    print("\n".join(["", "Missed:", *missed] if missed else ["", "Every bar holds."]))
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make memory", description=__doc__)
    parser.add_argument("--replicas", type=int, default=3, help="model hosts that share the weights")
    parser.add_argument("--width", type=int, default=384, help="of the large model")
    parser.add_argument("--dtypes", default="fp32,bf16", help="of the weights, one after the other")
    parser.add_argument("--publishes", type=int, default=500, help="beside an untouched set")
    parser.add_argument("--arrivals", type=int, default=5, help="experts that come into a live endpoint")
    parser.add_argument("--folder", type=Path, default=Path("build/memory"), help="where everything happens")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["weights", "prefixes", "arrival"],
        choices=["weights", "prefixes", "arrival"],
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
