# SPDX-License-Identifier: Apache-2.0
"""``marketplace database``: what an administrator of PostgreSQL does before ``up``.

The only command that opens the database itself: it runs where its owner's URL may be known, which is not
where the office runs.
"""

from __future__ import annotations

import click

from cluster.cli.context import Door


@click.group()
def database() -> None:
    """Make PostgreSQL's roles and upgrade its schema."""


@database.command()
def roles() -> None:
    """Print the SQL script that makes the roles, for somebody who may create roles.

    \b
    Example:
      marketplace database roles | psql -h db.example -U postgres postgres
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    from migrations.rights import roles_sql

    click.echo(roles_sql(), nl=False)


@database.command()
@click.pass_obj
def upgrade(door: Door) -> None:
    """Bring PostgreSQL's schema to this release, as the owner whom MARKETPLACE_MIGRATOR_DATABASE_URL names.

    \b
    Example:
      marketplace database upgrade
    """  # noqa: D301  (as above)
    import migrations
    from cluster.bootstrap import upgrade_database

    upgrade_database(door.settings)
    if door.settings.embedded_database:
        click.echo("The office upgrades the embedded database when it starts; there is nothing to do.")
    else:
        click.echo(f"The schema is at {migrations.head()}.")
