# SPDX-License-Identifier: Apache-2.0
"""How far a principal sees, and how long lists are cut into pages.

What a principal may not see does not exist for it: the refusal is the same as for an id that was never
given out, so nothing can be probed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel

from cluster.operations.table import Page
from policy.errors import NotFound
from tenants.errors import UnknownObject
from tenants.roles import PLATFORM_TENANT, Principal, Role

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def sees_everything(principal: Principal) -> bool:
    """Whether a principal sees every tenant: operators, compliance staff and the platform's auditors."""
    if principal.has(Role.OPERATOR, Role.COMPLIANCE):
        return True
    return principal.tenant == PLATFORM_TENANT and principal.has(Role.AUDITOR)


def tenant_scope(principal: Principal) -> str | None:
    """The one tenant that a principal sees, or None for all of them."""
    return None if sees_everything(principal) else principal.tenant


def check_visible(principal: Principal, *tenants: str, what: str) -> None:
    """Refuses what belongs to none of the principal's tenants, as if it did not exist.

    Args:
        principal: who asks.
        *tenants: whose the object is; one of them has to be the principal's.
        what: the noun, for the sentence.

    Raises:
        UnknownObject: always the same sentence, whether the object exists or not.
    """
    if not sees_everything(principal) and principal.tenant not in tenants:
        raise unknown(what)


def check_own(principal: Principal, *tenants: str, what: str) -> None:
    """Refuses an act on what is not the principal's own; seeing everything is not enough for acting.

    Raises:
        UnknownObject: as ``check_visible``.
    """
    if principal.tenant not in tenants:
        raise unknown(what)


def unknown(what: str) -> UnknownObject:
    """The refusal of something that is not there, or not for the caller's eyes."""
    return UnknownObject(f"There is no such {what}, or it is not yours. List what you have.", what=what)


@contextmanager
def one_refusal(principal: Principal) -> Iterator[None]:
    """Makes every refusal of an object sound the same to whoever does not see everything.

    Rooms refuse what is missing and what is another's in their own words; told apart, the words would say
    which ids were given out.

    Raises:
        UnknownObject: in place of any room's own.
    """
    try:
        yield
    except (UnknownObject, NotFound):
        if sees_everything(principal):
            raise
        raise UnknownObject(
            "There is no such object, or it is not yours. List what you have and name one of it."
        ) from None


def cut_lists(record: M, seen: Collection[str], *fields: str, **others: Any) -> M:
    """A record whose lists hold nothing but what the viewer may see.

    Args:
        record: any document.
        seen: what the viewer may see, by the lists' members.
        *fields: the lists.
        **others: fields that are replaced as a whole.
    """
    kept = {name: tuple(one for one in getattr(record, name) if one in seen) for name in fields}
    return record.model_copy(update={**kept, **others})


def cut(rows: Iterable[T], page: Page, key: Callable[[T], str]) -> tuple[tuple[T, ...], str | None]:
    """One page of rows, and the ``after`` of the next one.

    Args:
        rows: every row in the list's order.
        page: what is asked for.
        key: what tells rows apart.

    Raises:
        UnknownObject: ``after`` is no row of this list.
    """
    found: Sequence[T] = list(rows)
    start = 0
    if page.after is not None:
        places = [place for place, row in enumerate(found) if key(row) == page.after]
        if not places:
            raise unknown("page")
        start = places[0] + 1
    shown = tuple(found[start : start + page.limit])
    more = len(found) > start + page.limit
    return shown, key(shown[-1]) if more and shown else None
