# SPDX-License-Identifier: Apache-2.0
"""Lets the tests of this folder import the modules they share (worlds, spec, town), and gives each a town."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tenants.accounts.database import Database

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def town(database: Database) -> Any:
    """A town on either engine."""
    from town import Town

    return Town(database)
