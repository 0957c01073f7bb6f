# SPDX-License-Identifier: Apache-2.0
"""Lets these tests import the modules they share (worlds, town, the oracles), and gives each a town."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tenants.accounts.database import Database

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "oracles")]


@pytest.fixture
def town(database: Database) -> Any:
    """A town on either engine."""
    from town import Town

    return Town(database)
