# SPDX-License-Identifier: Apache-2.0
"""The console's downloads: signed receipts of consents, and signed records of what was erased."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from cluster.gateway.console.visit import Console


def add_receipts(app: FastAPI, console: Console, guarded: Callable[..., Any]) -> None:
    """Adds the routes that hand out signed documents as files."""

    async def consent_receipt(request: Request) -> Response:
        visit = console.visit(request)
        fields = {"consent_id": request.path_params["consent_id"]}
        event = visit.query("event")
        answer = await visit.call("consents.receipt", **fields, **({"event": event} if event else {}))
        return _file(answer, f"receipt-{answer['document']['receipt_id']}.json")

    async def erasure_record(request: Request) -> Response:
        visit = console.visit(request)
        answer = await visit.call("erasures.record", erasure_id=request.path_params["erasure_id"])
        return _file(answer, f"erasure-{answer['document']['receipt_id']}.json")

    for path, handler in (
        ("/console/consents/{consent_id}/receipt", consent_receipt),
        ("/console/erasures/{erasure_id}/record", erasure_record),
    ):
        app.add_api_route(path, guarded(console, handler), methods=["GET"], include_in_schema=False)


def _file(document: dict[str, Any], name: str) -> Response:
    # As text that a person can read; the signature covers the canonical form of what it says.
    body = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(body, media_type="application/json", headers=headers)
