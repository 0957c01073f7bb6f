# SPDX-License-Identifier: Apache-2.0
"""Experts: the catalogue as each may see it, and bringing sealed bundles in.

The catalogue is redacted by viewer: strangers see what is listed (name, owner, terms, card counts), owners
see everything of their own, the platform's staff sees everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from cluster.errors import WeighingFailed
from cluster.office.scales import WEIGHED_ACTION, keep_figures
from cluster.operations.bundles import ReceivedBundle, received_bundle, store_bundle
from cluster.operations.changes import draft_one
from cluster.operations.intake import TAR, inspect_bundle
from cluster.operations.scope import check_own, cut, sees_everything, unknown
from cluster.operations.table import ANYONE, Answer, Operation, Page, Request, Upload, several
from model_core.errors import BundleWrongBase, UntrustedKey
from model_core.packing.bundle import CheckedBundle, check_fits_base
from model_core.packing.keys import load_or_create_key
from model_core.packing.manifest import DataCard, ExpertManifest
from policy.errors import NotFound
from policy.records.assets import ExpertRecord
from policy.records.changes import ChangeRecord
from policy.records.epochs import Publication
from policy.records.items import ExpertResume
from tenants.accounts.scope import whole_register
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class NewExpert(Request):
    """An expert that was trained elsewhere."""

    upload: ReceivedBundle = Field(description="the body of the request")
    dataset_ids: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(
        min_length=1, max_length=64, description="your datasets that it was trained on"
    )
    seal: bool = Field(
        default=False,
        description="seal it with the key that the installation keeps for you (converted bundles)",
    )


class ExpertId(Request):
    """Which expert."""

    expert_id: str = Field(max_length=60)


class ExpertQuery(Page):
    """Which experts."""

    base_digest: str | None = Field(default=None, max_length=71, description="only experts of this base")


class ExpertView(Answer):
    """An expert version; fields that are not for the viewer's eyes are None."""

    id: str
    name: str
    tenant: str
    version: int
    bundle_digest: str
    base_digest: str
    state: str
    license: str
    price_micro_per_1k_tokens: int
    card: DataCard
    admitted_at_us: int
    dataset_ids: tuple[str, ...] | None = None
    job_id: str | None = None
    recipe: dict[str, Any] | None = None
    metrics: dict[str, float] | None = None
    calibration: dict[str, float] | None = None
    admission: dict[str, Any] | None = None


class ExpertPage(Answer):
    """Experts by tenant, name and version."""

    items: tuple[ExpertView, ...]
    next: str | None = None


def fit_expert(desk: Desk, principal: Principal, request: NewExpert) -> CheckedBundle:
    """A bundle that its owner signed: right tenant, right key, right base, known datasets."""
    checked = received_bundle(desk, request.upload)
    manifest = checked.manifest
    if not isinstance(manifest, ExpertManifest):
        raise BundleWrongBase("This is the bundle of a base. An operator imports it with bases.import.")
    if manifest.tenant != principal.tenant:
        raise UntrustedKey(
            "The bundle names another tenant than yours. Seal it again with your own tenant's name and key.",
            tenant=principal.tenant,
        )
    if not request.seal:
        _check_owner_key(desk, checked, principal.tenant)
    try:
        base = desk.register.base(manifest.base_digest)
    except NotFound as error:
        raise _no_such_base(manifest) from error
    check_fits_base(manifest, base.manifest, base.base_digest)
    for dataset_id in request.dataset_ids:
        check_own(principal, desk.datasets.get(dataset_id).tenant, what="dataset")
    return checked


def import_expert(desk: Desk, principal: Principal, request: NewExpert) -> ExpertView:
    """Admits a bundle that is fit and was weighed."""
    checked = fit_expert(desk, principal, request)
    manifest, weighed = checked.manifest, desk.weighed
    if not isinstance(manifest, ExpertManifest) or weighed is None or weighed.digest != checked.digest:
        raise WeighingFailed("The expert was not weighed, so it was not admitted. Send it again.")
    store_bundle(desk, checked, principal.tenant if request.seal else None)
    record = desk.register.admit_expert(
        manifest, checked.digest, request.dataset_ids, principal.tenant, job_id=None
    )
    keep_figures(desk, record.expert_id, weighed)
    return _view(record, full=True, admission=_figures(desk, record))


def list_experts(desk: Desk, principal: Principal, request: ExpertQuery) -> ExpertPage:
    """The catalogue as the caller may see it."""
    rows = [
        row
        for row in desk.register.experts(None)
        if _visible(principal, row) and request.base_digest in {None, row.base_digest}
    ]
    items, after = cut(rows, request, lambda row: row.expert_id)
    return ExpertPage(items=tuple(_seen_by(principal, row) for row in items), next=after)


def show_expert(desk: Desk, principal: Principal, request: ExpertId) -> ExpertView:
    """One expert as the caller may see it."""
    record = visible_expert(desk, principal, request.expert_id)
    if not _sees_all_of(principal, record):
        return _view(record, full=False)
    return _view(record, full=True, admission=_figures(desk, record))


def suspend_expert(desk: Desk, principal: Principal, request: ExpertId) -> Publication:
    """Takes an expert out of every composition, at once."""
    record = visible_expert(desk, principal, request.expert_id)
    if not principal.has(Role.COMPLIANCE, Role.OPERATOR):
        check_own(principal, record.tenant, what="expert")
    return desk.register.suspend_expert(record.expert_id, principal)


def resume_expert(desk: Desk, principal: Principal, request: ExpertId) -> ChangeRecord:
    """Drafts the return of a suspended expert."""
    record = visible_expert(desk, principal, request.expert_id)
    item = ExpertResume(expert_id=record.expert_id)
    return draft_one(desk, principal, f"Resume {record.tenant}/{record.name}", item)


def visible_expert(desk: Desk, principal: Principal, expert_id: str) -> ExpertRecord:
    """An expert that the caller may know of.

    Raises:
        UnknownObject: it is not there, or not for the caller's eyes.
    """
    record = desk.register.expert(expert_id)
    if not _visible(principal, record):
        raise unknown("expert")
    return record


def _view(record: ExpertRecord, *, full: bool, admission: dict[str, Any] | None = None) -> ExpertView:
    """What of an expert is shown.

    Args:
        record: the expert.
        full: whether the viewer sees more than what is offered to everyone.
        admission: figures of its admission, for whoever sees all.
    """
    manifest = record.manifest
    inner = {
        "dataset_ids": record.dataset_ids,
        "job_id": record.job_id,
        "recipe": dict(manifest.recipe),
        "metrics": dict(manifest.metrics),
        "calibration": dict(manifest.calibration),
        "admission": admission,
    }
    return ExpertView(
        id=record.expert_id,
        name=record.name,
        tenant=record.tenant,
        version=record.version,
        bundle_digest=record.bundle_digest,
        base_digest=record.base_digest,
        state=record.state,
        license=record.license,
        price_micro_per_1k_tokens=record.price_micro_per_1k_tokens,
        card=manifest.data_card,
        admitted_at_us=record.admitted_at_us,
        **(inner if full else {}),
    )


def _visible(principal: Principal, record: ExpertRecord) -> bool:
    return sees_everything(principal) or record.tenant == principal.tenant or record.state == "listed"


def _seen_by(principal: Principal, record: ExpertRecord) -> ExpertView:
    return _view(record, full=_sees_all_of(principal, record))


def _sees_all_of(principal: Principal, record: ExpertRecord) -> bool:
    return sees_everything(principal) or record.tenant == principal.tenant


def _figures(desk: Desk, record: ExpertRecord) -> dict[str, Any] | None:
    """What admission measured; None for experts of releases that did not weigh."""
    with whole_register(desk.session):  # the chain is nobody's own
        kept = desk.audit.last_of(f"experts/{record.expert_id}", WEIGHED_ACTION)
    return None if kept is None else kept.facts


def _check_owner_key(desk: Desk, checked: CheckedBundle, tenant: str) -> None:
    signature = checked.seal.signature("owner")
    known = load_or_create_key(desk.home.owner_key(tenant)).public_key
    if signature is None or signature.public_key != known:
        raise UntrustedKey(
            "The bundle is not signed with the key that this installation keeps for you. Seal it with that.",
            tenant=tenant,
        )


def _no_such_base(manifest: ExpertManifest) -> BundleWrongBase:
    return BundleWrongBase(
        "The expert was made for a base that is not registered here. Train it against one of bases.list.",
        base_digest=manifest.base_digest,
    )


_EXPERT = {"expert_id": "exp_0198f0c2a1b37c4e8d5f60718293a4b5"}

ROWS = (
    Operation(
        name="experts.import",
        method="POST",
        path="/experts",
        roles=frozenset({Role.OWNER}),
        request=NewExpert,
        response=ExpertView,
        run=import_expert,
        summary="Admits an expert trained elsewhere: the body is a tar archive of its sealed bundle.",
        example={"dataset_ids": ["dat_0198f0c2a1b37c4e8d5f60718293a4b5"]},
        upload=Upload(media_type=TAR, inspect=inspect_bundle),
        weighs=fit_expert,
    ),
    Operation(
        name="experts.list",
        method="GET",
        path="/experts",
        roles=ANYONE,
        request=ExpertQuery,
        response=ExpertPage,
        run=list_experts,
        summary="Lists the catalogue as you may see it.",
        isolated=True,
    ),
    Operation(
        name="experts.show",
        method="GET",
        path="/experts/{expert_id}",
        roles=ANYONE,
        request=ExpertId,
        response=ExpertView,
        run=show_expert,
        summary="Shows an expert as you may see it.",
        example=_EXPERT,
        isolated=True,
    ),
    Operation(
        name="experts.suspend",
        method="POST",
        path="/experts/{expert_id}/suspend",
        roles=frozenset({Role.OWNER, Role.COMPLIANCE, Role.OPERATOR}),
        request=ExpertId,
        response=Publication,
        run=suspend_expert,
        summary="Takes an expert out of every composition, alone and at once.",
        example=_EXPERT,
    ),
    Operation(
        name="experts.resume",
        method="POST",
        path="/experts/{expert_id}/resume",
        roles=frozenset({Role.OWNER, Role.COMPLIANCE}),
        request=ExpertId,
        response=ChangeRecord,
        run=resume_expert,
        summary="Drafts the return of a suspended expert; compliance approves it.",
        example=_EXPERT,
    ),
)
