# SPDX-License-Identifier: Apache-2.0
"""Console sessions that several gateways share: what a session stands for travels sealed in its cookie.

With one gateway a cookie is a random number and everything else stays in its memory. Several gateways answer
at one address, so there the cookie carries the session itself, encrypted and authenticated under a key that
is drawn when the gateways are deployed, lies on no disk, and is gone with them. Each gateway counts idleness
by what it has seen itself, and whoever signs out is forgotten by the gateway that was told; the browser drops
the cookie, and the longest life of a session bounds what a copy of it is worth.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from starlette.requests import Request

from cluster.gateway.sessions import COOKIE, IDLE_S, LONGEST_S, MAX_SESSIONS, Session, Sessions

T = TypeVar("T")
KEY_BYTES = 32
_NONCE_BYTES = 12
_LONGEST_COOKIE = 4000


class SealedSessions(Sessions):
    """Sessions that any gateway with the same key can read.

    Args:
        key: 32 random bytes that the gateways of one deployment share.
        clock: seconds since the Unix epoch, on which the gateways agree.
    """

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self._now = clock
        self._seal = AESGCM(key)
        self._seen_s: OrderedDict[str, float] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def open(self, *, credential: str, name: str, tenant: str, roles: frozenset[str]) -> str:
        """Starts a session and answers what its cookie carries."""
        body = {
            "credential": credential,
            "form_token": secrets.token_urlsafe(32),
            "name": name,
            "tenant": tenant,
            "roles": sorted(roles),
            "started_s": self._now(),
        }
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._seal.encrypt(nonce, json.dumps(body).encode(), COOKIE.encode())
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def find(self, request: Request) -> Session | None:
        """The session of a request's cookie, or None; a live one is marked as seen here."""
        session = self._unseal(request.cookies.get(COOKIE, ""))
        if session is None or session.form_token in self._ended or session.credential in self._ended:
            return None
        now_s = self._now()
        seen_s = self._seen_s.get(session.form_token, session.started_s)
        if now_s - session.started_s > LONGEST_S or now_s - seen_s > IDLE_S or session.started_s > now_s + 60:
            return None
        _keep(self._seen_s, session.form_token, now_s)
        return replace(session, seen_s=now_s)

    def close(self, request: Request) -> None:
        """Ends the session of a request's cookie at this gateway."""
        session = self._unseal(request.cookies.get(COOKIE, ""))
        if session is not None:
            _keep(self._ended, session.form_token, None)

    def close_credential(self, credential: str) -> None:
        """Ends every session that was opened with a key, because the office refused it."""
        _keep(self._ended, credential, None)

    def _unseal(self, cookie: str) -> Session | None:
        if not cookie or len(cookie) > _LONGEST_COOKIE or not cookie.isascii():
            return None
        try:
            sealed = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
            opened = self._seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], COOKIE.encode())
            body = json.loads(opened)
        except (ValueError, InvalidTag):
            return None
        return Session(**body | {"roles": frozenset(body["roles"]), "seen_s": body["started_s"]})


def _keep(book: OrderedDict[str, T], name: str, value: T) -> None:
    book[name] = value
    book.move_to_end(name)
    while len(book) > MAX_SESSIONS:
        book.popitem(last=False)
