# SPDX-License-Identifier: Apache-2.0
"""The documents name things that exist."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from pathlib import Path

import click
import pytest

from cluster.cli.main import root
from cluster.settings import Settings

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


def test_the_operators_guide_lists_every_setting() -> None:
    """Its table has a row for each variable that is read, and for no other."""
    text = (ROOT / "docs/guides/operator.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `MARKETPLACE_")]
    listed = [name for row in rows for name in re.findall(r"`MARKETPLACE_(\w+)`", row)]
    assert sorted(listed) == sorted(name.upper() for name in Settings.model_fields)


def named_commands(text: str) -> list[str]:
    """What a page writes as code and calls a command: in lines of a shell, or between backticks."""
    fences = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(fences).replace("\\\n", " ").splitlines()
    called = [part for line in lines for part in line.split("$(") if "marketplace " in part]
    spans = [part for span in re.findall(r"`([^`]+)`", prose) for part in " ".join(span.split()).split("$(")]
    return [part[part.index("marketplace ") :].rstrip(") ") for part in called] + [
        part.rstrip(") ") for part in spans
    ]


def what_is_wrong(said: str) -> str:
    """Names the verb or option that the command line does not have; nothing if all is well or no command."""
    words = re.sub(r"^marketplace (--(json|(only|key|url) \S+) )*", "", said).split()
    context = click.Context(root)
    group = root.get_command(context, words[0]) if len(words) > 1 else None
    if not isinstance(group, click.Group) or not re.fullmatch(r"[a-z-]+", words[1]):
        return ""
    verb = group.get_command(context, words[1])
    if verb is None:
        return f"{said!r}: there is no verb {words[1]}"
    known = {name for one in verb.params for name in (*one.opts, *one.secondary_opts)}
    options = {word for word in words[2:] if re.fullmatch(r"--[a-z][a-z0-9-]*", word)}
    return f"{said!r}: there is no {options - known}" if options - known else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_documents_exist(page: Path) -> None:
    """Every noun with a verb that a document writes as code is a command, and has the options beside it."""
    said = named_commands(page.read_text(encoding="utf-8"))
    assert [wrong for wrong in map(what_is_wrong, said) if wrong] == []


def test_commands_that_do_not_exist_are_noticed() -> None:
    """A wrong verb and a wrong option are found in a shell's lines, inside others, and between backticks."""
    page = """`change bless`\n```sh\nX=$(marketplace --only id stop create --knd expert)
marketplace ask $(marketplace --json key lst)\n```\n`change show --json`, `stop list --overdue`\n"""
    wrong = [found for found in map(what_is_wrong, named_commands(page)) if found]
    assert len(wrong) == 4, wrong
