# SPDX-License-Identifier: Apache-2.0
"""Lies in the clients' log, to see that the oracle would notice the corresponding loss.

Each stands for a way in which a marketplace could break its word: the log then says more, or something
else, than the marketplace has, just as it would if the marketplace had lost something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from examples.chaos.client_log import read_log
from examples.chaos.evidence import Rows
from examples.chaos.stage import Stage, fresh_key

_ZERO = "sha256:" + "0" * 64
Forgery = Callable[[Stage], AbstractContextManager[None]]


@contextmanager
def _line(
    stage: Stage, operation: str, fields: dict[str, Any], answer: dict[str, Any], *, key: str = ""
) -> Iterator[None]:
    """An acknowledgement that nobody gave."""
    before = stage.log.path.stat().st_size
    number = stage.log.number()
    key = key or fresh_key()
    stage.log.append("sent", number=number, who="carol", operation=operation, fields=fields, key=key)
    stage.log.append("acknowledged", number=number, answer=answer)
    try:
        yield
    finally:
        _cut(stage, before)


def _cut(stage: Stage, size: int) -> None:
    with stage.log.path.open("r+b") as file:
        file.truncate(size)


def _tenant(stage: Stage) -> AbstractContextManager[None]:
    return _line(stage, "tenants.create", {"slug": "ghost"}, {"slug": "ghost", "title": "Ghost"})


def _epoch(stage: Stage) -> AbstractContextManager[None]:
    epoch = int(Rows(stage.home).one("SELECT max(epoch) FROM publications"))
    return _line(stage, "rules.forbid", {}, {"epoch": epoch + 1, "snapshot_digest": _ZERO})


def _other_snapshot(stage: Stage) -> AbstractContextManager[None]:
    return _line(stage, "rules.forbid", {}, {"epoch": 1, "snapshot_digest": _ZERO})


def _withdrawal(stage: Stage) -> AbstractContextManager[None]:
    """Consent and publication of the north's own, still given, called withdrawn."""
    expert = stage.experts["north"]["id"]
    rows = Rows(stage.home)
    consent = rows.one("SELECT id FROM consents WHERE expert_id = ? AND state = 'given'", expert)
    epoch, digest = rows.all("SELECT epoch, snapshot_digest FROM publications ORDER BY 1 LIMIT 1")[0]
    answer = {"epoch": epoch, "snapshot_digest": digest}
    # Under the key of another publication, so that no count is wrong and only the consent itself can tell.
    told = read_log(stage.log.path)
    key = next(call.key for call in told.acknowledged("changes.approve") if call.who == "carol")
    return _line(stage, "consents.withdraw", {"consent_id": consent}, answer, key=key)


def _job(stage: Stage) -> AbstractContextManager[None]:
    """A job that succeeded at its first attempt, called interrupted."""

    @contextmanager
    def lie() -> Iterator[None]:
        before = stage.log.path.stat().st_size
        one = Rows(stage.home).one("SELECT id FROM jobs WHERE attempts = 1 LIMIT 1")
        stage.log.append("interrupted", job_id=one)
        try:
            yield
        finally:
            _cut(stage, before)

    return lie()


def _tokens(stage: Stage) -> AbstractContextManager[None]:
    """A stream that delivered one token more than was metered."""

    @contextmanager
    def lie() -> Iterator[None]:
        before = stage.log.path.stat().st_size
        one = next(stream for stream in read_log(stage.log.path).streams if stream.request_id)
        metered = int(
            Rows(stage.home).one(
                "SELECT sum(completion_tokens) FROM usage_records WHERE request_id = ?", one.request_id
            )
        )
        stage.log.append("received", number=one.number, request_id=one.request_id, tokens=metered + 1)
        try:
            yield
        finally:
            _cut(stage, before)

    return lie()


def _journal(stage: Stage) -> AbstractContextManager[None]:
    """A journal that is gone: usage without a source, as if it had been counted twice."""

    @contextmanager
    def lie() -> Iterator[None]:
        closed = sorted((stage.home.journals / "closed").glob("*.jsonl"))[0]
        hidden = closed.with_suffix(".hidden")
        closed.rename(hidden)
        try:
            yield
        finally:
            hidden.rename(closed)

    return lie()


FORGERIES: Mapping[str, Forgery] = {
    "tenant": _tenant,
    "epoch": _epoch,
    "snapshot": _other_snapshot,
    "withdrawal": _withdrawal,
    "interrupted job": _job,
    "token": _tokens,
    "journal": _journal,
}
