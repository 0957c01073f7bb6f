# SPDX-License-Identifier: Apache-2.0
"""What the licenses of a snapshot say, for every class of uses that they can tell apart.

A license sees of a use whether it is commercial, which facets the action needs and which prohibited
purposes it comes under. Uses that are alike in that are one class; for each class the verdict on every
expert and what its members would owe are laid out when the snapshot is compiled. Knows no consents, grants
or rules, and no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policy.compiled.reviewed import Burden, Chosen, Reviewed, choose, keys_of, tree_of
from policy.compiled.words import Flags, Numbers
from policy.deciding.reasons import Obligation
from policy.facts.snapshot import ExpertFact, Snapshot
from policy.facts.terms import ACTIONS, SHARING_ACTIONS
from policy.facts.vocabulary import Hierarchy

#: Which licenses permit, by lower-case key; whether the use is commercial; whether weights are shared.
_Alike = tuple[frozenset[str], bool, bool]
#: An expression, what of it was chosen, and whether the use is commercial.
_Choice = tuple[str, Chosen, bool]
_Owed = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class UseClass:
    """What the licenses say to one class of uses.

    Attributes:
        licensed: by expert, whether all its licenses permit and do not clash among themselves and with its
            base's.
        bases: digests of the bases whose license permits, with what they burden members with.
        burdens: by expert, what may clash with others; experts without any are left out.
        owed_item: licensed thing, one entry for each of its obligations.
        owed: number of the obligation.
    """

    licensed: Flags
    bases: Mapping[str, Burden]
    burdens: Mapping[int, Burden]
    owed_item: Numbers
    owed: Numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Licensing:
    """The licenses of one snapshot, laid out.

    Attributes:
        classes: by action, whether commercial, and purpose.
        obligations: all that anybody could owe, in canonical order.
        item_expert: expert, one entry for each licensed thing that it consists of.
        item: number of that thing: a subject with its expression.
        items: how many there are.
        base_item: the bases' own things, by base digest.
    """

    classes: Mapping[tuple[str, bool, str], UseClass]
    obligations: tuple[Obligation, ...]
    item_expert: Numbers
    item: Numbers
    items: int
    base_item: Mapping[str, int]

    def owed_by(self, use: UseClass, members: Flags, base_digest: str) -> Flags:
        """Which obligations a base and its members lay on a use."""
        held = np.zeros(self.items, np.bool_)
        held[self.item[members[self.item_expert]]] = True
        held[self.base_item[base_digest]] = True
        owed = np.zeros(len(self.obligations), np.bool_)
        owed[use.owed[held[use.owed_item]]] = True
        return owed


def lay_out(snapshot: Snapshot, purposes: Hierarchy) -> Licensing:
    """Asks every license for every class of uses."""
    return _Layout(snapshot, purposes).licensing()


class _Layout:
    """What is known while licenses are laid out."""

    def __init__(self, snapshot: Snapshot, purposes: Hierarchy) -> None:
        self._experts = snapshot.experts
        self._bases = snapshot.bases
        self._purposes = purposes
        self._items: dict[tuple[str, str], int] = {}
        self._base_item = {
            fact.base_digest: self._item(fact.base_digest, fact.license) for fact in self._bases
        }
        pairs = [(n, item) for n, expert in enumerate(self._experts) for item in self._items_of(expert)]
        self._item_expert = np.array([expert for expert, _ in pairs], np.int64)
        self._pair_item = np.array([item for _, item in pairs], np.int64)
        self._subjects: dict[str, list[tuple[int, str]]] = {}
        for (subject, expression), item in self._items.items():
            self._subjects.setdefault(expression, []).append((item, subject))
        self._trees = {expression: tree_of(expression) for expression in self._subjects}
        named = frozenset[str]().union(*(keys_of(tree) for tree in self._trees.values() if tree is not None))
        facts = [fact for fact in snapshot.licenses if fact.key.lower() in named]
        self._licenses = {fact.key.lower(): Reviewed(fact, purposes) for fact in facts}
        self._by_key = {one.key: one for one in self._licenses.values()}

    def _item(self, subject: str, expression: str) -> int:
        return self._items.setdefault((subject, expression), len(self._items))

    def _items_of(self, expert: ExpertFact) -> list[int]:
        own = self._item(expert.expert_id, expert.license)
        return [own, *(self._item(dataset.id, dataset.license) for dataset in expert.datasets)]

    def licensing(self) -> Licensing:
        """Everything, put together."""
        alike = self._alike()
        choices = {one: self._choices(one) for one in dict.fromkeys(alike.values())}
        made = {(*said, one[1]) for one, found in choices.items() for said in found.items()}
        owed: dict[_Choice, list[tuple[int, _Owed]]] = {one: self._owed(*one) for one in made}
        obligations = sorted({what for found in owed.values() for _, what in found})
        number_of = {what: number for number, what in enumerate(obligations)}
        owing = {
            one: np.array([(item, number_of[what]) for item, what in found], np.int64).reshape(-1, 2)
            for one, found in owed.items()
        }
        classes = {one: self._class(one, found, owing) for one, found in choices.items()}
        return Licensing(
            classes={use: classes[one] for use, one in alike.items()},
            obligations=tuple(
                Obligation.model_validate(
                    {"kind": kind, "license_key": key, "subject": subject, "text": text}
                )
                for kind, key, subject, text in obligations
            ),
            item_expert=self._item_expert,
            item=self._pair_item,
            items=len(self._items),
            base_item=self._base_item,
        )

    def _alike(self) -> dict[tuple[str, bool, str], _Alike]:
        """Which uses are alike to these licenses."""
        terms = frozenset[str]().union(*(one.prohibited for one in self._licenses.values()))
        above, licenses = self._purposes.above, self._licenses.items()
        under: dict[frozenset[str], list[str]] = {}
        for purpose in self._purposes:
            # A purpose also comes under what is prohibited of a part of it.
            hit = frozenset(t for t in terms if t in above[purpose] or purpose in above.get(t, ()))
            under.setdefault(hit, []).append(purpose)
        alike: dict[tuple[str, bool, str], _Alike] = {}
        for action in ACTIONS:
            for commercial in (False, True):
                for hit, purposes in under.items():
                    permitting = frozenset(
                        key
                        for key, one in licenses
                        if one.permits(action, commercial=commercial, prohibited=hit)
                    )
                    one = permitting, commercial, action in SHARING_ACTIONS
                    alike.update(((action, commercial, purpose), one) for purpose in purposes)
        return alike

    def _choices(self, alike: _Alike) -> dict[str, Chosen]:
        """What each expression that permits a class of uses rests on."""
        permitting = {key: self._licenses[key] for key in alike[0]}
        owed = {one.key: len(one.owed(commercial=alike[1])) for one in permitting.values()}
        found = {}
        for expression, tree in self._trees.items():
            chosen = None if tree is None else choose(tree, permitting, owed)
            if chosen is not None:
                found[expression] = chosen
        return found

    def _owed(self, expression: str, chosen: Chosen, commercial: bool) -> list[tuple[int, _Owed]]:
        """What everything under an expression obliges to, where it rests on some of its licenses."""
        texts = [
            (kind, key, text)
            for key in chosen
            for kind, text in self._by_key[key].owed(commercial=commercial)
        ]
        return [
            (item, (kind, key, subject, text))
            for item, subject in self._subjects[expression]
            for kind, key, text in texts
        ]

    def _class(
        self, alike: _Alike, choices: Mapping[str, Chosen], owing: Mapping[_Choice, Numbers]
    ) -> UseClass:
        permits = np.zeros(len(self._items), np.bool_)
        burden_of: dict[int, Burden] = {}
        for expression, chosen in choices.items():
            subjects = self._subjects[expression]
            permits[[item for item, _ in subjects]] = True
            burden_of.update(self._burdens(alike, chosen, subjects))
        licensed = np.ones(len(self._experts), np.bool_)
        licensed[self._item_expert[~permits[self._pair_item]]] = False
        bases = {
            digest: burden
            for digest, item in self._base_item.items()
            if permits[item] and not (burden := burden_of.get(item, Burden())).clashes
        }
        burdens = self._by_expert(burden_of)
        for number, burden in burdens.items():
            base = bases.get(self._experts[number].base_digest)
            if base is not None and burden.join([base]).clashes:
                licensed[number] = False
        owed = [owing[expression, chosen, alike[1]] for expression, chosen in choices.items()]
        owed_item, owed_number = np.concatenate([np.zeros((0, 2), np.int64), *owed]).T
        return UseClass(
            licensed=licensed, bases=bases, burdens=burdens, owed_item=owed_item, owed=owed_number
        )

    def _burdens(
        self, alike: _Alike, chosen: Chosen, subjects: Sequence[tuple[int, str]]
    ) -> Iterator[tuple[int, Burden]]:
        """What can clash of everything under an expression: groups if shared, royalties if commercial."""
        _, commercial, sharing = alike
        licenses = [self._by_key[key] for key in chosen]
        groups = frozenset(one.group for one in licenses if sharing and one.group)
        royalties = [(one.key, one.royalty_ppm) for one in licenses if commercial and one.royalty_ppm]
        if groups or royalties:
            for item, subject in subjects:
                yield item, Burden(groups, frozenset((subject, key, ppm) for key, ppm in royalties))

    def _by_expert(self, burden_of: Mapping[int, Burden]) -> dict[int, Burden]:
        burdens: dict[int, Burden] = {}
        if burden_of:
            of_pairs = np.isin(self._pair_item, list(burden_of))
            pairs = zip(self._item_expert[of_pairs].tolist(), self._pair_item[of_pairs].tolist(), strict=True)
            for expert, item in pairs:
                burdens[expert] = burdens.get(expert, Burden()).join([burden_of[item]])
        return burdens
