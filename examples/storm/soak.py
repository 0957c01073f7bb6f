# SPDX-License-Identifier: Apache-2.0
"""``make soak``: random load for twenty minutes, with clients that leave, publications and killed replicas.

At the end nothing may have grown (memory, open files, pages of keys and values), and what clients received,
what hosts journaled and what the office metered must agree. Exits 1 where it does not.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.home import Home
from cluster.ray_node import processes_of
from cluster.run_file import RunFile
from cluster.settings import Settings
from examples.chaos.__main__ import free_port
from examples.chaos.evidence import Rows, journaled
from examples.storm import judge, play
from examples.storm.ending import perform
from examples.storm.goods import SMALL
from examples.storm.hosts import Orders
from examples.storm.house import KERNELS, ServedHouse
from examples.storm.money import judge_money
from examples.storm.publisher import Publisher
from examples.storm.streams import Crowd, Load
from examples.storm.town import Town, found

_PARTS = ("WatchedHost", "Gateway", "OfficeActor", "WatchedReconciler", "Foreman")
_LASTING = ("WatchedHost", "Gateway", "OfficeActor")
_EVERY_S = 5.0
# Allocators and caches settle in a process's first minutes; what grows for ever goes on growing after them.
_GROWTH_BYTES_PER_MINUTE = 3 << 20
_MORE_FILES = 24
_WARM_SHARE = 0.4
_OLD_ENOUGH_S = 240.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One process at one moment.

    Attributes:
        part: what it is.
        at_s: since the beginning.
        memory_bytes: proportional share of all its memory.
        files: open file descriptors.
    """

    part: str
    at_s: float
    memory_bytes: int
    files: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """What became of one process between the end of its first minutes and its own end.

    Attributes:
        bytes_per_minute: slope of its memory.
        files_before: files open at first.
        files_after: files open at last.
    """

    bytes_per_minute: float
    files_before: int
    files_after: int

    @property
    def of_memory(self) -> bool:
        """Whether its memory grows beyond what is put down to noise."""
        return self.bytes_per_minute > _GROWTH_BYTES_PER_MINUTE

    @property
    def of_files(self) -> bool:
        """Whether it keeps files open."""
        return self.files_after > self.files_before + _MORE_FILES


def slope_per_minute(samples: list[Sample]) -> float:
    """Growth in bytes a minute: the straight line of least squares through samples."""
    if len(samples) < 3:
        return 0.0
    line = statistics.linear_regression(
        [one.at_s / 60 for one in samples], [float(one.memory_bytes) for one in samples]
    )
    return line.slope


def growth_of(samples: list[Sample]) -> Growth | None:
    """How one process grew after its first minutes; None where it did not live long enough to say.

    The first part of its life counts as warming up. Open files follow the number of clients from moment to
    moment, so medians of the first and the last quarter are compared.
    """
    if not samples or samples[-1].at_s - samples[0].at_s < _OLD_ENOUGH_S:
        return None
    warm_s = samples[0].at_s + _WARM_SHARE * (samples[-1].at_s - samples[0].at_s)
    late = [one for one in samples if one.at_s >= warm_s]
    quarter = max(1, len(late) // 4)
    return Growth(
        bytes_per_minute=slope_per_minute(late),
        files_before=statistics.median_low(one.files for one in late[:quarter]),
        files_after=statistics.median_low(one.files for one in late[-quarter:]),
    )


class Watcher(threading.Thread):
    """Samples every process of the service.

    Args:
        house: whose.
    """

    def __init__(self, house: ServedHouse) -> None:
        super().__init__(name="watcher", daemon=True)
        self._house = house
        self._stopping = threading.Event()
        self.samples: dict[int, list[Sample]] = defaultdict(list)

    def run(self) -> None:
        """Samples until it is told to stop."""
        began = time.monotonic()
        run = RunFile.model_validate(Home(self._house.home).read_run() or {}).ray
        while run is not None and not self._stopping.wait(_EVERY_S):
            for process in processes_of(run.run_id):
                with contextlib.suppress(psutil.Error, OSError):
                    line = " ".join(process.cmdline())
                    part = next((one for one in _PARTS if one in line), "")
                    if part:
                        memory = _pss_bytes(process.pid)
                        sample = Sample(
                            part=part,
                            at_s=time.monotonic() - began,
                            memory_bytes=memory,
                            files=process.num_fds(),
                        )
                        self.samples[process.pid].append(sample)

    def stop(self) -> None:
        """Ends sampling."""
        self._stopping.set()
        self.join(30)


def _pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


class Soak:
    """One soak.

    Args:
        options: of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folder: Path = options.folder.absolute()
        self._chance = random.Random(options.seed)  # noqa: S311  (moments, not secrets)
        self.house = ServedHouse(
            home=self._folder / "home",
            port=free_port(),
            settings={
                "starter_base": "none",
                "kernels_folder": str(KERNELS),
                "ray_cpus": "4",
                "start_timeout_s": "240",
                "host_replicas": str(options.replicas),
                "host_sequences": "24",
                "host_context": "128",
            },
        )
        self.verdict = judge.Verdict()
        self._kills = self._publications = 0

    def run(self) -> None:
        """Founds, soaks, takes down and judges."""
        settings = Settings(home=self.house.home, starter_base="none")
        town = found(settings, self._folder / "scratch", sizes=SMALL)
        record = self._folder / "record"
        try:
            self.house.watched_up(Orders(record=str(record)))
            play.wait_for_servers(self.house, town, self._options.replicas, timeout_s=180)
            crowd, publisher, watcher = self._soak(town)
        finally:
            self.house.down()
        self._judge_growth(watcher)
        self._judge_books(town, crowd, publisher, record)

    def _soak(self, town: Town) -> tuple[Crowd, Publisher, Watcher]:
        options = self._options
        prompts = tuple(f"def task_{number}(text):\n    return text" for number in range(12))
        load = Load(streams=options.streams, tokens=(4, 90), prompts=prompts, leaving=0.2)
        crowd = Crowd(self.house.url, town.keys, town.endpoints, load)
        publisher, watcher = Publisher(self.house.client, town), Watcher(self.house)
        crowd.start()
        watcher.start()
        began = time.monotonic()
        ends, next_kill, next_word = began + 60 * options.minutes, began + options.kill_every_s, began
        while time.monotonic() < ends:
            if time.monotonic() > next_kill:
                self._kill()
                next_kill = time.monotonic() + options.kill_every_s * self._chance.uniform(0.5, 1.5)
            self._publish(publisher, town)
            if time.monotonic() > next_word:
                left_min = (ends - time.monotonic()) / 60
                print(
                    f"{left_min:5.1f} min to go: {len(crowd.answers)} answers, {self._publications} "
                    f"publications, {self._kills} replicas killed",
                    flush=True,
                )
                next_word = time.monotonic() + 30
            time.sleep(self._chance.uniform(0.1, 2.0))
        crowd.stop()
        publisher.close()
        home = Home(self.house.home)
        play.settled(
            lambda: (judge.tokens_of(journaled(home)), judge.tokens_of(Rows(home).usage())), timeout_s=90
        )
        watcher.stop()
        return crowd, publisher, watcher

    def _kill(self) -> None:
        hosts = self.house.hosts()
        if len(hosts) < self._options.replicas:
            return  # the last one that was killed has not come back yet
        # The eldest is spared, so that one of them grows old enough to show a leak.
        self._chance.choice(sorted(hosts, key=lambda one: one.create_time())[1:] or hosts).kill()
        self._kills += 1

    def _publish(self, publisher: Publisher, town: Town) -> None:
        ware = self._chance.choice(town.wares)
        if publisher.has(ware):
            publisher.withdraw(ware)
        else:
            publisher.give(ware)
        self._publications += 1

    def _judge_growth(self, watcher: Watcher) -> None:
        growing, files, told = [], [], set()
        for pid, samples in watcher.samples.items():
            growth, last = growth_of(samples), samples[-1]
            if growth is None:
                continue
            told.add(last.part)
            if growth.of_memory:
                growing.append(f"{last.part} {pid} grows by {growth.bytes_per_minute / 1e6:.1f} MB a minute")
            if growth.of_files:
                files.append(
                    f"{last.part} {pid} has {growth.files_after} files open, {growth.files_before} before"
                )
            name = f"{last.part} {pid}: MB, growth in kB a minute, files"
            print(
                f"  {name:<58} {last.memory_bytes / 1e6:8.1f} {growth.bytes_per_minute / 1e3:9.0f} "
                f"{growth.files_after:6}"
            )
        self.verdict.say(growing, "processes that grow")
        self.verdict.say(files, "processes that keep files open")
        # A short soak shows nothing of growth; a long one that saw no process grow old saw nothing either.
        unseen = set(_LASTING) - told if 60 * self._options.minutes > 2 * _OLD_ENOUGH_S else set()
        self.verdict.say(sorted(unseen), "parts of which no process lived long enough")

    def _judge_books(self, town: Town, crowd: Crowd, publisher: Publisher, record: Path) -> None:
        verdict, home = self.verdict, Home(self.house.home)
        metered = Rows(home).usage()
        forbidden = judge.Forbidden.of(publisher.acts, town.digests)
        engines = judge.judge_engines(record, forbidden, metered, SMALL.n_layers, verdict)
        judge.judge_books(journaled(home), metered, verdict)
        judge.judge_receipts(crowd.answers, metered, town.digests, verdict)
        judge_money(Rows(home), verdict)
        kept = [
            f"{one.server} still holds {one.used_pages} pages when idle" for one in engines if one.used_pages
        ]
        verdict.say(kept, "pages that are not given back")
        failed = [one for one in crowd.answers if one.failed]
        verdict.say([f"{one.request_id} {one.failed}" for one in failed], "failed requests")
        verdict.figures |= {
            "answers": len(crowd.answers),
            "answers whose client left": sum(not one.ended and not one.failed for one in crowd.answers),
            "tokens": sum(len(one.tokens) for one in crowd.answers),
            "told to come again": sum(crowd.busy.values()),
            "publications": self._publications,
            "replicas killed": self._kills,
        }


def main() -> int:
    """Soaks; 0 if nothing leaks and nothing is lost or doubled."""
    options = _options()
    status, _ = perform(options.folder, lambda: Soak(options), held="Nothing leaked or got lost.")
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="how long")
    parser.add_argument("--replicas", type=int, default=2, help="model hosts of the base")
    parser.add_argument("--streams", type=int, default=24, help="clients")
    parser.add_argument("--kill-every-s", type=float, default=60, help="about how often a replica is killed")
    parser.add_argument("--seed", type=int, default=1, help="of what happens when")
    parser.add_argument("--folder", type=Path, default=Path("build/soak"), help="where everything happens")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
