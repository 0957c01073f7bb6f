# SPDX-License-Identifier: Apache-2.0
"""Optimistic locking: who edits a document names the version that was read, and a stale edit is refused."""

from __future__ import annotations

from policy.errors import StaleVersion


def check_version(present: int, expected: int | None, name: str) -> None:
    """Refuses an edit of another version than the present one.

    Args:
        present: the version that is stored; 0 where there is none.
        expected: the version that was read; None where the editor does not care.
        name: of the document.

    Raises:
        StaleVersion: somebody else was faster.
    """
    if expected is not None and expected != present:
        raise StaleVersion(
            f"{name} was edited since you read it. Read it again and put your edit on the present version.",
            name=name,
            expected=expected,
            present=present,
        )
