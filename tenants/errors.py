# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on the tenants floor.

Tree::

    ProductError
    └── TenantsError
        ├── DatabaseInUse          another process has this SQLite file open
        ├── UnsupportedDatabase    the URL names neither SQLite nor PostgreSQL
        ├── UnsafeDatabaseRole     the database role could get around the guards
        ├── SchemaBehind           the database is not at this release's revision
        ├── NotAuthenticated       the credential opens nothing
        │   ├── UnknownKey
        │   ├── RevokedKey
        │   └── ExpiredKey
        ├── SuspendedTenant        the tenant may do nothing until it is resumed
        ├── UnknownObject          no such tenant, key, dataset or job (or not visible to the caller)
        ├── NameTaken              a name that must be unique exists already
        ├── RoleRefused            a role that this tenant can not hold
        ├── IllegalTransition      a job can not go from this state to that one
        ├── StaleAttempt           an older attempt of a job reports after a newer one began
        └── IdempotencyConflict    the same idempotency key came with another payload
"""

from __future__ import annotations

from model_core.errors import ProductError


class TenantsError(ProductError):
    """Family of the tenants floor."""

    code = "tenants"


class DatabaseInUse(TenantsError):
    """Another process has the SQLite file open."""

    code = "database_in_use"


class UnsupportedDatabase(TenantsError):
    """The URL names a database that the product does not run on."""

    code = "database_unsupported"


class UnsafeDatabaseRole(TenantsError):
    """The role of the database URL could get around the guards."""

    code = "database_role_unsafe"


class SchemaBehind(TenantsError):
    """The database is not at the revision of this release, and this role may not bring it there."""

    code = "database_schema_behind"


class NotAuthenticated(TenantsError):
    """The credential opens nothing."""

    code = "not_authenticated"


class UnknownKey(NotAuthenticated):
    """No key has this secret."""

    code = "key_unknown"


class RevokedKey(NotAuthenticated):
    """The key was revoked."""

    code = "key_revoked"


class ExpiredKey(NotAuthenticated):
    """The key's time is over."""

    code = "key_expired"


class SuspendedTenant(TenantsError):
    """The tenant is suspended."""

    code = "tenant_suspended"


class UnknownObject(TenantsError):
    """There is no such object, or the caller may not know of it."""

    code = "object_unknown"


class NameTaken(TenantsError):
    """A name that must be unique exists already."""

    code = "name_taken"


class RoleRefused(TenantsError):
    """The tenant can not hold this role."""

    code = "role_refused"


class IllegalTransition(TenantsError):
    """A job can not go from this state to that one."""

    code = "job_transition_illegal"


class StaleAttempt(TenantsError):
    """An older attempt reported after a newer one began, or after the job ended."""

    code = "job_attempt_stale"


class IdempotencyConflict(TenantsError):
    """The same idempotency key came with another payload."""

    code = "idempotency_conflict"
