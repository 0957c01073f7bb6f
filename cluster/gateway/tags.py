# SPDX-License-Identifier: Apache-2.0
"""Entity tags: strong ones, made of a digest or a version, and what clients send to compare them.

Knows the form of the headers of RFC 9110 and nothing of what a tag stands for.
"""

from __future__ import annotations

import re

_TAG = re.compile(r'(?:W/)?"([^"]*)"')


def entity_tag(version: str | int) -> str:
    """The strong entity tag of a version."""
    return f'"{version}"'


def tags_of(header: str | None) -> frozenset[str] | None:
    """The versions that a conditional header names; None for ``*``, which stands for any.

    A header in no known form names nothing, so that ``If-None-Match`` answers in full and ``If-Match``
    refuses.
    """
    if header is None:
        return frozenset()
    if header.strip() == "*":
        return None
    return frozenset(_TAG.findall(header))


def matches(header: str | None, version: str | int) -> bool:
    """Whether a conditional header names a version."""
    named = tags_of(header)
    return named is None or str(version) in named
