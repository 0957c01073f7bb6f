# SPDX-License-Identifier: Apache-2.0
"""The usage journal of one server: what was computed is on disk before it is released (law 13).

An append-only file of checksummed JSON lines::

    <crc32, 8 hex digits> {"k": "head", "server_id": ...}
    <crc32> {"k": "open", "r": a bare usage record}   a request began
    <crc32> {"k": "use", "r": [usage records of one engine step]}
    <crc32> {"k": "batch", "s": 1, "to": 17}      extent of batch 1: all use lines up to the 17th
    <crc32> {"k": "ack", "s": 1}                  the office stored batch 1
    <crc32> {"k": "carry", "r": [usage records]}  records that the part before had not sent yet

The extent of a batch is written (and synced) *before* the batch is sent, so that whoever resends it after a
crash sends the same payload under the same number, and the office can count exactly once. A line is written
with one ``write`` before its tokens are released, so a SIGKILL loses nothing; ``sync`` runs at least every
second, which bounds what a power cut can lose. A torn last line is cut when a journal is opened again.

A file that has grown long is continued in a next part. That one is whole and on the disk, with every
request that is open and every record that was not sent, before it gets its name; from then on the part before
is over, whatever happens. The journal knows neither Ray nor the office.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.hosting.errors import JournalDamaged
from cluster.hosting.journal_lines import decode_line, encode_line, lines_of, records_line
from cluster.hosting.journals import draft_after, is_over, part_name, put_away, server_and_part
from cluster.office.protocol import UsageRecord
from model_core.packing.files import sync_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageBatch:
    """What is uploaded under one (server, sequence).

    Attributes:
        server_id: whose journal.
        sequence: 1, 2, 3...
        records: merged records, equal at every resend.
    """

    server_id: str
    sequence: int
    records: tuple[UsageRecord, ...]


def merge_records(records: Iterable[UsageRecord]) -> tuple[UsageRecord, ...]:
    """Adds up records of one request, epoch and composition; keeps the order of first appearance.

    Totals are preserved: tokens, prompt tokens and millionths per expert.
    """
    groups: dict[tuple[str, str, int, str], list[UsageRecord]] = {}
    for record in records:
        key = (record.request_id, record.deployment, record.epoch, record.composition_digest)
        groups.setdefault(key, []).append(record)
    return tuple(group[0] if len(group) == 1 else _sum(group) for group in groups.values())


def _sum(records: Sequence[UsageRecord]) -> UsageRecord:
    """There is a record for every token of a stream, so they are added up and only the sum is made."""
    experts: dict[str, int] = {}
    for record in records:
        for name, ppm in record.experts.items():
            experts[name] = experts.get(name, 0) + ppm
    return records[0].model_copy(
        update={
            "prompt_tokens": sum(record.prompt_tokens for record in records),
            "completion_tokens": sum(record.completion_tokens for record in records),
            "experts": experts,
            "at_us": max(record.at_us for record in records),
            "final": any(record.final for record in records),
        }
    )


class UsageJournal:
    """One server's journal, open for appending by exactly one process (an exclusive file lock).

    Thread-safe: the release path appends while the uploader cuts batches.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.server_id, _ = server_and_part(path)
        self.cut_bytes = 0
        self.skipped_lines = 0
        self._fd = descriptor
        self._mutex = threading.Lock()
        self._size = 0
        self._dirty = False
        self._loose: list[UsageRecord] = []
        self._uses = 0
        self._next_sequence = 1
        self._unacknowledged: dict[int, tuple[UsageRecord, ...]] = {}
        self._journaled_tokens = 0
        self._unfinished: dict[str, UsageRecord] = {}  # the newest record of each, with its tokens

    @classmethod
    def create(cls, folder: Path, server_id: str) -> UsageJournal:
        """Starts the journal of a new server; a server id is never used twice."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / part_name(server_id, 1)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as err:
            sentence = "The usage journal cannot be created; free its folder and start the host again."
            raise JournalDamaged(sentence, journal=path.name, reason=err.strerror or "") from err
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        journal = cls(path, descriptor)
        journal._write({"k": "head", "server_id": server_id, "v": 1})
        journal.sync()
        sync_folder(folder)
        return journal

    @classmethod
    def reopen(cls, path: Path) -> UsageJournal | None:
        """Claims a former server's journal; None while another process holds it, or if it is over.

        Cuts a torn last line. Whole lines behind a damaged one are kept (a power cut may lose a page in
        the middle) and the damaged ones are counted in ``skipped_lines``.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:
            os.close(descriptor)  # closed and moved away between open and lock
            return None
        journal = cls(path, descriptor)
        if is_over(path):
            put_away(path)
            os.close(descriptor)
            return None
        journal._replay()
        return journal

    def append(self, records: Sequence[UsageRecord]) -> None:
        """Writes records; when this returns, the tokens they cover may be released.

        Raises:
            JournalDamaged: if the line could not be written whole; nothing may be released then.
        """
        if not records:
            return
        with self._mutex:
            self._write_line(records_line("use", records))
            self._take_records(records)

    def open(self, record: UsageRecord) -> None:
        """Notes that a request has begun.

        Args:
            record: without tokens; what is written as its last if this server ends before the request does.
        """
        with self._mutex:
            self._write({"k": "open", "r": record.model_dump(mode="json")})
            self._unfinished[record.request_id] = record

    def finish_all(self) -> int:
        """Writes a final record for every request that has none: its server lives no more.

        Returns:
            How many were unfinished.
        """
        unfinished = [_bare(record, final=True) for record in self._unfinished.values()]
        self.append(unfinished)
        return len(unfinished)

    @property
    def journaled_tokens(self) -> int:
        """Completion tokens in this journal."""
        return self._journaled_tokens

    def sync(self) -> None:
        """Brings everything written so far to the disk."""
        if self._dirty:
            self._dirty = False
            os.fsync(self._fd)

    def next_batch(self) -> UsageBatch | None:
        """The oldest batch that is not acknowledged, cutting a new one if there are loose records."""
        with self._mutex:
            if not self._unacknowledged and self._loose:
                sequence = self._next_sequence
                self._write({"k": "batch", "s": sequence, "to": self._uses})
                self._enclose(sequence)
            for sequence in sorted(self._unacknowledged):
                batch = UsageBatch(
                    server_id=self.server_id, sequence=sequence, records=self._unacknowledged[sequence]
                )
                break
            else:
                return None
        self.sync()
        return batch

    def acknowledge(self, sequence: int) -> None:
        """Notes that the office stored every batch up to ``sequence``."""
        with self._mutex:
            done = [number for number in self._unacknowledged if number <= sequence]
            if done:
                self._write({"k": "ack", "s": max(done)})
                for number in done:
                    del self._unacknowledged[number]

    @property
    def waiting_batches(self) -> int:
        """How many batches what is not stored yet makes: one that was cut, one of what came since."""
        with self._mutex:
            return len(self._unacknowledged) + bool(self._loose)

    @property
    def settled(self) -> bool:
        """True when everything journaled is stored at the office."""
        with self._mutex:
            return not self._loose and not self._unacknowledged

    def close(self) -> None:
        """Releases the file; a settled journal moves to ``closed/`` and is kept as evidence."""
        self.sync()
        if self.settled:
            put_away(self.path)
        self.abandon()

    @property
    def size_bytes(self) -> int:
        """Length of the part that is written to."""
        return self._size

    def next_part(self) -> bool:
        """Continues in a new part; False if batches are on their way, and then another time is right.

        Whoever writes waits for one sync of a short file.

        Raises:
            JournalDamaged: there is no room for it; everything goes on in this part.
        """
        draft = draft_after(self.path)
        try:
            with self._mutex:
                if self._unacknowledged:
                    return False
                former = self._continue_in(draft)
            try:
                former.sync()
                put_away(former.path)
            finally:
                former.abandon()
        except OSError as err:
            sentence = "The usage journal cannot be continued in a new part; check the disk of this server."
            raise JournalDamaged(sentence, journal=draft.name, reason=err.strerror or "") from err
        return True

    def _continue_in(self, draft: Path) -> UsageJournal:
        """Writes what is open into a draft, names it, and turns to it; answers the part that is over."""
        head: dict[str, Any] = {"k": "head", "server_id": self.server_id, "v": 1, "next": self._next_sequence}
        bare = [_bare(record) for record in self._unfinished.values()]
        still_open = ({"k": "open", "r": one.model_dump(mode="json")} for one in bare)
        text = b"".join(encode_line(body) for body in (head, *still_open)) + records_line(
            "carry", self._loose
        )
        descriptor = _written(draft, text)
        path = draft.with_suffix("")
        try:
            draft.rename(path)
        except OSError:
            os.close(descriptor)
            raise
        former = UsageJournal(self.path, self._fd)
        former._dirty = True
        self._fd, self.path = descriptor, path
        self._size, self._dirty, self._uses = len(text), False, 0
        sync_folder(path.parent)
        return former

    def abandon(self) -> None:
        """Releases the file as it is; nothing can be written any more."""
        with self._mutex:
            # The number may be another file's in a moment.
            descriptor, self._fd = self._fd, -1
            os.close(descriptor)

    def _take_records(self, records: Sequence[UsageRecord]) -> None:
        self._uses += 1
        self._loose.extend(records)
        for record in records:
            self._journaled_tokens += record.completion_tokens
            if record.final:
                self._unfinished.pop(record.request_id, None)
            elif record.request_id in self._unfinished:
                self._unfinished[record.request_id] = record

    def _enclose(self, sequence: int) -> None:
        self._unacknowledged[sequence] = merge_records(self._loose)
        self._loose = []
        self._next_sequence = sequence + 1

    def _write(self, body: dict[str, Any]) -> None:
        self._write_line(encode_line(body))

    def _write_line(self, line: bytes) -> None:
        try:
            written = os.write(self._fd, line)
        except OSError as err:
            self._take_back(err.strerror or "error")
        else:
            if written != len(line):
                self._take_back("short write")
        self._size += len(line)
        self._dirty = True

    def _take_back(self, reason: str) -> None:
        # Half a line in the middle of the file would hide the line behind it, so it goes at once.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._size)
        raise JournalDamaged(
            "The usage journal cannot be written, so nothing is released; check the disk of this server.",
            reason=reason,
        )

    def _replay(self) -> None:
        data = self.path.read_bytes()
        good_bytes = 0
        skipped = 0
        for line, end in lines_of(data):
            body = decode_line(line)
            if body is None:
                skipped += 1
                continue
            self.skipped_lines += skipped
            skipped = 0
            good_bytes = end
            self._take_line(body)
        if good_bytes < len(data):
            self.cut_bytes = len(data) - good_bytes
            os.ftruncate(self._fd, good_bytes)
        self._size = good_bytes

    def _take_line(self, body: dict[str, Any]) -> None:
        match body.get("k"):
            case "head":
                self._next_sequence = int(body.get("next", 1))
            case "carry":
                # Counted where they were first written.
                self._loose.extend(UsageRecord.model_validate(entry) for entry in body["r"])
            case "use":
                self._take_records([UsageRecord.model_validate(entry) for entry in body["r"]])
            case "open":
                record = UsageRecord.model_validate(body["r"])
                self._unfinished[record.request_id] = record
            case "batch":
                self._enclose(int(body["s"]))
            case "ack":
                for number in [n for n in self._unacknowledged if n <= int(body["s"])]:
                    del self._unacknowledged[number]
            case _:
                pass


def _bare(record: UsageRecord, *, final: bool = False) -> UsageRecord:
    """A record of the same request, epoch and composition, without tokens."""
    none = {"prompt_tokens": 0, "completion_tokens": 0, "experts": {}}
    return record.model_copy(update={**none, "final": final})


def _written(draft: Path, text: bytes) -> int:
    """A new file with this text in it and on the disk, locked; its descriptor."""
    descriptor = os.open(draft, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        short = os.write(descriptor, text) != len(text)
        os.fsync(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    if short:
        os.close(descriptor)
        raise OSError(errno.ENOSPC, "short write")
    return descriptor
