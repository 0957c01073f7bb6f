# SPDX-License-Identifier: Apache-2.0
"""Who plays in the demo, on which terms: four owners, one consumer, three endpoints.

The terms differ on purpose, so that every endpoint ends with another set of experts and every kind of
denial (consent, grant, license, region) is seen once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Use:
    """A use that an owner permits."""

    purpose: str
    commercial: bool
    region: str = "*"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """An organisation with text of its own.

    Attributes:
        slug: its tenant.
        title: for people.
        domain: its domain of the corpus.
        license: SPDX expression under which it offers its expert.
        price_micro: micro-credits per 1000 tokens.
        consents: uses it permits.
        grants: uses it grants the consumer.
    """

    slug: str
    title: str
    domain: str
    license: str
    price_micro: int
    consents: tuple[Use, ...]
    grants: tuple[Use, ...]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A deployment of the consumer."""

    name: str
    purpose: str
    region: str
    commercial: bool


_RESEARCH = Use(purpose="research", commercial=False)
_SOFTWARE = Use(purpose="software-development", commercial=True)
_ANY_GRANT = Use(purpose="*", commercial=True)

CONSUMER = "acme-apps"

OWNERS = (
    Owner(
        slug="pylib-guild",
        title="Guild of library authors",
        domain="python",
        license="PSF-2.0",
        price_micro=2_000_000,
        consents=(_RESEARCH, _SOFTWARE),
        grants=(_ANY_GRANT,),
    ),
    Owner(
        slug="tensor-works",
        title="Tensor Works",
        domain="cpp",
        license="BSD-3-Clause",
        price_micro=3_000_000,
        consents=(_RESEARCH, Use(purpose="software-development", commercial=True, region="us")),
        grants=(_ANY_GRANT,),
    ),
    Owner(
        slug="cloud-press",
        title="Cloud Press, technical publisher",
        domain="cloud",
        license="Apache-2.0",
        price_micro=4_000_000,
        consents=(Use(purpose="any", commercial=True),),
        grants=(Use(purpose="research", commercial=False), Use(purpose="customer-support", commercial=True)),
    ),
    Owner(
        slug="symbolic-society",
        title="Society for symbolic mathematics",
        domain="sympy",
        license="CC-BY-NC-4.0",
        price_micro=1_500_000,
        consents=(_RESEARCH, _SOFTWARE),
        grants=(_ANY_GRANT,),
    ),
)

ENDPOINTS = (
    Endpoint(name="research-desk", purpose="academic-research", region="de", commercial=False),
    Endpoint(name="code-desk", purpose="code-assistance", region="de", commercial=True),
    Endpoint(name="support-desk", purpose="customer-support", region="fr", commercial=True),
)

#: The owner that leaves, and the endpoint that is busy at that moment.
LEAVER = "cloud-press"
BUSY_ENDPOINT = "research-desk"
