# SPDX-License-Identifier: Apache-2.0
"""Bases: the frozen public models that experts attach to. Everybody sees them, operators bring them in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.operations.bundles import ReceivedBundle, received_bundle, store_bundle
from cluster.operations.intake import TAR, inspect_bundle
from cluster.operations.scope import cut
from cluster.operations.table import ANYONE, Answer, Operation, Page, Request, Upload
from model_core.errors import BundleWrongBase
from model_core.packing.manifest import BaseManifest, ModelShape
from policy.records.assets import BaseRecord
from tenants.roles import PLATFORM_TENANT, Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class NewBase(Request):
    """A base to be registered."""

    upload: ReceivedBundle = Field(description="the body of the request")


class BaseDigest(Request):
    """Which base."""

    base_digest: str = Field(max_length=71)


class BaseView(Answer):
    """A base as everyone sees it."""

    id: str
    name: str
    license: str
    status: str
    shape: ModelShape
    trained_on: str
    added_at_us: int


class BasePage(Answer):
    """Bases, oldest first."""

    items: tuple[BaseView, ...]
    next: str | None = None


def import_base(desk: Desk, principal: Principal, request: NewBase) -> BaseView:
    """Countersigns a checked base, stores it and registers it."""
    del principal
    checked = received_bundle(desk, request.upload)
    manifest = checked.manifest
    if not isinstance(manifest, BaseManifest):
        raise BundleWrongBase("This is the bundle of an expert. Import it with experts.import.")
    store_bundle(desk, checked, PLATFORM_TENANT)
    return _view(desk.register.add_base(manifest, checked.digest))


def list_bases(desk: Desk, principal: Principal, request: Page) -> BasePage:
    """Every base: they are public."""
    del principal
    items, after = cut(desk.register.list_bases(), request, lambda row: row.base_digest)
    return BasePage(items=tuple(_view(row) for row in items), next=after)


def show_base(desk: Desk, principal: Principal, request: BaseDigest) -> BaseView:
    """One base."""
    del principal
    return _view(desk.register.base(request.base_digest))


def _view(record: BaseRecord) -> BaseView:
    return BaseView(
        id=record.base_digest,
        name=record.name,
        license=record.license,
        status=record.status,
        shape=record.manifest.shape,
        trained_on=record.manifest.trained_on,
        added_at_us=record.added_at_us,
    )


_BASE = {"base_digest": "sha256:" + "0" * 64}

ROWS = (
    Operation(
        name="bases.import",
        method="POST",
        path="/bases",
        roles=frozenset({Role.OPERATOR}),
        request=NewBase,
        response=BaseView,
        run=import_base,
        summary="Registers a base: the body is a tar archive of its sealed bundle.",
        upload=Upload(media_type=TAR, inspect=inspect_bundle),
    ),
    Operation(
        name="bases.list",
        method="GET",
        path="/bases",
        roles=ANYONE,
        request=Page,
        response=BasePage,
        run=list_bases,
        summary="Lists the bases that experts attach to.",
    ),
    Operation(
        name="bases.show",
        method="GET",
        path="/bases/{base_digest}",
        roles=ANYONE,
        request=BaseDigest,
        response=BaseView,
        run=show_base,
        summary="Shows a base.",
        example=_BASE,
    ),
)
