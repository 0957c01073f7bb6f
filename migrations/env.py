# SPDX-License-Identifier: Apache-2.0
"""What Alembic runs for every command: takes the connection that ``migrations.upgrade`` opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
