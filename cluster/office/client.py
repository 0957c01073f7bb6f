# SPDX-License-Identifier: Apache-2.0
"""How other processes reach the office: as if it were here, with retries only where they are safe.

A call that cannot have a second effect (a read, a report with a sequence number or a fence, a write with an
idempotency key) is sent again when the office is away for a moment. Any other call whose answer was lost
raises ``OfficeUnavailable``, because nobody here can know whether it happened.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from ray import get_actor
from ray.exceptions import RayError, RayTaskError

from cluster.errors import OfficeFault, OfficeUnavailable
from cluster.office.protocol import (
    NAMESPACE,
    OFFICE_NAME,
    Admission,
    Caller,
    EpochNews,
    JobClaim,
    JobDirection,
    JobOutcome,
    MetricReading,
    OfficeHealth,
    Reply,
    UsageRecord,
)
from cluster.operations.table import LONGEST_WEIGHING_S

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class OfficeClient:
    """The office, from any process of the marketplace; see ``OfficeProtocol`` for what the methods promise.

    Args:
        reach: answers the actor's handle; raises ``ValueError`` while there is none.
        answer_s: how long one answer may take; one that waits for a weighing takes longer.
        patience_s: how long a repeatable call is tried before it gives up.
    """

    def __init__(self, reach: Callable[[], Any], *, answer_s: float = 30.0, patience_s: float = 20.0) -> None:
        self._reach = reach
        self._answer_s = answer_s
        self._patience_s = patience_s
        self._handle: Any = None
        self._in_doubt = False

    async def call(
        self, op: str, credential: str, payload: dict[str, Any], *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Runs one operation of the table."""
        from cluster.operations.catalogue import OPERATIONS

        known = OPERATIONS.get(op)
        repeatable = idempotency_key is not None or known is None or known.only_reads
        arguments = (op, credential, payload, idempotency_key)
        weighs = known is not None and known.weighs is not None
        answer_s = self._answer_s + LONGEST_WEIGHING_S if weighs else None
        answer = await self._send(repeatable, "call", *arguments, answer_s=answer_s)
        return cast("dict[str, Any]", answer)

    async def identify(self, credential: str) -> Caller:
        """Says whose credential this is."""
        return cast("Caller", await self._send(True, "identify", credential))

    async def health(self) -> OfficeHealth:
        """Answers once the database is open."""
        return cast("OfficeHealth", await self._send(True, "health"))

    async def admit_request(
        self,
        credential: str,
        deployment: str,
        max_tokens: int,
        n: int = 1,
        prompt_tokens: int = 0,
        continues: str = "",
    ) -> Admission:
        """Holds the budget for a request.

        Sent again when the answer is lost: at worst a second reservation expires unused.
        """
        answer = await self._send(
            True, "admit_request", credential, deployment, max_tokens, n, prompt_tokens, continues
        )
        return cast("Admission", answer)

    async def release_request(self, request_id: str) -> None:
        """Gives back what a request still holds."""
        await self._send(True, "release_request", request_id)

    async def record_usage(self, server_id: str, sequence: int, batch: list[UsageRecord]) -> int:
        """Stores a batch exactly once."""
        return cast("int", await self._send(True, "record_usage", server_id, sequence, batch))

    async def wait_epoch(
        self, server_id: str, seen_epoch: int, timeout_s: float = 0.5, changes: bool = False
    ) -> EpochNews:
        """Long-polls for a newer epoch.

        Sent once: whoever asks measures its lease from the moment of sending, and a repetition here would
        make an answer look older than it is without need.
        """
        answer = await self._send(False, "wait_epoch", server_id, seen_epoch, timeout_s, changes)
        return cast("EpochNews", answer)

    async def acknowledge(
        self, server_id: str, epoch: int, snapshot_digest: str, compositions: dict[str, str]
    ) -> None:
        """Records what a server runs."""
        await self._send(True, "acknowledge", server_id, epoch, snapshot_digest, compositions)

    async def claim_job(self, foreman_id: str, max_running_per_tenant: int = 1) -> JobClaim | None:
        """Claims the next job."""
        return cast(
            "JobClaim | None", await self._send(False, "claim_job", foreman_id, max_running_per_tenant)
        )

    async def requeue_orphans(self, foreman_id: str) -> list[str]:
        """Queues jobs again whose foreman is gone."""
        return cast("list[str]", await self._send(True, "requeue_orphans", foreman_id))

    async def job_progress(
        self, job_id: str, fence: int, state: str, metrics: list[MetricReading], message: str = ""
    ) -> JobDirection:
        """Reports an attempt's progress."""
        answer = await self._send(True, "job_progress", job_id, fence, state, metrics, message)
        return cast("JobDirection", answer)

    async def finish_job(self, job_id: str, fence: int, bundle_folder: str) -> JobOutcome:
        """Admits a finished job's bundle."""
        answer_s = self._answer_s + LONGEST_WEIGHING_S
        answer = await self._send(True, "finish_job", job_id, fence, bundle_folder, answer_s=answer_s)
        return cast("JobOutcome", answer)

    async def fail_job(self, job_id: str, fence: int, code: str, sentence: str, *, retry: bool) -> None:
        """Closes an attempt."""
        await self._send(True, "fail_job", job_id, fence, code, sentence, retry)

    async def _send(
        self, repeatable: bool, method: str, *arguments: Any, answer_s: float | None = None
    ) -> Any:
        if self._in_doubt and not repeatable:
            await self._send(True, "health")  # wait for the next incarnation before a call that goes once
        deadline = time.monotonic() + (self._patience_s if repeatable else 0.0)
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                answer = await self._send_once(method, arguments, answer_s or self._answer_s)
            except OfficeUnavailable:
                self._in_doubt = True
                if time.monotonic() + pause_s > deadline:
                    raise
                await asyncio.sleep(pause_s * (0.5 + random.random()))  # noqa: S311  spreads the herd
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            else:
                self._in_doubt = False
                return answer

    async def _send_once(self, method: str, arguments: tuple[Any, ...], answer_s: float) -> Any:
        try:
            if self._handle is None:
                self._handle = await asyncio.to_thread(self._reach)
            reply: Reply = await asyncio.wait_for(self._handle.ask.remote(method, arguments), answer_s)
        except RayTaskError as error:
            raise OfficeFault(
                "Something unexpected happened in the office. Its log says more under the same time."
            ) from error
        except (
            RayError,
            ValueError,
            TimeoutError,
        ) as error:  # whatever of Ray's is lost, the question was not answered
            self._handle = None
            raise OfficeUnavailable(
                "The office does not answer at the moment. It starts again by itself; try again soon.",
                retry_after_s=2,
            ) from error
        if reply.refusal is not None:
            raise reply.refusal
        return reply.value


class SyncOfficeClient:
    """The same for programs without an event loop: ``SyncOfficeClient(client).do(OfficeClient.health)``."""

    def __init__(self, client: OfficeClient) -> None:
        self._client = client

    def do(self, method: Callable[..., Awaitable[Any]], *arguments: Any, **named: Any) -> Any:
        """Calls a method of the client and waits for its answer."""

        async def run() -> Any:
            return await method(self._client, *arguments, **named)

        return asyncio.run(run())


def connect_office(*, answer_s: float = 30.0, patience_s: float = 20.0) -> OfficeClient:
    """The office of the Ray cluster that this process is connected to."""
    return OfficeClient(
        lambda: get_actor(OFFICE_NAME, namespace=NAMESPACE), answer_s=answer_s, patience_s=patience_s
    )
