# SPDX-License-Identifier: Apache-2.0
"""How refusals leave the door: RFC 9457 problems for the management API, OpenAI's error object below /v1.

AuthZEN's addresses answer with a sentence, as its standard says; the code stands in a header.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from cluster.gateway.authzen_shapes import ACCESS
from cluster.problems import PROBLEM_MEDIA_TYPE, Problem, problem_of

_OPENAI_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def refusal(error: BaseException, path: str, request_id: str) -> Response:
    """The answer that shows an error, in the dialect of the path it was asked at.

    Args:
        error: what was raised; anything but a ``ProductError`` is shown without its text.
        path: of the request.
        request_id: names this occurrence in the answer and in the log.
    """
    problem = problem_of(error)
    headers = _headers(problem)
    if path == "/v1" or path.startswith("/v1/"):
        status = plain_status(problem)
        return JSONResponse({"error": openai_error(problem)}, status_code=status, headers=headers)
    if path.startswith(f"{ACCESS}/"):
        status = plain_status(problem)
        return PlainTextResponse(problem.detail, status, headers | {"X-Marketplace-Code": problem.code})
    return JSONResponse(
        problem.document(instance=request_id),
        status_code=problem.status,
        headers=headers,
        media_type=PROBLEM_MEDIA_TYPE,
    )


def plain_status(problem: Problem) -> int:
    """The status that OpenAI's and AuthZEN's clients expect: 400 where documents do not validate."""
    return 400 if problem.status in {413, 415, 422} else problem.status


def openai_error(problem: Problem) -> dict[str, Any]:
    """The error object of the OpenAI API; ``code`` is our stable code, ``facts`` come along."""
    fallback = "server_error" if problem.status >= 500 else "invalid_request_error"
    fields = problem.facts.get("fields")
    param = problem.facts.get("param")
    if param is None and isinstance(fields, list) and fields and isinstance(fields[0], dict):
        param = fields[0].get("field")
    return {
        "message": problem.detail,
        "type": _OPENAI_TYPES.get(problem.status, fallback),
        "param": param,
        "code": problem.code,
        "facts": dict(problem.facts),
    }


def _headers(problem: Problem) -> dict[str, str]:
    headers: dict[str, str] = {}
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="marketplace"'
    if problem.status in {429, 503, 504}:
        after_s = problem.facts.get("retry_after_s", 1)
        headers["Retry-After"] = str(max(1, round(after_s)) if isinstance(after_s, int | float) else 1)
    allow = problem.facts.get("allow")
    if problem.status == 405 and isinstance(allow, str):
        headers["Allow"] = allow
    return headers
