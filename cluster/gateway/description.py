# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 description of the API, written from the table of operations and the doors beside it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from cluster.gateway.description_doors import OTHER_DOORS, Mode
from cluster.operations.table import Operation
from cluster.problems import PROBLEM_MEDIA_TYPE

_PREFIX = "/api/v1"
_REPEAT_KEY = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]([ -~]*[!-~])?$"}
_REFUSALS = {
    "400": "The body is malformed.",
    "401": "No key, or one that opens nothing.",
    "403": "The role is missing, or the tenant is suspended.",
    "404": "There is no such object, or it is not yours.",
    "409": "It contradicts the state of things.",
    "412": "The version named is not the present one.",
    "413": "The body is too long.",
    "415": "The body is of another kind.",
    "422": "The fields do not fit.",
    "503": "The office does not answer; ask again.",
}


class ProblemDocument(BaseModel):
    """An RFC 9457 problem: what happened, and what to do next."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    facts: dict[str, Any]
    instance: str | None = None


def describe(operations: Mapping[str, Operation]) -> dict[str, Any]:
    """The OpenAPI document of a table of operations."""
    wanted: list[tuple[type[BaseModel], Any]] = [(ProblemDocument, "serialization")]
    for door in OTHER_DOORS:
        wanted += [(kind, "serialization") for kind in door.answers]
        wanted += [(door.request, "validation")] if door.request is not None else []
    for operation in operations.values():
        wanted.append((operation.request, "validation"))
        wanted.append((operation.response, "serialization"))
    keys, definitions = models_json_schema(
        sorted(set(wanted), key=lambda pair: (pair[0].__name__, pair[1])),
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations.values():
        request_schema = keys[(operation.request, "validation")]
        answer_schema = keys[(operation.response, "serialization")]
        described = _describe_one(operation, request_schema, answer_schema, definitions)
        paths.setdefault(_PREFIX + operation.path, {})[operation.method.lower()] = described

    def schema_of(kind: type[BaseModel], mode: Mode) -> dict[str, Any]:
        return keys[(kind, mode)]

    for door in OTHER_DOORS:
        paths.setdefault(door.path, {})[door.method.lower()] = door.describe(schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Expert marketplace", "version": _version()},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "Your key: mk_…"}},
        },
    }


def _describe_one(
    operation: Operation,
    request: Mapping[str, Any],
    answer: Mapping[str, Any],
    definitions: Mapping[str, Any],
) -> dict[str, Any]:
    fields = definitions["$defs"][str(request["$ref"]).rpartition("/")[2]]
    in_path = operation.placeholders
    others = {name: field for name, field in fields.get("properties", {}).items() if name not in in_path}
    others.pop("upload", None)
    parameters = [_parameter("path", name, fields["properties"][name], required=True) for name in in_path]
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.noun],
        "x-roles": sorted(str(role) for role in operation.roles),
        "responses": _responses(operation, answer),
    }
    required = set(fields.get("required", ()))
    if operation.method == "GET" or operation.upload is not None:
        parameters += [_parameter("query", n, f, required=n in required) for n, f in others.items()]
    elif others:
        schema: dict[str, Any] = {"type": "object", "properties": others, "additionalProperties": False}
        if named := sorted(required & others.keys()):
            schema["required"] = named
        example = {name: value for name, value in operation.example.items() if name in others}
        content = {"application/json": {"schema": schema, "example": example}}
        described["requestBody"] = {"required": bool(named), "content": content}
    if operation.upload is not None:
        binary = {"schema": {"type": "string", "format": "binary"}}
        described["requestBody"] = {"required": True, "content": {operation.upload.media_type: binary}}
    if not operation.only_reads and operation.upload is None:
        parameters.append(_parameter("header", "Idempotency-Key", _REPEAT_KEY))
    if parameters:
        described["parameters"] = parameters
    return described


def _parameter(place: str, name: str, schema: Mapping[str, Any], *, required: bool = False) -> dict[str, Any]:
    shown: dict[str, Any] = {"in": place, "name": name, "required": required, "schema": schema}
    if isinstance(text := schema.get("description"), str):
        shown["description"] = text
    return shown


def _responses(operation: Operation, answer: Mapping[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {
        str(operation.success_status): {
            "description": "Done.",
            "content": {"application/json": {"schema": answer}},
        }
    }
    problem = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    for status, text in _REFUSALS.items():
        responses[status] = {"description": text, "content": problem}
    return responses


def _version() -> str:
    try:
        return version("expert-marketplace")
    except PackageNotFoundError:
        return "0"
