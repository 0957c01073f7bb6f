# SPDX-License-Identifier: Apache-2.0
"""The page of tables is the metadata's."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from register_diagram import PAGE, draw

from tenants.accounts.schema import Base


def test_the_page_of_tables_is_current() -> None:
    """Who changes a table draws the page anew: python tests/architecture/register_diagram.py."""
    assert PAGE.read_text(encoding="utf-8") == draw()


def test_the_page_shows_every_table_and_every_foreign_key() -> None:
    """Nothing of the metadata is left out of the drawing."""
    page = draw()
    for table in Base.metadata.tables.values():
        assert f"    {table.name} {{\n" in page
        for key in table.foreign_key_constraints:
            drawn = [
                line for line in page.splitlines() if f"{key.referred_table.name} " in line and "--" in line
            ]
            assert any(f" {table.name} : " in line for line in drawn), (table.name, key.column_keys)
