# SPDX-License-Identifier: Apache-2.0
"""Hands out the bundles of an export as tar archives, each decided and recorded by the office first.

A bundle is streamed from the artifact store, which has compared every byte with the digest. The route says
nothing about bundles that the caller's export does not hold: they do not exist here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cluster.errors import UnknownOperation
from cluster.gateway.door import Door
from cluster.gateway.management import PREFIX
from cluster.gateway.sessions import bearer
from cluster.operations.intake import TAR, tar_bytes, tar_size_bytes
from model_core.packing.store import ArtifactStore


def add_exports(app: FastAPI, door: Door, artifacts: ArtifactStore | None) -> None:
    """Adds the route; without a store it answers that nothing lives there."""

    async def bundle(request: Request) -> Response:
        credential = bearer(request)
        digest = str(request.path_params["bundle_digest"])
        if artifacts is None:
            await door.office.identify(credential)
            raise UnknownOperation("This gateway has no artifact store to export from.")
        asked = {
            "name": request.path_params["name"],
            "bundle_digest": digest,
            "only_permitted": True,
        }
        await door.office.call("deployments.export", credential, asked)
        folder = await run_in_threadpool(artifacts.get_bundle, digest)
        return _archive(folder)

    app.add_api_route(
        PREFIX + "/deployments/{name}/export/{bundle_digest}",
        bundle,
        methods=["POST"],
        include_in_schema=False,
    )


def _archive(folder: Path) -> Response:
    def parts() -> Iterator[bytes]:
        yield from tar_bytes(folder)

    headers = {"Content-Length": str(tar_size_bytes(folder))}
    return StreamingResponse(parts(), media_type=TAR, headers=headers)
