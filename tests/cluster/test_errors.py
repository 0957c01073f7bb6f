# SPDX-License-Identifier: Apache-2.0
"""The catalogue of errors: total, unambiguous, round through HTTP and pickling, and without inner details."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

import cluster
from cluster.error_catalogue import CATALOGUE, row_of
from cluster.errors import HomeRefused, RemoteProblem
from cluster.problems import FAMILIES, error_of, problem_of, product_errors
from model_core.errors import ProductError

_ROOT = Path(cluster.__file__).parents[1]
_KINDS = sorted(product_errors(), key=lambda kind: kind.code)


def test_every_error_has_a_row() -> None:
    """Each code has a row, and no row is for nobody."""
    assert {kind.code for kind in _KINDS} == set(CATALOGUE)


def test_codes_are_unique() -> None:
    """Two classes with one code could not be told apart by a client.

    A class that says nothing of its own is meant to look like its parent from outside (another tenant's
    object looks like one that does not exist).
    """
    codes = [kind.code for kind in _KINDS if "code" in kind.__dict__]
    assert sorted(codes) == sorted(set(codes))


def test_every_module_that_defines_errors_is_known() -> None:
    """A family defined in a file that the catalogue does not import would escape the walk."""
    names = {kind.__name__ for kind in _KINDS}
    unknown = set()
    for package in ("cluster", "policy", "tenants", "model_core"):
        for file in (_ROOT / package).rglob("*.py"):
            module = ".".join(file.relative_to(_ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                    if bases & names and module not in FAMILIES:
                        unknown.add(f"{module}.{node.name}")
    assert unknown == set()


@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.code)
def test_every_error_survives_http_and_pickling(kind: type[ProductError]) -> None:
    """Document and back, and pickle and back, give the same class, sentence and facts."""
    error = kind("It went wrong. Try again.", item="x", count=3)
    problem = problem_of(error)
    document = json.loads(json.dumps(problem.document("req_1")))
    assert document["status"] == row_of(kind).status
    assert document["type"].endswith(document["code"])
    assert document["instance"] == "req_1"
    assert 1 <= problem.exit_code < 64
    for again in (error_of(document), pickle.loads(pickle.dumps(error))):  # noqa: S301  our own bytes
        assert again.sentence == error.sentence
        if kind is not RemoteProblem:
            assert isinstance(again, kind) or "code" not in kind.__dict__
            assert again.code == kind.code
            assert again.facts == error.facts


def test_unexpected_errors_show_nothing() -> None:
    """The text of an error that is not ours stays inside."""
    problem = problem_of(RuntimeError("password=canary"))
    assert problem.status == 500
    assert "canary" not in json.dumps(problem.document())


def test_validation_failures_name_fields_and_not_values() -> None:
    """A rejected value may be a prompt or a secret; only its place and the rule are told."""

    class Form(BaseModel):
        age: int

    with pytest.raises(ValidationError) as caught:
        Form.model_validate({"age": "canary"})
    problem = problem_of(caught.value)
    assert problem.status == 422
    assert problem.facts["fields"][0]["field"] == "age"
    assert "canary" not in json.dumps(problem.document())


def test_a_newer_code_keeps_its_sentence() -> None:
    """A client that does not know a code still shows what the sender said, with its status."""
    error = error_of(
        {"code": "from_the_future", "status": 418, "detail": "Tea is out. Make more.", "facts": {"a": 1}}
    )
    assert isinstance(error, RemoteProblem)
    shown = problem_of(error)
    assert (shown.status, shown.code, shown.detail) == (418, "from_the_future", "Tea is out. Make more.")


def test_a_class_without_a_row_falls_to_its_family() -> None:
    """The lookup is total even for a class that a plug-in added."""

    class Odd(HomeRefused):
        code = "odd_home"

    assert row_of(Odd) == CATALOGUE["home_refused"]
