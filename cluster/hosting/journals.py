# SPDX-License-Identifier: Apache-2.0
"""The folder of usage journals: which files belong to which server, and what was journaled in all of them.

A server's journal is one file or several parts, ``<server_id>.jsonl``, ``<server_id>.2.jsonl``, …: a part
that has a successor is over, since what was still to be sent was carried into the successor before that
got its name. Settled journals lie in ``closed/`` and are kept as evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cluster.hosting.journal_lines import decode_line, lines_of
from cluster.office.protocol import UsageRecord

SUFFIX: Final = ".jsonl"
CLOSED: Final = "closed"


def part_name(server_id: str, part: int) -> str:
    """The file name of a part, counted from 1."""
    return f"{server_id}{SUFFIX}" if part == 1 else f"{server_id}.{part}{SUFFIX}"


def server_and_part(path: Path) -> tuple[str, int]:
    """Whose journal a file is, and which part of it."""
    server_id, _, part = path.name.removesuffix(SUFFIX).partition(".")
    return server_id, int(part) if part.isdecimal() else 1


def is_over(path: Path) -> bool:
    """Whether a part has a successor, which carries what this one had still to send."""
    server_id, part = server_and_part(path)
    name, folder = part_name(server_id, part + 1), path.parent
    return (folder / name).exists() or (folder / CLOSED / name).exists()


def draft_after(path: Path) -> Path:
    """Where the next part is written before it gets its name."""
    server_id, part = server_and_part(path)
    return path.with_name(f"{part_name(server_id, part + 1)}.draft")


def put_away(path: Path) -> None:
    """Moves a journal that has nothing more to send to the closed ones."""
    closed = path.parent / CLOSED
    closed.mkdir(exist_ok=True, mode=0o700)
    path.rename(closed / path.name)
    draft_after(path).unlink(missing_ok=True)  # of a server that ended while it wrote one


def former_journals(folder: Path) -> list[Path]:
    """Journals left in a folder, oldest server first (ids are ordered by time), parts in order."""
    return sorted(folder.glob(f"*{SUFFIX}"), key=server_and_part) if folder.is_dir() else []


def read_journals(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The bytes of every part of every journal of a folder by server, open and closed ones, each once.

    A part may be closed, that is moved, while this runs. So open ones are read first, wherever they
    have got to, and the closed ones are listed after that.
    """
    seen = set()
    for path in former_journals(folder):
        seen.add(path.name)
        server_id, _ = server_and_part(path)
        try:
            yield server_id, path.read_bytes()
        except FileNotFoundError:
            yield server_id, (folder / CLOSED / path.name).read_bytes()
    for path in former_journals(folder / CLOSED):
        if path.name not in seen:
            yield server_and_part(path)[0], path.read_bytes()


def journal_records(folder: Path) -> Iterator[UsageRecord]:
    """Every record that was journaled in a folder, open and closed journals alike (for auditing)."""
    for _, data in read_journals(folder):
        for line, _ in lines_of(data):
            body = decode_line(line)
            if body is not None and body.get("k") == "use":
                for entry in body["r"]:
                    yield UsageRecord.model_validate(entry)
