# SPDX-License-Identifier: Apache-2.0
"""Reads what the marketplace has written, past all of its code: the database's rows and the journals' lines.

The office is asked over its doors as well; but it could be wrong in the same way twice, so whatever is
counted (publications, usage, entries) is counted here from the stored rows, read only.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from cluster.home import Home
from cluster.hosting.journal_lines import decode_line
from cluster.hosting.journals import read_journals


@dataclass(kw_only=True)
class Tokens:
    """Tokens of one request on one server.

    Attributes:
        completion: whole tokens.
        experts: millionths of a token by bundle.
    """

    completion: int = 0
    experts: Counter[str] = field(default_factory=Counter)


Usage = dict[tuple[str, str], Tokens]
"""By (server, request)."""


class Rows:
    """The rows of the embedded database at one moment.

    Args:
        home: the installation.
    """

    def __init__(self, home: Home) -> None:
        self._uri = f"file:{home.root / 'marketplace.sqlite'}?mode=ro"

    def all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Every row of a query."""
        with closing(sqlite3.connect(self._uri, uri=True, timeout=30)) as connection:
            return connection.execute(query, values).fetchall()

    def one(self, query: str, *values: Any) -> Any:
        """The single value of a query."""
        return self.all(query, *values)[0][0]

    def commits(self) -> dict[int, int]:
        """When each epoch was published, in microseconds."""
        return {int(epoch): int(at) for epoch, at in self.all("SELECT epoch, at_us FROM publications")}

    def uses(self) -> list[tuple[str, str, int, int]]:
        """(request, bundle, epoch, journaled at) of every metered share that is not 0."""
        return [
            (str(request), str(bundle), int(epoch), int(at_us))
            for request, bundle, epoch, at_us in self.all(
                "SELECT r.request_id, s.bundle, r.epoch, r.at_us FROM usage_records r "
                "JOIN usage_shares s USING (server_id, sequence, n) WHERE s.ppm_tokens > 0"
            )
        ]

    def usage(self) -> Usage:
        """Metered tokens, all read at one moment: hosts upload while this runs."""
        found: Usage = {}
        with closing(sqlite3.connect(self._uri, uri=True, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            totals = connection.execute(
                "SELECT server_id, request_id, sum(completion_tokens) FROM usage_records GROUP BY 1, 2"
            ).fetchall()
            shares = connection.execute(
                "SELECT r.server_id, r.request_id, s.bundle, sum(s.ppm_tokens) FROM usage_records r "
                "JOIN usage_shares s USING (server_id, sequence, n) GROUP BY 1, 2, 3"
            ).fetchall()
        for server, request, tokens in totals:
            found[server, request] = Tokens(completion=int(tokens))
        for server, request, bundle, ppm in shares:
            found[server, request].experts[bundle] = int(ppm)
        return found


def journaled(home: Home) -> Usage:
    """Journaled tokens, from every line that is whole, of open and closed journals."""
    found: Usage = {}
    for server, body in _journal_lines(home):
        for record in body["r"] if body.get("k") == "use" else ():
            one = found.setdefault((server, record["request_id"]), Tokens())
            one.completion += int(record["completion_tokens"])
            one.experts.update({bundle: int(ppm) for bundle, ppm in record["experts"].items() if ppm})
    return found


def batches(home: Home) -> Counter[str]:
    """Batches that each server has cut."""
    return Counter(server for server, body in _journal_lines(home) if body.get("k") == "batch")


def _journal_lines(home: Home) -> Iterator[tuple[str, dict[str, Any]]]:
    for server, data in read_journals(home.journals):
        for line in data.splitlines(keepends=True):
            body = decode_line(line)
            if body is not None:
                yield server, body
