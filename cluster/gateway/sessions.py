# SPDX-License-Identifier: Apache-2.0
"""Who stands before the door: a key in the header, or a console session in a cookie.

A session is an opaque random id in an HttpOnly, SameSite=Strict cookie. What it stands for (the key that
was shown at sign-in and the token that every form carries) stays in this process's memory and is gone
with it: people sign in again after a restart, and nothing that could sign in lies on a disk.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from starlette.requests import Request

from cluster.gateway.errors import MissingKey, SignInExpired

COOKIE = "marketplace_session"
IDLE_S = 3600
LONGEST_S = 8 * 3600
MAX_SESSIONS = 2000

_CREDENTIAL = re.compile(r"[A-Za-z0-9_\-]{8,200}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A signed-in person.

    Attributes:
        credential: the key that was shown at sign-in.
        form_token: what every form of this session must carry.
        name: for the page's head.
        tenant: for the page's head.
        roles: role names; the pages show only doors that these open (the office decides, not the page).
        started_s: monotonic seconds at sign-in.
        seen_s: monotonic seconds of the last page.
    """

    credential: str
    form_token: str
    name: str
    tenant: str
    roles: frozenset[str]
    started_s: float
    seen_s: float


class Sessions:
    """Console sessions of this process, bounded in number and in age."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_digest: dict[bytes, Session] = {}

    def open(self, *, credential: str, name: str, tenant: str, roles: frozenset[str]) -> str:
        """Starts a session and answers the id that its cookie carries."""
        self._drop_old()
        while len(self._by_digest) >= MAX_SESSIONS:
            oldest = min(self._by_digest, key=lambda digest: self._by_digest[digest].seen_s)
            del self._by_digest[oldest]
        session_id = secrets.token_urlsafe(32)
        now_s = self._clock()
        self._by_digest[_digest(session_id)] = Session(
            credential=credential,
            form_token=secrets.token_urlsafe(32),
            name=name,
            tenant=tenant,
            roles=roles,
            started_s=now_s,
            seen_s=now_s,
        )
        return session_id

    def find(self, request: Request) -> Session | None:
        """The session of a request's cookie, or None; a live one is marked as seen."""
        session_id = request.cookies.get(COOKIE)
        if not session_id:
            return None
        self._drop_old()
        digest = _digest(session_id)
        session = self._by_digest.get(digest)
        if session is not None:
            session = replace(session, seen_s=self._clock())
            self._by_digest[digest] = session
        return session

    def close(self, request: Request) -> None:
        """Ends the session of a request's cookie, if any."""
        session_id = request.cookies.get(COOKIE)
        if session_id:
            self._by_digest.pop(_digest(session_id), None)

    def close_credential(self, credential: str) -> None:
        """Ends every session that was opened with a key, because the office refused it."""
        for digest in [d for d, s in self._by_digest.items() if s.credential == credential]:
            del self._by_digest[digest]

    def _drop_old(self) -> None:
        now_s = self._clock()
        for digest in [
            d
            for d, s in self._by_digest.items()
            if now_s - s.seen_s > IDLE_S or now_s - s.started_s > LONGEST_S
        ]:
            del self._by_digest[digest]


def bearer(request: Request) -> str:
    """The key in ``Authorization: Bearer …``.

    Raises:
        MissingKey: the header is absent or not in that form.
    """
    header = request.headers.get("authorization", "")
    scheme, _, credential = header.partition(" ")
    credential = credential.strip()
    if scheme.lower() != "bearer" or not looks_like_key(credential):
        raise MissingKey("Show a key: send the header Authorization: Bearer mk_… with your own key.")
    return credential


def looks_like_key(text: str) -> bool:
    """Whether a text has the form of a key (not whether it is one)."""
    return _CREDENTIAL.fullmatch(text) is not None


def check_form(request: Request, session: Session, token: str | None) -> None:
    """Refuses a form that was not written by one of our own pages for this session.

    Raises:
        SignInExpired: the token is missing or another session's, or the browser says the form came from
            another site.
    """
    check_same_site(request)
    if not token or not hmac.compare_digest(token.encode(), session.form_token.encode()):
        raise SignInExpired("This form has expired. Go back, reload the page and send it again.")


def check_same_site(request: Request) -> None:
    """Refuses a form that the browser says was sent from another site.

    Raises:
        SignInExpired: by ``Sec-Fetch-Site`` or ``Origin``.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    foreign = site is not None and site not in {"same-origin", "none"}
    if origin is not None and origin != "null":
        foreign = foreign or origin.partition("://")[2] != request.headers.get("host", "")
    elif origin == "null":
        foreign = True
    if foreign:
        raise SignInExpired(
            "This form came from another site and was not carried out. Use the console's own."
        )


def _digest(session_id: str) -> bytes:
    # Looked up by digest, so that the time of the dictionary's comparison tells nothing about an id.
    return hashlib.sha256(session_id.encode("utf-8", "surrogateescape")).digest()
