# SPDX-License-Identifier: Apache-2.0
"""Work at the desk for people, programs and their requests: operations, admissions, usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from cluster.office.protocol import Admission, UsageRecord
from cluster.operations.scope import one_refusal, sees_everything
from cluster.problems import invalid_request
from policy.records.billing import UsageRecord as Metered
from tenants.accounts.scope import see, tenant_scope, whole_register

if TYPE_CHECKING:
    from cluster.office.desk import Desk
    from cluster.operations.table import Operation
    from model_core.packing.bundle import CheckedBundle
    from tenants.roles import Principal


def find_to_weigh(
    desk: Desk, operation: Operation, credential: str, payload: dict[str, Any]
) -> CheckedBundle | None:
    """What an operation wants weighed before it runs: who asks, may they, is it well formed, is it fit.

    Returns:
        The bundle, or None if the operation weighs nothing.

    Raises:
        ProductError: any refusal that needs no weighing.
    """
    if operation.weighs is None:
        return None
    principal, request = _open(desk, operation, credential, payload)
    with one_refusal(principal):
        return operation.weighs(desk, principal, request)


def answer_operation(
    desk: Desk,
    operation: Operation,
    credential: str,
    payload: dict[str, Any],
    idempotency_key: str | None,
) -> dict[str, Any]:
    """Runs one operation: who asks, may they, is it well formed, do it, chain it.

    Returns:
        The response document.

    Raises:
        ProductError: any refusal; the unit of work is then rolled back by whoever opened it.
    """
    principal, request = _open(desk, operation, credential, payload)
    repeat = None
    if idempotency_key is not None and not operation.only_reads:
        repeat = desk.repeats.begin(principal.id, idempotency_key, operation.name, payload)
        if repeat.answer is not None:
            return repeat.answer
    with one_refusal(principal):
        response = operation.run(desk, principal, request)
    if operation.writes:
        with whole_register(desk.session):
            desk.audit.append(
                principal.id,
                operation.name,
                operation.subject(request, response),
                operation.audit_facts(request),
            )
    answer: dict[str, Any] = response.model_dump(mode="json")
    if repeat is not None:
        desk.repeats.keep(repeat, None if operation.secret_answer else answer)
    return answer


def _open(
    desk: Desk, operation: Operation, credential: str, payload: dict[str, Any]
) -> tuple[Principal, BaseModel]:
    principal = desk.accounts.authenticate(credential)
    operation.check_roles(principal.roles)
    if operation.isolated and not sees_everything(principal):
        see(desk.session, tenant_scope(principal.tenant))
    try:
        return principal, operation.request.model_validate(payload)
    except ValidationError as error:
        raise invalid_request(error) from None


def admit(
    desk: Desk, credential: str, deployment: str, max_tokens: int, n: int, continues: str = ""
) -> Admission:
    """Authenticates a consumer and holds the budget for one request.

    Args:
        desk: the open unit of work.
        credential: API key.
        deployment: deployment name.
        max_tokens: completion tokens per choice.
        n: choices.
        continues: the first request of an answer that goes on, or empty.
    """
    principal = desk.accounts.authenticate(credential)
    see(desk.session, tenant_scope(principal.tenant))
    held = desk.metering.reserve(principal, deployment, max_tokens * max(1, n), continues)
    return Admission(
        request_id=held.request_id,
        deployment=held.deployment,
        base_digest=held.base_digest,
        tenant=held.tenant,
        principal_id=held.principal_id,
        epoch=held.epoch,
        composition_digest=held.composition_digest,
        reserved_tokens=held.max_tokens,
    )


def record_batch(desk: Desk, server_id: str, sequence: int, batch: list[UsageRecord]) -> int:
    """Stores one batch of a host's journal."""
    records = [Metered.model_validate(record.model_dump(mode="json")) for record in batch]
    return desk.metering.record(server_id, sequence, records)
