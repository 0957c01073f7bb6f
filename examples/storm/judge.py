# SPDX-License-Identifier: Apache-2.0
"""Holds recorder, journals, ledger, receipts and clients against each other; pure but for reading files.

What was forbidden when is known from the publisher's own calls alone. Every sentence that does not hold is a
broken promise; numbers that belong to it are kept for the table.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.chaos.evidence import Tokens, Usage
from examples.storm.publisher import Act
from examples.storm.recorder import short
from examples.storm.streams import Answer

LEASE_US = 2_000_000
_PPM = 1_000_000
_SHOWN = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Forbidden:
    """When which expert was forbidden.

    Attributes:
        spans: by short digest: (first forbidden epoch, first permitted epoch again or None).
        withdrawn_us: by (short digest, epoch): wall time at which the owner was told that it is committed.
        given_us: by (short digest, epoch of the withdrawal): wall time before it was asked to be given back.
    """

    spans: dict[str, list[tuple[int, int | None]]]
    withdrawn_us: dict[tuple[str, int], int]
    given_us: dict[tuple[str, int], int]

    @classmethod
    def of(cls, acts: Iterable[Act], digests: dict[str, str]) -> Forbidden:
        """Reads the publisher's calls.

        Args:
            acts: in order.
            digests: bundle digest by expert name.
        """
        spans: dict[str, list[tuple[int, int | None]]] = defaultdict(list)
        at_us: dict[tuple[str, int], int] = {}
        back_us: dict[tuple[str, int], int] = {}
        for act in acts:
            one = short(digests[act.name])
            if act.kind == "withdraw":
                spans[one].append((act.epoch, None))
                at_us[one, act.epoch] = act.told_us
            else:
                back_us[one, spans[one][-1][0]] = act.sent_us
                spans[one][-1] = (spans[one][-1][0], act.epoch)
        return cls(spans=dict(spans), withdrawn_us=at_us, given_us=back_us)

    def at(self, digest: str, epoch: int) -> bool:
        """Whether an expert was forbidden in an epoch."""
        return any(
            first <= epoch and (again is None or epoch < again) for first, again in self.spans.get(digest, ())
        )


@dataclass(kw_only=True)
class Verdict:
    """What was found.

    Attributes:
        broken: promises that do not hold.
        figures: numbers for the table.
    """

    broken: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def say(self, sentences: Sequence[str], what: str) -> None:
        """Notes broken promises of one kind, the first few in full."""
        self.figures[what] = len(sentences)
        self.broken += [f"{what}: {one}" for one in sentences[:_SHOWN]]
        if len(sentences) > _SHOWN:
            self.broken.append(f"{what}: and {len(sentences) - _SHOWN} more")


@dataclass(kw_only=True)
class Witnessed:
    """What one engine's file says.

    Attributes:
        server: its id; empty if it never acknowledged anything.
        rows: rows multiplied, by expert.
        ppm: what the engine attributed in steps that counted, by expert.
        forbidden: rows of an expert that the epoch in force forbade.
        early: acknowledgements of epochs that were not in force.
        unseen: attributions to an expert that was not multiplied in that step.
        used: (expert, epoch) pairs in which the expert was multiplied.
        steps: how many.
        recomputed: tokens of sequences whose set was changed under them.
        used_pages: pages that sequences held when the engine was idle last.
    """

    server: str = ""
    rows: Counter[str] = field(default_factory=Counter)
    ppm: Counter[str] = field(default_factory=Counter)
    forbidden: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    used: set[tuple[str, int]] = field(default_factory=set)
    steps: int = 0
    recomputed: int = 0
    used_pages: int = 0


def witness(path: Path, forbidden: Forbidden) -> Witnessed:
    """Reads one engine's file in order."""
    found = Witnessed()
    epoch, last = -1, {}
    for line in path.read_bytes().splitlines():
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # the line that a kill cut off
        match told["kind"]:
            case "applied":
                epoch = told["epoch"]
            case "acknowledged":
                found.server = told["server"]
                if told["epoch"] > epoch:
                    found.early.append(f"{found.server}: epoch {told['epoch']} while {epoch} was in force")
            case "idle":
                found.used_pages = told["used_pages"]
            case "recomposed":
                found.recomputed += told["tokens"]
            case "step":
                last = told["rows"]
                found.steps += 1
                found.rows.update(last)
                found.used.update((one, epoch) for one in last)
                found.forbidden += [
                    f"{rows} rows of {one} at {told['to_us']} in epoch {epoch}"
                    for one, rows in last.items()
                    if forbidden.at(one, epoch)
                ]
            case "kept":
                found.ppm.update(told["ppm"])
                found.unseen += [
                    f"{ppm} ppm of {one} in epoch {epoch}"
                    for one, ppm in told["ppm"].items()
                    if one not in last
                ]
    return found


def judge_engines(
    folder: Path, forbidden: Forbidden, metered: Usage, n_layers: int, verdict: Verdict
) -> list[Witnessed]:
    """Holds the recorder against the epochs, the engine's attribution and the metered usage.

    Args:
        folder: the recorder's.
        forbidden: what was forbidden when.
        metered: from the database.
        n_layers: of the base: a token's weight of 1 is at most this many rows.
        verdict: receives what was found.
    """
    engines = [witness(path, forbidden) for path in sorted(folder.glob("*.jsonl"))]
    verdict.say([one for engine in engines for one in engine.forbidden], "forbidden rows multiplied")
    verdict.say([one for engine in engines for one in engine.early], "acknowledged before in force")
    verdict.say([one for engine in engines for one in engine.unseen], "attributed, not multiplied")
    per_server: dict[str, Counter[str]] = defaultdict(Counter)
    for (server, _), tokens in metered.items():
        per_server[server].update({short(one): ppm for one, ppm in tokens.experts.items()})
    mismatches = []
    for engine in engines:
        charged = per_server.pop(engine.server, Counter())
        for one, ppm in charged.items():
            if ppm > engine.ppm[one]:
                mismatches.append(f"{engine.server} charged {ppm} ppm of {one}, computed {engine.ppm[one]}")
        for one, ppm in engine.ppm.items():
            if ppm * n_layers > engine.rows[one] * _PPM:
                mismatches.append(f"{engine.server} attributed {ppm} ppm of {one}, {engine.rows[one]} rows")
    mismatches += [f"{server} charged, and nobody recorded it" for server, one in per_server.items() if one]
    verdict.say(mismatches, "recorder against usage")
    if not sum(sum(engine.rows.values()) for engine in engines):
        verdict.broken.append("The recorder saw nothing at all.")
    verdict.figures["rows multiplied"] = sum(sum(engine.rows.values()) for engine in engines)
    verdict.figures["steps"] = sum(engine.steps for engine in engines)
    verdict.figures["tokens recomputed"] = sum(engine.recomputed for engine in engines)
    return engines


def judge_use(engines: Sequence[Witnessed], acts: Sequence[Act], digests: dict[str, str]) -> int:
    """How many withdrawals took an expert away that some engine was multiplying since it was last given."""
    used: dict[str, set[int]] = defaultdict(set)
    for engine in engines:
        for one, epoch in engine.used:
            used[one].add(epoch)
    given: dict[str, int] = {}
    count = 0
    for act in acts:
        if act.kind == "give":
            given[act.name] = act.epoch
        else:
            since = given.get(act.name, 0)
            count += any(since <= epoch < act.epoch for epoch in used[short(digests[act.name])])
    return count


def judge_books(journaled: Usage, metered: Usage, verdict: Verdict) -> None:
    """Journals and ledger must say the same, request by request."""
    wrong = [
        f"{key}: journaled {journaled.get(key)}, metered {metered.get(key)}"
        for key in sorted(journaled.keys() | metered.keys())
        if not _same(journaled.get(key), metered.get(key))
    ]
    verdict.say(wrong, "journals against ledger")


def judge_receipts(
    answers: Sequence[Answer], metered: Usage, digests: dict[str, str], verdict: Verdict
) -> None:
    """Receipts of whole answers must equal what was metered; broken ones never received more than that.

    An answer that lost its replica on the way may have cost more than was delivered, never less: what the
    lost replica had computed and journaled stays charged. The requests behind one answer are named after its
    first, so those of a client that left before it heard of a move are found as well.
    """
    by_answer: dict[str, Tokens] = {}
    further = set()
    for (_, request), tokens in metered.items():
        first, dot, _number = request.partition(".")
        _add(by_answer.setdefault(first, Tokens()), tokens)
        if dot:
            further.add(first)
    wrong: list[str] = []
    for answer in answers:
        charged = by_answer.get(answer.request_id, Tokens())
        got = len(answer.tokens)
        if any(name.partition(".")[0] != answer.request_id for name in answer.continued_as):
            wrong.append(f"{answer.request_id} went on as {answer.continued_as}, which are not its own")
        if got > charged.completion and (answer.ended or not answer.failed):
            wrong.append(f"{answer.request_id} received {got} tokens, metered {charged.completion}")
        if not answer.ended:
            continue
        told: Counter[str] = Counter()
        for part in answer.segments:
            for name, ppm in part["experts"].items():
                told[digests.get(name, name)] += ppm
        covered = sum(part["to_token"] - part["from_token"] for part in answer.segments)
        moved = answer.request_id in further or bool(answer.continued_as)
        if covered != got or (covered != charged.completion and not moved):
            wrong.append(f"{answer.request_id}: {got} received, {covered} told, {charged.completion} metered")
        if any(ppm > charged.experts[one] for one, ppm in told.items()) or (
            not moved and +told != +charged.experts
        ):
            wrong.append(f"{answer.request_id}: the receipt says {dict(told)}, the ledger {charged.experts}")
    verdict.say(wrong, "receipts against ledger")
    verdict.figures["answers that moved to another replica"] = sum(
        1 for answer in answers if answer.continued_as or answer.request_id in further
    )


def _add(sum_: Tokens, tokens: Tokens) -> None:
    sum_.completion += tokens.completion
    sum_.experts.update(tokens.experts)


def judge_releases(
    answers: Sequence[Answer], forbidden: Forbidden, digests: dict[str, str], slack_us: int, verdict: Verdict
) -> None:
    """No token that a forbidden expert computed may reach a client after commit + lease.

    Args:
        answers: with segments.
        forbidden: what was forbidden when.
        digests: bundle digest by name.
        slack_us: how long a released token may be on its way to the client.
        verdict: receives what was found, and the latest such token.
    """
    late, latest_us, wrong_epoch = [], 0, []
    for answer in answers:
        for part in answer.segments:
            for name, ppm in part["experts"].items():
                if not ppm or name not in digests:
                    continue
                one = short(digests[name])
                if forbidden.at(one, part["epoch"]):
                    wrong_epoch.append(f"{answer.request_id}: {name} in epoch {part['epoch']}")
                ends = [first for first, _ in forbidden.spans.get(one, ()) if first > part["epoch"]]
                arrivals = answer.arrivals_us[part["from_token"] : part["to_token"]]
                if not ends or not arrivals:
                    continue
                # A part may go on under a later epoch that permits the same set again.
                back_us = forbidden.given_us.get((one, min(ends)))
                meanwhile = [at_us for at_us in arrivals if back_us is None or at_us < back_us]
                after_us = max(meanwhile, default=0) - forbidden.withdrawn_us[one, min(ends)]
                latest_us = max(latest_us, after_us)
                if after_us > LEASE_US + slack_us:
                    late.append(f"{answer.request_id}: {name} {after_us / 1e6:.2f} s after commit")
    verdict.say(late, "released after commit + 2 s")
    verdict.say(wrong_epoch, "receipts that name a forbidden expert")
    verdict.figures["latest token after commit, ms"] = latest_us / 1000


def judge_journaled(
    uses: Iterable[tuple[str, str, int, int]], commits: dict[int, int], forbidden: Forbidden, verdict: Verdict
) -> None:
    """No host may journal a token of a forbidden expert, right before it is released, after commit + lease.

    Args:
        uses: (request, bundle, epoch, journaled at) of metered shares.
        commits: when each epoch was published, in microseconds.
        forbidden: what was forbidden when.
        verdict: receives what was found.
    """
    late = []
    for request, bundle, epoch, at_us in uses:
        one = short(bundle)
        if forbidden.at(one, epoch):
            late.append(f"{request}: {one} metered in epoch {epoch}, which forbids it")
            continue
        ends = min((first for first, _ in forbidden.spans.get(one, ()) if first > epoch), default=None)
        if ends is None or at_us <= commits[ends] + LEASE_US:
            continue
        back_us = forbidden.given_us.get((one, ends))
        if back_us is None or at_us < back_us:
            late.append(f"{request}: {one} {(at_us - commits[ends]) / 1e6:.2f} s after commit")
    verdict.say(late, "journaled for release after commit + 2 s")


def _same(one: Tokens | None, other: Tokens | None) -> bool:
    if one is None or other is None:
        return (one or other or Tokens()).completion == 0
    shares = {name: ppm for name, ppm in one.experts.items() if ppm}
    return one.completion == other.completion and shares == {n: p for n, p in other.experts.items() if p}


def acknowledgement_ms(
    rows: Sequence[tuple[int, int]], acknowledged: Sequence[tuple[str, int, int]], acts: Sequence[Act]
) -> list[float]:
    """Milliseconds from each withdrawal's commit to the last host's acknowledgement, in order of size.

    A host that was told of a later epoch at once acknowledges that one; it counts. Hosts that had not
    acknowledged anything before the withdrawal, or nothing after it, are not waited for.

    Args:
        rows: (epoch, committed at) of publications, in microseconds.
        acknowledged: (server, epoch, at) of acknowledgements, in microseconds.
        acts: the publisher's.
    """
    committed = dict(rows)
    by_server: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for server, epoch, at_us in acknowledged:
        by_server[server].append((epoch, at_us))
    found = []
    for act in acts:
        if act.kind != "withdraw" or act.epoch not in committed:
            continue
        last = [
            min(at_us for epoch, at_us in told if epoch >= act.epoch)
            for told in by_server.values()
            if min(told)[0] < act.epoch <= max(told)[0]
        ]
        if last:
            found.append((max(last) - committed[act.epoch]) / 1000)
    return sorted(found)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which a share of an ordered sequence lies; 0 of an empty one."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def gaps_ms(answers: Sequence[Answer]) -> list[float]:
    """Milliseconds between tokens that reached a client one after the other, in order of size."""
    found = []
    for answer in answers:
        at = answer.arrivals_us
        found += [(later - earlier) / 1000 for earlier, later in itertools.pairwise(at)]
    return sorted(found)


def tokens_of(usage: Usage) -> dict[tuple[str, str], int]:
    """Completion tokens by (server, request), where there are any."""
    return {key: tokens.completion for key, tokens in usage.items() if tokens.completion}
