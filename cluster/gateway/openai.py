# SPDX-License-Identifier: Apache-2.0
"""The OpenAI API: a deployment is a model name, and any client of that API can ask.

Chats are rendered by the model host: with the template of the base's tokenizer where it brings one, else
one paragraph ``role: content`` per message (``cluster.hosting.messages.render_turns``). Every answer names
its composition, epoch and request in headers and says in ``marketplace`` which experts computed what.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.gateway.answering import Answers
from cluster.gateway.answers import openai_error
from cluster.gateway.bodies import read_json_object
from cluster.gateway.door import Door
from cluster.gateway.errors import UnsupportedParameter
from cluster.gateway.generation import EventStream, unless_gone
from cluster.gateway.openai_requests import ChatParameters, CompletionParameters, offered
from cluster.gateway.openai_shapes import Shape, sent
from cluster.gateway.sessions import bearer
from cluster.gateway.threshold import log_unexpected, request_id_of
from cluster.problems import invalid_request, problem_of
from policy.errors import UnknownDeployment

MAX_PROMPT_BYTES = 4 << 20
# A client may read so much longer than the answer may take.
_LAST_EVENTS_S = 60.0


def add_openai(app: FastAPI, door: Door) -> None:
    """Adds the OpenAI routes to the application."""

    async def completions(request: Request) -> Response:
        return await _answer(door, request, CompletionParameters)

    async def chat(request: Request) -> Response:
        return await _answer(door, request, ChatParameters)

    async def models(request: Request) -> Response:
        return await _models(door, request)

    async def model(request: Request) -> Response:
        return await _model(door, request)

    app.add_api_route("/v1/completions", completions, methods=["POST"], include_in_schema=False)
    app.add_api_route("/v1/chat/completions", chat, methods=["POST"], include_in_schema=False)
    app.add_api_route("/v1/models", models, methods=["GET"], include_in_schema=False)
    app.add_api_route("/v1/models/{model}", model, methods=["GET"], include_in_schema=False)


async def _answer(
    door: Door, request: Request, kind: type[CompletionParameters] | type[ChatParameters]
) -> Response:
    credential = bearer(request)
    try:
        body = await read_json_object(request, MAX_PROMPT_BYTES)
        asked = _parameters(kind, body)
        prompts = asked.generations(_max_tokens(door, asked))
    except Exception:
        await door.office.identify(credential)  # a stranger learns only that a key is needed
        raise
    answers = Answers(door, credential, asked.model, request_id_of(request))
    try:
        await answers.admit(prompts)
        await unless_gone(request, answers.start())
    except BaseException:
        await answers.close()
        raise
    shape = Shape(
        chat=kind is ChatParameters,
        model=asked.model,
        request_ids=[admission.request_id for admission in answers.admissions],
        n=prompts[0].n,
        logprobs=prompts[0].logprobs is not None,
    )
    headers = _headers(answers)
    if asked.stream:
        events = _events(answers, shape, include_usage=asked.include_usage, request_id=request_id_of(request))
        return EventStream(events, answers.close, headers, door.limits.request_s + _LAST_EVENTS_S)
    try:
        whole = await unless_gone(request, _whole(answers, shape))
    finally:
        await answers.close()
    return JSONResponse(whole, headers=headers)


def _parameters(
    kind: type[CompletionParameters] | type[ChatParameters], body: dict[str, Any]
) -> CompletionParameters | ChatParameters:
    try:
        return kind.model_validate(offered(body))
    except ValidationError as error:
        raise invalid_request(error) from None


def _max_tokens(door: Door, asked: CompletionParameters | ChatParameters) -> int:
    wanted = asked.wanted_tokens(min(door.limits.default_max_tokens, door.limits.max_tokens))
    if wanted > door.limits.max_tokens:
        raise UnsupportedParameter(
            f"max_tokens is at most {door.limits.max_tokens} here. Ask for less.",
            param="max_tokens",
            max_tokens=door.limits.max_tokens,
        )
    return wanted


def _headers(answers: Answers) -> dict[str, str]:
    first = answers.admissions[0]
    return {
        "X-Marketplace-Composition": first.composition_digest,
        "X-Marketplace-Epoch": str(first.epoch),
        "X-Marketplace-Exact": str(answers.exact).lower(),
        "X-Marketplace-Request": ",".join(admission.request_id for admission in answers.admissions),
    }


async def _whole(answers: Answers, shape: Shape) -> dict[str, Any]:
    async for prompt, chunk in answers.chunks():
        shape.take(chunk, prompt)
    return shape.whole()


async def _events(
    answers: Answers, shape: Shape, *, include_usage: bool, request_id: str
) -> AsyncIterator[bytes]:
    # The last event carries our account, which arrives with the host's last chunk. So the newest event is
    # held back until the next one exists; events with text are released at once.
    held: dict[str, Any] | None = None
    try:
        for event in shape.opening():
            yield sent(event)
        async for prompt, chunk in answers.chunks():
            for made in shape.sendable(chunk, prompt):
                if held is not None:
                    yield sent(held)
                    held = None
                if isinstance(made, bytes):
                    yield made
                else:
                    held = made
        if include_usage:
            if held is not None:
                yield sent(held)
            yield sent(shape.closing_usage())
        elif held is not None:
            yield sent(held | {"marketplace": shape.marketplace()})
        yield b"data: [DONE]\n\n"
    except Exception as error:
        # The status line is long gone; clients of this API read an error event and raise it.
        log_unexpected(error, request_id)
        yield sent({"error": openai_error(problem_of(error))})
    finally:
        await answers.close()


async def _models(door: Door, request: Request) -> Response:
    found = await door.office.call("deployments.list", bearer(request), {"limit": 500, "own": True})
    return JSONResponse({"object": "list", "data": [_shown_model(item) for item in found["items"]]})


async def _model(door: Door, request: Request) -> Response:
    credential, name = bearer(request), request.path_params["model"]
    caller = await door.office.identify(credential)
    found = await door.office.call("deployments.show", credential, {"name": name})
    if found["tenant"] != caller.tenant:
        raise UnknownDeployment("There is no such deployment; list the models.", deployment=name)
    return JSONResponse(_shown_model(found))


def _shown_model(deployment: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": deployment["name"],
        "object": "model",
        "created": int(deployment.get("created_at_us") or 0) // 1_000_000,
        "owned_by": deployment.get("tenant", ""),
    }
