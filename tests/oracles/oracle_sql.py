# SPDX-License-Identifier: Apache-2.0
"""The rules of deciding as set queries: thousands of worlds, decided by a few statements.

This module fills the tables from plain documents and reads the verdicts back; all deciding is in
``oracle_sql.sql``, on whichever engine the connection leads to. License expressions become rows of nodes
with a reader of its own. Nothing of the product is imported but its data files.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from oracle_answers import Answer, Case, Json, Said, gravest

_HERE = Path(__file__).resolve().parent
_DATA = _HERE.parents[1] / "policy" / "data"
_FOREVER = 2**53
_MAX_HEIGHT = 4
_DIALECTS = {
    "sqlite": {"text": "TEXT", "names": "GROUP_CONCAT(picked.key, CHAR(1))"},
    "postgresql": {
        "text": 'TEXT COLLATE "C"',
        "names": "STRING_AGG(picked.key, CHR(1) ORDER BY picked.key)",
    },
}
# What an action asks of a license: hosted use, derivatives, distribution of weights.
_ACTIONS = {
    "view_card": (0, 0, 0),
    "compose": (1, 0, 0),
    "infer": (1, 0, 0),
    "evaluate": (1, 0, 0),
    "attribute": (1, 0, 0),
    "fine_tune": (1, 1, 0),
    "train_on_outputs": (1, 1, 0),
    "export_weights": (0, 1, 1),
}
_FILLED = (
    *("node", "use", "wanted", "let_in", "priority", "tenant", "base", "license"),
    *("prohibited", "expert", "lineage", "fact", "matched", "value", "pick", "stands_on"),
    *("moment", "denial", "lapse", "ground", "standing", "quarrel", "settled"),
)


def _statements() -> dict[str, str]:
    parts = re.split(r"^-- name: (\w+)\n", (_HERE / "oracle_sql.sql").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


class SqlOracle:
    """Decides worlds on one connection (of ``sqlite3`` or ``psycopg``) in temporary tables of its own."""

    def __init__(self, connection: Any, dialect: str = "sqlite") -> None:
        self._cursor = connection.cursor()
        self._words = _DIALECTS[dialect]
        self._mark = "?" if dialect == "sqlite" else "%s"
        self._dialect = dialect
        self._said = _statements()
        for statement in self._said["schema"].split(";"):
            if statement.strip():
                self._run(statement)
        for scheme in ("purpose", "region"):
            terms = json.loads((_DATA / f"{scheme}s-1.json").read_text())["terms"]
            self._fill("term", [(scheme, term["id"]) for term in terms])
            self._fill("parent", [(scheme, term["id"], above) for term in terms for above in term["parents"]])
        self._fill("action", [(action, *needs) for action, needs in _ACTIONS.items()])
        self._run(self._said["close"])

    def answers(self, cases: Sequence[Case]) -> list[Answer]:
        """Decides all given worlds at once."""
        for table in _FILLED:
            self._run(f"DELETE FROM {table}")
        self._load(cases)
        self._run(self._said["matched"])
        self._run(self._said["leaves"])
        self._run(self._said["leaf_picks"])
        for height in range(1, _MAX_HEIGHT + 1):
            for name in ("all_of", "one_of", "values"):
                self._run(self._said[name], height=str(height))
        for name in ("stands_on", "moments", "denials", "lapses", "now", "later", "forget"):
            self._run(self._said[name])
            if self._dialect == "postgresql" and name == "moments":
                self._run("ANALYZE")
        for name in ("unreviewed", "ground", "standing", "quarrel", "settled"):
            self._run(self._said[name])
        return self._read(len(cases))

    def _run(self, statement: str, **words: str) -> None:
        self._cursor.execute(_put(statement, self._words | words))

    def _fill(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        if self._dialect == "postgresql":
            with self._cursor.copy(f"COPY {table} FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            return
        marks = ", ".join([self._mark] * len(rows[0]))
        self._cursor.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)

    def _rows(self, name: str) -> Iterable[tuple[Any, ...]]:
        self._run(self._said[name])
        rows: Iterable[tuple[Any, ...]] = self._cursor.fetchall()
        return rows

    def _load(self, cases: Sequence[Case]) -> None:
        rows: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
        expressions: set[str] = set()
        for w, case in enumerate(cases):
            _load_world(rows, w, case)
        for table, place in (("base", 3), ("expert", 6), ("lineage", 5)):
            expressions.update(row[place] for row in rows[table])
        rows["node"] = [node for text in sorted(expressions) for node in nodes(text)]
        for table, found in rows.items():
            self._fill(table, found)

    def _read(self, count: int) -> list[Answer]:
        experts: list[dict[str, Any]] = [{} for _ in range(count)]
        for w, bundle, gate, kind, end, place in self._rows("read_experts"):
            entry = experts[w].setdefault(bundle, (set(), set(), end, place))
            if gate is not None:
                entry[0].add(gate)
                entry[1].add(kind)
        unknown: defaultdict[int, list[str]] = defaultdict(list)
        for w, name in self._rows("read_unknown"):
            unknown[w].append(name)
        denied = {w for (w,) in self._rows("read_denied")}
        drops = {w for w, kept in self._cursor_pairs("SELECT w, drops FROM use") if kept}
        return [_answer(experts[w], unknown[w], denied=w in denied, drops=w in drops) for w in range(count)]

    def _cursor_pairs(self, query: str) -> Iterable[tuple[Any, Any]]:
        self._cursor.execute(query)
        rows: Iterable[tuple[Any, Any]] = self._cursor.fetchall()
        return rows


def _put(statement: str, words: dict[str, str]) -> str:
    for word, text in words.items():
        statement = statement.replace("{" + word + "}", text)
    return statement


def _answer(experts: dict[str, Any], unknown: list[str], *, denied: bool, drops: bool) -> Answer:
    said, members, dropped = [], [], []
    for bundle, (gates, kinds, end, place) in experts.items():
        if place == 1:
            members.append((bundle, end))
            said.append(Said(bundle, "permit", frozenset(), end))
        elif place == 2:
            dropped.append(bundle)
            said.append(Said(bundle, "set_conflict", frozenset({"set"}), None))
        else:
            said.append(Said(bundle, gravest(kinds), frozenset(gates), None))
    said += [Said(name, "error", frozenset({"facts"}), None) for name in unknown]
    return Answer(
        experts=tuple(said),
        members=tuple(bundle for bundle, _ in members),
        dropped=tuple(dropped) if drops else (),
        denied=denied,
        ends_us=min((end for _, end in members if end is not None), default=None),
    )


def _load_world(rows: defaultdict[str, list[tuple[Any, ...]]], w: int, case: Case) -> None:
    world, at_us = case
    use = next(one for one in world["deployments"] if one["name"] == "lab")
    rows["use"].append(
        (
            w,
            at_us,
            int(_understood(world, use)),
            use["tenant"],
            use["base_digest"],
            use["action"],
            use["purpose"],
            use["region"],
            int(use["commercial"]),
            int(use["candidates"] == "*"),
            int(use["members"] is not None),
            int(use["on_conflict"] == "drop_by_rule"),
        )
    )
    if use["candidates"] != "*":
        rows["wanted"] += [(w, name) for name in set(use["candidates"])]
    rows["let_in"] += [(w, one) for one in use["members"] or ()]
    first = {one: place for place, one in reversed(list(enumerate(use["priority"])))}
    rows["priority"] += [(w, one, place) for one, place in first.items()]
    rows["tenant"] += [(w, one["slug"], int(one["status"] == "active")) for one in world["tenants"]]
    rows["base"] += [
        (w, one["base_digest"], int(one["status"] == "active"), one["license"]) for one in world["bases"]
    ]
    _load_licenses(rows, w, world, use)
    for one in world["experts"]:
        bundle = one["bundle_digest"]
        rows["expert"].append(
            (
                w,
                bundle,
                one["expert_id"],
                one["tenant"],
                one["base_digest"],
                int(one["state"] == "listed"),
                one["license"],
            )
        )
        rows["lineage"] += [
            (w, bundle, data["id"], data["tenant"], data["consent"], data["license"])
            for data in one["datasets"]
        ]
    _load_facts(rows["fact"], w, world)


def _understood(world: Json, use: Json) -> bool:
    # The vocabulary's own tables know the terms; only the two versions are words outside of them.
    return (
        world["engine_version"] == "1"
        and world["vocabulary_version"] == "1"
        and use["action"] in _ACTIONS
        and use["purpose"] in _terms("purpose")
        and use["region"] in _terms("region")
    )


_KNOWN: dict[str, frozenset[str]] = {}


def _terms(scheme: str) -> frozenset[str]:
    if scheme not in _KNOWN:
        terms = json.loads((_DATA / f"{scheme}s-1.json").read_text())["terms"]
        _KNOWN[scheme] = frozenset(term["id"] for term in terms)
    return _KNOWN[scheme]


def _load_licenses(rows: defaultdict[str, list[tuple[Any, ...]]], w: int, world: Json, use: Json) -> None:
    for one in world["licenses"]:
        folded = one["key"].lower()
        duties = (
            int(one["attribution"] is not False)
            + int(one["notice"])
            + len({*one["flow_down"]})
            + len({*one["prohibited_purposes"]})
            + int(bool(one["share_alike_group"]))
            + int(one["user_cap"] is not None)
            + int(use["commercial"] and one["royalty_ppm"] > 0)
        )
        facets = (
            None if one[name] is None else int(one[name])
            for name in ("hosted_use", "use_commercial", "derivatives", "distribution_weights")
        )
        share = one["share_alike_group"] or None
        reviewed = int(bool(one["reviewed_by"].strip()))
        rows["license"].append((w, folded, one["key"], reviewed, *facets, duties, one["royalty_ppm"], share))
        rows["prohibited"] += [(w, folded, term) for term in one["prohibited_purposes"]]


def _load_facts(rows: list[tuple[Any, ...]], w: int, world: Json) -> None:
    for kind, recipient, done in (
        ("consent", "recipient", "withdrawn"),
        ("grant", "consumer_tenant", "revoked"),
    ):
        for one in world[kind + "s"]:
            until = one["valid_until_us"]
            rows.append(
                (
                    w,
                    kind,
                    int(one.get("effect", "permit") == "permit"),
                    one["expert_id"],
                    one.get("dataset_id") or "",
                    one["tenant"],
                    one[recipient],
                    int(one["state"] != done),
                    int(one["commercial"]),
                    one["action"],
                    one["purpose"],
                    one["region"],
                    one["valid_from_us"],
                    _FOREVER if until is None else until,
                )
            )
    for one in world["rules"]:
        words = (one["action"], one["purpose"], one["region"])
        permits = int(one["effect"] == "permit")
        head = (w, "rule", permits, one["expert_id"], "", "", one["consumer_tenant"])
        rows.append((*head, 1, 1, *words, 0, _FOREVER))


def nodes(text: str) -> list[tuple[str, int, int | None, str, str | None, int]]:
    """A license expression as rows (expression, number, parent, kind, license, height); none if unreadable.

    Shunting-yard over the words, AND before OR; node 0 is the whole.
    """
    words = text.replace("(", " ( ").replace(")", " ) ").split()
    output: list[Any] = []
    stack: list[str] = []
    expects_license = True
    place = 0

    def reduce() -> None:
        right, left = output.pop(), output.pop()
        kind = stack.pop()
        parts = [*(left[1] if left[0] == kind else [left]), *(right[1] if right[0] == kind else [right])]
        output.append((kind, parts))

    while place < len(words):
        word = words[place]
        upper = word.upper()
        if expects_license and word == "(":
            stack.append("(")
        elif expects_license and upper not in ("AND", "OR", "WITH", ")"):
            if [one.upper() for one in words[place + 1 : place + 2]] == ["WITH"] and place + 2 < len(words):
                word = f"{word} WITH {words[place + 2]}"
                place += 2
            output.append(("license", word.lower()))
            expects_license = False
        elif not expects_license and upper in ("AND", "OR"):
            while stack and stack[-1] != "(" and (stack[-1] == "and" or upper == "OR"):
                reduce()
            stack.append(upper.lower())
            expects_license = True
        elif not expects_license and word == ")":
            while stack and stack[-1] != "(":
                reduce()
            if not stack:
                return []
            stack.pop()
        else:
            return []
        place += 1
    if expects_license or "(" in stack:
        return []
    while stack:
        reduce()
    rows: list[tuple[str, int, int | None, str, str | None, int]] = []

    def number(tree: Any, parent: int | None) -> int:
        n = len(rows)
        rows.append((text, n, parent, tree[0], tree[1] if tree[0] == "license" else None, 0))
        if tree[0] != "license":
            height = 1 + max(number(part, n) for part in tree[1])
            rows[n] = (*rows[n][:5], height)
        return rows[n][5]

    number(output[0], None)
    return rows
