# SPDX-License-Identifier: Apache-2.0
"""Law 13 at the host: what is released was journaled, and every record reaches the office exactly once."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import OfficeUnavailable
from cluster.hosting.errors import JournalDamaged
from cluster.hosting.journal import UsageJournal, merge_records
from cluster.hosting.journals import CLOSED, former_journals, journal_records, part_name, read_journals
from cluster.hosting.uploader import Uploader, pause_after, recover, upload
from cluster.office.protocol import UsageRecord
from policy.errors import UnknownReservation


def record(request: int = 1, tokens: int = 1, *, epoch: int = 3, final: bool = False) -> UsageRecord:
    """A usage record of ``tokens`` tokens, shared between the public and one private expert."""
    return UsageRecord(
        request_id=f"req_{request}",
        deployment="lab",
        epoch=epoch,
        composition_digest="sha256:" + "c" * 64,
        prompt_tokens=0,
        completion_tokens=tokens,
        experts={"public": tokens * 400_000, "sha256:" + "e" * 64: tokens * 600_000},
        at_us=1,
        final=final,
    )


records = st.builds(
    record, request=st.integers(1, 3), tokens=st.integers(0, 4), epoch=st.integers(1, 2), final=st.booleans()
)


class Office:
    """Counts each (server, sequence) once, refuses another payload, and may lose questions and answers."""

    def __init__(self, losses: list[str] | None = None) -> None:
        self.batches: dict[tuple[str, int], list[UsageRecord]] = {}
        self.losses = losses or []

    async def record_usage(self, server_id: str, sequence: int, batch: list[UsageRecord]) -> int:
        """As the office's, with the next accident of the list."""
        accident = self.losses.pop(0) if self.losses else "none"
        if accident == "question":
            raise OfficeUnavailable("The office does not answer.")
        known = self.batches.setdefault((server_id, sequence), batch)
        assert known == batch, "same id, other payload"
        if accident == "answer":
            raise OfficeUnavailable("The office does not answer.")
        return max(number for server, number in self.batches if server == server_id)

    @property
    def totals(self) -> Counter[str]:
        """Everything stored, by request and in all."""
        return totals([one for batch in self.batches.values() for one in batch])


def totals(given: list[UsageRecord] | tuple[UsageRecord, ...]) -> Counter[str]:
    """Tokens per request, millionths per expert, finals."""
    count: Counter[str] = Counter()
    for one in given:
        count[one.request_id] += one.completion_tokens
        count[f"{one.request_id}@{one.epoch}"] += one.completion_tokens
        count[f"final {one.request_id}"] |= int(one.final)
        for expert, ppm in one.experts.items():
            count[expert] += ppm
    return +count


@given(st.lists(records, max_size=30))
def test_merging_keeps_every_total(given_records: list[UsageRecord]) -> None:
    """Merged records hold the same tokens and shares, one record per request, epoch and composition."""
    merged = merge_records(given_records)
    assert totals(merged) == totals(given_records)
    keys = [(one.request_id, one.epoch) for one in merged]
    assert len(keys) == len(set(keys))
    assert all(sum(one.experts.values()) == one.completion_tokens * 1_000_000 for one in merged)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(records, min_size=1, max_size=3), min_size=1, max_size=8),
    st.lists(st.sampled_from(["none", "question", "answer"]), max_size=6),
    st.data(),
)
def test_every_record_is_counted_once_whatever_is_lost(
    steps: list[list[UsageRecord]], losses: list[str], data: st.DataObject
) -> None:
    """Lost questions, lost answers and crashes in between: the office's totals equal the journaled ones."""
    office = Office(losses)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = UsageJournal.create(folder, "srv_1")
        for step in steps:
            journal.append(step)
            action = data.draw(st.sampled_from(["go on", "upload", "part", "crash", "crash after a part"]))
            if action == "upload":
                asyncio.run(_try_upload(journal, office))
            before = journal.path, journal.path.read_bytes()
            if "part" in action and journal.next_part() and action != "part":
                before[0].write_bytes(before[1])  # named the next part and died before this one was put away
                (folder / CLOSED / before[0].name).unlink()
            if "crash" in action:
                journal.abandon()
                [journal] = [one for path in former_journals(folder) if (one := UsageJournal.reopen(path))]
        journal.abandon()
        office.losses = []
        assert asyncio.run(recover(folder, office)) == 1
        everything = [one for step in steps for one in step]
        assert office.totals == totals(everything) == totals(list(journal_records(folder)))
        assert former_journals(folder) == []
        assert asyncio.run(recover(folder, office)) == 0


async def _try_upload(journal: UsageJournal, office: Office) -> None:
    try:
        await upload(journal, office)
    except OfficeUnavailable:
        return


def test_a_journal_that_grew_long_goes_on_in_a_short_part(tmp_path: Path) -> None:
    """The next part holds what is open or unsent and nothing else, and its server's numbers go on."""
    office = Office()
    journal = UsageJournal.create(tmp_path, "srv_1")
    for number in range(200):
        journal.append([record(number, final=True)])
    asyncio.run(upload(journal, office))
    journal.open(record(7, tokens=0))
    journal.append([record(8)])
    long = journal.size_bytes
    assert journal.next_part()
    assert journal.path.name == part_name("srv_1", 2)
    assert journal.size_bytes < long / 20
    journal.append([record(7)])
    assert journal.next_batch() is not None
    assert not journal.next_part(), "a batch is on its way"
    journal.abandon()
    assert asyncio.run(recover(tmp_path, office)) == 1
    assert [sequence for _, sequence in office.batches] == [1, 2, 3]
    assert (office.totals["req_7"], office.totals["req_8"], office.totals["final req_7"]) == (2, 2, 1)
    assert former_journals(tmp_path) == []


@pytest.mark.parametrize(("module", "act"), [(os, "fsync"), (Path, "rename")])
def test_a_part_that_cannot_be_written_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, act: str
) -> None:
    """A full disk while a next part is begun: the journal goes on in its part, and holds no other file."""
    journal = UsageJournal.create(tmp_path, "srv_1")
    journal.append([record(1)])
    files = psutil.Process().num_fds()
    with monkeypatch.context() as broken:
        broken.setattr(module, act, _no_room)
        with pytest.raises(JournalDamaged):
            journal.next_part()
    assert psutil.Process().num_fds() == files
    journal.append([record(2)])
    journal.abandon()
    office = Office()
    assert asyncio.run(recover(tmp_path, office)) == 1
    assert (office.totals["req_1"], office.totals["req_2"]) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == [CLOSED]


def _no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.data())
def test_torn_last_line_is_cut_and_nothing_before_it(count: int, data: st.DataObject) -> None:
    """Cutting the file anywhere loses the torn line alone, and the journal goes on behind it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = UsageJournal.create(folder, "srv_1")
        ends = []
        for number in range(count):
            journal.append([record(number)])
            ends.append(journal.path.stat().st_size)
        journal.abandon()
        path = folder / "srv_1.jsonl"
        size = data.draw(st.integers(0, ends[-1]))
        os.truncate(path, size)
        again = UsageJournal.reopen(path)
        assert again is not None
        whole = sum(end <= size for end in ends)
        assert again.journaled_tokens == whole
        again.append([record(99)])
        again.abandon()
        kept = [one.request_id for one in journal_records(folder)]
        assert kept == [f"req_{number}" for number in range(whole)] + ["req_99"]


def test_damaged_line_in_the_middle_is_counted_and_the_rest_kept(tmp_path: Path) -> None:
    """A page lost by a power cut hides itself alone."""
    journal = UsageJournal.create(tmp_path, "srv_1")
    places = []
    for number in range(3):
        places.append(journal.path.stat().st_size)
        journal.append([record(number)])
    journal.abandon()
    with journal.path.open("r+b") as file:
        file.seek(places[1] + 20)
        file.write(b"\0\0\0\0")
    again = UsageJournal.reopen(journal.path)
    assert again is not None
    assert (again.skipped_lines, again.journaled_tokens, again.cut_bytes) == (1, 2, 0)
    again.abandon()


def test_journal_has_one_holder(tmp_path: Path) -> None:
    """A living server's journal is not taken over, also not by another process."""
    journal = UsageJournal.create(tmp_path, "srv_1")
    assert UsageJournal.reopen(journal.path) is None
    code = f"""
from pathlib import Path
from cluster.hosting.journal import UsageJournal
print(UsageJournal.reopen(Path({str(journal.path)!r})))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "None"
    journal.append([record()])
    assert asyncio.run(recover(tmp_path, Office())) == 0
    with pytest.raises(JournalDamaged):
        UsageJournal.create(tmp_path, "srv_1")
    journal.abandon()


def test_full_disk_releases_nothing_and_leaves_no_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short write is taken back and raised; the next line is whole again."""
    journal = UsageJournal.create(tmp_path, "srv_1")
    journal.append([record(1)])
    real = os.write

    def half(descriptor: int, line: bytes) -> int:
        real(descriptor, line[: len(line) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cluster.hosting.journal.os.write", half)
    with pytest.raises(JournalDamaged):
        journal.append([record(2)])
    monkeypatch.undo()
    journal.append([record(3)])
    journal.abandon()
    assert [one.request_id for one in journal_records(tmp_path)] == ["req_1", "req_3"]


def test_killed_server_loses_no_journaled_record(tmp_path: Path) -> None:
    """SIGKILL right after a release: the record that covers it is there."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from cluster.hosting.journal import UsageJournal
from test_journal import record
journal = UsageJournal.create(Path({str(tmp_path)!r}), "srv_1")
for number in range(50):
    journal.append([record(number)])
    print(number, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == -9, out.stderr
    office = Office()
    assert asyncio.run(recover(tmp_path, office)) == 1
    assert sum(office.totals[f"req_{line}"] for line in out.stdout.split()) == 50


def test_uploader_carries_records_while_the_server_runs(tmp_path: Path) -> None:
    """Records arrive in the background, an absent office is waited for, and the journal closes settled."""

    async def story() -> None:
        office = Office(["question", "answer"])
        journal = UsageJournal.create(tmp_path, "srv_1")
        uploader = Uploader(journal, office, interval_s=0.01)
        running = asyncio.create_task(uploader.run())
        for number in range(5):
            journal.append([record(number)])
            await asyncio.sleep(0.02)
        async with asyncio.timeout(5):
            while not journal.settled:
                await asyncio.sleep(0.01)
        running.cancel()
        journal.append([record(9, final=True)])
        await uploader.finish()
        assert sum(office.totals[f"req_{number}"] for number in (0, 1, 2, 3, 4, 9)) == 6
        assert uploader.refusals >= 1

    asyncio.run(story())
    assert former_journals(tmp_path) == []
    assert (tmp_path / "closed" / "srv_1.jsonl").exists()


@given(took_s=st.floats(0, 1e3), interval_s=st.floats(0.01, 10))
def test_a_slow_office_is_asked_less_often(took_s: float, interval_s: float) -> None:
    """Uploads take a twentieth of the time, unless records would then wait for more than five seconds."""
    pause_s = pause_after(took_s, interval_s)
    assert pause_s == interval_s or pause_s == min(5.0, 19 * took_s) > interval_s


def test_an_upload_ends_though_the_server_goes_on_writing(tmp_path: Path) -> None:
    """What is written while a batch travels waits for the next time, and then goes as one batch."""
    journal = UsageJournal.create(tmp_path, "srv_1")

    class Busy(Office):
        async def record_usage(self, server_id: str, sequence: int, batch: list[UsageRecord]) -> int:
            for _ in range(3):
                journal.append([record()])
            return await super().record_usage(server_id, sequence, batch)

    office = Busy(["answer"])
    journal.append([record()])
    asyncio.run(_try_upload(journal, office))  # cut, and not acknowledged: goes again beside what came since
    assert [asyncio.run(upload(journal, office)) for _ in range(3)] == [2, 1, 1]
    assert [batch[0].completion_tokens for batch in office.batches.values()] == [1, 6, 3, 3]
    journal.abandon()


def test_a_journal_that_is_closed_while_it_is_read_is_read_once(tmp_path: Path) -> None:
    """Closing moves the file; whoever reads all journals meanwhile sees each of them exactly once."""
    for name in ("srv_a", "srv_b"):
        UsageJournal.create(tmp_path, name).abandon()
    names = []
    for server, _ in read_journals(tmp_path):
        names.append(server)
        left = tmp_path / "srv_b.jsonl"
        if left.exists():
            (tmp_path / "closed").mkdir(exist_ok=True)
            left.rename(tmp_path / "closed" / left.name)
    assert sorted(names) == ["srv_a", "srv_b"]


def test_requests_of_a_killed_server_are_ended_when_its_journal_is_recovered(tmp_path: Path) -> None:
    """What began and never ended gets a final record, whatever was journaled of it; what ended gets none."""
    journal = UsageJournal.create(tmp_path, "srv_1")
    for request in (1, 2, 3):
        journal.open(record(request, 0))
    journal.append([record(1, 4)])
    journal.append([record(2, 2, epoch=5)])
    journal.append([record(3, 1, final=True)])
    journal.abandon()

    office = Office()
    assert asyncio.run(recover(tmp_path, office)) == 1
    stored = [one for batch in office.batches.values() for one in batch]
    assert {one.request_id: (one.completion_tokens, one.final) for one in stored} == {
        "req_1": (4, True),
        "req_2": (2, True),
        "req_3": (1, True),
    }
    assert asyncio.run(recover(tmp_path, office)) == 0


def test_a_journal_that_is_refused_holds_up_no_other(tmp_path: Path) -> None:
    """The office may know nothing of one server's requests; what the others left is booked all the same."""
    for number in (1, 2, 3):
        journal = UsageJournal.create(tmp_path, f"srv_{number}")
        journal.append([record(number, 4)])
        journal.abandon()

    class Forgetful(Office):
        async def record_usage(self, server_id: str, sequence: int, batch: list[UsageRecord]) -> int:
            if server_id == "srv_1":
                raise UnknownReservation("No such request was admitted.")
            return await super().record_usage(server_id, sequence, batch)

    office = Forgetful()
    assert asyncio.run(recover(tmp_path, office)) == 2
    assert {server for server, _ in office.batches} == {"srv_2", "srv_3"}
    assert [path.stem for path in former_journals(tmp_path)] == ["srv_1"]


def test_a_server_that_ends_leaves_no_request_open(tmp_path: Path) -> None:
    """What still runs when the journal is closed gets its final record, and nothing is written after that."""
    office = Office()
    journal = UsageJournal.create(tmp_path, "srv_1")
    journal.open(record(1, 0))
    journal.append([record(1, 3)])
    asyncio.run(Uploader(journal, office).finish())
    (batch,) = office.batches.values()
    assert [(one.completion_tokens, one.final) for one in batch] == [(3, True)]
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT, 0o600)
    with pytest.raises(JournalDamaged):
        journal.append([record(1, 1)])
    assert os.fstat(other).st_size == 0
    os.close(other)
