# SPDX-License-Identifier: Apache-2.0
"""Results of single cells on disk, so that a long benchmark goes on where it was ended.

A result is found again only by the same settings, the same versions and the same source code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import model_core

_SOURCES = ("engine", "network")


def digest_of(settings: Mapping[str, Any]) -> str:
    """A name for a result."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def source_digest(folder: Path | None = None) -> str:
    """A digest of what computes our side: the engine, its kernels and the network."""
    root = folder or Path(model_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for part in _SOURCES for path in (root / part).rglob("*")):
        if path.suffix in {".py", ".cpp", ".hpp"}:
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


class Kept:
    """A folder of results.

    Args:
        folder: where they are kept; made when the first one comes.
        context: what all of them depend on.
    """

    def __init__(self, folder: Path, context: Mapping[str, Any]) -> None:
        self._folder, self._context = folder, dict(context)

    def find(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of these settings, if it is here whole."""
        try:
            found: dict[str, Any] = json.loads(self._path(settings).read_text())["result"]
        except (OSError, ValueError, KeyError):
            return None
        return found

    def keep(self, settings: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Writes a result."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(settings)
        draft = path.with_suffix(".draft")
        document = {"settings": settings, "context": self._context, "result": result}
        draft.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        draft.replace(path)

    def _path(self, settings: Mapping[str, Any]) -> Path:
        name = digest_of({"settings": settings, "context": self._context})
        return self._folder / f"{name}.json"
