# SPDX-License-Identifier: Apache-2.0
"""Questions: what a use is, and how a deployment fills it in.

Knows which fields a question needs; it does not know any answer.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from policy.errors import IncompleteQuestion, UnknownDeployment
from policy.facts.snapshot import Snapshot
from policy.facts.terms import AtUs, OnConflict, TopK

_NEEDED: Final = ("tenant", "base_digest", "purpose", "region", "commercial")
_DEFAULTS: Final = {
    "action": "infer",
    "candidates": "*",
    "top_k": 2,
    "on_conflict": "strict",
    "members": None,
    "priority": (),
}


class Value(BaseModel):
    """A frozen document that crosses processes; fields are only ever added."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Question(Value):
    """What is asked: the use of a deployment, or a use spelled out, at one moment.

    With ``deployment`` its fact fills every field that is None here; explicit fields win, so that "what if"
    questions need no copy of a deployment. Without it tenant, base_digest, purpose, region and commercial
    have to be given.
    """

    at_us: AtUs
    deployment: str | None = None
    tenant: str | None = None
    base_digest: str | None = None
    action: str | None = None
    purpose: str | None = None
    region: str | None = None
    commercial: bool | None = None
    candidates: Literal["*"] | tuple[str, ...] | None = None
    top_k: TopK | None = None
    on_conflict: OnConflict | None = None


class Asked(Value):
    """A question with every field filled in (by ``resolve``)."""

    at_us: AtUs
    deployment: str | None
    tenant: str
    base_digest: str
    action: str
    purpose: str
    region: str
    commercial: bool
    candidates: Literal["*"] | tuple[str, ...]
    top_k: TopK
    on_conflict: OnConflict
    members: tuple[str, ...] | None
    priority: tuple[str, ...]


class LicenseChoice(Value):
    """Which branch of a license expression a permit rests on. ``subject``: expert, base or dataset id."""

    subject: str
    expression: str
    chosen: tuple[str, ...]


def resolve(snapshot: Snapshot, question: Question) -> Asked:
    """Fills a question in from its deployment.

    Raises:
        UnknownDeployment: it names a deployment that the snapshot does not hold.
        IncompleteQuestion: it names none and leaves out what is needed.
    """
    stated = {key: value for key, value in question if value is not None}
    if question.deployment is not None:
        fact = snapshot.deployments_by_name.get(question.deployment)
        if fact is None:
            raise UnknownDeployment(
                f"There is no deployment {question.deployment!r} at epoch {snapshot.epoch}; publish it.",
                deployment=question.deployment,
                epoch=snapshot.epoch,
            )
        filled = dict(fact)
    else:
        missing = [name for name in _NEEDED if name not in stated]
        if missing:
            raise IncompleteQuestion(
                f"The question names no deployment and leaves out {', '.join(missing)}.", missing=missing
            )
        filled = dict(_DEFAULTS)
    return Asked.model_validate({"deployment": None, **filled, **stated})
