# SPDX-License-Identifier: Apache-2.0
"""Identifiers and names: what a thing may be called.

Ids are made here and nowhere else; names come from people and are checked here. Knows nothing of what
the ids stand for, nor whether a name is taken.
"""

from __future__ import annotations

import re

import uuid_utils

from model_core.errors import InvalidName

_PREFIX = re.compile(r"[a-z][a-z0-9]{0,15}")
_ID = re.compile(r"([a-z][a-z0-9]{0,15})_[0-9a-f]{32}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}(\.[a-z0-9_-]{1,16}){0,3}")


def new_id(prefix: str) -> str:
    """Makes a fresh id, ``<prefix>_<32 hex digits of a UUIDv7>``; ids sort by time of making.

    Raises:
        InvalidName: the prefix is not a short lower-case word.
    """
    if _PREFIX.fullmatch(prefix) is None:
        raise InvalidName(f"The id prefix {prefix[:32]!r} must be 1 to 16 lower-case letters or digits.")
    return f"{prefix}_{uuid_utils.uuid7().hex}"


def check_id(value: str, prefix: str) -> str:
    """Returns the id if it is one of that prefix.

    Raises:
        InvalidName: the value is not ``<prefix>_<32 hex digits>``.
    """
    match = _ID.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[1] != prefix:
        raise InvalidName(
            f"{_shown(value)} is not an id of the form {prefix}_ and 32 hex digits.", prefix=prefix
        )
    return value


def check_name(name: str, what: str) -> str:
    """Returns the name if it is one: 1 to 63 of ``a-z 0-9 -``, starting with a letter or digit.

    The alphabet has no dot, slash, backslash or control character, so a checked name can stand in a path,
    a URL or a host name without leaving its place.

    Args:
        name: what somebody wants to call it.
        what: the noun, for the sentence of the refusal ("tenant", "deployment").

    Raises:
        InvalidName: the name is not in the alphabet.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidName(
            f"{_shown(name)} cannot be the name of a {what}: use 1 to 63 lower-case letters, digits "
            "and hyphens, starting with a letter or a digit.",
            what=what,
        )
    return name


def check_file_name(name: str, what: str) -> str:
    """Returns the name if it is one plain file name: no folders, no leading dot, no ``..``.

    Raises:
        InvalidName: the name could leave its folder or is not in the alphabet.
    """
    if not isinstance(name, str) or _FILE_NAME.fullmatch(name) is None:
        raise InvalidName(
            f"{_shown(name)} cannot be the name of a {what}: use lower-case letters, digits, hyphens, "
            "underscores and single dots, without folders.",
            what=what,
        )
    return name


def _shown(value: object) -> str:
    """What was given, cut short so that a refusal cannot be used to fill a log."""
    return repr(value[:80]) if isinstance(value, str) else f"A {type(value).__name__}"
