# SPDX-License-Identifier: Apache-2.0
"""What processes hold of weight files, and beside them, by the kernel's own account of every mapping.

A file that several processes map counts once: the kernel divides each page by those who map it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_WEIGHTS = ("/artifacts/", ".safetensors", "/derived/", "/weights/")


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Memory of several processes together, in bytes.

    Attributes:
        mapped: proportional share of weight files, private changes of them included.
        anonymous: everything that no file stands behind.
    """

    mapped: int
    anonymous: int


def held_by(pids: Iterable[int]) -> Held:
    """Reads what processes hold."""
    mapped = anonymous = 0
    for pid in pids:
        for path, facts in mappings(Path(f"/proc/{pid}/smaps").read_text()):
            if any(mark in path for mark in _WEIGHTS):
                mapped += facts.get("Pss", 0)
            else:
                anonymous += facts.get("Anonymous", 0)
    return Held(mapped=mapped * 1024, anonymous=anonymous * 1024)


def mappings(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Path and kibibytes by name of every mapping in a ``smaps`` file."""
    path, facts = "", {}
    for line in text.splitlines():
        head, _, rest = line.partition(" ")
        if not head.endswith(":"):
            if facts:
                yield path, facts
            parts = line.split(maxsplit=5)
            path, facts = (parts[5] if len(parts) > 5 else ""), {}
        elif rest.strip().endswith("kB"):
            facts[head[:-1]] = int(rest.split()[0])
    if facts:
        yield path, facts
