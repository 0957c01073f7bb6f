# SPDX-License-Identifier: Apache-2.0
"""One line of a usage journal: a checksum and compact JSON, so that a torn or damaged one is known."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.office.protocol import UsageRecord


def encode_line(body: dict[str, Any]) -> bytes:
    """One line: checksum, space, compact JSON, newline."""
    return _line(json.dumps(body, separators=(",", ":"), sort_keys=True).encode())


def records_line(kind: str, records: Sequence[UsageRecord]) -> bytes:
    """The line of records; there is one for every released token, so they write themselves."""
    written = b",".join(record.model_dump_json().encode() for record in records)
    return _line(b'{"k":"%b","r":[%b]}' % (kind.encode(), written))


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


def lines_of(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The lines of a journal, whole or not, each with the place at which it ends."""
    start = 0
    while start < len(data):
        newline = data.find(b"\n", start)
        end = len(data) if newline < 0 else newline + 1
        yield data[start:end], end
        start = end


def _line(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)
