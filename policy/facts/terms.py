# SPDX-License-Identifier: Apache-2.0
"""The closed words of policy: actions, effects, states, gates and outcomes.

Words with a hierarchy (purposes, regions) are data, see ``policy.facts.vocabulary``. Knows no facts and makes
no decisions.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

ENGINE_VERSION: Final = "1"
"""Changes whenever the same snapshot and question could give another answer."""

ANY: Final = "*"
"""Stands in facts (never in questions) for every value of a field."""

ACTIONS: Final = (
    "view_card",
    "compose",
    "infer",
    "evaluate",
    "attribute",
    "fine_tune",
    "train_on_outputs",
    "export_weights",
)

NEVER_BY_WILDCARD: Final = frozenset({"export_weights"})
"""Actions that no permit covers with ``*``: what leaves as weights can never be recalled, so whoever
permits it has to name it. A forbid with ``*`` covers them like everything else."""

SHARING_ACTIONS: Final = frozenset({"export_weights"})
"""Actions by which adapted material leaves the platform (share-alike terms bite only here)."""

Effect = Literal["permit", "forbid"]
Verdict = Literal["permit", "deny"]
ConsentState = Literal["given", "withdrawn"]
GrantState = Literal["given", "revoked"]
ExpertState = Literal["sealed", "listed", "suspended", "erased"]
OnConflict = Literal["strict", "drop_by_rule"]
WhenCutOff = Literal["hold", "refuse"]
Standing = Literal["active", "suspended"]

Gate = Literal["facts", "identity", "consent", "grant", "license", "rules", "set"]
GATES: Final[tuple[Gate, ...]] = ("facts", "identity", "consent", "grant", "license", "rules", "set")
"""The five gates between ``facts`` (is the question itself understood?) and ``set`` (may the members
stand together?)."""

Outcome = Literal[
    "permit",
    "error",
    "forbidden",
    "not_identified",
    "no_consent",
    "no_grant",
    "license",
    "no_rule",
    "set_conflict",
    "awaits_review",
]
"""The class of a verdict. A denial with several reasons wears the first of these that applies."""
OUTCOMES: Final[tuple[Outcome, ...]] = (
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

AtUs = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""Microseconds since the Unix epoch, UTC; every JSON reader agrees on integers of this range."""
Micro = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""Micro-units of the currency."""
Ppm = Annotated[int, Field(ge=0, le=1_000_000)]
"""Parts per million."""
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
TopK = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""How many experts a token may be sent to, the public one included."""
