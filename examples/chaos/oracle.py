# SPDX-License-Identifier: Apache-2.0
"""Holds a marketplace to what its clients were told.

It reads the clients' log from the disk, asks the doors, counts the stored rows, and breaks off at the first
promise that does not hold. What was sent and never answered may have happened or not, but at most once and
never by half.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cluster.operations.staging import documents_path
from examples.chaos import evidence
from examples.chaos.client_log import Call, Told, read_log
from examples.chaos.evidence import Rows, Usage
from examples.chaos.processes import family
from examples.chaos.stage import ENDPOINT, Stage
from model_core.errors import ProductError
from model_core.packing.canonical import digest_file
from model_core.packing.store import DirectoryStore
from policy.facts.snapshot import Snapshot

PUBLISHING = ("changes.approve", "consents.withdraw", "rules.forbid")
#: Writes that stand in the audit chain, once per act.
AUDITED = (
    "tenants.create",
    "keys.create",
    "keys.revoke",
    "datasets.upload",
    "jobs.submit",
    "changes.propose",
    "ledger.budget",
    "ledger.settle",
    *PUBLISHING,
)


class BrokenPromise(AssertionError):
    """The marketplace does not keep what it told a client."""


class Oracle:
    """The checks, in the order of the house: who, what, permitted, used, paid, written down.

    Args:
        stage: the marketplace and its people.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._seen_epochs: set[int] = set()

    def check(self) -> str:
        """Checks everything; what was checked, in a phrase.

        Raises:
            BrokenPromise: the first promise that does not hold.
        """
        told, rows = read_log(self._stage.log.path), Rows(self._stage.home)
        parts = [
            self._processes(),
            self._accounts(told),
            self._datasets(told),
            self._jobs(told, rows),
            self._publications(told, rows),
            self._consents(told),
            self._usage(told, rows),
            self._money(told, rows),
            self._audit(told, rows),
        ]
        return ", ".join(parts)

    # -- who and what ---------------------------------------------------------------------------------

    def _processes(self) -> str:
        """What came up is what went down: no server that nobody asked for, and nothing twice."""
        names = [" ".join(process.cmdline()) for process in family(self._stage.home)]
        proxies = [name for name in names if "Proxy" in name]
        _hold(not proxies, f"an HTTP proxy runs that nobody asked for: {proxies}")
        for part in ("OfficeActor", "Foreman", "Reconciler", "cluster.ray_head"):
            count = sum(part in name for name in names)
            _hold(count == 1, f"{part} runs {count} times")
        return f"{len(names)} processes"

    def _accounts(self, told: Told) -> str:
        tenants = {row["slug"]: row for row in self._stage.every("operator", "tenants.list")}
        for call in told.acknowledged("tenants.create"):
            slug = call.answer["slug"]
            _hold(slug in tenants, f"the tenant {slug} was made and is gone")
            _hold(tenants[slug] == call.answer, f"the tenant {slug} is not as it was told")
        keys = {row["id"]: row for row in self._stage.every("operator", "keys.list")}
        revoked = {call.fields["key_id"] for call in told.acknowledged("keys.revoke")}
        for call in told.acknowledged("keys.create"):
            row = keys.get(call.answer["id"])
            _hold(row is not None, f"the key {call.answer['id']} was made and is gone")
            assert row is not None  # noqa: S101  (said to the type checker)
            same = all(row[name] == call.answer[name] for name in ("tenant", "principal_id", "roles"))
            _hold(same, f"the key {row['id']} is not as it was told")
            _hold(
                (row["revoked_at_us"] is not None) == (row["id"] in revoked),
                f"the key {row['id']} was revoked and is not, or the other way round",
            )
        _within("keys", len(keys) - 1, told.bounds("keys.create"))  # the first operator's came with the house
        for name, person in self._stage.people.items():
            _hold(person.read("me.show")["name"] == name, f"the key of {name} opens another door")
        return f"{len(keys)} keys"

    def _datasets(self, told: Told) -> str:
        stored = {row["id"]: row for row in self._stage.every("operator", "datasets.list")}
        for call in told.acknowledged("datasets.upload"):
            row = stored.get(call.answer["id"])
            _hold(row == call.answer, f"the dataset {call.answer['id']} is not as it was told")
            path = documents_path(self._stage.home, call.answer["tenant"], call.answer["stored_digest"])
            _hold(
                path.is_file() and digest_file(path) == call.answer["stored_digest"],
                f"the documents of {call.answer['id']} are not those that were taken",
            )
        _within("datasets", len(stored), told.bounds("datasets.upload"))
        return f"{len(stored)} datasets"

    def _jobs(self, told: Told, rows: Rows) -> str:
        store = DirectoryStore(self._stage.home.root / "artifacts")
        experts: dict[str, list[dict[str, Any]]] = {}
        for row in self._stage.every("carol", "experts.list"):
            experts.setdefault(row["job_id"], []).append(row)
        for call in told.acknowledged("jobs.submit"):
            job_id = call.answer["id"]
            job = self._stage.people["operator"].read("jobs.show", job_id=job_id)
            asked = ("tenant", "name", "dataset_id", "base_digest", "recipe")
            _hold(all(job[name] == call.answer[name] for name in asked), f"{job_id} is another job now")
            _hold(
                job["state"] == "succeeded",
                f"{job_id} {job['state']}: {job['error_sentence'] or job['message']}",
            )
            needed = 2 if job_id in told.interrupted else 1
            _hold(job["attempts"] >= needed, f"{job_id} was killed in training and shows no second attempt")
            made = experts.get(job_id, [])
            _hold(len(made) == 1, f"{job_id} made {len(made)} experts")
            _hold(
                made[0]["bundle_digest"] == job["bundle_digest"], f"{job_id} made another expert than it says"
            )
            store.get_bundle(job["bundle_digest"])  # verifies every file
            self._curve(told, job_id)
        _within("jobs", int(rows.one("SELECT count(*) FROM jobs")), told.bounds("jobs.submit"))
        _hold(len(experts) == rows.one("SELECT count(*) FROM experts"), "there are experts without a job")
        return f"{len(experts)} jobs with an expert each"

    def _curve(self, told: Told, job_id: str) -> None:
        """What an owner saw of a curve before the crash is still there after it, to the last bit."""
        seen = told.curves.get(job_id, {})
        if not seen:
            return
        curve = self._stage.people["operator"].read("jobs.metrics", job_id=job_id, name="loss")
        now = {int(point["step"]): float(point["value"]) for point in curve["points"]}
        lost = {step: value for step, value in seen.items() if now.get(step) != value}
        _hold(not lost, f"{job_id} resumed on another curve: {sorted(lost)[:5]} differ")

    # -- permitted ------------------------------------------------------------------------------------

    def _publications(self, told: Told, rows: Rows) -> str:
        published = rows.all(
            "SELECT epoch, snapshot_digest, change_id, principal_id FROM publications ORDER BY 1"
        )
        epochs = [int(row[0]) for row in published]
        _hold(epochs == list(range(1, len(epochs) + 1)), "the epochs have gaps")
        digests = {int(row[0]): str(row[1]) for row in published}
        changes = [row[2] for row in published if row[2] is not None]
        _hold(len(changes) == len(set(changes)), "a change was published twice")
        for call in told.acknowledged(*PUBLISHING):
            epoch, digest = int(call.answer["epoch"]), call.answer["snapshot_digest"]
            _hold(
                digests.get(epoch) == digest, f"epoch {epoch} is not the one that {call.operation} was told"
            )
        by_people = sum(1 for row in published if row[3] is not None)
        _within("publications", by_people, told.bounds(*PUBLISHING))
        for epoch in sorted(set(epochs) - self._seen_epochs):
            _hold(self._snapshot(epoch).digest == digests[epoch], f"epoch {epoch} is not whole")
        self._seen_epochs |= set(epochs[:-1])
        current = self._stage.people["operator"].read("epochs.current")
        _hold(
            (current["epoch"], current["snapshot_digest"]) == (epochs[-1], digests[epochs[-1]]),
            f"epoch {current['epoch']} is in force, {epochs[-1]} was published",
        )
        return f"{len(epochs)} epochs"

    def _consents(self, told: Told) -> str:
        """Withdrawn stays withdrawn; the last answered word of the owner is what the endpoint obeys."""
        epoch = int(self._stage.people["operator"].read("epochs.current")["epoch"])
        states = {fact.id: fact.state for fact in self._snapshot(epoch).consents}
        withdrawn = [call.fields["consent_id"] for call in told.acknowledged("consents.withdraw")]
        for consent in withdrawn:
            # It leaves the facts once its owner has said the same again: under another id, by two people.
            _hold(states.get(consent) != "given", f"the consent {consent} was withdrawn and lives again")
        touched = {call.fields["consent_id"] for act in told.acts("consents.withdraw") for call in act}
        for fact in self._snapshot(self._last_approval(told)).consents:
            if fact.state == "given" and fact.id not in touched:
                _hold(states.get(fact.id) == "given", f"the consent {fact.id} was given and is gone")
        view = self._stage.people["carol"].read("deployments.show", name=ENDPOINT)
        members = {row["expert_id"] for row in view["composition"]["members"]}
        north, south = (self._stage.experts[name]["id"] for name in ("north", "south"))
        _hold(north in members, "the expert that stays permitted is not served")
        permitted = _last_word(told, south)
        if permitted is not None:
            _hold((south in members) == permitted, "the endpoint does not obey the south's last word")
        return f"{len(withdrawn)} withdrawals"

    def _last_approval(self, told: Told) -> int:
        return max(int(call.answer["epoch"]) for call in told.acknowledged("changes.approve"))

    def _snapshot(self, epoch: int) -> Snapshot:
        return Snapshot.model_validate(self._stage.people["carol"].read("epochs.snapshot", epoch=epoch))

    # -- used and paid --------------------------------------------------------------------------------

    def _usage(self, told: Told, rows: Rows) -> str:
        metered, journaled = rows.usage(), evidence.journaled(self._stage.home)
        for place in sorted(set(metered) | set(journaled)):
            one, other = metered.get(place), journaled.get(place)
            same = (
                one is not None
                and other is not None
                and one.completion == other.completion
                and +one.experts == +other.experts
            )
            _hold(same, f"request {place[1]}: metered {one}, journaled {other}")
        cut = evidence.batches(self._stage.home)
        gapless = (
            "SELECT server_id, max(sequence) FROM usage_batches GROUP BY 1 HAVING count(*) = max(sequence)"
        )
        stored = dict(rows.all(gapless))
        _hold(stored == dict(cut), f"batches: stored {stored}, cut {dict(cut)}")
        by_request: dict[str, int] = {}
        for (_, request), tokens in metered.items():
            by_request[request] = by_request.get(request, 0) + tokens.completion
        for stream in told.streams:
            counted, got = by_request.get(stream.request_id, 0), stream.tokens
            _hold(
                got <= counted <= stream.max_tokens,
                f"request {stream.request_id}: {got} tokens delivered, {counted} metered, "
                f"{stream.max_tokens} asked for",
            )
            if stream.ended:
                _hold(got == counted, f"request {stream.request_id} ended with {got}, metered {counted}")
        self._reservations(told, rows)
        total = sum(by_request.values())
        _hold(_ppm(metered) == total * 1_000_000, "the experts' parts are not the tokens")
        return f"{total} tokens of {len(by_request)} requests"

    def _reservations(self, told: Told, rows: Rows) -> None:
        """What is still on hold belongs to requests that a crash ended; the others gave theirs back."""
        held = {row[0] for row in rows.all("SELECT request_id FROM reservations WHERE state = 'held'")}
        ended = {one.request_id for one in told.streams if one.ended}
        _hold(not held & ended, f"requests that ended still hold budget: {sorted(held & ended)[:3]}")
        cut_off = sum(1 for one in told.streams if not one.ended)
        _hold(len(held) <= cut_off, f"{len(held)} requests hold budget, {cut_off} were cut off")

    def _money(self, told: Told, rows: Rows) -> str:
        operator = self._stage.people["operator"]
        _hold(operator.read("ledger.balances")["sum_micro"] == 0, "the ledger does not sum to zero")
        uneven = rows.all(
            "SELECT transaction_id FROM ledger_entries GROUP BY 1 HAVING sum(amount_micro) != 0 LIMIT 1"
        )
        _hold(not uneven, f"a transaction does not sum to zero: {uneven}")
        charged = int(rows.one("SELECT coalesce(sum(amount_micro), 0) FROM usage_shares"))
        spent, held = rows.all("SELECT sum(spent_micro), sum(held_micro) FROM budgets")[0]
        _hold(spent == charged, f"budgets say {spent} was spent, usage says {charged}")
        on_hold = rows.one("SELECT coalesce(sum(held_micro), 0) FROM reservations WHERE state = 'held'")
        _hold(held == on_hold, f"budgets hold {held}, reservations {on_hold}")
        paid = -int(
            rows.one(
                "SELECT coalesce(sum(e.amount_micro), 0) FROM ledger_entries e "
                "JOIN ledger_accounts a ON a.id = e.account_id WHERE a.kind = 'consumer'"
            )
        )
        _hold(paid == charged, f"consumers were charged {paid}, their usage costs {charged}")
        statements = {row["id"]: row for row in self._stage.every("operator", "ledger.statements")}
        for call in told.acknowledged("ledger.settle"):
            for statement in call.answer["items"]:
                _hold(
                    statements.get(statement["id"]) == statement,
                    f"the statement {statement['id']} is not as it was told",
                )
        return f"{charged / 1e6:.2f} credits in {len(statements)} statements"

    def _audit(self, told: Told, rows: Rows) -> str:
        kept = [call.answer for call in told.acknowledged("audit.checkpoint")]
        report = self._stage.people["aya"].read("audit.verify", checkpoints=kept[-100:])
        _hold(report["ok"], f"the audit chain is broken at {report['first_bad']}: {report['reason']}")
        _hold(not kept or report["tail"] == "proven", "the audit chain lost its tail")
        counts = dict(
            rows.all("SELECT action, count(*) FROM audit WHERE actor != 'platform' GROUP BY action")
        )
        for operation in AUDITED:
            _within(f"audit records of {operation}", int(counts.get(operation, 0)), told.bounds(operation))
        return f"{report['length']} audit records"


def settled(stage: Stage) -> bool:
    """Whether everything journaled has reached the register."""
    try:
        metered, journaled = Rows(stage.home).usage(), evidence.journaled(stage.home)
    except ProductError:
        return False
    return _ppm(metered) == _ppm(journaled) and set(metered) == set(journaled)


def _last_word(told: Told, expert_id: str) -> bool | None:
    """What an owner was last told about its consent: given, withdrawn, or None while a call is open."""
    proposals = {
        call.answer["id"]
        for call in told.acknowledged("changes.propose")
        if any(
            item["kind"] == "consent.give" and item["expert_id"] == expert_id for item in call.fields["items"]
        )
    }
    word: bool | None = None
    for call in _in_order(told.calls):
        concerns = call.operation == "consents.withdraw" or (
            call.operation == "changes.approve" and call.fields["change_id"] in proposals
        )
        if concerns and call.outcome != "refused":
            given = call.operation == "changes.approve"
            word = given if call.outcome == "acknowledged" else None
    return word


def _in_order(calls: Iterable[Call]) -> list[Call]:
    return sorted(calls, key=lambda one: one.number)


def _ppm(usage: Usage) -> int:
    return sum(sum(one.experts.values()) for one in usage.values())


def _within(what: str, found: int, bounds: tuple[int, int]) -> None:
    sure, possible = bounds
    _hold(sure <= found <= possible, f"{what}: {found} found, {sure} acknowledged, {possible} sent")


def _hold(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenPromise(otherwise)
