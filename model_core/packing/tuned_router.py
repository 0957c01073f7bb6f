# SPDX-License-Identifier: Apache-2.0
"""What a tuned router is, said without opening its tensors: for which members it holds, and from which text.

Router tuning (FlexOlmo, arXiv 2507.07024, section 3.3.3) looks at all members at once, so its rows hold for
exactly the members that it saw. When one leaves or joins, the tuned rows still carry its traces: they are set
aside and must be made anew. This page says that rule; it needs no tensor library.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model_core.errors import ManifestInvalid, NotCanonical
from model_core.packing.canonical import canonical_bytes, digest_bytes, parse_canonical
from model_core.packing.fields import Digest, FiniteFloat, SafeInt
from model_core.packing.manifest import MAX_MANIFEST_BYTES

TUNED_ROUTER_FILE = "tuned-router.json"
TUNED_ROUTER_WEIGHTS_FILE = "tuned-router.safetensors"

RouterVariant = Literal["gated", "tuned"]

_Count = Annotated[int, Field(ge=0, le=2**53 - 1)]


class TextSource(BaseModel):
    """The public documents that one share of the tuning text came from.

    Attributes:
        documents: how many.
        rows: training rows that they filled.
        merkle_root: over their digests.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    documents: _Count
    rows: _Count
    merkle_root: Digest


class TunedRouterManifest(BaseModel):
    """The packing slip of tuned router rows.

    Attributes:
        schema_version: of this document.
        base_digest: of the base.
        members: bundle digests of the experts that it was tuned for, ascending.
        n_layers: of the base.
        d_model: of the base (D).
        weights_digest: digest of ``tuned-router.safetensors``.
        recipe: tuning settings, flat.
        seed: of the order of rows.
        proxies: per member, the public documents that stood for its text.
        public: the other public documents.
        steps: optimizer steps done.
        final_loss: mean cross-entropy of the last tenth of them, nats a token.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = Field(default=1, ge=1)
    kind: Literal["tuned_router"] = "tuned_router"
    base_digest: Digest
    members: tuple[Digest, ...] = Field(min_length=1, max_length=4096)
    n_layers: int = Field(ge=1, le=512)
    d_model: int = Field(ge=2, le=65_536)
    weights_digest: Digest
    recipe: dict[str, bool | SafeInt | FiniteFloat | str]
    seed: SafeInt
    proxies: dict[str, TextSource]
    public: TextSource
    steps: int = Field(ge=0)
    final_loss: FiniteFloat

    @model_validator(mode="after")
    def _members_are_a_set_in_order(self) -> Self:
        if list(self.members) != sorted(set(self.members)):
            raise ValueError("members: must be ascending and without repeats")
        if self.proxies.keys() != set(self.members):
            raise ValueError("proxies: must name every member once")
        return self

    def to_bytes(self) -> bytes:
        """The canonical bytes, as they stand in ``tuned-router.json``."""
        return canonical_bytes(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """The tuned router's address."""
        return digest_bytes(self.to_bytes())

    def holds_for(self, base_digest: str, members: Iterable[str]) -> bool:
        """Whether the rows may be used: the same base and exactly the members that they were tuned for."""
        return base_digest == self.base_digest and set(members) == set(self.members)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of ``tuned-router.safetensors``: per member (by place) one row a layer, fp32."""
        return {f"rows.{place}": (self.n_layers, self.d_model) for place in range(len(self.members))}


def router_label(variant: RouterVariant, *, tuned_digest: str | None = None) -> dict[str, str]:
    """How a composition names its router: the variant, and for tuned rows their digest."""
    return {"variant": variant} if tuned_digest is None else {"variant": variant, "digest": tuned_digest}


def parse_tuned_router_manifest(data: bytes) -> TunedRouterManifest:
    """Reads a tuned router's manifest from its canonical bytes.

    Raises:
        ManifestInvalid: too large, not canonical, or with missing or impossible fields.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"The manifest is larger than {MAX_MANIFEST_BYTES} bytes.", fields=[])
    try:
        parse_canonical(data)
        return TunedRouterManifest.model_validate_json(data, strict=True)
    except NotCanonical as error:
        raise ManifestInvalid(f"The manifest cannot be read: {error.sentence}", fields=[]) from error
    except ValidationError as error:
        fields = sorted({".".join(map(str, item["loc"]))[:80] or "members" for item in error.errors()})
        raise ManifestInvalid(
            f"The tuned router's manifest has missing or impossible fields: {', '.join(fields[:8])}. "
            "Tune the router again.",
            fields=fields[:64],
        ) from error
