# SPDX-License-Identifier: Apache-2.0
"""Says of each table whose its rows are, once for both engines.

A row class names its isolation in ``__isolation__``. PostgreSQL turns it into row-level security, SQLite into
criteria that every statement of the ORM gets; both are built here from one condition. A class that names none
is for the platform alone: forgetting it hides rows and never shows them. Knows nothing of sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, exists, false, literal, or_, select, true

#: The setting of a PostgreSQL session that names whose rows it sees; ``*`` stands for all, empty for none.
SETTING: Final = "marketplace.tenant"
EVERYBODY: Final = "*"

Columns = Callable[[str], ColumnElement[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Isolation:
    """Whose the rows of one table are; the platform reads and writes all of them.

    Attributes:
        owners: columns that name a tenant who reads and writes the row.
        readers: columns that name a tenant who reads it too.
        open_where: values of columns with which everybody reads the row.
        parent: row class whose owners own the row as well; with ``keys`` from own to its columns.
        keys: own column → the parent's column.
        shared: whether everybody reads every row.
    """

    owners: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    open_where: Mapping[str, str] = field(default_factory=dict)
    parent: Any = None
    keys: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False

    def writable(self, columns: Columns, tenant: ColumnElement[str]) -> ColumnElement[bool]:
        """The condition under which a tenant writes a row.

        Args:
            columns: a column of the table by name.
            tenant: who writes.
        """
        own = [columns(name) == tenant for name in self.owners]
        if self.parent is not None:
            above = self.parent.__table__.alias(f"above_{self.parent.__tablename__}")
            same = [above.c[theirs] == columns(ours) for ours, theirs in self.keys.items()]
            owned = self.parent.__isolation__.writable(lambda name: above.c[name], tenant)
            own.append(exists(select(literal(1)).select_from(above).where(*same, owned)))
        return or_(false(), *own)

    def readable(self, columns: Columns, tenant: ColumnElement[str]) -> ColumnElement[bool]:
        """The condition under which a tenant reads a row; arguments as of ``writable``."""
        if self.shared:
            return true()
        shown = [columns(name) == tenant for name in self.readers]
        opened = [columns(name) == literal(value) for name, value in self.open_where.items()]
        return or_(self.writable(columns, tenant), *shown, *opened)


#: For the platform's own work.
PLATFORM_ONLY: Final = Isolation()
#: Everybody reads, the platform writes.
SHARED: Final = Isolation(shared=True)


def owned(
    *owners: str, readers: tuple[str, ...] = (), open_where: Mapping[str, str] | None = None
) -> Isolation:
    """Rows of the tenants that these columns name; see ``Isolation``."""
    return Isolation(owners=owners, readers=readers, open_where=open_where or {})


def part_of(parent: Any, *, shared: bool = False, **keys: str) -> Isolation:
    """Rows that belong to whoever owns the row above them.

    Args:
        parent: row class of the table above.
        shared: whether everybody reads them.
        **keys: own column → the parent's column.
    """
    return Isolation(parent=parent, keys=keys, shared=shared)
