# SPDX-License-Identifier: Apache-2.0
"""Makes the commands of a noun from the table of operations.

A path placeholder becomes an argument, every other field of the request an option with the field's own
description, and an upload becomes a file argument. Nothing about a single noun is known here.
"""

from __future__ import annotations

import json
import types
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from cluster.cli import audit
from cluster.cli.context import Door
from cluster.cli.evidence import make as make_evidence
from cluster.cli.export import export
from cluster.cli.models import import_base, import_expert
from cluster.cli.receipts import verify_receipt
from cluster.cli.values import JsonText
from cluster.cli.watch import watch
from cluster.operations.catalogue import OPERATIONS
from cluster.operations.table import Operation

#: Verbs that are more than one call.
_BY_HAND: dict[str, tuple[click.Command, ...]] = {
    "job": (watch,),
    "base": (import_base,),
    "expert": (import_expert,),
    "deployment": (export, make_evidence),
    "consent": (verify_receipt,),
    "audit": (audit.verify, audit.export),
}


def noun_group(noun: str, plural: str) -> click.Group:
    """The group ``marketplace <noun>`` with one command per operation of the noun."""
    rows = [row for row in OPERATIONS.values() if row.noun == plural]
    group = click.Group(name=noun, help=f"Verbs on {plural}.")
    for row in rows:
        group.add_command(_command(noun, row))
    for command in _BY_HAND.get(noun, ()):
        group.add_command(command)
    return group


def _command(noun: str, row: Operation) -> click.Command:
    verb = row.name.partition(".")[2].replace("_", "-")
    params: list[click.Parameter] = [click.Argument([name]) for name in row.placeholders]
    if row.upload is not None:
        params.append(click.Argument(["file"], type=click.Path(exists=True, dir_okay=False, path_type=Path)))
    for name, field in row.request.model_fields.items():
        if name not in row.placeholders and not (row.upload is not None and name == "upload"):
            params.append(_option(name, field))

    @click.pass_obj
    def run(door: Door, /, **given: Any) -> None:
        fields = {name: _plain(value) for name, value in given.items() if value is not None and value != ()}
        with door.client() as client:
            if row.upload is not None:
                answer = client.upload(row.name, fields.pop("file"), **fields)
            else:
                answer = client.call(row.name, **fields)
        door.show(answer)

    roles = ", ".join(sorted(role.value for role in row.roles))
    text = f"{row.summary}\n\nAllowed to: {roles}.\n\n\b\nExample:\n  {_example(noun, verb, row)}"
    return click.Command(verb, callback=run, params=params, help=text, short_help=row.summary)


def _option(name: str, field: FieldInfo) -> click.Option:
    kind, many = _kind(field.annotation)
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        return click.Option(
            [f"{flag}/--no-{flag[2:]}"], default=None, help=field.description, required=field.is_required()
        )
    return click.Option(
        [flag],
        type=kind,
        multiple=many,
        required=field.is_required(),
        default=None,
        help=(field.description or "") + (" (repeat for several)" if many else ""),
    )


def _kind(annotation: Any) -> tuple[Any, bool]:
    """Click type of a field and whether it may be given several times."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        rest = [part for part in get_args(annotation) if part is not type(None)]
        return _kind(rest[0]) if len(rest) == 1 else (JsonText(), False)
    if origin is Literal:
        return click.Choice([str(choice) for choice in get_args(annotation)]), False
    if origin in (tuple, list, set, frozenset):
        inner, _ = _kind(get_args(annotation)[0])
        return (inner, True) if not isinstance(inner, JsonText) else (JsonText(), False)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return click.Choice([str(member.value) for member in annotation]), False
    if annotation in (str, int, float, bool):
        return annotation, False
    return JsonText(), False


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _example(noun: str, verb: str, row: Operation) -> str:
    words = ["marketplace", noun, verb]
    words += [str(row.example.get(name, name.upper())) for name in row.placeholders]
    if row.upload is not None:
        words.append("FILE")
    for name, value in row.example.items():
        if name in row.placeholders or name == "upload":
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
            words += [f"{flag} {part}" for part in value]
        else:
            words.append(f"{flag} {_quoted(value)}")
    return " ".join(words)


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"'{text}'" if " " in text or '"' in text or not text else text
