# SPDX-License-Identifier: Apache-2.0
"""The office: one unit of work per question, refusals that change nothing, epochs that wake who waits."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable, Coroutine
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from cluster.bootstrap import open_office
from cluster.errors import InvalidRequest, OfficeFault, OfficeUnavailable, RoleRequired, UnknownOperation
from cluster.office.actor import OfficeActor
from cluster.office.client import OfficeClient
from cluster.office.counter import Office
from cluster.office.protocol import Reply
from cluster.office.upkeep import reservation_life_us
from cluster.settings import Settings
from model_core.errors import ProductError
from model_core.packing.canonical import digest_bytes
from policy.facts.snapshot import Snapshot
from policy.records.items import ForbidRule
from tenants.errors import DatabaseInUse, IdempotencyConflict, NameTaken, UnknownKey
from tenants.roles import PLATFORM_TENANT

_TENANT = {"slug": "north", "title": "North Hospital"}


def _settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    chosen = {"starter_base": "none"} | changes
    return Settings(home=tmp_path / "home", **chosen).model_dump(mode="json")


def _in_office(
    tmp_path: Path, story: Callable[[Office, str], Coroutine[Any, Any, None]], **changes: Any
) -> None:
    async def run() -> None:
        office = open_office(_settings(tmp_path, **changes))
        try:
            await story(office, (tmp_path / "home" / "operator.key").read_text())
        finally:
            office.close()

    asyncio.run(run())


def test_the_first_run_makes_one_operator_and_keeps_it(tmp_path: Path) -> None:
    """The operator's key is written once, works, and stays over restarts, also when it was moved away."""
    keys = []

    async def look(office: Office, key: str) -> None:
        caller = await office.identify(key)
        assert caller.tenant == PLATFORM_TENANT
        keys.append(key)

    _in_office(tmp_path, look)
    _in_office(tmp_path, look)
    assert keys[0] == keys[1]
    (tmp_path / "home" / "operator.key").unlink()
    open_office(_settings(tmp_path)).close()
    assert not (tmp_path / "home" / "operator.key").exists()


def test_the_shipped_base_keeps_its_digest(tmp_path: Path) -> None:
    """A base that an earlier release sealed is registered under its digest, with fields added since then."""
    shipped = resources.files("model_core") / "starter" / "manifest.json"

    async def look(office: Office, operator: str) -> None:
        bases = (await office.call("bases.list", operator, {}))["items"]
        assert [base["id"] for base in bases] == [digest_bytes(shipped.read_bytes())]

    _in_office(tmp_path, look, starter_base="")


def test_a_key_file_of_a_crash_is_replaced(tmp_path: Path) -> None:
    """A key file whose unit of work never committed is replaced by one that works."""
    open_office(_settings(tmp_path)).close()
    key = tmp_path / "home" / "operator.key"
    secret = key.read_text()
    key.write_text(secret[:-4] + ("AAAA" if not secret.endswith("AAAA") else "BBBB"))

    async def look(office: Office, secret: str) -> None:
        await office.identify(secret)

    _in_office(tmp_path, look)


def test_refusals_change_nothing(tmp_path: Path) -> None:
    """Unknown keys, missing roles, bad fields and taken names are refused and leave no trace."""

    async def story(office: Office, operator: str) -> None:
        await office.call("tenants.create", operator, _TENANT)
        made = await office.call(
            "keys.create", operator, {"tenant": "north", "principal": "ada", "roles": ["owner"]}
        )
        before = await office.call("audit.records", operator, {})
        refusals: list[tuple[str, str, dict[str, Any], type[ProductError]]] = [
            ("tenants.create", "mk_nonsense", _TENANT, UnknownKey),
            ("tenants.create", made["secret"], {"slug": "south", "title": "S"}, RoleRequired),
            ("tenants.create", operator, {"slug": "south"}, InvalidRequest),
            ("tenants.create", operator, {**_TENANT, "slug": "south", "admin": True}, InvalidRequest),
            ("tenants.create", operator, _TENANT, NameTaken),
            ("tenants.destroy", operator, {}, UnknownOperation),
        ]
        for op, credential, payload, kind in refusals:
            with pytest.raises(kind):
                await office.call(op, credential, payload)
        assert await office.call("audit.records", operator, {}) == before
        tenants = await office.call("tenants.list", operator, {})
        assert {row["slug"] for row in tenants["items"]} == {PLATFORM_TENANT, "north"}

    _in_office(tmp_path, story)


def test_a_write_with_a_key_happens_once(tmp_path: Path) -> None:
    """The same idempotency key gets the first answer again, also after a restart; other payloads do not."""
    answers = []

    async def send(office: Office, operator: str) -> None:
        answers.append(await office.call("tenants.create", operator, _TENANT, idempotency_key="k1"))
        with pytest.raises(IdempotencyConflict):
            await office.call(
                "tenants.create", operator, {"slug": "south", "title": "S"}, idempotency_key="k1"
            )
        with pytest.raises(IdempotencyConflict):
            await office.call("tenants.suspend", operator, {"slug": "north"}, idempotency_key="k1")

    _in_office(tmp_path, send)
    _in_office(tmp_path, send)
    assert answers[0] == answers[1]


def test_a_secret_answer_is_not_kept(tmp_path: Path) -> None:
    """A key that was made is not shown a second time, and its secret is nowhere in the database."""
    secrets = []

    async def story(office: Office, operator: str) -> None:
        wish = {"tenant": PLATFORM_TENANT, "principal": "bob", "roles": ["auditor"]}
        made = await office.call("keys.create", operator, wish, idempotency_key="k")
        secrets.append(made["secret"])
        with pytest.raises(IdempotencyConflict, match="secret"):
            await office.call("keys.create", operator, wish, idempotency_key="k")

    _in_office(tmp_path, story)
    tail = secrets[0].split("_", 3)[3].encode()  # which may hold underscores of its own
    assert len(tail) > 40
    for file in (tmp_path / "home").glob("marketplace.sqlite*"):
        assert tail not in file.read_bytes()


def test_a_published_epoch_wakes_waiters(tmp_path: Path) -> None:
    """Whoever waits hears of a publication at once; whoever has it already waits until the time is up."""

    async def story(office: Office, operator: str) -> None:
        compliance = await _key(office, operator, "carol", "compliance")
        first = await office.wait_epoch("srv", -1)
        assert first.snapshot_json is not None
        assert (
            Snapshot.from_json(first.snapshot_json, expect_digest=first.snapshot_digest).epoch == first.epoch
        )
        assert not office._told  # servers come and go; nothing of those that were told nothing is kept
        again = await office.wait_epoch("srv", first.epoch, 0.05)
        assert (again.epoch, again.snapshot_json, again.snapshot_digest) == (
            first.epoch,
            None,
            first.snapshot_digest,
        )
        waiting = asyncio.create_task(office.wait_epoch("srv", first.epoch, 30))
        await asyncio.sleep(0.1)
        asked = time.monotonic()
        await _publish(office, compliance)
        news = await waiting
        assert news.epoch == first.epoch + 1
        assert news.snapshot_json is not None
        assert time.monotonic() - asked < 25  # a disk may be slow; only a wake-up comes before the 30 s

    _in_office(tmp_path, story, lease_s=60)


def test_an_unexpected_failure_shows_no_values(tmp_path: Path) -> None:
    """A library's error becomes a fault without its text, is logged without it, and rolls back."""

    async def story(office: Office, operator: str) -> None:
        def work(desk: Any) -> None:
            desk.accounts.create_tenant("south", "S")
            raise RuntimeError("the row ('canary') could not be written")

        with pytest.raises(OfficeFault) as fault:
            await office.do(work)
        assert "canary" not in str(fault.value) + str(fault.value.facts)
        tenants = await office.call("tenants.list", operator, {})
        assert {row["slug"] for row in tenants["items"]} == {PLATFORM_TENANT}

    _in_office(tmp_path, story)
    log = (tmp_path / "home" / "logs" / "office.log").read_text()
    assert "RuntimeError" in log
    assert "canary" not in log


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    """Work that was announced as reading is stopped by the database when it writes."""

    async def story(office: Office, operator: str) -> None:
        with pytest.raises(OfficeFault):
            await office._read(lambda desk: desk.accounts.create_tenant("south", "S"))

    _in_office(tmp_path, story)


def test_an_office_whose_first_work_fails_says_so_twice_and_opens_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A try that fails after the database was locked lets go of it, so the next one tells the same reason."""

    def fails(_desk: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("cluster.bootstrap.import_starter_base", fails)
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is full"):
                open_office(_settings(tmp_path))
    open_office(_settings(tmp_path)).close()


def test_an_upgrade_that_ended_before_it_was_sealed_is_sealed_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schema is new and its rows are not sealed: the next start does that, and the one after nothing."""
    open_office(_settings(tmp_path)).close()
    adopted: list[str] = []

    def ends(_database: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("migrations.current", lambda _engine: "0001")
        patched.setattr("cluster.bootstrap._adopt", ends)
        with pytest.raises(KeyboardInterrupt):
            open_office(_settings(tmp_path))
    monkeypatch.setattr("cluster.bootstrap._adopt", lambda _database: adopted.append("once"))
    for _ in range(2):
        open_office(_settings(tmp_path)).close()
    assert adopted == ["once"]


def test_an_office_that_cannot_open_says_why_and_opens_later(tmp_path: Path, monkeypatch: Any) -> None:
    """The actor survives a database that is still held, says so, and opens with a later question."""
    monkeypatch.setattr("cluster.bootstrap.open_database.__kwdefaults__", {"patience_s": 0.1})

    async def run() -> None:
        holder = open_office(_settings(tmp_path))
        actor = OfficeActor(_settings(tmp_path))
        reply = await actor.ask("health", ())
        assert isinstance(reply.refusal, DatabaseInUse)
        assert pickle.loads(pickle.dumps(reply)).refusal.sentence == reply.refusal.sentence  # noqa: S301
        holder.close()
        reply = await actor.ask("health", ())
        assert reply.value.status == "ok"
        assert (await actor.ask("close", ())).refusal is not None
        assert (await actor.ask("do", (print,))).refusal is not None
        assert actor._own_work
        for task in actor._own_work:
            task.cancel()
        assert actor._office is not None
        actor._office.close()

    asyncio.run(run())


class _Flaky:
    """An actor handle that is away for the first questions."""

    def __init__(self, away: int, error: Exception | None = None) -> None:
        self.away = away
        self.error = error
        self.asked: list[str] = []

    @property
    def ask(self) -> _Flaky:
        return self

    async def remote(self, question: str, arguments: tuple[Any, ...]) -> Reply:
        from ray.exceptions import ActorUnavailableError

        self.asked.append(question)
        if self.away:
            self.away -= 1
            raise self.error or ActorUnavailableError("away", None)
        return Reply(value={"ok": True})


def test_safe_calls_are_repeated_and_others_are_not() -> None:
    """Reads and writes with a key go again while the office is away; a bare write is sent once."""

    async def run() -> None:
        reading = _Flaky(away=2)
        assert await OfficeClient(lambda: reading).call("tenants.list", "key", {}) == {"ok": True}
        assert len(reading.asked) == 3
        keyed = _Flaky(away=1)
        await OfficeClient(lambda: keyed).call("tenants.create", "key", {}, idempotency_key="k")
        assert len(keyed.asked) == 2
        bare = _Flaky(away=1)
        client = OfficeClient(lambda: bare)
        with pytest.raises(OfficeUnavailable):
            await client.call("tenants.create", "key", {})
        assert bare.asked == ["call"]
        await client.call("tenants.create", "key", {})  # now it first asks whether the office is back
        assert bare.asked == ["call", "health", "call"]
        lost = _Flaky(away=10_000)
        with pytest.raises(OfficeUnavailable):
            await OfficeClient(lambda: lost, patience_s=0.3).health()

    asyncio.run(run())


def test_whatever_ray_loses_is_an_office_that_does_not_answer() -> None:
    """A head that starts again shows itself in many errors; none of them ends whoever asks."""
    from ray.exceptions import OwnerDiedError, RaySystemError, RpcError

    async def run() -> None:
        for error in (OwnerDiedError("", None, ""), RaySystemError("gone"), RpcError("gone")):
            handle = _Flaky(1, error)
            assert await OfficeClient(lambda handle=handle: handle).health() == {"ok": True}  # type: ignore[misc]

    asyncio.run(run())


@pytest.mark.parametrize("request_s", [1.0, 1800.0, 86_400.0])
def test_holds_outlive_every_answer(request_s: float) -> None:
    """However long answers may take here, none goes on after its hold was freed as forgotten."""
    assert reservation_life_us(request_s) >= max(3600.0, request_s + 60) * 1_000_000


async def _key(office: Office, operator: str, person: str, role: str) -> str:
    wish = {"tenant": PLATFORM_TENANT, "principal": person, "roles": [role]}
    made = await office.call("keys.create", operator, wish)
    return str(made["secret"])


async def _publish(office: Office, compliance: str) -> None:
    def work(desk: Any) -> None:
        rule = ForbidRule(region="eu", text="not there")
        desk.register.add_forbid_rule(rule, desk.accounts.authenticate(compliance))

    await office.do(work)
