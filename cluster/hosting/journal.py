# SPDX-License-Identifier: Apache-2.0
"""The usage journal of one server: what was computed is on disk before it is released (law 13).

An append-only file of checksummed JSON lines, ``<folder>/<server_id>.jsonl``::

    <crc32, 8 hex digits> {"k": "head", "server_id": ...}
    <crc32> {"k": "open", "r": a bare usage record}   a request began
    <crc32> {"k": "use", "r": [usage records of one engine step]}
    <crc32> {"k": "batch", "s": 1, "to": 17}      extent of batch 1: all use lines up to the 17th
    <crc32> {"k": "ack", "s": 1}                  the office stored batch 1

The extent of a batch is written (and synced) *before* the batch is sent, so that whoever resends it after a
crash sends the same payload under the same number, and the office can count exactly once. A line is written
with one ``write`` before its tokens are released, so a SIGKILL loses nothing; ``sync`` runs at least every
second, which bounds what a power cut can lose. A torn last line is cut when a journal is opened again.
The journal knows neither Ray nor the office.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.hosting.errors import JournalDamaged
from cluster.office.protocol import UsageRecord

_SUFFIX = ".jsonl"
_CLOSED = "closed"


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
    groups: dict[tuple[str, str, int, str], UsageRecord] = {}
    for record in records:
        key = (record.request_id, record.deployment, record.epoch, record.composition_digest)
        before = groups.get(key)
        if before is None:
            groups[key] = record
            continue
        experts = dict(before.experts)
        for name, ppm in record.experts.items():
            experts[name] = experts.get(name, 0) + ppm
        groups[key] = before.model_copy(
            update={
                "prompt_tokens": before.prompt_tokens + record.prompt_tokens,
                "completion_tokens": before.completion_tokens + record.completion_tokens,
                "experts": experts,
                "at_us": max(before.at_us, record.at_us),
                "final": before.final or record.final,
            }
        )
    return tuple(groups.values())


def encode_line(body: dict[str, Any]) -> bytes:
    """One line: checksum, space, compact JSON, newline."""
    return _line(json.dumps(body, separators=(",", ":"), sort_keys=True).encode())


def _use_line(records: Sequence[UsageRecord]) -> bytes:
    """The line of records; there is one for every released token, so they write themselves."""
    return _line(b'{"k":"use","r":[%s]}' % b",".join(record.model_dump_json().encode() for record in records))


def _line(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The body of a line, or None if the line is not whole."""
    if len(line) < 11 or not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    text = line[9:-1]
    try:
        if int(line[:8], 16) != zlib.crc32(text):
            return None
        body = json.loads(text)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


class UsageJournal:
    """One server's journal, open for appending by exactly one process (an exclusive file lock).

    Thread-safe: the release path appends while the uploader cuts batches.
    """

    def __init__(self, path: Path, descriptor: int, server_id: str) -> None:
        self.path = path
        self.server_id = server_id
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
        self._unfinished: dict[str, UsageRecord] = {}

    @classmethod
    def create(cls, folder: Path, server_id: str) -> UsageJournal:
        """Starts the journal of a new server; a server id is never used twice."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{server_id}{_SUFFIX}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as err:
            sentence = "The usage journal cannot be created; free its folder and start the host again."
            raise JournalDamaged(sentence, journal=path.name, reason=err.strerror or "") from err
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        journal = cls(path, descriptor, server_id)
        journal._write({"k": "head", "server_id": server_id, "v": 1})
        journal.sync()
        _sync_folder(folder)
        return journal

    @classmethod
    def reopen(cls, path: Path) -> UsageJournal | None:
        """Claims a former server's journal; None while another process holds it.

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
        journal = cls(path, descriptor, path.name.removesuffix(_SUFFIX))
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
            self._write_line(_use_line(records))
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
        unfinished = [record.model_copy(update={"final": True}) for record in self._unfinished.values()]
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
    def settled(self) -> bool:
        """True when everything journaled is stored at the office."""
        with self._mutex:
            return not self._loose and not self._unacknowledged

    def close(self) -> None:
        """Releases the file; a settled journal moves to ``closed/`` and is kept as evidence."""
        self.sync()
        if self.settled:
            closed = self.path.parent / _CLOSED
            closed.mkdir(exist_ok=True, mode=0o700)
            self.path.rename(closed / self.path.name)
        self.abandon()

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
                bare = {"prompt_tokens": 0, "completion_tokens": 0, "experts": {}}
                self._unfinished[record.request_id] = record.model_copy(update=bare)

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
        for line, end in _lines(data):
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


def former_journals(folder: Path) -> list[Path]:
    """Journals left in a folder, oldest server first (ids are ordered by time)."""
    return sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else []


def read_journals(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The bytes of every journal of a folder by server, open and closed ones, each once.

    A journal may be closed, that is moved, while this runs. So open ones are read first, wherever they
    have got to, and the closed ones are listed after that.
    """
    seen = set()
    for path in former_journals(folder):
        seen.add(path.name)
        try:
            yield path.stem, path.read_bytes()
        except FileNotFoundError:
            yield path.stem, (folder / _CLOSED / path.name).read_bytes()
    for path in former_journals(folder / _CLOSED):
        if path.name not in seen:
            yield path.stem, path.read_bytes()


def journal_records(folder: Path) -> Iterator[UsageRecord]:
    """Every record that was journaled in a folder, open and closed journals alike (for auditing)."""
    for _, data in read_journals(folder):
        for line, _ in _lines(data):
            body = decode_line(line)
            if body is not None and body.get("k") == "use":
                for entry in body["r"]:
                    yield UsageRecord.model_validate(entry)


def _lines(data: bytes) -> Iterator[tuple[bytes, int]]:
    start = 0
    while start < len(data):
        newline = data.find(b"\n", start)
        end = len(data) if newline < 0 else newline + 1
        yield data[start:end], end
        start = end


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
