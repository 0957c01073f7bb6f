# SPDX-License-Identifier: Apache-2.0
"""The demo as a sequence of chapters; each says what it does in a line and checks what it promises."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.home import Home
from cluster.hosting.journals import journal_records
from examples import corpus
from examples.demo import acts, measure
from examples.demo.acts import ActFailed
from examples.demo.cast import BUSY_ENDPOINT, LEAVER, OWNERS
from examples.demo.house import House
from examples.demo.people import People, gather
from examples.demo.proof import removed_exactly
from examples.demo.report import write_report
from examples.demo.results import Results
from examples.demo.streams import StreamSet
from examples.demo.tables import print_tables

STREAM_TOKENS = 160
BEFORE_TOKENS = 12
AFTER_TOKENS = 8
TOP_K = 3
PUBLIC_SLACK = 1.02
HELDOUT_DOCUMENTS = 32
HELDOUT_CHARACTERS = 1500


class StoryFailed(ActFailed):
    """A promise of the demo did not hold."""


@dataclass(kw_only=True)
class Story:
    """One run of the demo.

    Attributes:
        console: where it prints.
        house: the marketplace.
        folder: scratch, corpus and report.
        steps: training steps per expert; None takes the recipe's default.
        streams: streams open at the withdrawal.
    """

    console: Console
    house: House
    folder: Path
    steps: int | None
    streams: int
    results: Results = field(default_factory=Results)
    people: People | None = None

    def run(self) -> None:
        """Tells the whole story.

        Raises:
            StoryFailed: a promise did not hold.
        """
        with self._chapter(
            "Bring the marketplace up on the embedded defaults (SQLite, a folder, one Ray head)"
        ):
            self.house.command("up")
        with self._chapter("Collect real text that every installation carries, split by document"):
            domains = corpus.build(self.folder / "corpus")
            for domain in domains.values():
                held = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in domain.text_bytes.items())
                self.console.print(f"  {domain.name:8} {domain.title}: {held}")
        with self._chapter("Make tenants and keys: four owners, one consumer, compliance, an auditor"):
            self.people = people = gather(self.house)
        with self._chapter("Each owner trains an expert alone, in its own locked-in workshop"):
            experts = self._train(people, domains)
        with self._chapter("Permit: rules, listings, consents and grants, each approved by a second person"):
            consents = acts.permit(people, experts)
            base_digest = str(people.operator.call("bases.list")["items"][0]["id"])
            acts.deploy(people, base_digest, top_k=TOP_K)
            acts.wait_until_served(people)
            self.results.verdicts = acts.verdicts(people)
        with self._chapter("Measure bits per byte on held-out documents through the endpoint"):
            texts = measure.heldout(domains, documents=HELDOUT_DOCUMENTS, characters=HELDOUT_CHARACTERS)
            models = self._measure(people, texts, experts)
        with self._chapter("An app asks, and one answer streams"):
            self._ask(people, domains)
        with self._chapter(f"{LEAVER} withdraws while {self.streams} requests run"):
            self._withdraw(people, domains, consents, experts)
        with self._chapter("Measure again, and compare with a process that never held the expert"):
            acts.wait_until_served(people)
            models["after withdrawal"] = self._score(people, texts, None, "after withdrawal")
            self.results.bits = measure.compare(models)
            self._prove_removal(people, domains, experts)
        with self._chapter("Settle what was used"):
            self._settle(people)
        self._check_bits()
        print_tables(self.console, self.results)
        for claim, evidence in self.results.proofs:
            self.console.print(f"[green]✓[/] {claim}: {evidence}")
        write_report(self.results, self.folder / "report.html")
        (self.folder / "results.json").write_text(json.dumps(self.results.document(), indent=1))

    def close(self) -> None:
        """Closes the people's connections."""
        if self.people is not None:
            self.people.close()

    @contextmanager
    def _chapter(self, title: str) -> Iterator[None]:
        self.console.print(f"\n[bold]{title}[/]")
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self.results.timings_s[title] = seconds
        self.console.print(f"  [dim]{seconds:.1f} s[/]")

    def _train(self, people: People, domains: dict[str, corpus.Domain]) -> dict[str, dict[str, Any]]:
        recipe = {} if self.steps is None else {"steps": self.steps}
        jobs = acts.submit_jobs(people, domains, recipe)
        with Progress(
            TextColumn("  {task.description:18}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            console=self.console,
        ) as progress:
            bars = {slug: progress.add_task(slug, total=100, said="queued") for slug in jobs}

            def show(slug: str, job: dict[str, Any], loss: float | None) -> None:
                done = 100.0 if job["state"] == "succeeded" else 100 * _share(job)
                said = f"{job['state']} {job.get('message') or ''}"[:60]
                shown = said if loss is None else f"{said} loss {loss:.3f}"
                progress.update(bars[slug], completed=done, said=shown)

            return acts.follow_jobs(people, jobs, self.results, show)

    def _measure(
        self, people: People, texts: dict[str, list[Any]], experts: dict[str, dict[str, Any]]
    ) -> dict[str, measure.Scores]:
        models = {"base": self._score(people, texts, [], "base")}
        for owner in OWNERS:
            name = str(experts[owner.slug]["name"])
            models[name] = self._score(people, texts, [name], name)
        models["composition"] = self._score(people, texts, None, "composition")
        return models

    def _score(
        self, people: People, texts: dict[str, list[Any]], experts: list[str] | None, title: str
    ) -> measure.Scores:
        with Progress(
            TextColumn("  {task.description:18}"), BarColumn(), TimeElapsedColumn(), console=self.console
        ) as progress:
            bar = progress.add_task(title, total=len(texts))
            return measure.score(
                people.developer, BUSY_ENDPOINT, texts, experts=experts, tick=lambda: progress.advance(bar)
            )

    def _ask(self, people: People, domains: dict[str, corpus.Domain]) -> None:
        prompt = acts.prompts_of(domains["python"], 1)[0]
        self.console.print(f"  [dim]{prompt!r}[/]")
        body = {
            "model": BUSY_ENDPOINT,
            "prompt": prompt,
            "max_tokens": 64,
            "temperature": 0.7,
            "seed": 7,
            "stream": True,
        }
        account: dict[str, Any] = {}
        for event in people.developer.stream("/v1/completions", body):
            for choice in event["choices"]:
                self.console.print(choice["text"], end="", markup=False)
            account = event.get("marketplace") or account
        self.console.print()
        for segment in account["segments"]:
            tokens = max(1, segment["to_token"] - segment["from_token"])
            shares = ", ".join(
                f"{name} {weight / tokens / 1e4:.0f} %" for name, weight in segment["experts"].items()
            )
            self.console.print(f"  [dim]{tokens} tokens at epoch {segment['epoch']}: {shares}[/]")

    def _withdraw(
        self,
        people: People,
        domains: dict[str, corpus.Domain],
        consents: dict[str, list[dict[str, Any]]],
        experts: dict[str, dict[str, Any]],
    ) -> None:
        leaver = next(owner for owner in OWNERS if owner.slug == LEAVER)
        prompts = acts.prompts_of(domains[leaver.domain], self.streams)
        streams = StreamSet(
            lambda: self.house.client(people.developer_key), model=BUSY_ENDPOINT, max_tokens=STREAM_TOKENS
        )
        acts.withdraw_while_running(
            people, streams, prompts, consents, experts, self.results, before_tokens=BEFORE_TOKENS
        )
        self._check_streams()
        self._client_tokens = sum(stream.received for stream in streams.streams)

    def _check_streams(self) -> None:
        traces = self.results.streams
        failed = [trace.failed for trace in traces if trace.failed]
        if failed:
            raise StoryFailed(f"Requests failed during the withdrawal: {failed}")
        good = [
            trace
            for trace in traces
            if trace.before_weight_ppm > 0
            and trace.after_tokens >= AFTER_TOKENS
            and trace.after_weight_ppm == 0
            and trace.after_private_ppm > 0
        ]
        leaked = [trace.index for trace in traces if trace.after_weight_ppm]
        if leaked:
            raise StoryFailed(f"Streams used the withdrawn expert afterwards: {leaked}")
        if len(good) < 16:
            raise StoryFailed(f"Only {len(good)} of {len(traces)} streams went on as promised.")
        self.results.proofs.append(
            (
                "Every stream went on with the experts that remain, none failed",
                (
                    f"{len(good)} of {len(traces)} streams had tokens of the expert before, and "
                    f"{min(trace.after_tokens for trace in good)} or more tokens without it after"
                ),
            )
        )

    def _prove_removal(
        self, people: People, domains: dict[str, corpus.Domain], experts: dict[str, dict[str, Any]]
    ) -> None:
        leaver = next(owner for owner in OWNERS if owner.slug == LEAVER)
        digest = removed_exactly(
            people.developer,
            Home(self.house.home),
            BUSY_ENDPOINT,
            withdrawn=str(experts[LEAVER]["bundle_digest"]),
            text=acts.prompts_of(domains[leaver.domain], 1)[0],
            scratch=self.folder / "scratch",
        )
        self.results.proofs.append(
            ("Logits equal, bit for bit, those of a fresh process whose store never held the bundle", digest)
        )

    def _settle(self, people: People) -> None:
        rows = self._wait_for_usage(people)
        self.results.money = _money(rows)
        total = sum(int(row["ppm_tokens"]) for row in rows)
        journaled = sum(
            sum(record.experts.values()) for record in journal_records(Home(self.house.home).journals)
        )
        if total != journaled:
            raise StoryFailed(f"The ledger has {total} millionths of tokens, the journals {journaled}.")
        metered = total // 1_000_000
        if self._client_tokens > metered:
            raise StoryFailed(f"Clients counted {self._client_tokens} tokens, the ledger {metered}.")
        balances = people.operator.call("ledger.balances")
        if balances["sum_micro"]:
            raise StoryFailed(f"The ledger sums to {balances['sum_micro']}, not to zero.")
        report = people.auditor.call("audit.verify")
        if not report["ok"]:
            raise StoryFailed(f"The audit chain is broken at {report['first_bad']}.")
        self.results.proofs += [
            ("The ledger sums to zero", f"{len(balances['items'])} accounts"),
            (
                "Its tokens equal the journaled ones",
                f"{metered:,} tokens; the clients counted {self._client_tokens:,}",
            ),
            ("The audit chain verifies", f"{report['length']} records"),
        ]

    def _wait_for_usage(self, people: People) -> list[dict[str, Any]]:
        # Hosts upload their journals every moment; the settlement waits until nothing more arrives.
        journals = Home(self.house.home).journals
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            rows = acts.settle(people)
            journaled = sum(sum(record.experts.values()) for record in journal_records(journals))
            if sum(int(row["ppm_tokens"]) for row in rows) >= journaled:
                return rows
            time.sleep(0.5)
        return acts.settle(people)

    def _check_bits(self) -> None:
        for domain, row in self.results.bits.items():
            ours = row["composition"]
            if domain == corpus.PUBLIC:
                ratio = ours.mean / row["base"].mean
                if ratio > PUBLIC_SLACK:
                    raise StoryFailed(f"On public text the composition needs {ratio:.3f} of the base's bits.")
                self.results.proofs.append(
                    ("On public text the composition stays with the base", f"ratio {ratio:.4f}")
                )
            elif ours.delta_high >= 0:
                raise StoryFailed(f"On {domain} the composition is not surely better than the base.")
            else:
                self.results.proofs.append(
                    (
                        f"On {domain} the composition beats the base",
                        f"{ours.delta_low:+.3f} to {ours.delta_high:+.3f}",
                    )
                )


def _share(job: dict[str, Any]) -> float:
    found = re.search(r"(\d+) of (\d+)", str(job.get("message") or ""))
    return int(found[1]) / int(found[2]) if found else 0.0


def _money(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    sums: dict[str, list[int]] = {}
    for row in rows:
        entry = sums.setdefault(str(row["expert_name"]), [0, 0, 0])
        entry[0] += int(row["ppm_tokens"])
        entry[1] += int(row["amount_micro"])
        entry[2] += int(row["fee_micro"])
    return [
        {
            "expert": name,
            "tokens": f"{ppm / 1e6:,.1f}",
            "charged": f"{amount / 1e6:,.4f}",
            "platform fee": f"{fee / 1e6:,.4f}",
            "to the owner": f"{(amount - fee) / 1e6:,.4f}",
        }
        for name, (ppm, amount, fee) in sorted(sums.items())
    ]
