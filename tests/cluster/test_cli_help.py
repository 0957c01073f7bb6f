# SPDX-License-Identifier: Apache-2.0
"""Help teaches: every command has it, with an example that is set as it was written."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from cluster.cli.main import root


def _commands() -> Iterator[tuple[str, ...]]:
    context = click.Context(root)
    for name in root.list_commands(context):  # type: ignore[attr-defined]
        command = root.get_command(context, name)  # type: ignore[attr-defined]
        if isinstance(command, click.Group):
            for verb in command.list_commands(context):
                yield name, verb
        else:
            yield (name,)


@pytest.mark.parametrize("words", list(_commands()), ids=" ".join)
def test_every_command_teaches(words: tuple[str, ...]) -> None:
    """Help is printed, and no mark of the help's own formatting is left in it."""
    said = CliRunner().invoke(root, [*words, "--help"])
    assert said.exit_code == 0, said.output
    assert "\\b" not in said.output
    assert "\b" not in said.output


def test_examples_stand_on_lines_of_their_own() -> None:
    """An example is not run together into a paragraph."""
    said = CliRunner().invoke(root, ["base", "import", "--help"]).output
    assert any(line.strip().startswith("marketplace base import") for line in said.splitlines())
    assert "Example:\n" in said


@pytest.mark.parametrize("text", ["{", "@nowhere.json"])
@pytest.mark.parametrize(
    "words", [["audit", "verify", "--checkpoints"], ["job", "submit", "--recipe"]], ids=str
)
def test_what_is_no_json_is_a_usage_error(words: list[str], text: str) -> None:
    """JSON that cannot be read, or lies nowhere, ends in a sentence and not in a traceback."""
    said = CliRunner().invoke(root, [*words, text])
    assert said.exit_code == 2, said.output
    assert "expected JSON, or @file with JSON in it" in said.output
