# SPDX-License-Identifier: Apache-2.0
"""What every evaluator says about a world, in one form, so that answers can be compared with ``==``.

Knows no rule of deciding and no evaluator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

Json = dict[str, Any]

ORDER = (
    "error",
    "forbidden",
    "not_identified",
    "no_consent",
    "no_grant",
    "license",
    "no_rule",
    "set_conflict",
    "awaits_review",
)
"""The classes of denial, gravest first: a denial wears the first that applies."""


def gravest(classes: set[str]) -> str:
    """The class of a verdict."""
    return next((one for one in ORDER if one in classes), "permit")


class Said(NamedTuple):
    """About one candidate: its bundle digest (or the unknown name), class, failed gates and end."""

    bundle: str
    outcome: str
    gates: frozenset[str]
    ends_us: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """About one question: every candidate by bundle digest (unknown names last), and what runs.

    ``denied``: nothing at all may answer. ``ends_us``: the first moment at which a member has to leave.
    """

    experts: tuple[Said, ...]
    members: tuple[str, ...]
    dropped: tuple[str, ...]
    denied: bool
    ends_us: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """About one question, without reasons: who passes the gates (whether asked for or not), and what runs."""

    permitted: frozenset[str]
    members: tuple[str, ...]
    dropped: tuple[str, ...]
    denied: bool
    ends_us: int | None


class Gates(NamedTuple):
    """About one candidate at one moment: the gates that deny, and those that could not be evaluated."""

    bundle: str
    failed: frozenset[str]
    errors: frozenset[str]


class Case(NamedTuple):
    """One world as a plain document, and the moment at which its deployment ``lab`` asks."""

    world: Json
    at_us: int
