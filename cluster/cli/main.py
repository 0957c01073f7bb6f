# SPDX-License-Identifier: Apache-2.0
"""The command ``marketplace``: verbs by noun, over the same HTTP API that everyone else uses.

Commands for nouns are derived from the table of operations (``cluster.cli.derived``), so the command line
cannot lag behind the API; what a table cannot say (starting, asking, watching) has a file of its own.
Refusals are printed as one sentence with their code, and the exit code tells scripts their kind.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from cluster.cli.context import Door
from cluster.problems import problem_of
from model_core.errors import ProductError

#: Command → "module:attribute". Modules are imported when their command runs: ``--help`` stays quick.
_OWN_COMMANDS = {
    "up": "cluster.cli.house:up",
    "down": "cluster.cli.house:down",
    "status": "cluster.cli.house:status",
    "doctor": "cluster.cli.house:doctor",
    "ask": "cluster.cli.ask:ask",
    "evidence": "cluster.cli.evidence:evidence",
    "database": "cluster.cli.database:database",
}

_NOUNS = {
    "tenant": "tenants",
    "key": "keys",
    "base": "bases",
    "dataset": "datasets",
    "job": "jobs",
    "expert": "experts",
    "listing": "listings",
    "license": "licenses",
    "consent": "consents",
    "notice": "notices",
    "receipt": "receipts",
    "erasure": "erasures",
    "hold": "holds",
    "notification": "notifications",
    "grant": "grants",
    "rule": "rules",
    "change": "changes",
    "stop": "stops",
    "evaluation": "evaluations",
    "epoch": "epochs",
    "deployment": "deployments",
    "composition": "compositions",
    "decision": "decisions",
    "correction": "corrections",
    "register": "register",
    "usage": "usage",
    "ledger": "ledger",
    "audit": "audit",
}

_HELP = {
    "up": "Start the marketplace, or bring it up again after a crash.",
    "down": "Stop everything that `up` started.",
    "status": "Say what runs and how it is.",
    "doctor": "Check that this machine can run the marketplace.",
    "ask": "Ask a deployment and stream its answer.",
    "evidence": "Verify and compare evidence packs.",
    "database": "Make PostgreSQL's roles and upgrade its schema.",
}


class _Verbs(click.Group):
    """Lists all commands without importing them, and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [*_OWN_COMMANDS, *_NOUNS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name in _OWN_COMMANDS:
            module, _, attribute = _OWN_COMMANDS[cmd_name].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
        if cmd_name in _NOUNS:
            derived = import_module("cluster.cli.derived")
            noun: click.Command = derived.noun_group(cmd_name, _NOUNS[cmd_name])
            return noun
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("The house"):
            formatter.write_dl([(name, _HELP[name]) for name in _OWN_COMMANDS])
        with formatter.section("Nouns (each has its own --help)"):
            formatter.write_dl([(name, f"verbs on {plural}") for name, plural in _NOUNS.items()])


@click.command(cls=_Verbs)
@click.option(
    "--url", envvar="MARKETPLACE_URL", help="Address of the gateway (default: the one that runs here)."
)
@click.option("--key", envvar="MARKETPLACE_KEY", help="API key (default: this installation's operator key).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of tables.")
@click.option(
    "--only", metavar="FIELD", help="Print one field of the answer alone, e.g. id or result.expert_id."
)
@click.pass_context
def root(ctx: click.Context, url: str | None, key: str | None, as_json: bool, only: str | None) -> None:
    """A marketplace of experts that organisations train alone, permit, meter and withdraw.

    \b
    Example:
      marketplace up
      marketplace expert list
      marketplace ask research-desk "What is a monad?"
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    ctx.obj = Door(url=url, key=key, as_json=as_json, only=only)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; never shows a traceback for an expected refusal."""
    try:
        root.main(args=arguments, prog_name="marketplace", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ProductError as error:
        problem = problem_of(error)
        click.echo(f"{problem.code}: {problem.detail}", err=True)
        sys.exit(problem.exit_code)


if __name__ == "__main__":
    main()
