# SPDX-License-Identifier: Apache-2.0
"""Reviewed licenses as verdicts look at them, and which of an expression's licenses a use rests on.

Knows no experts and no snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from policy.deciding.license_expressions import Node, parse
from policy.errors import InvalidLicenseExpression
from policy.facts.snapshot import LicenseFact
from policy.facts.vocabulary import Hierarchy

MILLION_PPM: Final = 1_000_000

_HOSTED: Final = frozenset({"compose", "infer", "evaluate", "attribute", "fine_tune", "train_on_outputs"})
_DERIVING: Final = frozenset({"fine_tune", "train_on_outputs", "export_weights"})
_LEAVING: Final = frozenset({"export_weights"})
_NO_LICENSE: Final = frozenset({"noassertion", "none"})

Royalty = tuple[str, str, int]
Chosen = tuple[str, ...]


class Burden(NamedTuple):
    """What can clash: groups to share under, and royalties as (subject, license key, ppm)."""

    groups: frozenset[str] = frozenset()
    royalties: frozenset[Royalty] = frozenset()

    def join(self, others: Iterable[Burden]) -> Burden:
        """What both ask for; the same royalty counts once."""
        several = tuple(others)
        return Burden(
            self.groups.union(*(one.groups for one in several)),
            self.royalties.union(*(one.royalties for one in several)),
        )

    @property
    def clashes(self) -> bool:
        """Whether it cannot be borne."""
        return len(self.groups) > 1 or sum(ppm for _, _, ppm in self.royalties) > MILLION_PPM


class Reviewed:
    """One reviewed license, as far as verdicts look at it."""

    def __init__(self, fact: LicenseFact, purposes: Hierarchy) -> None:
        self.key = fact.key
        self.group = fact.share_alike_group or ""
        self.royalty_ppm = fact.royalty_ppm
        self.prohibited = frozenset(fact.prohibited_purposes)
        readable = all(term in purposes for term in self.prohibited)
        self._usable = bool(fact.reviewed_by.strip()) and readable
        self._facets = fact.hosted_use is True, fact.derivatives is True, fact.distribution_weights is True
        self._commercial = fact.use_commercial is True
        owed = [("flow_down", text) for text in fact.flow_down]
        owed += [("prohibited_purpose", term) for term in fact.prohibited_purposes]
        if fact.attribution is not False:
            owed.append(("attribute", fact.title or fact.key))
        if fact.notice:
            owed.append(("notice", fact.url or fact.key))
        if self.group:
            owed.append(("share_alike", self.group))
        if fact.user_cap is not None:
            owed.append(("user_cap", str(fact.user_cap)))
        self._owed = frozenset(owed)
        self._royalty = {("royalty", str(self.royalty_ppm))} if self.royalty_ppm else set[tuple[str, str]]()

    def permits(self, action: str, *, commercial: bool, prohibited: frozenset[str]) -> bool:
        """Whether it permits a use that comes under some prohibited purposes."""
        hosted, derivatives, distribution = self._facets
        return (
            self._usable
            and (hosted or action not in _HOSTED)
            and (derivatives or action not in _DERIVING)
            and (distribution or action not in _LEAVING)
            and (self._commercial or not commercial)
            and self.prohibited.isdisjoint(prohibited)
        )

    def owed(self, *, commercial: bool) -> frozenset[tuple[str, str]]:
        """Kind and text of what it obliges to."""
        return self._owed | self._royalty if commercial else self._owed


def tree_of(expression: str) -> Node | None:
    """The tree of an expression; None if it cannot be read."""
    try:
        return parse(expression)
    except InvalidLicenseExpression:
        return None


def keys_of(node: Node) -> frozenset[str]:
    """The license keys that a tree names, in lower case, but for words that name none."""
    if node.kind == "license":
        return frozenset({node.key.lower()}) - _NO_LICENSE
    return frozenset[str]().union(*map(keys_of, node.children))


def choose(node: Node, permitting: Mapping[str, Reviewed], owed: Mapping[str, int]) -> Chosen | None:
    """The licenses that a use of an expression rests on; None if it does not permit the use.

    Args:
        node: the expression.
        permitting: by lower-case key, the licenses that permit the use.
        owed: by key, how many obligations each lays on it.
    """
    if node.kind == "license":
        fact = permitting.get(node.key.lower())
        return None if fact is None else (fact.key,)
    found = [choose(child, permitting, owed) for child in node.children]
    permitted = [one for one in found if one is not None]
    if node.kind == "or":
        return min(permitted, key=lambda keys: (sum(owed[key] for key in keys), keys), default=None)
    if len(permitted) < len(found):
        return None
    return tuple(sorted({key for keys in permitted for key in keys}))
