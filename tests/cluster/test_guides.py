# SPDX-License-Identifier: Apache-2.0
"""The sessions of the guides, run as they stand by the command line's own code against a town."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from string import Template
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.cli.main import root
from cluster.office.desk import now_us

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
NESTED = re.compile(r"\$\(marketplace ([^()]*)\)")
LINE = re.compile(r"(?:(?P<name>\w+)=)?(?P<words>.*?)(?: > (?P<file>\S+))?$")

#: Guide → words that its session has to print, in this order.
SESSIONS = {
    "compliance": (
        "draft",
        "proposed",
        "pending",
        "scheduled",
        "signed",
        "approved",
        "LEGAL_HOLD",
        "members",
    ),
    "owner": ("given", "purpose:education", "consent.withdraw", "trusted", "approved", "residual"),
    "developer": ("permit", "no_consent", "before", "after", "published_at_us"),
    "auditor": (
        "Every record holds.",
        "tail not proven",
        "row_path",
        "earlier_root",
        "equal",
        "proof holds.",
    ),
}


class Shell:
    """As much of a shell as the guides use: variables, commands inside others, files for what is printed."""

    def __init__(self, **variables: str) -> None:
        self._variables = variables

    def run(self, block: str) -> str:
        """Runs the lines of a block; returns what they printed."""
        return "".join(self._line(line) for line in block.replace("\\\n", " ").splitlines())

    def _line(self, line: str) -> str:
        if line.startswith("#"):
            return ""
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            self._variables[name] = Template(value).substitute(self._variables)
            return ""
        said = LINE.match(line)
        assert said, line
        words = NESTED.sub(lambda one: self._call(one[1]).strip(), said["words"])
        if said["name"]:
            self._variables[said["name"]] = words
            return ""
        printed = self._call(words.removeprefix("marketplace "))
        if said["file"]:
            Path(said["file"]).write_text(printed, encoding="utf-8")
            return ""
        return printed

    def _call(self, words: str) -> str:
        arguments = shlex.split(Template(words).substitute(self._variables))
        done = CliRunner().invoke(root, arguments, env=self._variables, standalone_mode=False)
        assert done.exception is None, f"{words}: {done.exception!r}\n{done.output}"
        return done.stdout


@pytest.mark.parametrize("guide", SESSIONS)
def test_the_session_of_a_guide_runs_as_it_stands(
    guide: str, town: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of a guide's session is taken, and what it is there to show is printed in turn."""
    monkeypatch.chdir(tmp_path)
    people = {"OWNER": "ada", "COLLEAGUE": "bob", "DEVELOPER": "dev", "AUDITOR": "aud"}
    people |= {"COMPLIANCE": "carol", "REVIEWER": "dora"}
    things = {"EXPERT": "expert", "DEPLOYMENT": "deployment", "CONSENT": "consent"}
    shell = Shell(
        MARKETPLACE_URL=town.url,
        MARKETPLACE_HOME=str(tmp_path / "nobody"),
        TOMORROW_US=str(now_us() + 86_400_000_000),
        **{name: town.keys[who] for name, who in people.items()},
        **{name: town.ids[what] for name, what in things.items()},
    )
    text = (ROOT / f"docs/guides/{guide}.md").read_text(encoding="utf-8")
    printed = "".join(shell.run(block) for block in BLOCK.findall(text))
    place = 0
    for word in SESSIONS[guide]:
        place = printed.find(word, place)
        assert place >= 0, f"{word!r} is missing in:\n{printed}"
