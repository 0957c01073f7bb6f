# SPDX-License-Identifier: Apache-2.0
"""``make storm``: many streams over several replicas while experts are withdrawn from under them.

Prints what was measured and exits 1 if one promise does not hold. With ``--mutant`` hosts acknowledge
withdrawals without masking, and it exits 1 if that goes unnoticed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from cluster.home import Home
from cluster.settings import Settings
from examples.chaos.__main__ import free_port
from examples.chaos.evidence import Rows, journaled
from examples.storm import judge, play
from examples.storm.ending import perform
from examples.storm.goods import Sizes
from examples.storm.hosts import Orders, pace_file
from examples.storm.house import KERNELS, ServedHouse
from examples.storm.money import judge_money
from examples.storm.phases import phase_figures
from examples.storm.publisher import Publisher
from examples.storm.streams import Crowd, Load
from examples.storm.town import Town, found

FAULTS = ("paused", "cut", "killed")


class Storm:
    """One storm.

    Args:
        options: of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folder: Path = options.folder.absolute()
        self._sizes = Sizes(n_layers=options.layers, d_model=options.width, d_ffn=2 * options.width)
        per_replica = -(-options.streams // options.replicas)
        self.house = ServedHouse(
            home=self._folder / "home",
            port=free_port(),
            settings={
                "starter_base": "none",
                "kernels_folder": str(KERNELS),
                "ray_cpus": "4",
                "start_timeout_s": "240",
                "host_replicas": str(options.replicas),
                "host_sequences": str(max(16, per_replica * 2)),
                "host_context": "128",
                "host_keeps_withdrawn": "false" if options.mutant else "true",
            },
        )
        self.verdict = judge.Verdict()
        self._began_us = time.time_ns() // 1000

    def run(self) -> None:
        """Founds, plays, takes down and judges."""
        options = self._options
        settings = Settings(home=self.house.home, starter_base="none")
        town = found(
            settings, self._folder / "scratch", experts=16, endpoints=16, set_size=4, sizes=self._sizes
        )
        record = self._folder / "record"
        try:
            pace_s = options.step_ms / 1000
            orders = Orders(record=str(record), forget_mask=options.mutant, pace_s=pace_s)
            up_s = self.house.watched_up(orders)
            play.wait_for_servers(self.house, town, options.replicas, timeout_s=120)
            self._say(f"{options.replicas} replicas of a base up in {up_s:.0f} s, 16 experts, 16 endpoints.")
            if not options.mutant:
                self._compare(town)
            crowd, publisher = self._play(town)
        finally:
            self.house.down()
        self._judge(town, crowd, publisher, record)

    def _compare(self, town: Town) -> None:
        began = time.monotonic()
        outcome = play.compare_sets(self.house, town, tokens=24)
        self.verdict.say(outcome.differing, "answers that differ beside others")
        self.verdict.figures["tokens equal beside others"] = outcome.compared
        self.verdict.figures["tokens left out as too narrow"] = outcome.narrow
        self._say(
            f"32 streams over 16 sets, each as alone: {outcome.compared} tokens equal, "
            f"{len(outcome.differing)} answers differ ({time.monotonic() - began:.0f} s)."
        )

    def _play(self, town: Town) -> tuple[Crowd, Publisher]:
        options = self._options
        crowd = Crowd(self.house.url, town.keys, town.endpoints, Load(streams=options.streams))
        publisher = Publisher(self.house.client, town)
        pace_file(self.house.home).touch()
        crowd.start()
        play.await_streams(crowd, options.streams // 2, timeout_s=120)
        self._say(f"{crowd.flowing} streams flow.")
        began = time.monotonic()

        def progress(done: int) -> None:
            if done % max(1, options.cycles // 20) == 0:
                rate, left = (time.monotonic() - began) / done, options.cycles - done
                self._say(
                    f"cycle {done}/{options.cycles}: {crowd.flowing} streams flow, "
                    f"{len(crowd.answers)} answers, {rate:.2f} s a cycle, {rate * left:.0f} s to go"
                )

        play.run_cycles(publisher, town, options.cycles, servers=options.replicas, say=progress, crowd=crowd)
        for turn, fault in enumerate(() if options.mutant else options.faults):
            self._hurt(fault, turn, crowd, publisher, town)
        crowd.stop()
        publisher.close()
        for kind in () if options.mutant else ("key", "budget", "tenant"):
            self._stop(kind, town)
        home = Home(self.house.home)
        play.settled(
            lambda: (judge.tokens_of(journaled(home)), judge.tokens_of(Rows(home).usage())), timeout_s=60
        )
        return crowd, publisher

    def _hurt(self, fault: str, turn: int, crowd: Crowd, publisher: Publisher, town: Town) -> None:
        host = self.house.hosts()[0]
        self._say(f"A host is {fault}.")
        before = len(crowd.answers)
        if fault == "paused":
            with play.paused(host.pid):
                play.withdraw_meanwhile(publisher, town, turn)
        elif fault == "cut":
            with play.cut_off(self.house.home, host.pid):
                play.withdraw_meanwhile(publisher, town, turn)
        else:
            crowd.excused = True
            host.kill()
            play.withdraw_meanwhile(publisher, town, turn)
            time.sleep(5)
            crowd.excused = False
        play.await_streams(crowd, self._options.streams // 2, timeout_s=120)
        self._say(f"a host was {fault}: {len(crowd.answers) - before} answers meanwhile, streams flow again.")

    def _stop(self, kind: str, town: Town) -> None:
        found = play.stop_open_streams(self.house, town, kind, streams=24)
        self._say(f"A {kind} was taken away from {found.open_then} open streams.")
        self.verdict.figures[f"latest token after a {kind} was taken, ms"] = found.after_s * 1000
        if found.after_s > 2.0 + self._options.on_the_way_s or not found.open_then:
            self.verdict.broken.append(f"{found}")

    def _judge(self, town: Town, crowd: Crowd, publisher: Publisher, record: Path) -> None:
        verdict, home = self.verdict, Home(self.house.home)
        rows, digests = Rows(home), town.digests
        forbidden = judge.Forbidden.of(publisher.acts, digests)
        metered = rows.usage()
        engines = judge.judge_engines(record, forbidden, metered, self._sizes.n_layers, verdict)
        judge.judge_books(journaled(home), metered, verdict)
        judge.judge_receipts(crowd.answers, metered, digests, verdict)
        slack_us = int(self._options.on_the_way_s * 1e6)
        judge.judge_releases(crowd.answers, forbidden, digests, slack_us, verdict)
        judge_money(rows, verdict)
        judge.judge_journaled(rows.uses(), rows.commits(), forbidden, verdict)
        failed = [one for one in crowd.answers if one.failed and not one.failed.startswith("excused")]
        verdict.say(
            [
                f"{one.request_id} {one.failed} {self._after_s(one.at_us):.1f} s after the beginning"
                for one in failed
            ],
            "failed requests",
        )
        cycles = publisher.acts[: 2 * self._options.cycles]
        in_use = judge.judge_use(engines, cycles, digests)
        if in_use < self._options.cycles:
            idle = self._options.cycles - in_use
            verdict.broken.append(f"{idle} withdrawals took an expert away that nobody used.")
        ms = judge.acknowledgement_ms(
            list(rows.commits().items()),
            [
                (str(s), int(e), int(at))
                for s, e, at in rows.all("SELECT server_id, epoch, at_us FROM acknowledgements")
            ],
            cycles,
        )
        gaps = judge.gaps_ms(crowd.answers)
        verdict.figures |= {
            "answers": len(crowd.answers),
            "tokens": sum(len(one.tokens) for one in crowd.answers),
            "streams broken by a killed host": sum(one.failed.startswith("excused") for one in crowd.answers),
            "told to come again": sum(crowd.busy.values()),
            "withdrawals of an expert in use": in_use,
            "commit to last acknowledgement p50, ms": judge.percentile(ms, 0.5),
            "commit to last acknowledgement p99, ms": judge.percentile(ms, 0.99),
            **phase_figures(record, rows.commits(), cycles),
            "gap between tokens p99, ms": judge.percentile(gaps, 0.99),
            "gap between tokens, largest, ms": judge.percentile(gaps, 1.0),
        }

    def _after_s(self, at_us: int) -> float:
        return (at_us - self._began_us) / 1e6

    def _say(self, line: str) -> None:
        print(f"{self._after_s(time.time_ns() // 1000):6.1f} s  {line}", flush=True)


def main() -> int:
    """Plays one storm; 0 if every promise held, or with a mutant if it was noticed."""
    options = _options()
    status, verdict = perform(options.folder, lambda: Storm(options), held="Every promise held.")
    if not options.mutant or verdict is None:
        return status
    noticed = verdict.figures["forbidden rows multiplied"] > 0
    print("The mutant was noticed." if noticed else "A host that forgets the mask goes unnoticed.")
    return 0 if noticed else 1


def _faults(text: str) -> tuple[str, ...]:
    chosen = tuple(one for one in text.split(",") if one)
    if unknown := set(chosen) - set(FAULTS):
        raise argparse.ArgumentTypeError(f"There is no fault {sorted(unknown)[0]!r}.")
    return chosen


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make storm", description=__doc__)
    parser.add_argument("--streams", type=int, default=200, help="streams that are open all the time")
    parser.add_argument("--replicas", type=int, default=4, help="model hosts of the base")
    parser.add_argument("--cycles", type=int, default=500, help="withdrawals, each followed by a publication")
    parser.add_argument(
        "--step-ms",
        type=float,
        default=200,
        help="a host begins no step sooner than this after the last one: answers of a model this small would "
        "else be over before anything could happen to them, and clients would take all of the machine",
    )
    parser.add_argument("--layers", type=int, default=2, help="of the base")
    parser.add_argument("--width", type=int, default=64, help="of the base")
    parser.add_argument(
        "--on-the-way-s",
        type=float,
        default=1.0,
        help="how long a released token may be on its way to its client on a busy machine",
    )
    parser.add_argument("--folder", type=Path, default=Path("build/storm"), help="where everything happens")
    parser.add_argument("--mutant", action="store_true", help="hosts forget the mask: must be noticed")
    parser.add_argument(
        "--faults",
        type=_faults,
        default=("paused", "paused", "cut", "killed"),
        help=f"what hosts suffer after the cycles, of {', '.join(FAULTS)}",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
