# SPDX-License-Identifier: Apache-2.0
"""The documents name things that exist."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cluster", "policy", "tenants", "model_core", "migrations")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def glossary() -> list[tuple[str, str]]:
    """Nouns and the classes that they are."""
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    return re.findall(r"^\| ([A-Z][^|]+?) \| `([\w.]+)` \|", text, re.MULTILINE)


@pytest.mark.parametrize(("noun", "path"), glossary())
def test_every_noun_of_the_glossary_is_a_class(noun: str, path: str) -> None:
    """The class that the glossary names for a noun exists."""
    module, _, name = path.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type), noun


def test_the_tree_in_the_readme_is_the_tree() -> None:
    """The README lists every folder of the repository, and no other."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE))
    ignored = {"build", "dist"}
    found = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__")) and path.name not in ignored
    }
    assert listed == {name for name in found if any((ROOT / name).iterdir())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    """Every relative link and picture of a document exists."""
    targets = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_no_other_distribution_owns_our_package_names() -> None:
    """Nothing else that is installed brings a package of one of our five names."""
    owners = importlib.metadata.packages_distributions()
    foreign = {
        name: [owner for owner in owners.get(name, ()) if owner != "expert-marketplace"] for name in PACKAGES
    }
    assert {name: found for name, found in foreign.items() if found} == {}


def test_every_operation_has_a_command() -> None:
    """The command line has a noun for every noun of the table but the two that it says in other words."""
    from cluster.cli.main import _NOUNS
    from cluster.operations.catalogue import OPERATIONS

    assert {row.noun for row in OPERATIONS.values()} - set(_NOUNS.values()) == {"me", "status"}
