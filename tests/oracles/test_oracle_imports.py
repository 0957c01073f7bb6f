# SPDX-License-Identifier: Apache-2.0
"""The evaluators share value types and data files, and not one line of deciding."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DECIDING = {
    "policy.deciding.gates",
    "policy.deciding.matching",
    "policy.deciding.decision",
    "policy.deciding.composition",
    "policy.deciding.licenses",
    "policy.deciding.remembered",
}
VALUES = {"oracle_answers"}
LIBRARIES = {
    "oracle_spec": set(),
    "oracle_sql": set(),
    "oracle_cedar": {"cedarpy"},
}
STANDARD = {
    "__future__",
    "collections",
    "functools",
    "hashlib",
    "itertools",
    "json",
    "pathlib",
    "re",
    "typing",
}


def imports(path: Path) -> set[str]:
    """The modules that a file names, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def reached(package: str) -> set[str]:
    """Every module of ``policy`` that a package of it loads, however indirectly."""
    waiting, seen = [package], set()
    while waiting:
        name = waiting.pop()
        if name in seen or not name.startswith("policy"):
            continue
        base = ROOT.joinpath(*name.split("."))
        file = next((one for one in (base.with_suffix(".py"), base / "__init__.py") if one.exists()), None)
        if file is not None:
            seen.add(name)
            waiting += imports(file)
    return seen


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_evaluator_imports_nothing_of_another_or_of_the_product(name: str) -> None:
    """Specification, SQL and Cedar know the form of answers, the standard library, and their engine."""
    named = imports(Path(__file__).with_name(f"{name}.py"))
    heads = {one.split(".")[0] for one in named}
    assert heads <= STANDARD | VALUES | LIBRARIES[name], heads


def test_the_compiled_snapshot_shares_no_rule_with_the_explaining_core() -> None:
    """What servers run by never loads the gates, and the gates never load it: two writings of one law."""
    assert not reached("policy.compiled.composer") & DECIDING
    for name in (
        "policy.deciding.gates",
        "policy.deciding.matching",
        "policy.deciding.licenses",
        "policy.deciding.decision",
    ):
        assert not any(one.startswith("policy.compiled") for one in reached(name)), name
