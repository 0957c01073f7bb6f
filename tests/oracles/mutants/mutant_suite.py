# SPDX-License-Identifier: Apache-2.0
"""What kills a mutant: worlds with written answers, and the tests of the deciding core.

Runs in a process that holds nothing of the product yet, with one module's source exchanged.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
TESTS = (
    "test_deciding_edges",
    "test_golden_decisions",
    "test_composition",
    "test_licenses",
    "test_vocabulary",
    "test_compiled",
    "test_compiled_replay",
    "test_decision_laws",
    "test_laws_in_the_register",
)


class Exchanged(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from other source."""

    def __init__(self, module: str, source: str) -> None:
        self._module, self._source = module, source

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Answers for the one module."""
        if name != self._module:
            return None
        return importlib.util.spec_from_loader(name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the other source."""
        exec(compile(self._source, f"<mutant of {self._module}>", "exec"), module.__dict__)  # noqa: S102


def killed_by(module: str, source: str, worlds: Path | None) -> str:
    """Who of the worlds, or without any of the tests, notices the mutant; empty for nobody."""
    assert not any(name.split(".")[0] == "policy" for name in sys.modules)
    sys.meta_path.insert(0, Exchanged(module, source))
    try:
        return _worlds(worlds) if worlds else _tests()
    except Exception as error:  # a mutant that breaks is noticed like one that answers wrongly
        return f"error: {type(error).__name__}"


def _worlds(path: Path) -> str:
    import oracle_product

    from policy.deciding.questions import Question
    from policy.facts.snapshot import Snapshot

    for entry in pickle.loads(path.read_bytes()):  # noqa: S301 - written by this very run
        snapshot = Snapshot.model_validate_json(entry["world"])
        question = Question(deployment="lab", at_us=entry["at_us"])
        answer, full = oracle_product.explained(snapshot, question)
        if answer != entry["answer"] or (full.digest, full.top_k) != entry["what_runs"]:
            return f"world {entry['name']}"
        if entry["because"] not in (None, oracle_product.because(full)):
            return f"reasons in {entry['name']}"
        served, bare = oracle_product.served(snapshot, question)
        if served != entry["served"] or (bare.digest, bare.top_k) != entry["what_runs"]:
            return f"world {entry['name']}, compiled"
        if bare.obligations != full.obligations:
            return f"obligations in {entry['name']}"
    return ""


def _tests() -> str:
    import pytest
    from hypothesis import Phase, settings

    # That something fails is enough to know; making the example small would take most of the time.
    register = settings.register_profile
    phases = (Phase.explicit, Phase.generate)
    # The class refuses assignments of its own.
    type.__setattr__(
        settings, "register_profile", lambda name, **said: register(name, **{**said, "phases": phases})
    )
    os.chdir(ROOT)
    files = [f"tests/policy/{name}.py" for name in TESTS if (ROOT / f"tests/policy/{name}.py").exists()]
    options = [
        "-x",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-p",
        "no:schemathesis",
    ]
    code = pytest.main([*options, *files])
    return "" if code == 0 else f"tests ({int(code)})"
