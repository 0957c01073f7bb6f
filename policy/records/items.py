# SPDX-License-Identifier: Apache-2.0
"""What a change can hold: the widening edits. Pure; who may make them: ``policy.changing.changes``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from policy.facts.snapshot import LicenseFact
from policy.facts.terms import ANY, AtUs, Count, Micro, OnConflict, WhenCutOff
from policy.records.paper import ConsentPaper


class _Item(BaseModel):
    # Unknown fields are refused here, unlike in documents that are read back: an edit whose meaning is not
    # fully understood must not be reviewed and published.
    model_config = ConfigDict(frozen=True, extra="forbid")


class ConsentGive(_Item):
    """An owner permits a use of an expert, of all its experts (``*``), or of experts trained on a dataset.

    ``valid_from_us`` None means from publication on. ``paper`` is what is written down with it, ``record_id``
    the consent record whose question it answers.
    """

    kind: Literal["consent.give"] = "consent.give"
    expert_id: str
    action: str = "infer"
    purpose: str
    region: str = ANY
    recipient: str = ANY
    commercial: bool = False
    valid_from_us: AtUs | None = None
    valid_until_us: AtUs | None = None
    dataset_id: str | None = None
    paper: ConsentPaper | None = None
    record_id: str | None = None


class ConsentRenew(_Item):
    """An owner lets a consent go on: the same word for longer, from now on or from where it ends.

    ``valid_until_us`` None means until withdrawn; ``paper`` says what was shown and kept this time.
    """

    kind: Literal["consent.renew"] = "consent.renew"
    consent_id: str
    valid_from_us: AtUs | None = None
    valid_until_us: AtUs | None = None
    paper: ConsentPaper | None = None


class GrantGive(_Item):
    """An owner gives one consumer (or ``*``) access to an expert."""

    kind: Literal["grant.give"] = "grant.give"
    expert_id: str
    consumer_tenant: str
    action: str = ANY
    purpose: str = ANY
    region: str = ANY
    commercial: bool = True
    valid_from_us: AtUs | None = None
    valid_until_us: AtUs | None = None


class RulePermit(_Item):
    """Compliance permits uses of a shape."""

    kind: Literal["rule.permit"] = "rule.permit"
    action: str = ANY
    purpose: str = ANY
    region: str = ANY
    expert_id: str = ANY
    consumer_tenant: str = ANY
    text: str = Field(min_length=1, max_length=2000)


class ListingPut(_Item):
    """An owner offers an expert under a license at a price, from the next epoch on."""

    kind: Literal["listing.put"] = "listing.put"
    expert_id: str
    price_micro_per_1k_tokens: Micro
    license: str


class ExpertResume(_Item):
    """A suspended expert is offered again under its last terms."""

    kind: Literal["expert.resume"] = "expert.resume"
    expert_id: str


class TenantResume(_Item):
    """A suspended tenant may act again."""

    kind: Literal["tenant.resume"] = "tenant.resume"
    slug: str


class DeploymentPut(_Item):
    """A developer asks for an endpoint, or for another form of it."""

    kind: Literal["deployment.put"] = "deployment.put"
    name: str
    tenant: str
    base_digest: str
    purpose: str
    region: str
    commercial: bool
    action: str = "infer"
    candidates: Literal["*"] | tuple[str, ...] = ANY
    top_k: Count = Field(default=2, ge=1)
    on_conflict: OnConflict = "strict"
    priority: tuple[str, ...] = ()
    when_cut_off: WhenCutOff = "hold"
    expected_version: Count | None = None  # of the deployment that it changes, 0 for none; None: whichever


class RuleLift(_Item):
    """Compliance takes a forbidding rule back, which permits again what it forbade."""

    kind: Literal["rule.lift"] = "rule.lift"
    rule_id: str


class LicensePut(_Item):
    """Compliance records the reviewed facets of a license; the version is assigned at publication."""

    kind: Literal["license.put"] = "license.put"
    fact: LicenseFact


ChangeItem = Annotated[
    ConsentGive
    | ConsentRenew
    | GrantGive
    | RulePermit
    | ListingPut
    | ExpertResume
    | TenantResume
    | DeploymentPut
    | LicensePut
    | RuleLift,
    Field(discriminator="kind"),
]


class ForbidRule(_Item):
    """Compliance forbids uses of a shape, at once."""

    action: str = ANY
    purpose: str = ANY
    region: str = ANY
    expert_id: str = ANY
    consumer_tenant: str = ANY
    text: str = Field(min_length=1, max_length=2000)


class ForbidUse(_Item):
    """An owner forbids uses of an expert (or of all its experts with ``*``), at once."""

    expert_id: str
    action: str = ANY
    purpose: str = ANY
    region: str = ANY
    recipient: str = ANY
    commercial: bool = False
    valid_from_us: AtUs | None = None
    valid_until_us: AtUs | None = None
    dataset_id: str | None = None
